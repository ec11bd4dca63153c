// expand_operands: an int8 sum or product gets a broadcast operand in the size of the other one.
//
// Before:
//   %y = quantized::mul(%x, %factors, s, z)
// After:
//   %e = aten::expand_as(%factors, %x); %f = aten::contiguous(%e, 2)
//   %y = quantized::mul(%x, %f, s, z)
//
// The kernels take a broadcast operand pixel by pixel, and what is left of its channels after whole
// vectors of 64 bytes one by one, for 2 ns each. Equal sizes they take as one row. The copy costs a
// few microseconds. Values are the same.
//
// Needs:  lower, which marks the ops for which calibration saw that it is worth it.
// Leaves: operands that no convolution gives, which may not be channels-last.

#include "ir_util.h"
#include "passes/passes.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

// Whether an int8 convolution gives the value, or what the ops between work on first.
bool comesFromConvolution(const Value* value) {
  for (const Node* node = value->node();; node = node->input(0)->node()) {
    if (std::string(node->kind().toQualString()).rfind("quantized::conv", 0) == 0) return true;
    if (node->inputs().empty() || !isTensor(node->input(0))) return false;
  }
}

}  // namespace

void expandOperands(Program& program) {
  for (Method& method : program.methods) {
    for (Node* node : allNodes(*method.graph)) {
      if (!mark(node, kBroadcastMark) || !comesFromConvolution(node->input(0))) continue;
      Value* expanded = insertOp(node, c10::aten::expand_as, {node->input(1), node->input(0)});
      Value* format =
          insertConstantBefore(node, static_cast<int64_t>(at::MemoryFormat::ChannelsLast));
      node->replaceInput(1, insertOp(node, c10::aten::contiguous, {expanded, format}));
    }
  }
}

}  // namespace jitquant

// insert_dynamic_qdq: what a dynamic layer does to its values, in float.
//
// Before:
//   %y = aten::linear(%x, %w, %b)
// After, with int8 weights:
//   %xq = aten::quantize_per_tensor_dynamic(%x, quint8, False); %xd = aten::dequantize(%xq)
//   %wq = aten::quantize_per_channel(%w, ss, zs, 0, qint8); %wd = aten::dequantize(%wq)
//   %y = aten::linear(%xd, %wd, %b)
// After, with float16 weights:
//   %wh = aten::to(%w, float16, ...); %wf = aten::to(%wh, float32, ...)
//   %y = aten::linear(%x, %wf, %b)
// An LSTM or GRU has all weights of its list rounded. Its op also quantizes hidden states and what
// one layer hands to the next, which stay as they are here.
//
// Needs:  plan.
// Leaves: static ops, which are insert_qdq's.

#include "dynamic.h"
#include "ir_util.h"
#include "passes/passes.h"
#include "plan.h"
#include "qparams.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

Value* castTo(Value* value, at::ScalarType dtype, Node* before) {
  Value* no = insertConstantBefore(before, false);
  Value* code = insertConstantBefore(before, static_cast<int64_t>(dtype));
  return insertOp(before, c10::aten::to,
                  {value, code, no, no, insertConstantBefore(before, at::IValue())});
}

void roundToHalf(const WeightUse& use) {
  Value* half = castTo(use.value(), at::kHalf, use.reader);
  use.reader->replaceInput(use.input, castTo(half, at::kFloat, use.reader));
}

void roundInput(Node* layer, size_t index, bool reduce_range) {
  Value* dtype = insertConstantBefore(layer, static_cast<int64_t>(at::kQUInt8));
  Value* quantized =
      insertOp(layer, c10::Symbol::aten("quantize_per_tensor_dynamic"),
               {layer->input(index), dtype, insertConstantBefore(layer, reduce_range)});
  layer->replaceInput(index, insertOp(layer, c10::aten::dequantize, {quantized}));
}

}  // namespace

void insertDynamicQdq(Program& program) {
  for (Method& method : program.methods) {
    for (Node* node : allNodes(*method.graph)) {
      if (method.plan->dynamic.count(node) == 0) continue;
      const ObserverPair& qconfig = program.qconfigs[program.records[*mark(node, kOpMark)].qconfig];
      const bool is_half = qconfig.activations == Activations::kFloat;
      if (!is_half) roundInput(node, findRow(node)->data[0], qconfig.reduce_range);
      for (const WeightUse& use : weightUses(node)) {
        if (is_half) {
          roundToHalf(use);
        } else {
          insertWeightPair(use.reader, use.input, qconfig, program);
        }
      }
    }
  }
}

}  // namespace jitquant

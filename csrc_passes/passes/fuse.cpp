// fuse: a value that is dequantized and quantized again with the same qparams stays as it is.
//
// Before:
//   %d = aten::dequantize(%q); %r = aten::quantize_per_tensor(%d, s, z, quint8)   %q has s and z
// After:
//   uses of %r read %q
//
// Needs:  verify.
// Leaves: pairs with different or unknown qparams.

#include "dead_code.h"
#include "ir_util.h"
#include "nodes.h"
#include "passes/passes.h"
#include "qparams.h"

namespace jitquant {

using jit::Node;
using jit::Value;

void fuse(Program& program) {
  for (Method& method : program.methods) {
    const auto quantizes = [](const Node* node) {
      return node->kind() == c10::aten::quantize_per_tensor;
    };
    for (Node* node : nodesWhere(*method.graph, quantizes)) {
      Node* producer = node->input(0)->node();
      if (producer->kind() != c10::aten::dequantize) continue;
      Value* source = producer->input();
      const auto before = isTensor(source) ? qparamsOf(source, program) : std::nullopt;
      const auto after = staticQParams(node->output());
      if (areEqual(before, after)) node->output()->replaceAllUsesWith(source);
    }
    eliminateDeadCode(method.graph);
  }
}

}  // namespace jitquant

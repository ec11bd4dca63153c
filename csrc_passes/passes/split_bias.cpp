// split_bias: a bias that is computed at run time, which nobody can pack with the weight, is added
// behind the layer.
//
// Before:
//   %y = aten::linear(%x, %w, %computed); %z = aten::conv2d(%y, %v, %computed, ...)
// After:
//   %p = aten::linear(%x, %w, None); %y = aten::add(%p, %computed, 1)
//   %q = aten::conv2d(%y, %v, None, ...)
//   %b = aten::view(%computed, [-1, 1, 1]); %z = aten::add(%q, %b, 1)
//
// Needs:  fold_weights, which computes biases that are made of constants, and canonicalize_linear.
// Leaves: layers whose weight is computed too, which stay float.

#include "ir_util.h"
#include "passes/passes.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

void split(Node* layer, const at::Tensor& weight) {
  Value* bias = layer->input(2);
  // The channels of a convolution come before its spatial dimensions.
  std::vector<int64_t> shape(layer->kind() == c10::aten::linear ? 1 : weight.dim() - 1, 1);
  shape[0] = -1;
  if (shape.size() > 1) {
    bias = insertOp(layer, c10::aten::view, {bias, insertConstantBefore(layer, shape)});
  }
  layer->replaceInput(2, insertConstantBefore(layer, at::IValue()));
  Node* add = layer->owningGraph()->create(c10::aten::add,
                                           {layer->output(), bias, insertConstantBefore(layer, 1)});
  copyOrigin(add, layer)->insertAfter(layer);
  add->output()->copyMetadata(layer->output());
  layer->output()->replaceAllUsesAfterNodeWith(add, add->output());
}

}  // namespace

void splitBias(Program& program) {
  for (Method& method : program.methods) {
    for (Node* node : allNodes(*method.graph)) {
      if (!isLayer(node) || !isTensor(node->input(2))) continue;
      const auto weight = constantTensor(node->input(1), program.module);
      if (!weight || constantTensor(node->input(2), program.module)) continue;
      split(node, *weight);
    }
  }
}

}  // namespace jitquant

#include "group_padding.h"

#include <algorithm>

#include "ir_util.h"
#include "op_table.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

// Ops that treat every channel alike, and have no other tensor.
bool isElementwise(const Node* node) {
  const auto kind = node->kind();
  return activationBounds(node) || kind == c10::aten::hardswish || kind == c10::aten::leaky_relu ||
         kind == c10::aten::elu || kind == c10::aten::silu || kind == c10::aten::gelu;
}

bool isOfOneGroup(const Node* node, const jit::Module& module) {
  return isConv(node) && !isLeftFloat(node) && constantNumber(node->input(6)) == 1.0 &&
         constantTensor(node->input(1), module) &&
         (isNone(node->input(2)) || constantTensor(node->input(2), module));
}

}  // namespace

std::optional<GroupNeighbours> groupNeighbours(const Node* conv, const jit::Module& module) {
  GroupNeighbours found;
  for (Value* value = const_cast<Node*>(conv)->input(0);; value = found.giver->input(0)) {
    if (!hasOneUse(value)) return std::nullopt;
    found.giver = value->node();
    found.inputs.push_back(value);
    if (!isElementwise(found.giver)) break;
  }
  if (!isOfOneGroup(found.giver, module)) return std::nullopt;
  Value* output = const_cast<Node*>(conv)->output();
  found.outputs.push_back(output);
  while (hasOneUse(output) && isElementwise(output->uses()[0].user)) {
    output = output->uses()[0].user->output();
    found.outputs.push_back(output);
  }
  for (const jit::Use& use : output->uses()) {
    if (use.offset != 0 || !isOfOneGroup(use.user, module)) return std::nullopt;
    found.takers.push_back(use.user);
  }
  return found;
}

}  // namespace jitquant

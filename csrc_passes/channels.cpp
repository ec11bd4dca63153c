#include "channels.h"

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

Node* channelGiver(Value* value, const jit::Module& module, std::vector<Value*>* between) {
  while (hasOneUse(value)) {
    if (between != nullptr) between->push_back(value);
    if (!isElementwise(value->node())) {
      return isOfOneGroup(value->node(), module) ? value->node() : nullptr;
    }
    value = value->node()->input(0);
  }
  return nullptr;
}

std::optional<GroupNeighbours> groupNeighbours(const Node* conv, const jit::Module& module) {
  GroupNeighbours found;
  found.giver = channelGiver(const_cast<Node*>(conv)->input(0), module, &found.inputs);
  if (found.giver == nullptr) return std::nullopt;
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

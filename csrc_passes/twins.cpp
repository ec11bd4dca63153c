#include "twins.h"

#include <torch/csrc/jit/ir/constants.h>

#include <sstream>

#include "ir_util.h"

namespace jitquant {

using jit::Node;
using jit::Value;

Twins::Twins(jit::Graph& graph) {
  for (const Value* input : graph.inputs()) number(input, input->debugName());
  for (const Node* node : allNodes(graph)) {
    // A node with blocks has no twin.
    const std::string signature =
        node->blocks().empty() ? signatureOf(node) : "node" + std::to_string(known_.size());
    for (const jit::Block* block : node->blocks()) {
      for (const Value* input : block->inputs()) number(input, input->debugName());
    }
    for (size_t i = 0; i < node->outputs().size(); ++i) {
      number(node->output(i), signature + "#" + std::to_string(i));
    }
  }
}

void Twins::number(const Value* value, const std::string& signature) {
  const size_t number = known_.emplace(signature, known_.size()).first->second;
  if (number == counts_.size()) counts_.push_back(0);
  ++counts_[number];
  numbers_[value] = number;
}

std::string Twins::signatureOf(const Node* node) const {
  if (node->kind() == c10::prim::GetAttr) return "constant";
  std::ostringstream text;
  text << node->kind().toQualString();
  if (node->kind() == c10::prim::Constant) {
    const auto value = jit::toIValue(node->output());
    if (!value || value->isTensor()) return "constant";
    text << *value;
  }
  for (const Value* input : node->inputs()) text << "," << numbers_.at(input);
  return text.str();
}

}  // namespace jitquant

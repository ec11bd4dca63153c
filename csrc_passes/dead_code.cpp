#include "dead_code.h"

#include <torch/csrc/jit/passes/dead_code_elimination.h>

#include <algorithm>

#include "ir_util.h"

namespace jitquant {

using jit::Node;

namespace {

// A normalization in training mode writes its running statistics, which its schema does not say.
bool mayTrain(const Node* node) {
  const bool normalizes =
      node->kind() == c10::aten::batch_norm || node->kind() == c10::aten::instance_norm;
  return normalizes && constantNumber(node->input(5)) != 0.0;
}

bool mayWrite(const Node* node) {
  const c10::FunctionSchema* schema = node->maybeSchema();
  return node->kind() == c10::prim::SetAttr || (schema != nullptr && schema->is_mutable()) ||
         mayTrain(node);
}

}  // namespace

void eliminateDeadCode(const std::shared_ptr<jit::Graph>& graph) {
  const std::vector<Node*> nodes = allNodes(*graph);
  if (std::any_of(nodes.begin(), nodes.end(), mayWrite)) {
    jit::EliminateDeadCode(graph);
  } else {
    jit::EliminateDeadCode(graph->block());
  }
}

}  // namespace jitquant

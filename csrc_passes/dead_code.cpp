#include "dead_code.h"

#include <torch/csrc/jit/passes/dead_code_elimination.h>

#include <algorithm>

#include "ir_util.h"
#include "nodes.h"

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

// Without such a node there is nothing to remove: of nodes that need only each other one is in a
// loop, which then gives what nobody reads.
bool mayBeDead(const Node* node) {
  const auto outputs = node->outputs();
  return outputs.empty() ||
         std::any_of(outputs.begin(), outputs.end(),
                     [](const jit::Value* output) { return output->uses().empty(); });
}

}  // namespace

void eliminateDeadCode(const std::shared_ptr<jit::Graph>& graph) {
  if (!anyNode(graph->block(), mayBeDead)) return;
  if (anyNode(graph->block(), mayWrite)) {
    jit::EliminateDeadCode(graph);
  } else {
    jit::EliminateDeadCode(graph->block());
  }
}

}  // namespace jitquant

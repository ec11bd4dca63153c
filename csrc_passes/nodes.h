#pragma once
// Walks over a graph that keep few nodes or none. A pass that looks at each node of a long graph
// spends its time waiting for memory, twice if it lists them all first.

#include <torch/csrc/jit/ir/ir.h>

#include <vector>

namespace jitquant {

// Whether some node is such, nested blocks included.
template <typename Predicate>
bool anyNode(const torch::jit::Block* block, const Predicate& is_such) {
  for (const torch::jit::Node* node : block->nodes()) {
    if (is_such(node)) return true;
    for (const torch::jit::Block* inner : node->blocks()) {
      if (anyNode(inner, is_such)) return true;
    }
  }
  return false;
}

template <typename Predicate>
void appendNodes(torch::jit::Block* block, const Predicate& is_such,
                 std::vector<torch::jit::Node*>& nodes) {
  for (torch::jit::Node* node : block->nodes()) {
    if (is_such(node)) nodes.push_back(node);
    for (torch::jit::Block* inner : node->blocks()) appendNodes(inner, is_such, nodes);
  }
}

// The nodes that are such, nested blocks included, in execution order.
template <typename Predicate>
std::vector<torch::jit::Node*> nodesWhere(torch::jit::Graph& graph, const Predicate& is_such) {
  std::vector<torch::jit::Node*> nodes;
  appendNodes(graph.block(), is_such, nodes);
  return nodes;
}

}  // namespace jitquant

#include "known_sizes.h"

#include <limits>

#include "ir_util.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

// The input that says which dimension an op cuts; nullopt for other ops.
std::optional<size_t> dimensionInput(const Node* node) {
  switch (node->kind()) {
    case c10::aten::slice:
    case c10::aten::narrow:
      return 1;
    case c10::aten::split:
    case c10::aten::split_with_sizes:
    case c10::aten::chunk:
      return 2;
    default:
      return std::nullopt;
  }
}

bool isWholeSlice(const Node* node) {
  if (node->kind() != c10::aten::slice || constantNumber(node->input(4)) != 1.0) return false;
  const bool from_start = isNone(node->input(2)) || constantNumber(node->input(2)) == 0.0;
  const auto end = jit::toIValue(node->input(3));
  const bool to_end = end && (end->isNone() || *end == std::numeric_limits<int64_t>::max());
  return from_start && to_end;
}

// The number of columns of a constant matrix, or of some of its rows.
std::optional<int64_t> columns(const Value* matrix, const jit::Module& module) {
  if (const auto tensor = constantTensor(matrix, module)) {
    return tensor->dim() == 2 ? std::optional(tensor->size(1)) : std::nullopt;
  }
  const Node* node = matrix->node();
  if (node->kind() == c10::prim::ListUnpack || node->kind() == c10::aten::__getitem__) {
    node = node->input(0)->node();
  }
  const auto dimension = dimensionInput(node);
  if (!dimension) return std::nullopt;
  const bool cuts_rows = constantNumber(node->input(*dimension)) == 0.0;
  return cuts_rows || isWholeSlice(node) ? columns(node->input(0), module) : std::nullopt;
}

// What reads the size of the last dimension of `tensor`.
std::vector<const Value*> lastSizes(const Value* tensor) {
  std::vector<const Value*> sizes;
  for (const jit::Use& use : tensor->uses()) {
    const Node* size = use.user;
    if (size->kind() != c10::aten::size) continue;
    if (size->inputs().size() == 2) {
      if (constantNumber(size->input(1)) == -1.0) sizes.push_back(size->output());
      continue;
    }
    for (const jit::Use& reader : size->output()->uses()) {
      const Node* node = reader.user;
      if (node->kind() == c10::prim::ListUnpack) {
        sizes.push_back(node->outputs().back());
      } else if (node->kind() == c10::aten::__getitem__ && constantNumber(node->input(1)) == -1.0) {
        sizes.push_back(node->output());
      }
    }
  }
  return sizes;
}

}  // namespace

KnownSizes::KnownSizes(jit::Graph& graph, const jit::Module& module) {
  for (Node* node : allNodes(graph)) {
    if (node->kind() != c10::aten::linear) continue;
    const auto size = columns(node->input(1), module);
    if (!size) continue;
    for (const Value* value : lastSizes(node->input(0))) {
      known_[node->owningBlock()].emplace_back(value, *size);
    }
  }
}

std::vector<KnownSize> KnownSizes::in(const jit::Block* block) const {
  std::vector<KnownSize> sizes;
  while (block != nullptr) {
    const auto found = known_.find(block);
    if (found != known_.end()) {
      sizes.insert(sizes.end(), found->second.begin(), found->second.end());
    }
    const Node* owner = block->owningNode();
    block = owner == nullptr ? nullptr : owner->owningBlock();
  }
  return sizes;
}

}  // namespace jitquant

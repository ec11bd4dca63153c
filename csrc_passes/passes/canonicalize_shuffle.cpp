// canonicalize_shuffle: channels that are shuffled by two views become one op, which has a fast
// int8 form on channels-last tensors.
//
// Before:
//   %n, %c, %h, %w = prim::ListUnpack(aten::size(%x)); %m = aten::floordiv(%c, %two)
//   %v = aten::view(%x, [%n, 2, %m, %h, %w]); %t = aten::transpose(%v, 1, 2)
//   %k = aten::contiguous(%t); %y = aten::view(%k, [%n, %c, %h, %w])
// After:
//   %s = aten::channel_shuffle(%x, 2); %y = aten::clone(%s, contiguous)
//
// Needs:  functionalize.
// Leaves: views of other sizes than those of %x, and a %x of which it is not known that it has four
//         dimensions. The clone keeps the float model's layout; in int8 it costs nothing.

#include <algorithm>
#include <unordered_set>

#include "alias.h"
#include "dead_code.h"
#include "ir_util.h"
#include "nodes.h"
#include "op_table.h"
#include "passes/passes.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

bool isView(const Node* node) {
  return (node->kind() == c10::aten::view || node->kind() == c10::aten::reshape) &&
         node->input(1)->node()->kind() == c10::prim::ListConstruct;
}

// Whether it is the size of `x` in that dimension. If it is read together with those of all others,
// x has as many dimensions as `unpacked` says.
bool isSizeOf(const Value* value, const Value* x, int64_t dim, size_t* unpacked) {
  const Node* node = value->node();
  if (node->kind() == c10::prim::ListUnpack && node->input()->node()->kind() == c10::aten::size) {
    const Node* sizes = node->input()->node();
    *unpacked = node->outputs().size();
    return sizes->inputs().size() == 1 && sizes->input(0) == x &&
           value->offset() == static_cast<size_t>(dim);
  }
  return node->kind() == c10::aten::size && node->inputs().size() == 2 && node->input(0) == x &&
         constantNumber(node->input(1)) == static_cast<double>(dim);
}

// Whether it has three or four dimensions, since a convolution gives it.
bool isOfConvolution(const Value* value, std::unordered_set<const Node*>& seen) {
  const Node* node = value->node();
  if (node->kind() == c10::aten::conv2d) return true;
  if (activationBounds(node) || node->kind() == c10::aten::batch_norm) {
    return isOfConvolution(node->input(0), seen);
  }
  if (node->kind() != c10::aten::cat || !seen.insert(node).second) return false;
  const Node* list = node->input(0)->node();
  if (list->kind() != c10::prim::ListConstruct) return false;
  const auto elements = list->inputs();  // all of one rank
  return std::any_of(elements.begin(), elements.end(),
                     [&](const Value* element) { return isOfConvolution(element, seen); });
}

bool swapsGroups(const Node* node) {
  if (node->kind() != c10::aten::transpose) return false;
  const auto first = constantNumber(node->input(1));
  const auto second = constantNumber(node->input(2));
  return (first == 1.0 && second == 2.0) || (first == 2.0 && second == 1.0);
}

Node* onlyUser(const Node* node) {
  return hasOneUse(node->output()) ? node->output()->uses()[0].user : nullptr;
}

// The last view of a shuffle that begins with `first`; null if it is none.
Node* endOfShuffle(const Node* first) {
  const Node* node = onlyUser(first);
  if (node == nullptr || !swapsGroups(node)) return nullptr;
  Node* last = onlyUser(node);
  if (last != nullptr && last->kind() == c10::aten::contiguous) last = onlyUser(last);
  if (last == nullptr || !isView(last)) return nullptr;
  const Value* x = first->input(0);
  const auto apart = first->input(1)->node()->inputs();
  const auto together = last->input(1)->node()->inputs();
  if (apart.size() != 5 || together.size() != 4) return nullptr;
  size_t unpacked = 0;
  for (const int64_t dim : {0, 2, 3}) {
    if (!isSizeOf(together[dim], x, dim, &unpacked)) return nullptr;
    if (!isSizeOf(apart[dim == 0 ? 0 : dim + 1], x, dim, &unpacked)) return nullptr;
  }
  const bool all_channels =
      constantNumber(together[1]) == -1.0 || isSizeOf(together[1], x, 1, &unpacked);
  if (!all_channels || constantNumber(apart[1]).value_or(0) < 2) return nullptr;
  std::unordered_set<const Node*> seen;
  return unpacked == 4 || isOfConvolution(x, seen) ? last : nullptr;
}

}  // namespace

void canonicalizeShuffle(Program& program) {
  for (Method& method : program.methods) {
    std::vector<std::pair<Node*, Node*>> shuffles;  // first and last views
    for (Node* first : nodesWhere(*method.graph, isView)) {
      if (Node* last = endOfShuffle(first)) shuffles.emplace_back(first, last);
    }
    if (shuffles.empty()) continue;
    const Aliases aliases(*method.graph, program.module);
    const auto is_written = [&](const auto& shuffle) {
      return aliases.isWritten(shuffle.second->output());
    };
    shuffles.erase(std::remove_if(shuffles.begin(), shuffles.end(), is_written), shuffles.end());
    for (const auto& [first, last] : shuffles) {
      Value* groups = first->input(1)->node()->input(1);
      Value* shuffled =
          insertOp(last, c10::Symbol::aten("channel_shuffle"), {first->input(0), groups});
      Value* format =
          insertConstantBefore(last, static_cast<int64_t>(at::MemoryFormat::Contiguous));
      replaceWithOp(last, c10::aten::clone, {shuffled, format});
    }
    eliminateDeadCode(method.graph);
  }
}

}  // namespace jitquant

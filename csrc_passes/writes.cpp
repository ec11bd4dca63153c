#include "writes.h"

#include <algorithm>

#include "ir_util.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

// Instructions that hand tensors on, and keep none of them beyond the run.
bool handsOn(const Node* node) {
  static constexpr c10::Symbol kinds[] = {
      c10::prim::If,         c10::prim::Loop,           c10::prim::ListConstruct,
      c10::prim::ListUnpack, c10::prim::TupleConstruct, c10::prim::TupleUnpack,
      c10::prim::TupleIndex, c10::prim::unchecked_cast, c10::prim::Return};
  return std::find(std::begin(kinds), std::end(kinds), node->kind()) != std::end(kinds);
}

bool isPure(const Node* node) {
  return handsOn(node) || (node->maybeSchema() != nullptr && !node->hasSideEffects());
}

bool contains(const jit::Block* outer, const jit::Block* block) {
  while (block != nullptr && block != outer) {
    const Node* owner = block->owningNode();
    block = owner == nullptr ? nullptr : owner->owningBlock();
  }
  return block != nullptr;
}

bool contains(const Node* outer, const Node* node) {
  return std::any_of(outer->blocks().begin(), outer->blocks().end(),
                     [&](const jit::Block* block) { return contains(block, node->owningBlock()); });
}

// The node of `block` that is or contains `node`; null if there is none.
const Node* ancestorIn(const jit::Block* block, const Node* node) {
  while (node != nullptr && node->owningBlock() != block) {
    node = node->owningBlock()->owningNode();
  }
  return node;
}

// Whether `user` may read, behind `write`, what `value` held before it.
bool mayReadBehind(const Node* user, const Node* write, const Value* value) {
  const jit::Block* common = write->owningBlock();
  while (ancestorIn(common, user) == nullptr) common = common->owningNode()->owningBlock();
  const Node* first = ancestorIn(common, write);
  const Node* second = ancestorIn(common, user);
  if (first != second && second->isAfter(first)) return true;
  // In the next round of a loop around both, unless each round has a value of its own.
  for (const jit::Block* block = common; block->owningNode() != nullptr;
       block = block->owningNode()->owningBlock()) {
    const bool is_loop = block->owningNode()->kind() == c10::prim::Loop;
    if (is_loop && !contains(block, value->node()->owningBlock())) return true;
  }
  return false;
}

// Whether `value` is made after `write` has run, and so of what it left.
bool isMadeBehind(const Value* value, const Node* write) {
  const Node* producer = value->node();
  if (producer->kind() == c10::prim::Param) {
    producer = producer->owningBlock()->owningNode();
    return !contains(producer, write) && mayReadBehind(producer, write, value);
  }
  return producer == write || contains(producer, write) || mayReadBehind(producer, write, value);
}

// The tensor that `write` writes, under all the names that in-place ops before it gave it.
std::vector<const Value*> namesOf(const Node* write) {
  std::vector<const Value*> names{write->input(0)};
  for (const Node* node = write->input(0)->node();; node = node->input(0)->node()) {
    const c10::FunctionSchema* schema = node->maybeSchema();
    if (schema == nullptr || schema->arguments().empty() || node->outputs().size() != 1 ||
        !isTensor(node->output())) {
      return names;
    }
    const c10::AliasInfo* first = schema->arguments()[0].alias_info();
    if (first == nullptr || !first->isWrite()) return names;
    names.push_back(node->input(0));
  }
}

}  // namespace

Writes::Writes(jit::Graph& graph, const jit::Module& module) : aliases_(graph, module) {}

// Whether memory was made in this run of the graph, and stays in it.
bool Writes::isOfThisRun(const Value* value) const {
  const Node* producer = value->node();
  const bool is_input = producer->kind() == c10::prim::Param;
  if (is_input && producer->owningBlock()->owningNode() == nullptr) return false;
  if (!is_input && !isPure(producer)) return false;
  return std::all_of(value->uses().begin(), value->uses().end(),
                     [](const jit::Use& use) { return isPure(use.user); });
}

std::optional<std::vector<jit::Use>> Writes::readsBehind(const Node* write) const {
  const std::vector<const Value*> names = namesOf(write);
  std::vector<jit::Use> reads;
  for (const Value* alias : aliases_.aliasesOf(write->input(0))) {
    if (!isOfThisRun(alias)) return std::nullopt;
    if (isMadeBehind(alias, write)) continue;
    const bool is_name = std::find(names.begin(), names.end(), alias) != names.end();
    for (const jit::Use& use : alias->uses()) {
      if (use.user == write || !mayReadBehind(use.user, write, alias)) continue;
      const Node* reader = ancestorIn(write->owningBlock(), use.user);
      const bool always_follows = reader != nullptr && reader != write && reader->isAfter(write);
      if (!is_name || !always_follows) return std::nullopt;
      reads.push_back(use);
    }
  }
  return reads;
}

}  // namespace jitquant

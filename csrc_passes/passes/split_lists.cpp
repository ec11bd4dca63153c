// split_lists: each reader of a list that grows gets a list of its own, with what is in it then.
//
// Before:
//   %l = prim::ListConstruct(%x); %a = aten::cat(%l, %one)
//   aten::append(%l, %y); %b = aten::cat(%l, %one)
// After:
//   %l = prim::ListConstruct(%x); %a = aten::cat(%l, %one)
//   %m = prim::ListConstruct(%x, %y); %b = aten::cat(%m, %one)
//
// Needs:  functionalize, which joins appends that stand together.
// Leaves: lists that are returned or kept, that a block or an unknown op gets, or that grow in
//         another block than that in which they are made.

#include <algorithm>

#include "ir_util.h"
#include "passes/passes.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

bool appends(const jit::Use& use) {
  return use.user->kind() == c10::aten::append && use.offset == 0 &&
         use.user->output()->uses().empty();
}

// Whether a copy of the list serves as well.
bool readsElements(const jit::Use& use) {
  const auto kind = use.user->kind();
  if (kind == c10::prim::ListUnpack || kind == c10::aten::__getitem__) return true;
  const c10::FunctionSchema* schema = use.user->maybeSchema();
  return schema != nullptr && kind.is_aten() && use.offset < schema->arguments().size() &&
         schema->arguments()[use.offset].alias_info() == nullptr;
}

// The node of the block that holds `node`, or is it; null where none does.
const Node* nodeIn(const jit::Block* block, const Node* node) {
  while (node != nullptr && node->owningBlock() != block) node = node->owningBlock()->owningNode();
  return node;
}

void split(Node* construct) {
  const auto uses = construct->output()->uses();
  const jit::Block* block = construct->owningBlock();
  std::vector<Node*> growth;
  std::vector<jit::Use> readers;
  for (const jit::Use& use : uses) {
    if (appends(use) && use.user->owningBlock() == block) {
      growth.push_back(use.user);
    } else if (readsElements(use)) {
      readers.push_back(use);
    } else {
      return;
    }
  }
  if (readers.size() < 2 && growth.empty()) return;
  std::sort(growth.begin(), growth.end(),
            [](const Node* a, const Node* b) { return a->isBefore(b); });
  for (const jit::Use& reader : readers) {
    std::vector<Value*> elements(construct->inputs().begin(), construct->inputs().end());
    const Node* place = nodeIn(block, reader.user);
    for (const Node* append : growth) {
      if (append->isBefore(place)) elements.push_back(append->input(1));
    }
    Node* list = construct->owningGraph()->create(c10::prim::ListConstruct, elements);
    copyOrigin(list, construct)->insertBefore(reader.user);
    list->output()->setType(construct->output()->type());
    reader.user->replaceInput(reader.offset, list->output());
  }
  for (Node* append : growth) append->destroy();
  construct->destroy();
}

}  // namespace

void splitLists(Program& program) {
  for (Method& method : program.methods) {
    std::vector<Node*> lists;
    for (Node* node : allNodes(*method.graph)) {
      const bool of_tensors = node->kind() == c10::prim::ListConstruct &&
                              node->output()->type()->isSubtypeOf(*c10::ListType::ofTensors());
      if (of_tensors) lists.push_back(node);
    }
    for (Node* list : lists) split(list);
  }
}

}  // namespace jitquant

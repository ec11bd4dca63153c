// canonicalize_stack: a stack becomes a concatenation, which has an int8 form.
//
// Before:
//   %l = prim::ListConstruct(%x, %y); %s = aten::stack(%l, %one)
// After:
//   %a = aten::unsqueeze(%x, %one); %b = aten::unsqueeze(%y, %one)
//   %l = prim::ListConstruct(%a, %b); %s = aten::cat(%l, %one)
//
// Needs:  split_lists, which gives each reader a list of its own.
// Leaves: lists that have another user or are built at run time.

#include "dead_code.h"
#include "ir_util.h"
#include "nodes.h"
#include "passes/passes.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

void rewrite(Node* stack) {
  Node* list = stack->input(0)->node();
  if (list->kind() != c10::prim::ListConstruct || !hasOneUse(list->output())) return;
  std::vector<Value*> elements;
  for (Value* element : list->inputs()) {
    elements.push_back(insertOp(stack, c10::aten::unsqueeze, {element, stack->input(1)}));
  }
  Node* unsqueezed = stack->owningGraph()->create(c10::prim::ListConstruct, elements);
  copyOrigin(unsqueezed, list)->insertBefore(stack);
  unsqueezed->output()->setType(c10::ListType::ofTensors());
  replaceWithOp(stack, c10::aten::cat, {unsqueezed->output(), stack->input(1)});
}

}  // namespace

void canonicalizeStack(Program& program) {
  for (Method& method : program.methods) {
    const auto is_stack = [](const Node* node) { return node->kind() == c10::aten::stack; };
    for (Node* node : nodesWhere(*method.graph, is_stack)) rewrite(node);
    eliminateDeadCode(method.graph);
  }
}

}  // namespace jitquant

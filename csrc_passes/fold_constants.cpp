#include "fold_constants.h"

#include <torch/csrc/jit/passes/constant_propagation.h>
#include <torch/csrc/jit/passes/lower_tuples.h>
#include <torch/csrc/jit/passes/peephole.h>

#include <algorithm>

#include "dead_code.h"
#include "ir_util.h"
#include "nodes.h"
#include "pool_constants.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

bool isConstant(const Value* value) { return value->node()->kind() == c10::prim::Constant; }

// Whether libtorch may compute a node, or take one of its blocks.
bool mayPropagate(const Node* node) {
  if (!node->blocks().empty()) return true;
  const auto inputs = node->inputs();
  return node->kind() != c10::prim::Constant &&
         std::all_of(inputs.begin(), inputs.end(), isConstant);
}

// Whether a peephole may know the node. They rewrite numbers, lists, dicts, optionals and branches,
// and of ops that give a tensor those with other operands than tensors, and these few.
bool mayHavePeephole(const Node* node) {
  static constexpr c10::Symbol kinds[] = {c10::aten::cat, c10::aten::expand, c10::aten::t,
                                          c10::aten::type_as, c10::aten::_grad_sum_to_size};
  static constexpr c10::Symbol arithmetic[] = {c10::aten::add, c10::aten::sub, c10::aten::mul,
                                               c10::aten::div};
  const auto isAmong = [&](const auto& some) {
    return std::find(std::begin(some), std::end(some), node->kind()) != std::end(some);
  };
  if (node->kind() == c10::prim::Constant || node->kind() == c10::prim::GetAttr ||
      node->kind() == c10::prim::ListConstruct || node->kind() == c10::prim::CallMethod) {
    return false;
  }
  const auto outputs = node->outputs();
  const bool is_tensor_op = node->kind().is_aten() && node->blocks().empty() &&
                            std::all_of(outputs.begin(), outputs.end(), isTensor);
  return !is_tensor_op || isAmong(kinds) || (isAmong(arithmetic) && !isTensor(node->input(1)));
}

bool isTuple(const Node* node) { return node->kind() == c10::prim::TupleConstruct; }

// Whether the node is a list of constant numbers that nobody may change or keep, such as a stride.
bool isListOfNumbers(const Node* node) {
  if (node->kind() != c10::prim::ListConstruct) return false;
  const auto kind = node->output()->type()->expectRef<c10::ListType>().getElementType()->kind();
  const bool of_numbers = kind == c10::TypeKind::IntType || kind == c10::TypeKind::FloatType ||
                          kind == c10::TypeKind::BoolType;
  const auto inputs = node->inputs();
  return of_numbers && std::all_of(inputs.begin(), inputs.end(), isConstant) &&
         isNeverAliased(node->output());
}

// The list that libtorch would make of the node.
void replaceWithConstant(Node* list) {
  c10::impl::GenericList elements(
      list->output()->type()->expectRef<c10::ListType>().getElementType());
  for (const Value* input : list->inputs()) elements.push_back(*jit::toIValue(input));
  const jit::WithInsertPoint guard(list);
  replaceAndDestroy(list, list->owningGraph()->insertConstant(elements));
}

// libtorch's passes analyse all aliases first, five times for the peepholes, and find out then that
// there is nothing to do. Lists of numbers are all that there is in most traced models.
void propagateConstants(std::shared_ptr<jit::Graph>& graph) {
  for (Node* list : nodesWhere(*graph, isListOfNumbers)) replaceWithConstant(list);
  if (anyNode(graph->block(), mayPropagate)) {
    jit::ConstantPropagation(graph, /*ignore_custom_classes=*/true);
  }
}

void optimizePeepholes(const std::shared_ptr<jit::Graph>& graph) {
  if (anyNode(graph->block(), mayHavePeephole)) jit::PeepholeOptimize(graph);
}

// Whether a list or dict that is read here may be kept, and changed later.
bool mayKeep(const jit::Use& use) {
  const auto kind = use.user->kind();
  if (kind == c10::prim::If || kind == c10::prim::Loop) return false;
  const c10::FunctionSchema* schema = use.user->maybeSchema();
  if (schema == nullptr || use.offset >= schema->arguments().size()) return true;
  return schema->arguments()[use.offset].alias_info() != nullptr;
}

// A list of `value`'s elements that is made where `before` stands.
Value* insertList(const at::IValue& value, Node* before) {
  std::vector<Value*> elements;
  for (const at::IValue& element : value.toListRef()) {
    elements.push_back(element.isList() ? insertList(element, before)
                                        : insertConstantBefore(before, element));
  }
  const c10::TypePtr type = value.type()->containedTypes().at(0);
  return before->owningGraph()->createList(type, elements)->insertBefore(before)->output();
}

}  // namespace

void renewKeptLists(jit::Graph& graph) {
  for (Node* node : nodesWhere(graph, [](const Node* node) {
         return node->kind() == c10::prim::Constant &&
                node->output()->type()->kind() == c10::TypeKind::ListType;
       })) {
    const auto value = jit::toIValue(node->output());
    if (!value || !value->isList()) continue;
    const auto uses = node->output()->uses();
    for (const jit::Use& use : uses) {
      if (mayKeep(use)) use.user->replaceInput(use.offset, insertList(*value, use.user));
    }
  }
}

void foldConstants(std::shared_ptr<jit::Graph>& graph) {
  propagateConstants(graph);
  if (anyNode(graph->block(), isTuple)) jit::LowerSimpleTuples(graph);
  // Not as long as PeepholeOptimize says that it changed something: for one graph it says that in
  // some runs and not in others.
  size_t before = 0;
  do {
    before = allNodes(*graph).size();
    optimizePeepholes(graph);
    propagateConstants(graph);
    eliminateDeadCode(graph);
  } while (allNodes(*graph).size() < before);
  renewKeptLists(*graph);
}

}  // namespace jitquant

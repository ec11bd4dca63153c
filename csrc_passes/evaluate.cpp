#include "evaluate.h"

#include "ir_util.h"
#include "recurrent.h"

namespace jitquant {

bool isPure(const jit::Node* node) {
  const c10::FunctionSchema* schema = node->maybeSchema();
  if (schema == nullptr || schema->is_mutable() || node->hasSideEffects()) return false;
  return !node->isNondeterministic() || (isRecurrent(node) && isInEvalMode(node));
}

std::optional<at::IValue> Evaluator::evaluate(const jit::Value* value) {
  const auto found = known_.find(value);
  if (found != known_.end()) return found->second;
  auto result = compute(value);
  if (result) known_[value] = *result;
  return result;
}

std::optional<at::IValue> Evaluator::compute(const jit::Value* value) {
  if (auto constant = constantOrAttribute(value, module_)) return constant;
  const jit::Node* node = value->node();
  if (!node->blocks().empty()) return std::nullopt;
  if (node->kind() == c10::prim::Param || node->kind() == c10::prim::GetAttr) return std::nullopt;
  // Instructions of the interpreter, no operators.
  const bool is_list = node->kind() == c10::prim::ListConstruct;
  const bool is_unpack = node->kind() == c10::prim::ListUnpack;
  if (is_list ? !isOnlyRead(value) : !is_unpack && !isPure(node)) return std::nullopt;
  auto stack = argumentsOf(node);
  if (!stack) return std::nullopt;
  if (is_list) {
    c10::impl::GenericList list(value->type()->expectRef<c10::ListType>().getElementType());
    for (at::IValue& element : *stack) list.push_back(std::move(element));
    return list;
  }
  if (is_unpack) return (*stack)[0].toListRef().at(value->offset());
  node->getOperation()(*stack);
  return stack->at(stack->size() - node->outputs().size() + value->offset());
}

std::optional<jit::Stack> Evaluator::argumentsOf(const jit::Node* node) {
  jit::Stack stack;
  for (const jit::Value* input : node->inputs()) {
    auto argument = evaluate(input);
    if (!argument) return std::nullopt;
    stack.push_back(std::move(*argument));
  }
  return stack;
}

bool Evaluator::run(const jit::Node* writer) {
  auto stack = argumentsOf(writer);
  if (!stack) return false;
  writer->getOperation()(*stack);
  set(writer->output(), stack->back());
  return true;
}

}  // namespace jitquant

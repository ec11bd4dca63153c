#include "evaluate.h"

#include <algorithm>

#include "ir_util.h"

namespace jitquant {

namespace {

// Whether an op such as aten::append changes the list after it was built.
bool isChangedLater(const jit::Value* list) {
  return std::any_of(list->uses().begin(), list->uses().end(), [](const jit::Use& use) {
    const auto* schema = use.user->maybeSchema();
    if (schema == nullptr || use.offset >= schema->arguments().size()) return false;
    const auto* alias = schema->arguments()[use.offset].alias_info();
    return alias != nullptr && alias->isWrite();
  });
}

}  // namespace

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
  if (!node->blocks().empty() || node->outputs().size() != 1) return std::nullopt;
  if (node->kind() == c10::prim::Param || node->kind() == c10::prim::GetAttr) return std::nullopt;
  if (node->kind() == c10::prim::ListConstruct && isChangedLater(value)) return std::nullopt;
  jit::Stack stack;
  for (const jit::Value* input : node->inputs()) {
    auto argument = evaluate(input);
    if (!argument) return std::nullopt;
    stack.push_back(std::move(*argument));
  }
  if (node->kind() == c10::prim::ListConstruct) {  // an instruction, not an operator
    c10::impl::GenericList list(value->type()->expectRef<c10::ListType>().getElementType());
    for (at::IValue& element : stack) list.push_back(std::move(element));
    return list;
  }
  node->getOperation()(stack);
  return stack.back();
}

}  // namespace jitquant

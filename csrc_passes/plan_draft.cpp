#include "plan_draft.h"

#include <algorithm>

#include "targets/target.h"

namespace jitquant {

using jit::Node;
using jit::Value;

Value* Plan::outputOf(Node* op) const {
  const auto found = activation_of.find(op);
  return found == activation_of.end() ? op->output() : found->second->output();
}

bool Plan::isInt8Use(const jit::Use& use) const {
  const Node* user = use.user;
  if (user->kind() == c10::prim::ListConstruct) {
    return hasOneUse(user->output()) && isInt8Use(user->output()->uses()[0]);
  }
  if (int8.count(user) == 0) return false;
  const auto& data = findRow(user)->data;
  return std::find(data.begin(), data.end(), use.offset) != data.end();
}

bool PlanDraft::isStatic(const Node* node) const {
  if (!mark(node, kOpMark)) return false;
  const int64_t qconfig = record(node).qconfig;
  return qconfig >= 0 && program.qconfigs[qconfig].activations == Activations::kStatic;
}

bool PlanDraft::isCompute(const Node* node) const {
  if (!isCandidate(node)) return false;
  const Role role = findRow(node)->role;
  return role == Role::kWeighted || role == Role::kObserved || role == Role::kFixedQParams;
}

bool PlanDraft::isPassing(const Node* node) const {
  if (!isCandidate(node) || plan->absorbed_by.count(node) != 0) return false;
  const Role role = findRow(node)->role;
  return role == Role::kSharesInput || role == Role::kAverages;
}

bool PlanDraft::isAverage(const Node* node) const {
  return isCandidate(node) && findRow(node)->role == Role::kAverages;
}

bool PlanDraft::isObserved(const Value* value) const {
  const auto found = program.observations.find(value);
  return found != program.observations.end() && found->second.qparams.has_value();
}

bool PlanDraft::isInt8Output(const Value* value) const {
  const Node* node = value->node();
  return isCompute(node) || plan->absorbed_by.count(node) != 0;
}

Node* PlanDraft::absorbable(const Node* op) const {
  const OpRow* row = findRow(op);
  if (row->role == Role::kFixedQParams || !hasOneUse(op->output())) return nullptr;
  Node* user = op->output()->uses()[0].user;
  if (user->owningBlock() != op->owningBlock() || !isCandidate(user)) return nullptr;
  if (user->kind() == c10::aten::relu) {
    const Int8Row* int8 = program.target->find(*row);
    return int8 != nullptr && !int8->relu_op.empty() ? user : nullptr;
  }
  return activationBounds(user) ? user : nullptr;
}

Value* PlanDraft::passedOn(const Value* value) {
  Node* op = sourceOf(value);
  return op->input(findRow(op)->data[0]);
}

Value* PlanDraft::root(Value* value) const {
  while (isPassing(sourceOf(value)) && (isAverage(sourceOf(value)) || !isObserved(value))) {
    value = passedOn(value);
  }
  return value;
}

}  // namespace jitquant

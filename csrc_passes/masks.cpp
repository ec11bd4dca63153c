#include "masks.h"

#include <map>

#include "ir_util.h"
#include "op_table.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

// The input that an op masks by, or takes the exponentials of.
const std::map<std::string, size_t>& maskInputs() {
  static const auto* const inputs =
      new std::map<std::string, size_t>{{"aten::softmax", 0},
                                        {"aten::log_softmax", 0},
                                        {"aten::_masked_softmax", 0},
                                        {"aten::scaled_dot_product_attention", 3},
                                        {"aten::_native_multi_head_attention", 9},
                                        {"aten::_transformer_encoder_layer_fwd", 18}};
  return *inputs;
}

// Ops whose output is a mask where their first input is one, besides those that move values.
bool handsOnMasks(const Node* node) {
  static constexpr c10::Symbol kinds[] = {
      c10::prim::unchecked_cast, c10::aten::add,         c10::aten::mul,   c10::aten::div,
      c10::aten::baddbmm,        c10::aten::masked_fill, c10::aten::where, c10::aten::to,
      c10::aten::logical_not};
  return std::find(std::begin(kinds), std::end(kinds), node->kind()) != std::end(kinds);
}

bool isOfRole(const Node* node, Role role) {
  const OpRow* row = findRow(node);
  return row != nullptr && row->role == role;
}

// Made by an op that has no int8 form, or given from outside.
bool isFloat(const Value* value) {
  const OpRow* row = findRow(value->node());
  while (row != nullptr && row->role == Role::kSharesInput) {
    value = value->node()->input(row->data[0]);
    row = findRow(value->node());
  }
  return row == nullptr;
}

bool readsNoValues(const Node* node) {
  return isOfRole(node, Role::kMetadata) || node->kind() == c10::aten::__is__ ||
         node->kind() == c10::aten::__isnot__;
}

}  // namespace

bool Masks::isMaskAt(const jit::Use& use) {
  const Node* user = use.user;
  if (user->kind() == c10::prim::Return) {
    const Node* owner = user->owningBlock()->owningNode();
    const bool leaves_if = owner != nullptr && owner->kind() == c10::prim::If;
    return leaves_if && isMask(owner->output(use.offset));
  }
  const auto found = maskInputs().find(user->kind().toQualString());
  if (found != maskInputs().end()) return found->second == use.offset;
  const bool hands_on =
      handsOnMasks(user) || (isOfRole(user, Role::kSharesInput) && use.offset == 0);
  return hands_on && isMask(user->output(0));
}

bool Masks::isMask(const Value* value) {
  const auto found = known_.find(value);
  if (found != known_.end()) return found->second;
  bool is_mask = false;
  for (const jit::Use& use : value->uses()) {
    if (readsNoValues(use.user)) continue;
    is_mask = isMaskAt(use);
    if (!is_mask) break;
  }
  known_[value] = is_mask;
  return is_mask;
}

bool Masks::contain(const Node* op) {
  const std::vector<Value*> values = dataInputs(op, *findRow(op));
  return isMask(op->output(0)) && std::any_of(values.begin(), values.end(), isFloat);
}

}  // namespace jitquant

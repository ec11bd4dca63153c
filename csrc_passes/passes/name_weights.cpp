// name_weights: an LSTM or GRU reads each of its weights by name, not all of them as one list.
//
// Before:
//   %l = GetAttr[name="_flat_weights"](%lstm); %y, %h, %c = aten::lstm(%x, %hx, %l, ...)
// After:
//   %w = GetAttr[name="weight_ih_l0"](%lstm); %u = GetAttr[name="weight_hh_l0"](%lstm); ...
//   %l = prim::ListConstruct(%w, %u, ...); %y, %h, %c = aten::lstm(%x, %hx, %l, ...)
//
// Needs:  fold_attributes. Comes before own_state, which does not look into lists.
// Leaves: a list that a method assigns, or that the graph computes. A list attribute that nothing
//         reads any more is removed; tensors of no other name become constants.

#include <ATen/ATen.h>

#include "ir_util.h"
#include "passes/passes.h"
#include "recurrent.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

// The attribute of `owner` that is this very tensor, "" if there is none.
std::string nameOf(const at::Tensor& tensor, const jit::Module& owner) {
  for (size_t i = 0; i < owner.type()->numAttributes(); ++i) {
    const at::IValue& slot = owner._ivalue()->getSlot(i);
    if (!slot.isTensor() || !slot.toTensor().defined()) continue;
    const at::Tensor& named = slot.toTensor();
    const bool is_same = named.is_alias_of(tensor) && named.sizes() == tensor.sizes() &&
                         named.strides() == tensor.strides() &&
                         named.storage_offset() == tensor.storage_offset();
    if (is_same) return owner.type()->getAttributeName(i);
  }
  return "";
}

class Namer {
 public:
  explicit Namer(Program& program) : program_(program), assigned_(assignedPaths(program)) {}

  void nameWeights(Node* node) {
    Value* list = node->input(paramsInput(node));
    const auto path = attributePath(list);
    if (path && assigned_.count(*path) != 0) return;
    const auto tensors = constantOrAttribute(list, program_.module);
    if (!tensors || !tensors->isTensorList()) return;
    std::vector<Value*> values;
    for (const at::Tensor& tensor : tensors->toTensorVector()) {
      values.push_back(readOf(tensor, path, node));
    }
    Node* named = node->owningGraph()->create(c10::prim::ListConstruct, values);
    copyOrigin(named, node)->insertBefore(node);
    named->output()->setType(c10::ListType::ofTensors());
    Node* read = list->node();
    node->replaceInput(paramsInput(node), named->output());
    if (!read->hasUses()) read->destroy();
    if (path) lists_.insert(*path);
  }

  void dropUnreadLists() {
    for (const Method& method : program_.methods) {
      for (const Node* node : allNodes(*method.graph)) {
        if (node->kind() != c10::prim::GetAttr) continue;
        if (const auto path = attributePath(node->output())) lists_.erase(*path);
      }
    }
    for (const std::string& path : lists_) {
      auto [owner, name] = ownerOf(program_.module, path);
      owner._ivalue()->unsafeRemoveAttr(name);
      owner.type()->unsafeRemoveAttribute(name);
    }
  }

 private:
  Value* readOf(const at::Tensor& tensor, const std::optional<std::string>& list, Node* before) {
    if (!list) return insertConstantBefore(before, tensor.detach());
    const auto [owner, list_name] = ownerOf(program_.module, *list);
    const std::string name = nameOf(tensor, owner);
    if (name.empty()) return insertConstantBefore(before, tensor.detach());
    const std::string prefix = list->substr(0, list->size() - list_name.size());
    return insertAttributeRead(*before->owningGraph(), prefix + name, program_.module, before);
  }

  Program& program_;
  std::set<std::string> assigned_;
  std::set<std::string> lists_;
};

}  // namespace

void nameWeights(Program& program) {
  Namer namer(program);
  for (Method& method : program.methods) {
    for (Node* node : allNodes(*method.graph)) {
      if (isRecurrent(node)) namer.nameWeights(node);
    }
  }
  namer.dropUnreadLists();
}

}  // namespace jitquant

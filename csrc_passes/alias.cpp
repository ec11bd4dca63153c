#include "alias.h"

#include <map>

#include "ir_util.h"

namespace jitquant {

using jit::Node;

c10::StorageImpl* storageOf(const Node* node, const jit::Module& module) {
  if (node->kind() != c10::prim::GetAttr) return nullptr;
  const auto path = attributePath(node->output());
  if (!path) return nullptr;
  const auto [owner, name] = ownerOf(module, *path);
  if (!owner.hasattr(name) || !owner.attr(name).isTensor()) return nullptr;
  const at::Tensor tensor = owner.attr(name).toTensor();
  return tensor.defined() && tensor.has_storage() ? tensor.storage().unsafeGetStorageImpl()
                                                  : nullptr;
}

std::unique_ptr<jit::AliasDb> aliasDbByAttribute(const std::shared_ptr<jit::Graph>& graph) {
  bool calls_or_sets = false;
  for (const Node* node : allNodes(*graph)) {
    calls_or_sets = calls_or_sets || node->kind() == c10::prim::SetAttr ||
                    node->kind() == c10::prim::CallMethod;
  }
  return std::make_unique<jit::AliasDb>(graph, /*isFrozen=*/!calls_or_sets);
}

std::unique_ptr<jit::AliasDb> aliasDb(const std::shared_ptr<jit::Graph>& graph,
                                      const jit::Module& module) {
  auto aliases = aliasDbByAttribute(graph);
  std::map<const c10::StorageImpl*, int> readers;  // looked up only
  const std::vector<Node*> nodes = allNodes(*graph);
  for (const Node* node : nodes) {
    if (const auto* storage = storageOf(node, module)) ++readers[storage];
  }
  for (const Node* node : nodes) {
    const auto* storage = storageOf(node, module);
    if (storage != nullptr && readers[storage] > 1 && aliases->hasWriters(node->output())) {
      return std::make_unique<jit::AliasDb>(graph);
    }
  }
  return aliases;
}

namespace {

void holdStorages(const at::IValue& value, std::set<c10::StorageImpl*>& held) {
  if (value.isTensor() && value.toTensor().defined() && value.toTensor().has_storage()) {
    held.insert(value.toTensor().storage().unsafeGetStorageImpl());
  } else if (value.isList()) {
    for (const at::IValue& element : value.toListRef()) holdStorages(element, held);
  } else if (value.isTuple()) {
    for (const at::IValue& element : value.toTupleRef().elements()) holdStorages(element, held);
  } else if (value.isGenericDict()) {
    for (const auto& entry : value.toGenericDict()) holdStorages(entry.value(), held);
  } else if (value.isObject() && !value.isCustomClass()) {
    for (const at::IValue& slot : value.toObjectRef().slots()) holdStorages(slot, held);
  }
}

}  // namespace

std::set<c10::StorageImpl*> heldStorages(const jit::Module& module) {
  std::set<c10::StorageImpl*> held;
  for (const jit::Module& owner : module.modules()) {
    for (const at::IValue& slot : owner._ivalue()->slots()) {
      if (!slot.isTensor() && !slot.isModule()) holdStorages(slot, held);
    }
  }
  return held;
}

}  // namespace jitquant

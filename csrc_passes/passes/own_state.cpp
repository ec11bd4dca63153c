// own_state: what a method changes is no constant, and is not shared with the original model.
//
// Before:
//   %h = GetAttr[name="h"](%self); %y = aten::add_(%h, %x, %one)      h is the original's tensor
// After:
//   %h = GetAttr[jitquant_mutable=1, name="h"](%self); ...            h is a clone
//
// Needs:  fold_attributes, and no observer calls, which alias analysis would take for writers.
// Leaves: tensors that are only read: the copy shares them. Attributes that view one storage view
//         one clone afterwards.

#include <ATen/ATen.h>

#include "alias.h"
#include "ir_util.h"
#include "nodes.h"
#include "passes/passes.h"

namespace jitquant {

using at::IValue;
using jit::Node;

namespace {

// The storages that a graph writes in place through an attribute.
std::set<c10::StorageImpl*> writtenStorages(Program& program) {
  std::set<c10::StorageImpl*> written;
  for (Method& method : program.methods) {
    if (!anyNode(method.graph->block(), mayWriteTensors)) continue;
    const Aliases aliases(*method.graph, program.module);
    for (Node* node : allNodes(*method.graph)) {
      c10::StorageImpl* storage = storageOf(node, program.module);
      if (storage != nullptr && aliases.isWritten(node->output())) written.insert(storage);
    }
  }
  return written;
}

// Clones the storages that a graph writes in place, in every attribute that views them.
void ownWrittenStorages(const jit::Module& module, const std::set<c10::StorageImpl*>& written) {
  std::unordered_map<c10::StorageImpl*, at::Tensor> clones;
  for (jit::Module owner : module.modules()) {
    for (size_t i = 0; i < owner.type()->numAttributes(); ++i) {
      const IValue& value = owner._ivalue()->getSlot(i);
      if (!value.isTensor() || !value.toTensor().defined() || !value.toTensor().has_storage()) {
        continue;
      }
      const at::Tensor tensor = value.toTensor();
      c10::StorageImpl* storage = tensor.storage().unsafeGetStorageImpl();
      if (written.count(storage) == 0) continue;
      if (clones.count(storage) == 0) {
        const auto elements =
            static_cast<int64_t>(tensor.storage().nbytes() / tensor.dtype().itemsize());
        clones[storage] = tensor.detach().as_strided({elements}, {1}, 0).clone();
      }
      // Not a view in autograd's eyes, which forbids to write those of no_grad mode.
      owner._ivalue()->setSlot(
          i, clones[storage]
                 .as_strided(tensor.sizes(), tensor.strides(), tensor.storage_offset())
                 .variable_data());
    }
  }
}

}  // namespace

void ownState(Program& program) {
  const auto assigned = assignedPaths(program);
  auto written = writtenStorages(program);
  // Which element of a container a graph writes is not known. flatten has cloned them all.
  const auto held = heldStorages(program.module);
  auto changing = held;
  changing.insert(written.begin(), written.end());
  for (c10::StorageImpl* storage : held) written.erase(storage);
  for (Method& method : program.methods) {
    for (Node* node : allNodes(*method.graph)) {
      if (node->kind() != c10::prim::GetAttr) continue;
      const auto path = attributePath(node->output());
      const bool is_assigned = path && assigned.count(*path) != 0;
      if (is_assigned || changing.count(storageOf(node, program.module)) != 0) {
        setMark(node, kMutableMark, 1);
      }
    }
  }
  if (!written.empty()) ownWrittenStorages(program.module, written);
}

}  // namespace jitquant

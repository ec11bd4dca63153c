// fold_attributes: attributes that no method sets are read once, and plain values become constants.
//
// Before:
//   %t = GetAttr[name="training"](%self); %w1 = GetAttr[name="w"](%self); %w2 = GetAttr[name="w"](%self)
// After:
//   %w = GetAttr[name="w"](%self)  (first in the graph); %t = prim::Constant[value=0]()
//
// Needs:  flatten, so that all reads and writes of the tree are in the kept methods' graphs.
// Leaves: attributes that a method sets. Tensors that a graph writes in place are cloned, with
//         their aliases, so that running the copy cannot change the original.

#include <torch/csrc/jit/ir/alias_analysis.h>
#include <torch/csrc/jit/passes/constant_pooling.h>
#include <torch/csrc/jit/passes/constant_propagation.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/csrc/jit/passes/lower_tuples.h>
#include <torch/csrc/jit/passes/peephole.h>

#include <set>

#include "alias.h"
#include "ir_util.h"
#include "passes/passes.h"

namespace jitquant {

using at::IValue;
using jit::Node;
using jit::Value;

namespace {

// Paths of the attributes that any kept method sets.
std::set<std::string> assignedPaths(Program& program) {
  std::set<std::string> paths;
  for (Method& method : program.methods) {
    for (Node* node : allNodes(*method.graph)) {
      if (node->kind() != c10::prim::SetAttr) continue;
      if (const auto owner = attributePath(node->input(0))) {
        const std::string& name = node->s(c10::attr::name);
        paths.insert(owner->empty() ? name : *owner + "." + name);
      }
    }
  }
  return paths;
}

bool isPlain(const IValue& value) {
  return value.isNone() || value.isBool() || value.isInt() || value.isDouble() || value.isString() ||
         value.isDevice();
}

void foldReads(Method& method, const jit::Module& module, const std::set<std::string>& assigned) {
  std::unordered_map<std::string, Value*> first_read;
  for (Node* node : allNodes(*method.graph)) {
    if (node->kind() != c10::prim::GetAttr) continue;
    const auto path = attributePath(node->output());
    if (!path || assigned.count(*path) != 0) continue;
    const auto [found, is_first] = first_read.emplace(*path, node->output());
    if (!is_first) {
      node->output()->replaceAllUsesWith(found->second);
      continue;
    }
    const auto value = constantOrAttribute(node->output(), module);
    if (value && isPlain(*value)) {
      found->second = insertConstantBefore(*method.graph->nodes().begin(), *value);
      node->output()->replaceAllUsesWith(found->second);
    } else if (node->input()->node() != method.graph->param_node()) {
      node->moveAfter(node->input()->node());  // the parent was met first and moved already
    } else if (node != *method.graph->nodes().begin()) {
      node->moveBefore(*method.graph->nodes().begin());
    }
  }
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
      owner._ivalue()->setSlot(
          i, clones[storage].as_strided(tensor.sizes(), tensor.strides(), tensor.storage_offset()));
    }
  }
}

}  // namespace

void foldAttributes(Program& program) {
  const auto assigned = assignedPaths(program);
  std::set<c10::StorageImpl*> written;
  for (Method& method : program.methods) {
    foldReads(method, program.module, assigned);
    jit::ConstantPropagation(method.graph, /*ignore_custom_classes=*/true);
    jit::LowerSimpleTuples(method.graph);
    jit::PeepholeOptimize(method.graph);
    jit::ConstantPropagation(method.graph, /*ignore_custom_classes=*/true);
    jit::EliminateDeadCode(method.graph);
    jit::ConstantPooling(method.graph);
    const auto aliases = aliasDb(method.graph);
    for (Node* node : allNodes(*method.graph)) {
      if (node->kind() != c10::prim::GetAttr || !aliases->hasWriters(node->output())) continue;
      const auto tensor = constantTensor(node->output(), program.module);
      if (tensor && tensor->has_storage()) written.insert(tensor->storage().unsafeGetStorageImpl());
    }
  }
  if (!written.empty()) ownWrittenStorages(program.module, written);
}

}  // namespace jitquant

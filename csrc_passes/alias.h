#pragma once
// libtorch's alias analysis, with what fold_attributes makes sure of.

#include <torch/csrc/jit/ir/alias_analysis.h>

#include <memory>
#include <set>

#include "program.h"

namespace jitquant {

// For a graph in which each attribute is read once: takes the reads for values of their own, unless
// the graph sets attributes or calls methods.
std::unique_ptr<jit::AliasDb> aliasDbByAttribute(const std::shared_ptr<jit::Graph>& graph);

// The same, where two attributes may view one storage that the graph writes.
std::unique_ptr<jit::AliasDb> aliasDb(const std::shared_ptr<jit::Graph>& graph,
                                      const jit::Module& module);

// The storage behind the read of a tensor attribute; null for every other node.
c10::StorageImpl* storageOf(const jit::Node* node, const jit::Module& module);

// The storages of tensors that lists, dicts, tuples and objects of the tree hold.
std::set<c10::StorageImpl*> heldStorages(const jit::Module& module);

}  // namespace jitquant

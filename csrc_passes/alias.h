#pragma once
// libtorch's alias analysis with the assumption that holds after fold_attributes.

#include <torch/csrc/jit/ir/alias_analysis.h>

#include <memory>

#include "ir_util.h"

namespace jitquant {

// In a graph that sets no attribute, each attribute is read once, so reads do not alias each other.
inline std::unique_ptr<jit::AliasDb> aliasDb(const std::shared_ptr<jit::Graph>& graph) {
  bool sets_attribute = false;
  for (jit::Node* node : allNodes(*graph)) {
    sets_attribute = sets_attribute || node->kind() == c10::prim::SetAttr ||
                     node->kind() == c10::prim::CallMethod;
  }
  return std::make_unique<jit::AliasDb>(graph, /*isFrozen=*/!sets_attribute);
}

}  // namespace jitquant

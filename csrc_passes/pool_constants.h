#pragma once
// Equal constants become one.

#include <torch/csrc/jit/ir/ir.h>

namespace jitquant {

namespace jit = torch::jit;

// Whether every user only reads the value while it runs: nobody writes, keeps or returns it.
bool isNeverAliased(const jit::Value* value);

// Moves constants to the front of the graph, and makes one of those that are equal, where nobody
// could tell by writing one of them.
//
// Does what jit::ConstantPooling does, which analyses all aliases first, also for strides.
void poolConstants(const std::shared_ptr<jit::Graph>& graph);

}  // namespace jitquant

#pragma once
// What libtorch can compute without running the graph.

#include <torch/csrc/jit/ir/ir.h>

namespace jitquant {

// Computes what depends on constants only, and takes the branches that this decides. A branch that
// is decided may tell that a value is not None, which decides the next, so this goes on until
// nothing gets smaller.
void foldConstants(std::shared_ptr<torch::jit::Graph>& graph);

}  // namespace jitquant

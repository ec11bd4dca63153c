#pragma once
// What libtorch can compute without running the graph.

#include <torch/csrc/jit/ir/ir.h>

namespace jitquant {

// libtorch makes a constant of a list that its graph does not write. What keeps the list, such as
// an attribute that another method appends to, is given a new one in each run, as in the user's
// code.
void renewKeptLists(torch::jit::Graph& graph);

// Computes what depends on constants only, and takes the branches that this decides. A branch that
// is decided may tell that a value is not None, which decides the next, so this goes on until
// nothing gets smaller.
void foldConstants(std::shared_ptr<torch::jit::Graph>& graph);

}  // namespace jitquant

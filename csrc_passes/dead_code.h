#pragma once
// Nodes that nobody needs.

#include <torch/csrc/jit/ir/ir.h>

namespace jitquant {

// Removes nodes whose outputs nobody reads and which change nothing that anybody sees.
//
// libtorch's pass does the work, where there is any: most passes change nothing in most graphs.
// What it would have to know of aliases is which dead values are written, so a graph that writes
// nothing is spared the analysis, which takes more time than all else here, and more than linear
// time.
void eliminateDeadCode(const std::shared_ptr<torch::jit::Graph>& graph);

}  // namespace jitquant

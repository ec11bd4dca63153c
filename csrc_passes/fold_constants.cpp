#include "fold_constants.h"

#include <torch/csrc/jit/passes/constant_propagation.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/csrc/jit/passes/lower_tuples.h>
#include <torch/csrc/jit/passes/peephole.h>

#include "ir_util.h"

namespace jitquant {

void foldConstants(std::shared_ptr<jit::Graph>& graph) {
  jit::ConstantPropagation(graph, /*ignore_custom_classes=*/true);
  jit::LowerSimpleTuples(graph);
  // Not as long as PeepholeOptimize says that it changed something: for one graph it says that in
  // some runs and not in others.
  size_t before = 0;
  do {
    before = allNodes(*graph).size();
    jit::PeepholeOptimize(graph);
    jit::ConstantPropagation(graph, /*ignore_custom_classes=*/true);
    jit::EliminateDeadCode(graph);
  } while (allNodes(*graph).size() < before);
}

}  // namespace jitquant

#pragma once
// The passes that run on request, to lose less accuracy. Each file passes/<name>.cpp opens with
// what the pass does.

#include <string>
#include <vector>

#include "program.h"

namespace jitquant {

// How many pairs of layers share a range now, and how many keep theirs for an activation that clips
// at another value than 0. `unbound`: such an activation becomes relu, if it clips at 0 too.
struct Equalized {
  int64_t pairs = 0;
  int64_t bounded = 0;
};
Equalized equalize(Program& program, bool unbound);

// The recorders of what the layers of a prepared model read: for each weight those of its layers.
std::vector<std::vector<std::string>> watchMeans(Program& program, const jit::Module& recorder);
// `means`: for each of these weights (inputs,) float64, or (0,) to leave its bias as it is.
void correctBias(Program& program, const std::vector<at::Tensor>& means);

}  // namespace jitquant

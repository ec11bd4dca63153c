#pragma once
// What the int8 ops of the target compute, as functions in stock float and integer ops.

#include <memory>
#include <string>
#include <vector>

#include "program.h"

namespace jitquant {

// Who implements an op: each rounds in its own order.
enum class Kernels { kFbgemm, kOnednn, kQnnpack };

// How one int8 op is spelled out. The function takes the op's inputs in their order; of a weighted
// op the packed parameters become (weight, weight_scale, weight_zero_point, bias) and the further
// arguments of the prepack op. `clamps` follows, if the function has such an argument.
struct Reference {
  std::string op;
  std::string function;
  bool clamps = false;  // whether a relu is fused in
};

// Several rows of one op are overloads, told apart by the number of arguments.
const std::vector<Reference>& references();

// The functions, for this CPU.
std::shared_ptr<jit::CompilationUnit> referenceUnit(Kernels kernels);

// Kernels that run ops without packed parameters.
Kernels currentKernels();
// Kernels that made these packed parameters, and run the op that takes them.
Kernels kernelsOf(const at::IValue& packed_params);

}  // namespace jitquant

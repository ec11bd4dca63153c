#pragma once
// Packed weights of a converted model.

#include <torch/csrc/jit/api/module.h>

#include <set>
#include <string>
#include <vector>

namespace jitquant {

// The engines whose kernels the packed weights are for: onednn, fbgemm (which x86 takes too) or
// qnnpack. The one that was set when the model was loaded decides.
std::set<std::string> packedFor(const torch::jit::Module& module);

// Lets go of the objects with packed weights that the top module holds, since there is no memory
// for two copies. Returns their attributes, which hold nothing until takePacked gives them objects.
std::vector<std::string> dropPacked(const torch::jit::Module& module);

// Gives `to` the objects that `from` holds in these attributes.
void takePacked(const torch::jit::Module& from, const torch::jit::Module& to,
                const std::vector<std::string>& names);

}  // namespace jitquant

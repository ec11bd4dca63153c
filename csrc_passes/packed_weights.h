#pragma once
// Packed weights of a converted model, of which there is no memory for two copies.

#include <torch/csrc/jit/api/module.h>

#include <string>
#include <vector>

namespace jitquant {

// Lets go of the objects with packed weights that the top module holds. Returns their attributes,
// which hold nothing until takePacked gives them objects.
std::vector<std::string> dropPacked(const torch::jit::Module& module);

// Gives `to` the objects that `from` holds in these attributes.
void takePacked(const torch::jit::Module& from, const torch::jit::Module& to,
                const std::vector<std::string>& names);

}  // namespace jitquant

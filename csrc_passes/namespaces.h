#pragma once
// Which libraries a graph takes its ops and classes from.

#include <torch/csrc/jit/api/module.h>

#include <set>
#include <string>

namespace jitquant {

// The namespaces of all nodes of the module's own methods, with calls inlined, and of the classes
// of their values: {"aten", "prim", "torchvision"}.
std::set<std::string> namespacesOf(const torch::jit::Module& module);

}  // namespace jitquant

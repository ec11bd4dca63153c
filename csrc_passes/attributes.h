#pragma once
// Attributes of modules that have thousands of them.

#include <torch/csrc/jit/api/module.h>

#include <string>

namespace jitquant {

// Adds a module as a new attribute. Module::register_module looks for the name among all
// attributes three times, and this once.
inline void addModule(const torch::jit::Module& owner, const std::string& name,
                      const torch::jit::Module& module) {
  const size_t slot = owner.type()->addAttribute(name, module.type());
  owner._ivalue()->setSlot(slot, module._ivalue());
}

}  // namespace jitquant

#pragma once
// Calls and forks become the code that they run.

#include "program.h"

namespace jitquant {

// A copy of the method's graph in which every call and every fork is inlined; its nodes keep the
// module path that they came from. `root` is the module whose method this is: where a submodule is
// typed as an interface, the module that is there says which code runs. Null for methods of
// objects that are no modules.
std::shared_ptr<jit::Graph> inlinedGraph(const jit::Function& method, const jit::Module* root);

}  // namespace jitquant

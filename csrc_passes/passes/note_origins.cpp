// note_origins: each op remembers how the user's code spells it, for configuration by type.
//
// Before:
//   %y = aten::addmm(%b, %x, %wt, %one, %one), scope: fc
// After:
//   %y = aten::addmm(%b, %x, %wt, %one, %one), scope: fc/addmm
//
// Needs:  flatten.
// Leaves: the graph as it is. Ops of other libraries, which nothing rewrites.
//
// The scope is the only thing that libtorch's own passes hand on to the nodes that they make.

#include <set>

#include "ir_util.h"
#include "passes/passes.h"

namespace jitquant {

void noteOrigins(Program& program) {
  std::set<std::string> written;
  for (Method& method : program.methods) {
    for (jit::Node* node : allNodes(*method.graph)) {
      if (node->kind().is_prim()) continue;
      written.insert(node->kind().toQualString());
      if (node->kind().is_aten()) {
        noteOrigin(node);
      } else {
        setModulePath(node, modulePath(node));  // a scope of its own
      }
    }
  }
  program.written.assign(written.begin(), written.end());
}

}  // namespace jitquant

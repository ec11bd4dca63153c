// functionalize: in-place ops become functional where nobody can see the difference.
//
// Before:
//   %y = aten::add_(%x, %z, %one); %r = aten::relu_(%y)
// After:
//   %y = aten::add(%x, %z, %one); %r = aten::relu(%y)
//
// Needs:  fold_attributes.
// Leaves: in-place ops whose memory another value, an input or an attribute shares. plan keeps
//         such values float and says which op writes them.

#include <torch/csrc/jit/passes/remove_mutation.h>

#include "ir_util.h"
#include "passes/passes.h"

namespace jitquant {

void functionalize(Program& program) {
  for (Method& method : program.methods) {
    jit::RemoveListMutation(method.graph);
    jit::RemoveTensorMutation(method.graph);
  }
}

}  // namespace jitquant

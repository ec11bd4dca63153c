// fuse_activation: a layer takes along the activation behind it, without rounding in between.
//
// Before:
//   %l = quantized::linear(%x, %packed, s1, z1)
//   %r = quantized::leaky_relu(%l, 0.01, False, s, z)
// After:
//   %r = quantized::linear_leaky_relu(%x, %packed, s, z, 0.01)
//
// Needs:  fuse, so that all readers of int8 values are there, and that the engine has such ops.
// Leaves: a layer whose result something else reads as well.

#include "dead_code.h"
#include "ir_util.h"
#include "passes/passes.h"
#include "qparams.h"
#include "targets/target.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

void fuseInto(Program& program, Node* activation) {
  if (!mark(activation, kInt8Mark) || activation->inputs().empty()) return;
  Node* layer = activation->input(0)->node();
  const FusedRow* row = program.target->findFused(layer, activation);
  if (row == nullptr || row->overwrites || !hasOneUse(layer->output())) return;
  const QParams qparams = *qparamsOf(activation->output(), program);
  Node* fused = activation->owningGraph()->create(
      c10::Symbol::fromQualString(row->op),
      {layer->input(0), layer->input(1), insertConstantBefore(activation, qparams.scalarScale()),
       insertConstantBefore(activation, qparams.scalarZeroPoint())});
  for (const size_t i : row->args) fused->addInput(activation->input(i));
  copyOrigin(fused, activation)->insertBefore(activation);
  for (const Node* part : {layer, activation}) {
    program.records[*mark(part, kOpMark)].reason = row->op;
  }
  replaceAndDestroy(activation, fused->output());
}

}  // namespace

void fuseActivation(Program& program) {
  if (!program.target->fusesLayers()) return;
  for (Method& method : program.methods) {
    for (Node* node : allNodes(*method.graph)) fuseInto(program, node);
    eliminateDeadCode(method.graph);
  }
}

}  // namespace jitquant

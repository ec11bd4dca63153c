// resolve_identities: whether a tensor is itself is known beforehand.
//
// Before:
//   %same : bool = aten::__is__(%x, %x)
//   %q : Tensor, %k : Tensor = prim::If(%c) { -> (%a, %a) } { -> (%b, %b) }
//   %also : bool = aten::__is__(%q, %k)
//   %u = aten::unsqueeze(%x, %dim); %v = aten::unsqueeze(%x, %dim)
// After:
//   %same : bool = prim::Constant[value=1]()
//   %q : Tensor = prim::If(%c) { -> (%a) } { -> (%b) }
//   %also : bool = prim::Constant[value=1]()
//   %u = aten::unsqueeze(%x, %dim)       read in place of %v too, as torch's own optimizer does
// nn.MultiheadAttention asks this, and has a way of its own, with weights cut from the same one,
// for self-attention, for equal keys and values, and for all else.
//
// Needs:  fold_attributes, and resolve_asserts, which brings values out of branches.
// Leaves: two values, which may or may not be the same tensor.

#include "fold_constants.h"
#include "ir_util.h"
#include "passes/passes.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

// Of two outputs that are equal in both branches, the second one goes.
bool joinOutputs(Node* branch) {
  const auto inner = [&](size_t block, size_t i) { return branch->blocks()[block]->outputs()[i]; };
  bool changed = false;
  for (size_t i = branch->outputs().size(); i-- > 1;) {
    for (size_t j = 0; j < i; ++j) {
      if (inner(0, i) != inner(0, j) || inner(1, i) != inner(1, j)) continue;
      branch->output(i)->replaceAllUsesWith(branch->output(j));
      branch->eraseOutput(i);
      for (jit::Block* block : branch->blocks()) block->eraseOutput(i);
      changed = true;
      break;
    }
  }
  return changed;
}

// Two views that are made alike of one tensor are one.
bool joinViews(Node* node) {
  for (const jit::Use& use : node->input(0)->uses()) {
    Node* other = use.user;
    if (other == node || other->kind() != node->kind() || !other->isBefore(node) ||
        other->owningBlock() != node->owningBlock() || other->inputs() != node->inputs()) {
      continue;
    }
    replaceAndDestroy(node, other->output());
    return true;
  }
  return false;
}

bool resolve(Node* node) {
  if (node->kind() == c10::prim::If) return joinOutputs(node);
  if (node->kind() == c10::aten::unsqueeze) return joinViews(node);
  const bool asks = node->kind() == c10::aten::__is__ || node->kind() == c10::aten::__isnot__;
  if (!asks || node->input(0) != node->input(1) || !isTensor(node->input(0))) return false;
  replaceAndDestroy(node, insertConstantBefore(node, node->kind() == c10::aten::__is__));
  return true;
}

}  // namespace

void resolveIdentities(Program& program) {
  for (Method& method : program.methods) {
    for (bool changed = true; changed;) {
      changed = false;
      for (Node* node : allNodes(*method.graph)) changed = resolve(node) || changed;
      if (changed) foldConstants(method.graph);
    }
  }
}

}  // namespace jitquant

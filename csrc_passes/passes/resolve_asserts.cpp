// resolve_asserts: where one branch of an If raises, what the other one does always follows.
//
// Before:
//   %b1 : Tensor? = prim::If(%wrong) {
//     prim::RaiseException(%message); -> (%uninitialized)
//   } {
//     %z = aten::mul(%b, %c); -> (%z)
//   }
//   %y = aten::linear(%x, %w, %b1)
// After:
//   prim::If(%wrong) { prim::RaiseException(%message); -> () } { -> () }
//   %z = aten::mul(%b, %c); %y = aten::linear(%x, %w, %z)
//
// Needs:  fold_attributes.
// Leaves: an If of which no branch raises, or both do.

#include "fold_constants.h"
#include "ir_util.h"
#include "passes/passes.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

bool raises(const jit::Block* block) {
  const auto nodes = block->nodes();
  return std::any_of(nodes.begin(), nodes.end(),
                     [](const Node* node) { return node->kind() == c10::prim::RaiseException; });
}

// The nodes of the branch that does not raise move behind the If.
bool resolve(Node* branch) {
  const bool first_raises = raises(branch->blocks()[0]);
  if (first_raises == raises(branch->blocks()[1])) return false;
  jit::Block* other = branch->blocks()[first_raises ? 1 : 0];
  Node* last = branch;
  const std::vector<Node*> nodes(other->nodes().begin(), other->nodes().end());
  for (Node* node : nodes) {
    node->moveAfter(last);
    last = node;
  }
  const bool changed = last != branch || !branch->outputs().empty();
  for (size_t i = branch->outputs().size(); i-- > 0;) {
    branch->output(i)->replaceAllUsesWith(other->outputs()[i]);
    branch->eraseOutput(i);
    for (jit::Block* block : branch->blocks()) block->eraseOutput(i);
  }
  return changed;
}

}  // namespace

void resolveAsserts(Program& program) {
  for (Method& method : program.methods) {
    bool changed = false;
    for (Node* node : allNodes(*method.graph)) {
      if (node->kind() == c10::prim::If) changed = resolve(node) || changed;
    }
    if (changed) foldConstants(method.graph);
  }
}

}  // namespace jitquant

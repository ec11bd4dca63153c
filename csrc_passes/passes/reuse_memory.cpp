// reuse_memory: a float op that alone reads what was dequantized for it writes its result there.
//
// Before:
//   %d = aten::dequantize(%q); %s = aten::silu(%d); %r = aten::quantize_per_tensor(%s, ...)
// After:
//   %d = aten::dequantize(%q); %s = aten::silu_(%d); %r = aten::quantize_per_tensor(%s, ...)
//
// Needs:  restore_layout, which reads what is written in place.
// Leaves: ops with another reader of their input, or in another block than it, which may run more
//         than once. What a dequantize of the user's gives may be the very tensor that it was
//         given.

#include <algorithm>
#include <array>

#include "ir_util.h"
#include "passes/passes.h"
#include "qparams.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

// Of each element by itself, in a kernel that can write where it reads.
constexpr std::array<const char*, 9> kElementwise{
    "aten::silu",        "aten::sigmoid", "aten::tanh",       "aten::gelu",     "aten::mish",
    "aten::hardsigmoid", "aten::elu",     "aten::leaky_relu", "aten::hardswish"};

bool mayOverwriteInput(const Node* node, const Program& program) {
  const std::string kind = node->kind().toQualString();
  if (std::find(kElementwise.begin(), kElementwise.end(), kind) == kElementwise.end()) return false;
  const Value* input = node->input(0);
  const Node* producer = input->node();
  return producer->kind() == c10::aten::dequantize && hasOneUse(input) &&
         producer->owningBlock() == node->owningBlock() && isTensor(producer->input(0)) &&
         qparamsOf(producer->input(0), program).has_value();
}

}  // namespace

void reuseMemory(Program& program) {
  for (Method& method : program.methods) {
    for (Node* node : allNodes(*method.graph)) {
      if (!mayOverwriteInput(node, program)) continue;
      const std::string kind = node->kind().toQualString();
      Node* in_place = node->replaceWithNewSymbol(c10::Symbol::fromQualString(kind + "_"));
      carryObservation(program, node->output(), in_place->output());
      node->destroy();
    }
  }
}

}  // namespace jitquant

// note_shared_weights: coverage says where a weight is in the file twice: packed for one op, and
// float for another.
//
// Before:
//   %y = aten::embedding(%w, %i, ...)            reason: its qconfig is None
//   %packed = quantized::linear_prepack(%wq, %b)      made of %w too
// After: the same graph.
//   %y = aten::embedding(%w, %i, ...)            reason: its qconfig is None; its weight is in the
//                                                file twice, packed for aten::linear in 'head' too
//
// Needs:  verify and its kin, after which no op becomes float any more.
// Leaves: the graphs as they are.

#include <ATen/ATen.h>

#include "ir_util.h"
#include "passes/passes.h"
#include "plan_draft.h"
#include "targets/target.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

// The tensor behind what an op packs, which may be quantized before; none for all other ops.
std::optional<at::Tensor> packedTensor(const Node* node, const Program& program) {
  if (!program.target->isPrepack(node)) return std::nullopt;
  const Value* weight = node->input(0);
  const auto kind = weight->node()->kind();
  if (kind == c10::aten::quantize_per_tensor || kind == c10::aten::quantize_per_channel) {
    weight = weight->node()->input(0);
  }
  return constantTensor(weight, program.module);
}

// What never ran is counted by how its reason ends.
bool neverRan(const std::string& reason) { return reason.ends_with(kNeverRan); }

}  // namespace

void noteSharedWeights(Program& program) {
  std::unordered_map<const void*, std::string> packed_for;  // looked up only
  for (const Method& method : program.methods) {
    for (const Node* node : allNodes(*method.graph)) {
      const auto index = mark(node, kOpMark);
      const auto weight = packedTensor(node, program);
      if (!index || !weight) continue;
      const OpRecord& op = program.records[*index];
      const std::string where = op.path.empty() ? " in the top module" : " in '" + op.path + "'";
      packed_for.emplace(weight->data_ptr(), op.kind + where);
    }
  }
  for (const Method& method : program.methods) {
    for (const Node* node : allNodes(*method.graph)) {
      const auto index = mark(node, kOpMark);
      // What an op was lowered to has its mark too.
      if (!index || program.records[*index].kind != node->kind().toQualString()) continue;
      for (const Value* input : node->inputs()) {
        const auto weight = constantTensor(input, program.module);
        if (!weight || weight->dim() < 2) continue;
        const auto found = packed_for.find(weight->data_ptr());
        if (found == packed_for.end()) continue;
        const std::string twice =
            "its weight is in the file twice, packed for " + found->second + " too";
        std::string& reason = program.records[*index].reason;
        reason = neverRan(reason) ? twice + "; " + reason : reason + "; " + twice;
      }
    }
  }
}

}  // namespace jitquant

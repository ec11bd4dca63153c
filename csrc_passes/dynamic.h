#pragma once
// Questions about layers whose qconfig is dynamic: they read and give float, and hold a packed
// weight.

#include "op_table.h"
#include "targets/target.h"

namespace jitquant {

// How a layer runs whose qconfig has that index; null for static qconfigs, for negative indices,
// and for ops without a dynamic form.
const DynamicRow* dynamicRow(const jit::Node* node, int64_t qconfig, const Program& program);

// What becomes of a decision on an op: it stays, or is the negative one that says why the layer has
// no form for a dynamic qconfig.
int64_t decisionOn(const jit::Node* node, int64_t qconfig, const Program& program);

// Where an op reads one of its weight matrices: itself, or through its list of weights.
struct WeightUse {
  jit::Node* reader;
  size_t input;

  jit::Value* value() const { return reader->input(input); }
};
std::vector<WeightUse> weightUses(jit::Node* layer);

// What insert_dynamic_qdq or quantize_tables rounded, in two ops, to make `rounded`.
jit::Value* unrounded(jit::Value* rounded);

// Why an op with a dynamic qconfig stays float, or "".
std::string whyNotDynamic(const jit::Node* node, int64_t qconfig, const Program& program);

// The reason that stands for a planned layer with float16 weights, which is no int8 op.
inline constexpr const char* kFloat16Weight = "its weight is float16";

}  // namespace jitquant

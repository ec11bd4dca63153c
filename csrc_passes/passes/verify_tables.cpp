// verify_tables: looks every row of a packed table up once, and takes back embeddings that give
// anything else than the float op on the unpacked table.
//
// Before:
//   %r = quantized::embedding_bag_byte_rowwise_offsets(%rows, %column, ...) ...
// After, where it raises or its result is wrong:
//   %y = aten::embedding(%w, %i, ...)      with the reason in coverage
//
// Needs:  lower_tables, which leaves the float ops in place.
// Leaves: no unused float op. What packing itself costs is asked by plan.

#include <ATen/ATen.h>

#include "dead_code.h"
#include "dynamic.h"
#include "error.h"
#include "evaluate.h"
#include "ir_util.h"
#include "passes/passes.h"
#include "plan.h"
#include "tables.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

constexpr int64_t kRowsOfBag = 3;
constexpr double kFloatError = 1e-5;  // of sums in another order, relative to the largest output

// Every row once: in bags of three, the second of which is empty.
void setInputs(Evaluator& evaluator, const Node* node, int64_t rows) {
  const at::Tensor indices = at::arange(rows, at::kLong);
  evaluator.set(node->input(1), indices);
  if (node->kind() == c10::aten::embedding) return;
  std::vector<at::Tensor> offsets{at::zeros({1}, at::kLong), at::arange(0, rows, kRowsOfBag)};
  const bool has_last_offset = constantNumber(node->input(kBagLastOffset)) != 0.0;
  if (has_last_offset) offsets.push_back(at::full({1}, rows, at::kLong));
  evaluator.set(node->input(kBagLastOffset), has_last_offset);
  evaluator.set(node->input(2), at::cat(offsets));
  if (!isNone(node->input(kBagWeights))) {
    evaluator.set(node->input(kBagWeights), at::linspace(0.5, 1.5, rows));
  }
}

std::string problemOf(const TableLowering& lowering, const Program& program) {
  const Node* node = lowering.float_op;
  Evaluator evaluator(program.module);
  try {
    const int64_t rows = evaluator.evaluate(node->input(0))->toTensor().size(0);
    setInputs(evaluator, node, rows);
    const at::Tensor expected = evaluator.evaluate(node->output(0))->toTensor();
    const at::Tensor actual = evaluator.evaluate(lowering.lowered)->toTensor();
    if (expected.sizes() != actual.sizes()) return "its packed form gives another shape";
    if (actual.numel() == 0) return "";
    const double allowed = kFloatError * expected.abs().max().item<double>();
    const bool is_right = (expected - actual).abs().max().item<double>() <= allowed;
    return is_right ? "" : "its packed form is wrong";
  } catch (const std::exception& error) {
    return "its packed form raises: " + firstLine(error);
  }
}

void takeBack(const TableLowering& lowering, const std::string& reason, Program& program) {
  leaveFloat(program, lowering.float_op, reason);
  lowering.lowered->replaceAllUsesWith(lowering.float_op->output(0));
  lowering.float_op->replaceInput(0, unrounded(lowering.float_op->input(0)));
}

}  // namespace

void verifyTables(Program& program) {
  for (const TableLowering& lowering : program.table_lowerings) {
    const std::string problem = problemOf(lowering, program);
    if (!problem.empty()) takeBack(lowering, problem, program);
  }
  program.table_lowerings.clear();
  for (Method& method : program.methods) eliminateDeadCode(method.graph);
}

}  // namespace jitquant

// verify_dynamic: runs every dynamic op once against the float ops that it stands for, and takes
// back those that are wrong.
//
// Before:
//   %q = quantized::linear_dynamic(%x, %packed, False)
// After, where it raises or its result is wrong:
//   %y = aten::linear(%x, %w, %b)      with the reason in coverage
//
// Needs:  lower_dynamic, which leaves the float ops in place.
// Leaves: no unused float op. Inputs are random, in the shapes that a run of the prepared model
//         left, or else of four rows.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>

#include "error.h"
#include "evaluate.h"
#include "ir_util.h"
#include "passes/passes.h"
#include "plan.h"

namespace jitquant {

using jit::Value;

namespace {

constexpr int64_t kRows = 4;
constexpr double kFloatError = 1e-5;  // of sums in another order, relative to the largest output

class DynamicVerifier {
 public:
  explicit DynamicVerifier(Program& program)
      : program_(program), generator_(at::make_generator<at::CPUGeneratorImpl>(/*seed=*/0)) {}

  void check(const DynamicLowering& lowering) {
    for (const auto& shape : shapesOf(lowering)) {
      const std::string problem = runOnce(lowering, shape);
      if (problem.empty()) continue;
      takeBack(lowering, problem);
      return;
    }
  }

 private:
  std::vector<std::vector<int64_t>> shapesOf(const DynamicLowering& lowering) const {
    const auto found = program_.observations.find(lowering.input);
    if (found != program_.observations.end() && !found->second.shapes.empty()) {
      return found->second.shapes;
    }
    return {{kRows, weightOf(lowering).size(1)}};
  }

  at::Tensor weightOf(const DynamicLowering& lowering) const {
    Evaluator evaluator(program_.module);
    return evaluator.evaluate(lowering.float_op->input(1))->toTensor();
  }

  std::string runOnce(const DynamicLowering& lowering, const std::vector<int64_t>& shape) {
    Evaluator evaluator(program_.module);
    const at::Tensor input = at::randn(shape, generator_);
    evaluator.set(lowering.input, input);
    try {
      const at::Tensor expected = evaluator.evaluate(lowering.float_output)->toTensor();
      const at::Tensor actual = evaluator.evaluate(lowering.dynamic_output)->toTensor();
      if (expected.sizes() != actual.sizes()) return "its dynamic form gives another shape";
      if (actual.numel() == 0) return "";
      // Of its input one value may be rounded to the next step.
      const double step = (input.max() - input.min()).item<double>() / 255;
      const double allowed = step * weightOf(lowering).abs().max().item<double>() +
                             kFloatError * expected.abs().max().item<double>();
      const bool is_right = (expected - actual).abs().max().item<double>() <= allowed;
      return is_right ? "" : "its dynamic form is wrong";
    } catch (const std::exception& error) {
      return "its dynamic form raises: " + firstLine(error);
    }
  }

  void takeBack(const DynamicLowering& lowering, const std::string& reason) {
    leaveFloat(program_, lowering.float_op, reason);
    jit::Node* relu = lowering.float_output->node();
    if (relu != lowering.float_op)
      leaveFloat(program_, relu, "the op that would absorb it stays float");
    lowering.dynamic_output->replaceAllUsesWith(lowering.float_output);
    // Its values need no rounding any more.
    const jit::Value* input = lowering.float_op->input(0);
    if (input != lowering.input) lowering.float_op->replaceInput(0, lowering.input);
    lowering.float_op->replaceInput(
        1, lowering.float_op->input(1)->node()->input(0)->node()->input(0));
  }

  Program& program_;
  at::Generator generator_;
};

}  // namespace

void verifyDynamic(Program& program) {
  DynamicVerifier verifier(program);
  for (const DynamicLowering& lowering : program.dynamic_lowerings) verifier.check(lowering);
  program.dynamic_lowerings.clear();
  for (Method& method : program.methods) jit::EliminateDeadCode(method.graph);
}

}  // namespace jitquant

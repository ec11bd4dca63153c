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
//         left, or else of four rows; of sequences the first steps.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include "dead_code.h"
#include "dynamic.h"
#include "error.h"
#include "evaluate.h"
#include "ir_util.h"
#include "passes/passes.h"
#include "plan.h"
#include "recurrent.h"

namespace jitquant {

using jit::Value;

namespace {

constexpr int64_t kRows = 4;
constexpr double kFloatError = 1e-5;  // of sums in another order, relative to the largest output
// An LSTM or GRU also rounds its hidden states, to 8 bits, which the float op does not: that costs
// a hundredth of its values (40 dB) in the first steps, and more in each further one. A wrong
// weight or bias costs more than half of them.
constexpr double kStateError = 0.1;
constexpr int64_t kSteps = 4;

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
    const int64_t features = weightOf(lowering).size(1);
    const bool has_steps = isRecurrent(lowering.float_op) && !readsPacked(lowering.float_op);
    if (has_steps) return {{kRows, kRows, features}};
    return {{kRows, features}};
  }

  at::Tensor weightOf(const DynamicLowering& lowering) const {
    Evaluator evaluator(program_.module);
    return evaluator.evaluate(weightUses(lowering.float_op)[0].value())->toTensor();
  }

  std::string runOnce(const DynamicLowering& lowering, std::vector<int64_t> shape) {
    const bool recurs = isRecurrent(lowering.float_op);
    if (recurs && shape.size() == 3) {
      int64_t& steps = shape[stepsDim(lowering.float_op)];
      steps = std::min(steps, kSteps);
    }
    Evaluator evaluator(program_.module);
    const at::Tensor input = at::randn(shape, generator_);
    evaluator.set(lowering.input, input);
    if (recurs) setStates(evaluator, lowering.float_op, shape);
    try {
      for (size_t i = 0; i < lowering.float_outputs.size(); ++i) {
        const at::Tensor expected =
            evaluator.evaluate(lowering.float_outputs[i]).value().toTensor();
        const at::Tensor actual =
            evaluator.evaluate(lowering.dynamic_outputs[i]).value().toTensor();
        if (expected.sizes() != actual.sizes()) return "its dynamic form gives another shape";
        if (actual.numel() == 0) continue;
        if (recurs && !isNear(actual, expected)) {
          return "its dynamic form is off by more than a tenth";
        }
        if (!recurs && !isRounded(actual, expected, input, lowering)) {
          return "its dynamic form is wrong";
        }
      }
      return "";
    } catch (const std::exception& error) {
      return "its dynamic form raises: " + firstLine(error);
    }
  }

  bool isNear(const at::Tensor& actual, const at::Tensor& expected) const {
    return (expected - actual).norm().item<double>() <=
           kStateError * expected.norm().item<double>();
  }

  bool isRounded(const at::Tensor& actual, const at::Tensor& expected, const at::Tensor& input,
                 const DynamicLowering& lowering) const {
    // Of its input one value may be rounded to the next step.
    const double step = (input.max() - input.min()).item<double>() / 255;
    const double allowed = step * weightOf(lowering).abs().max().item<double>() +
                           kFloatError * expected.abs().max().item<double>();
    return (expected - actual).abs().max().item<double>() <= allowed;
  }

  size_t stepsDim(const jit::Node* layer) const {
    return constantNumber(argumentNamed(layer, "batch_first")) != 0.0 ? 1 : 0;
  }

  // Random states that fit an input of that shape. Packed sequences are two steps long.
  void setStates(Evaluator& evaluator, const jit::Node* layer, const std::vector<int64_t>& shape) {
    int64_t batch = 0;
    if (readsPacked(layer)) {
      batch = (shape[0] + 1) / 2;
      const at::Tensor sizes = at::tensor({batch, shape[0] - batch}, at::kLong);
      evaluator.set(argumentNamed(layer, "batch_sizes"), sizes);
    } else {
      batch = shape[1 - stepsDim(layer)];
    }
    const std::vector<Cell> cells = cellsOf(layer);
    const int64_t hidden = evaluator.evaluate(cells[0].w_hh)->toTensor().size(1);
    const auto state = [&] {
      return at::randn({static_cast<int64_t>(cells.size()), batch, hidden}, generator_).tanh();
    };
    const bool has_two = layer->kind() == c10::aten::lstm;
    evaluator.set(
        argumentNamed(layer, "hx"),
        has_two ? at::IValue(c10::List<at::Tensor>({state(), state()})) : at::IValue(state()));
  }

  void takeBack(const DynamicLowering& lowering, const std::string& reason) {
    jit::Node* layer = lowering.float_op;
    leaveFloat(program_, layer, reason);
    jit::Node* relu = lowering.float_outputs[0]->node();
    if (relu != layer) leaveFloat(program_, relu, "the op that would absorb it stays float");
    for (size_t i = 0; i < lowering.float_outputs.size(); ++i) {
      lowering.dynamic_outputs[i]->replaceAllUsesWith(lowering.float_outputs[i]);
    }
    // Its values need no rounding any more.
    layer->replaceInput(0, lowering.input);
    for (const WeightUse& use : weightUses(layer)) {
      use.reader->replaceInput(use.input, unrounded(use.value()));
    }
  }

  Program& program_;
  at::Generator generator_;
};

}  // namespace

void verifyDynamic(Program& program) {
  DynamicVerifier verifier(program);
  for (const DynamicLowering& lowering : program.dynamic_lowerings) verifier.check(lowering);
  program.dynamic_lowerings.clear();
  for (Method& method : program.methods) eliminateDeadCode(method.graph);
}

}  // namespace jitquant

// verify: runs every int8 op once against the float op that it stands for, and takes back those
// that are wrong.
//
// Before:
//   %rq = quantized::conv2d_relu(%xq, %packed, s, z)
// After, where its result is more than the row's tolerance away from quantize(relu(conv2d(...))):
//   %rq = aten::quantize_per_tensor(%r, s, z, quint8)      with the reason in coverage
//
// Needs:  lower, which leaves the float ops in place.
// Leaves: no unused float op. The inputs are uniform random integers of a fixed seed, in the
//         shapes that calibration saw (one for each rank); the generator is the pass's own.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include "dead_code.h"
#include "error.h"
#include "evaluate.h"
#include "ir_util.h"
#include "passes/passes.h"
#include "plan.h"
#include "qparams.h"
#include "targets/target.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

constexpr int64_t kMaxElements = 1 << 20;

class Verifier {
 public:
  explicit Verifier(Program& program)
      : program_(program), generator_(at::make_generator<at::CPUGeneratorImpl>(/*seed=*/0)) {}

  void check(const Lowering& lowering) {
    const auto cases = shapeCases(lowering);
    std::string problem;
    for (const auto& shapes : cases) {
      problem = runOnce(lowering, shapes);
      if (!problem.empty()) break;
    }
    if (!problem.empty()) takeBack(lowering, problem);
  }

 private:
  using Shapes = std::vector<std::vector<int64_t>>;  // one shape per data input

  // Calibrated shapes, one case per rank of the first input. Large batches are cut to one.
  std::vector<Shapes> shapeCases(const Lowering& lowering) const {
    std::vector<Shapes> cases;
    const size_t ranks = shapesOf(lowering.dequantized[0]).size();
    for (size_t i = 0; i < ranks; ++i) {
      Shapes shapes;
      for (const Value* value : lowering.dequantized) {
        const auto seen = shapesOf(value);
        if (seen.empty()) return {};
        shapes.push_back(seen[std::min(i, seen.size() - 1)]);
      }
      fitLayer(lowering.float_op, shapes[0]);
      cutBatch(shapes);
      cases.push_back(std::move(shapes));
    }
    return cases;
  }

  std::vector<std::vector<int64_t>> shapesOf(const Value* dequantized) const {
    const auto found = program_.observations.find(dequantized);
    return found == program_.observations.end() ? std::vector<std::vector<int64_t>>{}
                                                : found->second.shapes;
  }

  // What goes round a loop has the shape of one round, and in another one a layer of other channels
  // may take it.
  void fitLayer(const Node* layer, std::vector<int64_t>& shape) const {
    if (!isLayer(layer)) return;
    const Value* weight = layer->input(1);
    std::optional<at::Tensor> constant;
    while (!(constant = constantTensor(weight, program_.module))) {
      if (weight->node()->inputs().empty() || !isTensor(weight->node()->input(0))) return;
      weight = weight->node()->input(0);
    }
    const auto groups = isConv(layer) ? constantNumber(layer->input(6)) : std::optional(1.0);
    const size_t image = isConv(layer) ? static_cast<size_t>(constant->dim()) - 1 : 1;
    if (!groups || isConvTranspose(layer) || shape.size() < image) return;
    shape[shape.size() - image] = constant->size(1) * static_cast<int64_t>(*groups);
  }

  static void cutBatch(Shapes& shapes) {
    const int64_t batch = shapes[0].size() > 2 ? shapes[0][0] : 1;
    if (batch <= 1 || c10::multiply_integers(shapes[0]) <= kMaxElements) return;
    for (auto& shape : shapes) {
      if (shape.size() == shapes[0].size() && shape[0] == batch) shape[0] = 1;
    }
  }

  std::string runOnce(const Lowering& lowering, const Shapes& shapes) {
    Evaluator evaluator(program_.module);
    for (size_t i = 0; i < shapes.size(); ++i) {
      const Value* dequantized = lowering.dequantized[i];
      const Value* quantized = dequantized->node()->input();
      const auto qparams = qparamsOf(quantized, program_);
      if (!qparams) {
        throw std::logic_error("the qparams of %" + quantized->debugName() + " are unknown");
      }
      const at::Tensor integers =
          at::randint(0, 256, shapes[i], generator_, at::TensorOptions().dtype(at::kByte));
      const at::Tensor tensor = at::_make_per_tensor_quantized_tensor(
          asConvolutionsLeaveIt(integers), qparams->scalarScale(), qparams->scalarZeroPoint());
      evaluator.set(quantized, tensor);
      evaluator.set(dequantized, tensor.dequantize().contiguous());
    }
    try {
      for (const LoweredResult& result : lowering.results) {
        const auto expected = evaluator.evaluate(result.float_output);
        const auto actual = evaluator.evaluate(result.int8_output);
        if (!expected || !actual) continue;
        std::string problem = compare(lowering, expected->toTensor(), actual->toTensor());
        if (!problem.empty()) return problem;
      }
      return "";
    } catch (const std::exception& error) {
      return "its int8 form raises: " + firstLine(error);
    }
  }

  // Channels-last, which is what the int8 convolutions return. Images of one pixel count as that
  // with other strides too, and kernels tell them apart.
  static at::Tensor asConvolutionsLeaveIt(const at::Tensor& tensor) {
    if (tensor.dim() == 4) return tensor.clone(at::MemoryFormat::ChannelsLast);
    return tensor.dim() == 5 ? tensor.clone(at::MemoryFormat::ChannelsLast3d) : tensor;
  }

  std::string compare(const Lowering& lowering, const at::Tensor& expected,
                      const at::Tensor& actual) const {
    if (expected.sizes() != actual.sizes()) return "its int8 form gives another shape";
    if (actual.numel() == 0) return "";
    const at::Tensor reference =
        at::quantize_per_tensor(expected, actual.q_scale(), actual.q_zero_point(), at::kQUInt8);
    const int64_t steps = (reference.int_repr().to(at::kInt) - actual.int_repr().to(at::kInt))
                              .abs()
                              .max()
                              .item<int64_t>();
    const int64_t tolerance = program_.target->find(*findRow(lowering.float_op))->tolerance;
    if (steps <= tolerance) return "";
    return "its int8 form is wrong by up to " + std::to_string(steps) +
           " quantization steps for this shape";
  }

  void takeBack(const Lowering& lowering, const std::string& reason) {
    leaveFloat(program_, lowering.float_op, reason);
    for (const LoweredResult& result : lowering.results) takeBack(lowering, result);
  }

  void takeBack(const Lowering& lowering, const LoweredResult& result) {
    const Node* activation = result.float_output->node();
    if (sourceOf(result.float_output) != lowering.float_op) {
      leaveFloat(program_, activation, "the op that would absorb it stays float");
    }
    Node* quantize = result.quantize;
    if (quantize == nullptr) {
      const QParams qparams = *qparamsOf(result.int8_output, program_);
      const QuantizePair pair =
          insertQuantizePair(result.float_output, qparams, result.float_output->node()->next());
      quantize = pair.quantize;
      pair.dequantize->destroy();
    }
    result.int8_output->replaceAllUsesWith(quantize->output());
  }

  Program& program_;
  at::Generator generator_;
};

}  // namespace

void verify(Program& program) {
  Verifier verifier(program);
  for (const Lowering& lowering : program.lowerings) verifier.check(lowering);
  program.lowerings.clear();
  for (Method& method : program.methods) {
    eliminateDeadCode(method.graph);
  }
}

}  // namespace jitquant

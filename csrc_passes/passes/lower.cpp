// lower: a float op between dequantize and quantize becomes the target's int8 op, by table.
//
// Before:
//   %c = aten::conv2d(%xd, %wd, %b, ...); %r = aten::relu(%c)
//   %rq = aten::quantize_per_tensor(%r, s, z, quint8)
// After:
//   %packed = quantized::conv2d_prepack(%wq, %b, ...)
//   %rq = quantized::conv2d_relu(%xq, %packed, s, z)
//
// Needs:  propagate_dequantize, so that every data input of an int8 op is a dequantize.
// Leaves: the float ops, unused, for verify to compare with. An activation with an upper bound is
//         left to the saturation of the int8 op where its bounds quantize to 0 and 255, which is
//         exact since rounding is monotone; otherwise it follows as an int8 op of its own.

#include "error.h"
#include "ir_util.h"
#include "passes/passes.h"
#include "plan.h"
#include "qparams.h"
#include "targets/target.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

class Lowerer {
 public:
  Lowerer(Program& program, Method& method) : program_(program), method_(method) {}

  void run() {
    for (Node* node : allNodes(*method_.graph)) {
      if (node->kind() == c10::aten::quantize_per_tensor) lowerInto(node);
    }
  }

 private:
  void lowerInto(Node* quantize) {
    Value* result = quantize->input(0);
    Node* op = result->node();
    Node* activation = nullptr;
    if (const auto absorbed = method_.plan->absorbed_by.find(op);
        absorbed != method_.plan->absorbed_by.end()) {
      activation = op;
      op = absorbed->second;
    }
    if (method_.plan->int8.count(op) == 0) return;
    const OpRow& row = *findRow(op);
    if (row.role == Role::kSharesInput) return;  // lowered by propagate_dequantize
    const Int8Row& int8 = *program_.target->find(row);

    jit::Graph& graph = *method_.graph;
    const bool relu = activation != nullptr && !int8.relu_op.empty() && isRelu(activation);
    const std::string kind = relu ? int8.relu_op : int8.op.substr(0, int8.op.find('.'));
    Node* lowered = graph.create(c10::Symbol::fromQualString(kind));
    copyOrigin(lowered, op)->insertBefore(quantize);
    setMark(lowered, kInt8Mark, 1);
    Lowering lowering{op, {}, {}};
    std::vector<size_t> args = int8.args.empty() ? allInputs(op) : int8.args;
    if (int8.larger_first) {
      if (elements(op->input(0)) < elements(op->input(1))) std::reverse(args.begin(), args.end());
      if (isSlowBroadcast(op->input(args[0]), op->input(args[1]))) {
        setMark(lowered, kBroadcastMark, 1);
      }
    }
    for (const size_t i : args) lowered->addInput(argument(op, row, i, lowered, lowering));
    if (!int8.prepack.empty()) lowered->addInput(packedParams(op, int8, lowered));
    for (const at::IValue& constant : int8.constants) {
      lowered->addInput(insertConstantBefore(lowered, constant));
    }
    if (int8.takes_qparams) {
      lowered->addInput(quantize->input(1));
      lowered->addInput(quantize->input(2));
    }
    for (const size_t i : int8.late_args) lowered->addInput(op->input(i));
    Value* output = lowered->output();
    if (activation != nullptr && !relu && !saturates(*activation, quantize)) {
      output = int8Activation(activation, output, quantize);
    }
    lowering.results.push_back({result, output, quantize});
    quantize->output()->replaceAllUsesWith(output);
    program_.lowerings.push_back(lowering);
    report(op, kind);
  }

  // As calibration saw it first; empty where it saw nothing.
  std::vector<int64_t> shape(const Value* value) const {
    const auto found = program_.observations.find(value);
    if (found == program_.observations.end() || found->second.shapes.empty()) return {};
    return found->second.shapes[0];
  }

  // 0 where calibration saw nothing.
  int64_t elements(const Value* value) const {
    const std::vector<int64_t> seen = shape(value);
    return seen.empty() ? 0 : c10::multiply_integers(seen);
  }

  // Whether an image meets an operand of several values that it is larger than, and the kernel
  // takes so many channels one by one that they cost more than a copy of the operand in the image's
  // size.
  bool isSlowBroadcast(const Value* image, const Value* operand) const {
    constexpr int64_t kVector = 64;         // bytes of the longest
    constexpr int64_t kLeastSingle = 2500;  // 5 us
    const std::vector<int64_t> large = shape(image);
    const std::vector<int64_t> small = shape(operand);
    if (large.size() != 4 || small.size() != 4 || c10::multiply_integers(small) == 1) return false;
    bool differs = false;
    for (size_t i = 0; i < 4; ++i) {
      if (small[i] != 1 && small[i] != large[i]) return false;
      differs |= small[i] != large[i];
    }
    return differs && large[0] * large[2] * large[3] * (large[1] % kVector) >= kLeastSingle;
  }

  static std::vector<size_t> allInputs(const Node* op) {
    std::vector<size_t> indices(op->inputs().size());
    for (size_t i = 0; i < indices.size(); ++i) indices[i] = i;
    return indices;
  }

  Value* argument(Node* op, const OpRow& row, size_t index, Node* before, Lowering& lowering) {
    Value* input = op->input(index);
    if (std::find(row.data.begin(), row.data.end(), index) == row.data.end()) {
      return row.name == "aten::add.Scalar" && index == 1 ? quantizedScalar(input, before) : input;
    }
    if (isTensor(input)) {
      Value* quantized = quantizedInput(input, lowering);
      return row.name == "aten::add" && index == 1 ? timesAlpha(op, quantized, before) : quantized;
    }
    Node* list = method_.graph->create(c10::prim::ListConstruct);
    for (Value* element : input->node()->inputs())
      list->addInput(quantizedInput(element, lowering));
    list->output()->setType(c10::ListType::ofTensors());
    list->insertBefore(before);
    return list->output();
  }

  static Value* quantizedInput(Value* value, Lowering& lowering) {
    if (value->node()->kind() != c10::aten::dequantize) {
      throw std::logic_error("the input %" + value->debugName() + " of " +
                             describe(lowering.float_op) + " is not dequantized");
    }
    lowering.dequantized.push_back(value);
    return value->node()->input();
  }

  // Scaling by a constant changes the qparams only, and mirrors the integers if it is negative.
  Value* timesAlpha(const Node* add, Value* quantized, Node* before) {
    const double alpha = *constantNumber(add->input(2));
    if (alpha == 1.0) return quantized;
    const Int8Row& scaling = *program_.target->find("aten::mul.Scalar");
    Node* product = method_.graph->create(c10::Symbol::fromQualString(scaling.op),
                                          {quantized, insertConstantBefore(before, alpha)});
    copyOrigin(product, add)->insertBefore(before);
    setMark(product, kInt8Mark, 1);
    return product->output();
  }

  // A number as a quantized tensor of one element, without rounding error.
  static Value* quantizedScalar(const Value* value, Node* before) {
    const double number = *constantNumber(value);
    const double scale = number == 0.0 ? 1.0 : std::abs(number);
    const int64_t zero_point = number < 0.0 ? 1 : 0;
    const at::Tensor tensor = at::scalar_tensor(number, at::kFloat).reshape({1});
    Value* constant = insertConstantBefore(before, tensor);
    const QParams qparams = perTensor(scale, zero_point);
    const QuantizePair pair = insertQuantizePair(constant, qparams, before);
    Value* quantized = pair.quantize->output();
    pair.dequantize->destroy();
    return quantized;
  }

  Value* packedParams(Node* op, const Int8Row& int8, Node* before) {
    Node* prepack = method_.graph->create(c10::Symbol::fromQualString(int8.prepack));
    for (const size_t i : int8.prepack_args) {
      Value* input = op->input(i);
      const bool is_weight = input->node()->kind() == c10::aten::dequantize;
      prepack->addInput(is_weight ? input->node()->input() : input);
    }
    copyOrigin(prepack, op)->insertBefore(before);
    prepack->output()->setType(prepack->getOperator().schema().returns()[0].type());
    return prepack->output();
  }

  static bool saturates(const Node& activation, const Node* quantize) {
    const auto [low, high] = *activationBounds(&activation);
    const QParams qparams = *staticQParams(quantize->output());
    return quantizeNumber(low, qparams) == 0 && quantizeNumber(high, qparams) == 255;
  }

  static Value* int8Activation(Node* activation, Value* input, Node* before) {
    const bool one_bound =
        activation->kind() == c10::aten::clamp_min || activation->kind() == c10::aten::clamp_max;
    // Quantized tensors have no clamp_min and clamp_max.
    Node* clamp =
        activation->owningGraph()->create(one_bound ? c10::aten::clamp : activation->kind());
    clamp->addInput(input);
    if (activation->kind() == c10::aten::clamp_max) {
      clamp->addInput(insertConstantBefore(before, at::IValue()));
    }
    for (size_t i = 1; i < activation->inputs().size(); ++i) clamp->addInput(activation->input(i));
    if (activation->kind() == c10::aten::clamp_min) {
      clamp->addInput(insertConstantBefore(before, at::IValue()));
    }
    copyOrigin(clamp, activation)->insertBefore(before);
    setMark(clamp, kInt8Mark, 1);
    return clamp->output();
  }

  void report(const Node* op, const std::string& kind) {
    program_.records[*mark(op, kOpMark)].reason = kind;
  }

  Program& program_;
  Method& method_;
};

}  // namespace

void lower(Program& program) {
  for (Method& method : program.methods) Lowerer(program, method).run();
}

}  // namespace jitquant

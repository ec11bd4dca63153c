// correct_bias: the bias of a layer takes back what rounding its weight adds to its output on
// average.
//
// Before:
//   %y = aten::conv2d(%x, %w, %b, ...)
// After, for each output channel o and with E[x_i] the mean of input channel i:
//   %y = aten::conv2d(%x, %w, %c, ...)     c_o = b_o - sum over i of E[x_i] * sum(q(w)_oi - w_oi)
//
// watch_means, which runs first, on a copy without observers, finds the means:
//   %o = GetAttr[name="jitquant_observer_means_0"](%self)
//   %x1 = CallMethod[name="forward"](%o, %x); %y = aten::conv2d(%x1, %w, %b, ...)
//
// Needs:  a prepared model, with its records attached.
// Leaves: layers that stay float or are dynamic, and those whose weight or bias something else
//         reads. Layers that no run reached.
//
// Nagel et al. 2019 (arXiv 1906.04721), section 4.2, with observed means. Zeros that the layer
// pads with are not counted in them. q rounds to the qparams with which convert packs the weight.

#include <ATen/ATen.h>

#include <algorithm>

#include "error.h"
#include "ir_util.h"
#include "passes/accuracy.h"
#include "qparams.h"
#include "weight_uses.h"

namespace jitquant {

using at::Tensor;
using jit::Node;
using jit::Value;

namespace {

constexpr const char* kMeansPrefix = "jitquant_observer_means_";

bool becomesInt8(const Node* layer, const Program& program) {
  const auto index = mark(layer, kOpMark);
  if (!index || !(isConv(layer) || layer->kind() == c10::aten::linear)) return false;
  const OpRecord& record = program.records[*index];
  return record.int8 && record.qconfig >= 0 &&
         program.qconfigs[record.qconfig].activations == Activations::kStatic;
}

// The weights whose layers have a bias to correct, in graph order.
std::vector<WeightUses> correctable(const Program& program) {
  const WeightReaders readers(program);
  std::vector<WeightUses> found;
  for (const WeightUses& uses : readers.weights()) {
    const bool all = std::all_of(uses.layers.begin(), uses.layers.end(), [&](const Node* layer) {
      return becomesInt8(layer, program) && haveOneBias(layer, uses.layers[0], program.module);
    });
    if (all && !readers.hasOthers(uses)) found.push_back(uses);
  }
  return found;
}

std::string insertRecorder(Node* layer, jit::Graph& graph, jit::Module root,
                           const jit::Module& recorder, int64_t index) {
  const std::string name = kMeansPrefix + std::to_string(index);
  jit::Module own = recorder.deepcopy();
  const int64_t rank = constantTensor(layer->input(1), root)->dim();
  own.setattr("axis", layer->kind() == c10::aten::linear ? int64_t{-1} : 1 - rank);
  root.register_module(name, own);
  graph.inputs()[0]->setType(root.type());
  Node* read = graph.createGetAttr(graph.inputs()[0], name)->insertBefore(layer);
  read->output()->setType(own.type());
  Node* call = graph.create(c10::prim::CallMethod, {read->output(), layer->input(0)});
  call->s_(c10::attr::name, "forward");
  call->insertBefore(layer);
  call->output()->setType(c10::TensorType::get());
  layer->replaceInput(0, call->output());
  return name;
}

// What rounding the weight adds to the mean of each output channel, (outputs,) float64.
Tensor meanShift(const Node* layer, const Tensor& mean, const Program& program) {
  const Tensor weight = constantTensor(layer->input(1), program.module)->detach();
  const QParams qparams = weightQParams(layer, program);
  const Tensor quantized = qparams.axis < 0
                               ? at::quantize_per_tensor(weight, qparams.scalarScale(),
                                                         qparams.scalarZeroPoint(), qparams.dtype)
                               : at::quantize_per_channel(weight, qparams.scale, qparams.zero_point,
                                                          qparams.axis, qparams.dtype);
  const Tensor error = quantized.dequantize().to(at::kDouble) - weight.to(at::kDouble);
  const int64_t groups = mean.numel() / weight.size(1);
  const Tensor grouped = error.reshape({groups, weight.size(0) / groups, weight.size(1), -1});
  return (grouped.sum(3) * mean.reshape({groups, 1, -1})).sum(2).flatten();
}

}  // namespace

std::vector<std::vector<std::string>> watchMeans(Program& program, const jit::Module& recorder) {
  std::vector<std::vector<std::string>> names;
  int64_t next = 0;
  for (const WeightUses& uses : correctable(program)) {
    std::vector<std::string>& own = names.emplace_back();
    for (size_t i = 0; i < uses.layers.size(); ++i) {
      own.push_back(
          insertRecorder(uses.layers[i], *uses.graphs[i], program.module, recorder, next++));
    }
  }
  return names;
}

void correctBias(Program& program, const std::vector<Tensor>& means) {
  const std::vector<WeightUses> weights = correctable(program);
  for (size_t i = 0; i < weights.size(); ++i) {
    const Node* layer = weights[i].layers[0];
    const Tensor& mean = means.at(i);
    if (mean.numel() == 0) continue;
    if (!mean.isfinite().all().item<bool>()) {
      throw UserError("correct_bias: the data gives NaN or infinite values in the input of " +
                      describe(layer) +
                      ". Look at the data and at the float model's values there, or set the "
                      "qconfig of that module to None.");
    }
    const Tensor shift = meanShift(layer, mean, program);
    const auto bias = constantTensor(layer->input(2), program.module);
    const Tensor corrected = bias ? bias->detach().to(at::kDouble) - shift : -shift;
    setSharedInput(weights[i], 2, corrected.to(at::kFloat), program.module);
  }
}

}  // namespace jitquant

#include "qparams.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "error.h"
#include "ir_util.h"
#include "op_table.h"
#include "targets/target.h"

namespace jitquant {

using jit::Node;
using jit::Value;

QParams perTensor(double scale, int64_t zero_point) {
  QParams qparams;
  qparams.scale = at::tensor({static_cast<float>(scale)});
  qparams.zero_point = at::tensor({zero_point}, at::kLong);
  return qparams;
}

// What a user's own observer may have got wrong, "" if nothing.
static std::string problemOf(const QParams& qparams, const jit::Module& observer) {
  const at::Tensor &scale = qparams.scale, &zero_point = qparams.zero_point;
  if (qparams.axis < 0 && scale.numel() != 1) {
    return std::to_string(scale.numel()) + " scales, and quantizes per tensor";
  }
  if (scale.numel() != zero_point.numel()) {
    return std::to_string(scale.numel()) + " scales and " + std::to_string(zero_point.numel()) +
           " zero points";
  }
  const at::Tensor bad_scale = scale.logical_not().logical_or(scale < 0).logical_or(scale.isnan());
  if (bad_scale.any().item<bool>()) {
    return "the scale " + c10::str(scale.masked_select(bad_scale)[0].item<float>());
  }
  const int64_t quant_min = observer.attr("quant_min").toInt();
  const at::Tensor outside = (zero_point < quant_min).logical_or(zero_point > qparams.quant_max);
  if (outside.any().item<bool>()) {
    return "the zero point " + c10::str(zero_point.masked_select(outside)[0].item<int64_t>()) +
           ", outside of [" + std::to_string(quant_min) + ", " + std::to_string(qparams.quant_max) +
           "]";
  }
  return "";
}

QParams readQParams(jit::Module observer) {
  const std::string name = observer.type()->name()->name();
  const auto refuse = [&](const std::string& given) {
    throw UserError("calculate_qparams of the observer " + name + " gave " + given +
                    ". It has to give positive scales, float32, and zero points, int64, of shape "
                    "(1,), or (channels,) if it quantizes per channel.");
  };
  const auto result = observer.run_method("calculate_qparams");
  const bool is_pair = result.isTuple() && result.toTupleRef().elements().size() == 2 &&
                       result.toTupleRef().elements()[0].isTensor() &&
                       result.toTupleRef().elements()[1].isTensor();
  if (!is_pair) refuse(result.type()->repr_str());
  QParams qparams;
  qparams.scale = result.toTupleRef().elements()[0].toTensor().to(at::kFloat).reshape({-1});
  qparams.zero_point = result.toTupleRef().elements()[1].toTensor().to(at::kLong).reshape({-1});
  qparams.dtype = static_cast<at::ScalarType>(observer.attr("dtype").toInt());
  qparams.quant_max = observer.attr("quant_max").toInt();
  qparams.axis = observer.attr("ch_axis").toInt();
  const std::string problem = problemOf(qparams, observer);
  if (!problem.empty()) refuse(problem);
  return qparams;
}

QParams tighten(const QParams& qparams, std::pair<double, double> bounds) {
  const auto [low, high] = bounds;
  const bool saturates = quantizeNumber(low, qparams) == 0 && quantizeNumber(high, qparams) == 255;
  if (saturates || !std::isfinite(high) || qparams.quant_max != 255) return qparams;
  const double scale = qparams.scalarScale();
  const auto zero_point = static_cast<double>(qparams.scalarZeroPoint());
  const double lowest = std::min(0.0, std::max(low, (0 - zero_point) * scale));
  const double highest = std::max(0.0, std::min(high, (255 - zero_point) * scale));
  if (!(lowest < highest)) return qparams;
  const double tight = (highest - lowest) / 255;
  return perTensor(tight, static_cast<int64_t>(std::nearbyint(-lowest / tight)));
}

QParams unite(const QParams& a, const QParams& b) {
  const auto lowest = [](const QParams& q) {
    return -static_cast<double>(q.scalarZeroPoint()) * q.scalarScale();
  };
  const auto highest = [](const QParams& q) {
    return static_cast<double>(q.quant_max - q.scalarZeroPoint()) * q.scalarScale();
  };
  if (lowest(b) >= lowest(a) && highest(b) <= highest(a)) return a;
  if (lowest(a) >= lowest(b) && highest(a) <= highest(b)) return b;
  const double low = std::min(lowest(a), lowest(b));
  const double high = std::max(highest(a), highest(b));
  const int64_t quant_max = std::min(a.quant_max, b.quant_max);
  const double scale = (high - low) / static_cast<double>(quant_max);
  QParams united = perTensor(scale, static_cast<int64_t>(std::nearbyint(-low / scale)));
  united.quant_max = quant_max;
  return united;
}

void carryObservation(Program& program, const Value* from, const Value* to) {
  const auto found = program.observations.find(from);
  if (found == program.observations.end()) return;
  const Observation observation = found->second;
  program.observations[to] = observation;
}

QuantizePair insertQuantizePair(Value* value, const QParams& qparams, Node* before) {
  jit::Graph& graph = *value->owningGraph();
  const auto dtype = static_cast<int64_t>(qparams.dtype);
  std::vector<Value*> inputs{value};
  c10::Symbol kind = c10::aten::quantize_per_tensor;
  if (qparams.axis >= 0) {
    kind = c10::aten::quantize_per_channel;
    inputs.push_back(insertConstantBefore(before, qparams.scale));
    inputs.push_back(insertConstantBefore(before, qparams.zero_point));
    inputs.push_back(insertConstantBefore(before, qparams.axis));
  } else {
    inputs.push_back(insertConstantBefore(before, qparams.scalarScale()));
    inputs.push_back(insertConstantBefore(before, qparams.scalarZeroPoint()));
  }
  inputs.push_back(insertConstantBefore(before, dtype));
  Node* quantize = graph.create(kind, inputs);
  quantize->setScope(before->scope());
  quantize->insertBefore(before);
  Node* dequantize = graph.create(c10::aten::dequantize, {quantize->output()});
  dequantize->setScope(before->scope());
  dequantize->insertAfter(quantize);
  return {quantize, dequantize};
}

void readQConfigs(Program& program) {
  const jit::Module& module = program.module;
  while (true) {
    const std::string index = std::to_string(program.qconfigs.size());
    if (!module.hasattr(kWeightPrefix + index)) return;
    const jit::Module weight = module.attr(kWeightPrefix + index).toModule();
    const bool is_dynamic = module.hasattr(kDynamicPrefix + index);
    program.qconfigs.push_back(
        is_dynamic ? ObserverPair::of(module.attr(kDynamicPrefix + index).toModule(), weight)
                   : ObserverPair{jit::Module(), weight});
  }
}

static QParams weightQParams(const Value* weight, const ObserverPair& qconfig,
                             const Program& program) {
  const at::Tensor values = *constantTensor(weight, program.module);
  jit::Module observer = qconfig.weight.deepcopy();
  observer.forward({values.detach()});
  return program.target->safeWeightQParams(values, readQParams(observer));
}

QParams weightQParams(const Node* layer, const Program& program) {
  const OpRecord& record = program.records[*mark(layer, kOpMark)];
  return weightQParams(layer->input(1), program.qconfigs[record.qconfig], program);
}

void insertWeightPair(Node* reader, size_t input, const ObserverPair& qconfig,
                      const Program& program) {
  const QParams qparams = weightQParams(reader->input(input), qconfig, program);
  const QuantizePair pair = insertQuantizePair(reader->input(input), qparams, reader);
  reader->replaceInput(input, pair.dequantize->output());
}

// The argument of that name; otherwise int8 ops take output scale and zero point last.
static size_t outputScaleIndex(const Node* node) {
  const auto named = node->schema().argumentIndexWithName("output_scale");
  return named ? static_cast<size_t>(*named) : node->inputs().size() - 2;
}

// `program` knows the qparams of values that moved on, if it is given.
static std::optional<QParams> findQParams(const Value* quantized, const Program* program) {
  if (program != nullptr) {
    const auto found = program->moved.find(quantized);
    if (found != program->moved.end()) return found->second;
  }
  const Node* node = quantized->node();
  if (node->kind().is_prim()) return std::nullopt;
  size_t scale_index = 1;
  if (node->kind().is_aten() && node->kind() != c10::aten::quantize_per_tensor) {
    const OpRow* row = findRow(node);
    if (row == nullptr) return std::nullopt;
    const auto input = findQParams(node->input(row->data[0]), program);
    if (row->role == Role::kFixedQParams) return perTensor(row->fixed_scale, row->fixed_zero_point);
    return input && row->role == Role::kSharesInput ? std::optional(sharedQParams(node, *input))
                                                    : input;
  }
  if (node->kind() != c10::aten::quantize_per_tensor) {
    if (node->inputs().size() < 3) return std::nullopt;
    scale_index = outputScaleIndex(node);
    // A clamp, say, keeps the qparams of its input and ends in two numbers as well.
    const std::string& name = node->schema().arguments()[scale_index + 1].name();
    if (name.find("zero_point") == std::string::npos) return std::nullopt;
  }
  const auto scale = jit::toIValue(node->input(scale_index));
  const auto zero_point = jit::toIValue(node->input(scale_index + 1));
  if (!scale || !zero_point || !scale->isDouble() || !zero_point->isInt()) return std::nullopt;
  QParams qparams = perTensor(scale->toDouble(), zero_point->toInt());
  if (node->kind() == c10::aten::quantize_per_tensor) {
    const auto dtype = jit::toIValue(node->input(3));
    if (!dtype) return std::nullopt;
    qparams.dtype = static_cast<at::ScalarType>(dtype->toInt());
  }
  return qparams;
}

std::optional<QParams> staticQParams(const Value* quantized) {
  return findQParams(quantized, nullptr);
}

std::optional<QParams> qparamsOf(const Value* quantized, const Program& program) {
  return findQParams(quantized, &program);
}

bool areEqual(const std::optional<QParams>& a, const std::optional<QParams>& b) {
  return a && b && a->scalarScale() == b->scalarScale() &&
         a->scalarZeroPoint() == b->scalarZeroPoint() && a->dtype == b->dtype;
}

int64_t quantizeNumber(double value, const QParams& qparams) {
  const double steps = std::nearbyint(value / qparams.scalarScale()) +
                       static_cast<double>(qparams.scalarZeroPoint());
  return static_cast<int64_t>(std::clamp(steps, 0.0, 255.0));
}

}  // namespace jitquant

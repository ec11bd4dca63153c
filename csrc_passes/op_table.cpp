#include "op_table.h"

#include <ATen/ATen.h>
#include <torch/csrc/jit/ir/constants.h>

#include <cmath>
#include <limits>

#include "error.h"
#include "ir_util.h"
#include "recurrent.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

// Four times the largest weight that the smallest scale of an observer (2^-23) can hold.
constexpr double kSmallestWeight = 4 * 127.5 / (1 << 23);

// 0 without elements, NaN with a NaN among them. Makes no tensor as large as the weight, which
// would leave a gap in memory.
double largestMagnitude(const at::Tensor& weight) {
  if (weight.numel() == 0) return 0.0;
  const auto [low, high] = at::aminmax(weight);
  return std::max(std::abs(low.item<double>()), std::abs(high.item<double>()));
}

}  // namespace

std::string whyNotWeight(const Value* value, const Node* node, const jit::Module& module) {
  const auto weight = constantTensor(value, module);
  if (!weight) return "its weight is computed at run time";
  if (weight->scalar_type() != at::kFloat) {
    const std::string dtype = c10::toString(weight->scalar_type());
    if (!weight->is_floating_point()) return "its weight is " + dtype + ", not float32";
    throw UserError("the weight of " + describe(node) + " is " + dtype +
                    ", and only float32 models can be quantized. Call model.float() on the model "
                    "before it is scripted or frozen.");
  }
  const double largest = largestMagnitude(*weight);
  if (!std::isfinite(largest)) {
    throw UserError("the weight of " + describe(node) +
                    " holds NaN or infinite values. Mend the float model, or set the qconfig of "
                    "that module to None.");
  }
  if (largest > 0.0 && largest < kSmallestWeight) return "its weights are too small for int8";
  return "";
}

namespace {

// --- filters: "" or the reason ---

std::string hasConstantWeight(const Node* node, const jit::Module& module) {
  std::string reason = whyNotWeight(node->input(1), node, module);
  if (!reason.empty()) return reason;
  if (!isNone(node->input(2)) && !constantTensor(node->input(2), module)) {
    return "its bias is computed at run time";
  }
  return "";
}

std::string isConvolution(const Node* node, const jit::Module& module) {
  const std::string reason = hasConstantWeight(node, module);
  if (!reason.empty()) return reason;
  for (size_t i = 3; i < 7; ++i) {
    if (!constantInts(node->input(i))) return "its geometry is computed at run time";
  }
  return "";
}

std::string isLinear(const Node* node, const jit::Module& module) {
  const std::string reason = hasConstantWeight(node, module);
  if (!reason.empty()) return reason;
  return constantTensor(node->input(1), module)->dim() == 2 ? "" : "its weight is not a matrix";
}

std::string alphaIsOne(const Node* node, const jit::Module&) {
  return constantNumber(node->input(2)) == 1.0 ? "" : "its alpha is not the constant 1";
}

std::string alphaIsConstant(const Node* node, const jit::Module&) {
  const auto alpha = constantNumber(node->input(2));
  if (!alpha) return "its alpha is computed at run time";
  const bool moderate = std::abs(*alpha) >= 1e-6 && std::abs(*alpha) <= 1e6;
  return moderate ? "" : "its alpha is zero, or too small or large for a scale";
}

std::string factorIsConstant(const Node* node, const jit::Module&) {
  const auto factor = constantFactor(node);
  if (!factor) return "its factor is computed at run time";
  const bool moderate = std::abs(*factor) >= 1e-6 && std::abs(*factor) <= 1e6;
  return moderate ? "" : "its factor is zero, or too small or large for a scale";
}

std::string dividesByConstant(const Node* node, const jit::Module& module) {
  if (node->inputs().size() > 2 && !isNone(node->input(2))) return "it rounds its quotient";
  if (isTensor(node->input(1)) && !constantNumber(node->input(1))) {
    return "torch has no int8 kernel for division by a tensor";
  }
  return factorIsConstant(node, module);
}

std::string squares(const Node* node, const jit::Module&) {
  const bool squares = node->kind() == c10::aten::square || constantNumber(node->input(1)) == 2.0;
  return squares ? "" : "torch has no int8 kernel for powers other than squares";
}

std::string termIsConstant(const Node* node, const jit::Module& module) {
  const auto term = constantNumber(node->input(1));
  if (!term) return "its second operand is computed at run time";
  return std::isfinite(*term) ? alphaIsOne(node, module) : "its second operand is not finite";
}

std::string listIsBuiltForIt(const Node* node, const jit::Module&) {
  const Value* list = node->input(0);
  if (findRow(list->node()) != nullptr) {
    return std::string("its list is the result of ") + list->node()->kind().toQualString();
  }
  if (list->node()->kind() != c10::prim::ListConstruct) return "its list is built at run time";
  if (!hasOneUse(list)) return "its list has another user";
  return list->node()->inputs().empty() ? "its list is empty" : "";
}

std::string hasConstantStatistics(const Node* node, const jit::Module& module) {
  for (const size_t i : {1, 2, 3, 4}) {
    if (i <= 2 && isNone(node->input(i))) continue;
    if (!constantTensor(node->input(i), module)) return "its statistics are computed at run time";
  }
  return "";
}

std::string slopeIsConstant(const Node* node, const jit::Module&) {
  for (const Value* input : node->inputs().slice(1)) {
    if (!constantNumber(input)) return "its slope is computed at run time";
  }
  return "";
}

// group_norm and instance_norm.
std::string hasConstantAffine(const Node* node, const jit::Module& module) {
  const size_t first = node->kind() == c10::aten::group_norm ? 2 : 1;
  for (const size_t i : {first, first + 1}) {
    if (!isNone(node->input(i)) && !constantTensor(node->input(i), module)) {
      return "its weight is computed at run time";
    }
  }
  return "";
}

std::string boundsAreConstant(const Node* node, const jit::Module&) {
  return activationBounds(node) ? "" : "its bounds are not constants";
}

std::string dividesByWindow(const Node* node, const jit::Module&) {
  return isNone(node->inputs().back()) ? "" : "its divisor is not the size of its window";
}

// Measured by benchmarks/int8_ops.py, as in float_ops.cpp. Two numbers reflect the last dimension
// only, which torch does for inputs of up to 3 dimensions.
std::string reflectsSignal(const Node* node, const jit::Module& module) {
  const auto mode = jit::toIValue(node->input(2));
  auto pads = constantInts(node->input(1));
  // The padding of a scripted convolution is an attribute.
  const auto attribute = constantOrAttribute(node->input(1), module);
  if (!pads && attribute && attribute->isIntList()) pads = attribute->toIntVector();
  if (!mode || !pads) return "its mode or its numbers are computed at run time";
  const std::string name = mode->toStringRef();
  if (name == "reflect" && pads->size() == 2) return "";
  if (name != "reflect" && name != "constant") return "torch has no int8 kernel for it";
  return std::string("on channels-last memory, which int8 convolutions leave, its int8 kernel ") +
         (name == "reflect" ? "takes 0.9 to 2.6 times as long as float between dequantize and "
                              "quantize, and loses that layout"
                            : "takes 1.3 to 3.2 times as long as float between dequantize and "
                              "quantize");
}

std::string keepsDtype(const Node* node, const jit::Module&) {
  return isNone(node->inputs().back()) ? "" : "it changes the dtype";
}

// --- selectors ---

bool isScalarOperand(const Value* value) {
  return !isTensor(value) || constantNumber(value).has_value();
}

bool secondIsList(const Node* node) {
  return node->input(1)->type()->kind() == c10::TypeKind::ListType;
}

// Lists have a select too.
bool firstIsTensor(const Node* node) { return isTensor(node->input(0)); }

bool secondIsScalar(const Node* node) { return isScalarOperand(node->input(1)); }

std::vector<OpRow> makeTable() {
  const std::vector<size_t> first{0};
  const std::vector<size_t> both{0, 1};
  std::vector<OpRow> rows{
      {"aten::conv1d", Role::kWeighted, first, isConvolution},
      {"aten::conv2d", Role::kWeighted, first, isConvolution},
      {"aten::conv3d", Role::kWeighted, first, isConvolution},
      {"aten::linear", Role::kWeighted, first, isLinear},
      {"aten::lstm", Role::kRecurrent, first, isRecurrentLayer},
      {"aten::gru", Role::kRecurrent, first, isRecurrentLayer},
      {"aten::add.Scalar", Role::kObserved, first, termIsConstant, secondIsScalar},
      {"aten::add", Role::kObserved, both, alphaIsConstant},
      {"aten::mul.Scalar", Role::kSharesInput, first, factorIsConstant, secondIsScalar},
      {"aten::mul", Role::kObserved, both},
      {"aten::div", Role::kSharesInput, first, dividesByConstant},
      {"aten::neg", Role::kSharesInput, first},
      {"aten::square", Role::kObserved, first, squares},
      {"aten::pow", Role::kObserved, first, squares},
      {"aten::cat", Role::kObserved, first, listIsBuiltForIt},
      {"aten::batch_norm", Role::kObserved, first, hasConstantStatistics},
      {"aten::hardswish", Role::kObserved, first},
      {"aten::leaky_relu", Role::kObserved, first, slopeIsConstant},
      {"aten::elu", Role::kObserved, first, slopeIsConstant},
      {"aten::group_norm", Role::kObserved, first, hasConstantAffine},
      {"aten::instance_norm", Role::kObserved, first, hasConstantAffine},
      {"aten::hardsigmoid", Role::kFixedQParams, first, nullptr, nullptr, 1.0 / 256, 0},
      {"aten::tanh", Role::kFixedQParams, first, nullptr, nullptr, 2.0 / 256, 128},
      {"aten::mean", Role::kAverages, first, keepsDtype},
      {"aten::avg_pool2d", Role::kAverages, first, dividesByWindow},
      {"aten::avg_pool3d", Role::kAverages, first, dividesByWindow},
      {"aten::pad", Role::kSharesInput, first, reflectsSignal},
      {"aten::view", Role::kSharesInput, first, nullptr, secondIsList},
      {"aten::select", Role::kSharesInput, first, nullptr, firstIsTensor},
  };
  for (const char* name : {"aten::avg_pool1d", "aten::adaptive_avg_pool1d",
                           "aten::adaptive_avg_pool2d", "aten::adaptive_avg_pool3d"}) {
    rows.push_back({name, Role::kAverages, first});
  }
  for (const char* name :
       {"aten::relu6", "aten::hardtanh", "aten::clamp", "aten::clamp_min", "aten::clamp_max"}) {
    rows.push_back({name, Role::kActivation, first, boundsAreConstant});
  }
  for (const char* name : {"aten::relu",
                           "aten::max_pool1d",
                           "aten::max_pool2d",
                           "aten::max_pool3d",
                           "aten::flatten",
                           "aten::reshape",
                           "aten::permute",
                           "aten::transpose",
                           "aten::t",
                           "aten::squeeze",
                           "aten::unsqueeze",
                           "aten::contiguous",
                           "aten::detach",
                           "aten::slice",
                           "aten::upsample_nearest2d",
                           "aten::upsample_nearest3d",
                           "aten::_upsample_nearest_exact2d",
                           "aten::_upsample_nearest_exact3d",
                           "aten::clone",
                           "aten::movedim",
                           "aten::unflatten",
                           "aten::narrow",
                           "aten::expand",
                           "aten::expand_as",
                           "aten::repeat",
                           "aten::tile",
                           "aten::repeat_interleave",
                           "aten::index_select",
                           "aten::index",
                           "aten::flip",
                           "aten::ravel",
                           "aten::reshape_as",
                           "aten::view_as",
                           "aten::numpy_T",
                           "aten::mT",
                           "aten::diagonal",
                           "aten::unfold",
                           "aten::pixel_unshuffle",
                           "aten::reflection_pad1d",
                           "aten::native_channel_shuffle",
                           "aten::channel_shuffle"}) {
    rows.push_back({name, Role::kSharesInput, first});
  }
  for (const char* name : {"aten::chunk", "aten::split", "aten::split_with_sizes", "aten::unbind",
                           "aten::tensor_split"}) {
    rows.push_back({name, Role::kSharesInput, first});
  }
  for (const char* name : {"aten::size", "aten::dim", "aten::len", "aten::numel"}) {
    rows.push_back({name, Role::kMetadata, first});
  }
  return rows;
}

}  // namespace

const char* roleName(Role role) {
  switch (role) {
    case Role::kWeighted:
      return "weighted";
    case Role::kRecurrent:
      return "recurrent";
    case Role::kObserved:
      return "observed";
    case Role::kFixedQParams:
      return "fixed qparams";
    case Role::kSharesInput:
      return "shares input";
    case Role::kAverages:
      return "averages";
    case Role::kActivation:
      return "activation";
    case Role::kMetadata:
      return "metadata";
  }
  return "";
}

c10::Symbol OpRow::kind() const {
  return c10::Symbol::fromQualString(name.substr(0, name.find('.')));
}

const std::vector<OpRow>& opTable() {
  static const auto* const table = new std::vector<OpRow>(makeTable());
  return *table;
}

const OpRow* findRow(const Node* node) {
  static const auto* const by_kind = [] {
    auto* index = new std::unordered_map<c10::Symbol, std::vector<const OpRow*>>();
    for (const OpRow& row : opTable()) (*index)[row.kind()].push_back(&row);
    return index;
  }();
  const auto found = by_kind->find(node->kind());
  if (found == by_kind->end()) return nullptr;
  for (const OpRow* row : found->second) {
    if (node->inputs().empty() || (row->selects != nullptr && !row->selects(node))) continue;
    // len and size also exist for lists, strings and dicts.
    const bool on_tensor = isTensor(node->input(0)) ||
                           node->input(0)->type()->isSubtypeOf(*c10::ListType::ofTensors());
    return on_tensor ? row : nullptr;
  }
  return nullptr;
}

namespace {

bool isTensorList(const Value* value) {
  return value->type()->isSubtypeOf(*c10::ListType::ofTensors());
}

bool readsList(const Node* node) {
  const auto kind = node->kind();
  return (kind == c10::prim::ListUnpack || kind == c10::aten::__getitem__) &&
         isTensorList(node->input(0));
}

}  // namespace

std::vector<Value*> resultsOf(const Node* op) {
  Value* output = const_cast<Node*>(op)->output(0);
  if (!isTensorList(output)) return {output};
  std::vector<Value*> results;
  for (const jit::Use& use : output->uses()) {
    for (Value* result : use.user->outputs()) results.push_back(result);
  }
  return results;
}

Node* sourceOf(const Value* value) {
  Node* node = const_cast<Value*>(value)->node();
  return readsList(node) ? node->input(0)->node() : node;
}

std::string listProblem(const Node* op) {
  if (!isTensorList(op->output(0))) return "";
  for (const jit::Use& use : op->output(0)->uses()) {
    if (!readsList(use.user)) return "its list is used as a whole";
  }
  return "";
}

std::vector<Value*> dataInputs(const Node* node, const OpRow& row) {
  std::vector<Value*> values;
  for (const size_t index : row.data) {
    Value* value = const_cast<Node*>(node)->input(index);
    if (value->node()->kind() == c10::prim::ListConstruct && !isTensor(value)) {
      for (Value* element : value->node()->inputs()) values.push_back(element);
    } else {
      values.push_back(value);
    }
  }
  return values;
}

std::optional<std::pair<double, double>> activationBounds(const Node* node) {
  if (node->kind() == c10::aten::relu) return {{0.0, std::numeric_limits<double>::infinity()}};
  if (node->kind() == c10::aten::relu6) return {{0.0, 6.0}};
  const auto kind = node->kind();
  const bool from_above = kind == c10::aten::clamp_max;
  if (kind != c10::aten::hardtanh && kind != c10::aten::clamp && kind != c10::aten::clamp_min &&
      !from_above) {
    return std::nullopt;
  }
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const auto bound = [&](size_t index, double otherwise) -> std::optional<double> {
    if (index >= node->inputs().size() || isNone(node->input(index))) return otherwise;
    return constantNumber(node->input(index));
  };
  const auto low = from_above ? -kInfinity : bound(1, -kInfinity);
  const auto high = bound(from_above ? 1 : 2, kInfinity);
  if (!low || !high || !(*low <= *high)) return std::nullopt;
  return {{*low, *high}};
}

bool isRelu(const Node* activation) {
  const auto bounds = activationBounds(activation);
  return bounds && bounds->first == 0.0 && std::isinf(bounds->second);
}

std::optional<double> constantFactor(const Node* node) {
  if (node->kind() == c10::aten::neg) return -1.0;
  if (node->kind() != c10::aten::mul && node->kind() != c10::aten::div) return std::nullopt;
  const auto number = constantNumber(node->input(1));
  return number && node->kind() == c10::aten::div ? 1.0 / *number : number;
}

bool onlyMoves(const Node* node) {
  const auto kind = node->kind();
  return findRow(node)->role == Role::kSharesInput && !activationBounds(node) &&
         !constantFactor(node) && kind != c10::aten::max_pool1d && kind != c10::aten::max_pool2d &&
         kind != c10::aten::max_pool3d;
}

QParams sharedQParams(const Node* node, const QParams& input) {
  const auto factor = constantFactor(node);
  if (!factor) return input;
  QParams output = input;
  output.scale = input.scale * std::abs(*factor);
  // A negative factor mirrors the integers: q becomes 255 - q.
  if (*factor < 0) output.zero_point = at::rsub(input.zero_point, 255);
  return output;
}

}  // namespace jitquant

// The quantized::* ops of stock torch, on quint8 tensors, with the engines x86, onednn, fbgemm and
// qnnpack.

#include <ATen/ATen.h>

#include "channels.h"
#include "ir_util.h"
#include "targets/engines.h"
#include "targets/target.h"

namespace jitquant {

namespace {

// --- overflow-safe weights ---
//
// Without VNNI, and in fbgemm's depthwise kernels on every CPU, products of an activation (0 to
// 255) and a weight are summed in pairs in saturating 16 bits (vpmaddubsw). Two weights of a pair
// that have the same sign must not sum to more than 128: 255 * 128 = 32640 < 32768. Which weights
// form a pair was found by probing every pair: neighbours in (kernel..., input channel) order for
// fbgemm, and neighbouring input channels of one tap for onednn.

// Largest same-sign sum of neighbours in the last dimension of (channels, n), per channel.
at::Tensor largestPairSum(at::Tensor flat) {
  if (flat.size(1) % 2 != 0) flat = at::constant_pad_nd(flat, {0, 1});
  const at::Tensor pairs = flat.reshape({flat.size(0), -1, 2});
  const at::Tensor first = pairs.select(2, 0);
  const at::Tensor second = pairs.select(2, 1);
  return ((first + second).abs() * (first * second > 0)).amax(1);
}

at::Tensor largestPairSumOfRows(const at::Tensor& weight) {
  const at::Tensor channels_last = weight.movedim(1, -1);
  at::Tensor largest = largestPairSum(channels_last.flatten(1));
  if (weight.size(1) % 2 != 0 && weight.size(1) > 1) {
    const at::Tensor per_tap = at::constant_pad_nd(channels_last, {0, 1}).flatten(1);
    largest = at::maximum(largest, largestPairSum(per_tap));
  }
  return largest;
}

// A few rows at a time: tensors as large as the weight would leave gaps in memory between the
// weights.
at::Tensor largestPairSumOfWeight(const at::Tensor& weight) {
  constexpr int64_t kNumbers = 1 << 14;
  const int64_t rows =
      std::max<int64_t>(1, kNumbers * weight.size(0) / std::max<int64_t>(1, weight.numel()));
  std::vector<at::Tensor> largest;
  for (const at::Tensor& part : weight.split(rows)) largest.push_back(largestPairSumOfRows(part));
  return at::cat(largest);
}

QParams safeWeightQParams(const at::Tensor& weight, const QParams& qparams) {
  if (!currentEngine().sums_in_16_bits) return qparams;
  // Rounding adds up to half a step to each of the two weights.
  at::Tensor needed = largestPairSumOfWeight(weight.detach()) / 127;
  if (qparams.axis < 0) needed = needed.amax().reshape({1});
  QParams safe = qparams;
  safe.scale = at::maximum(qparams.scale, needed);
  return safe;
}

// --- tables of embeddings ---

// Rows come back within one step: a 255th or a 15th of what the row spans.
bool isWithinOneStep(const at::Tensor& table, const at::Tensor& unpacked, double steps) {
  const auto [low, high] = at::aminmax(table, 1, /*keepdim=*/true);
  const at::Tensor allowed = (high - low) / steps + at::maximum(low.abs(), high.abs()) * 1e-6;
  return ((unpacked - table).abs() <= allowed).all().item<bool>();
}

// Rows of 4 bits are not searched for qparams that give less error than their range.
const std::vector<at::IValue> kNoSearch{false, 200, 0.16};

at::Tensor run(const char* op, jit::Stack stack) {
  c10::Dispatcher::singleton().findSchemaOrThrow(op, "").callBoxed(stack);
  return stack.back().toTensor();
}

std::string whyNotByteRows(const at::Tensor& table) {
  if (table.numel() == 0) return "its table is empty";
  const at::Tensor rows = run("quantized::embedding_bag_byte_prepack", {table});
  const at::Tensor unpacked = run("quantized::embedding_bag_byte_unpack", {rows});
  return isWithinOneStep(table, unpacked, 255)
             ? ""
             : "its rows span too much or too little for the kernel that packs them";
}

std::string whyNotFourBitRows(const at::Tensor& table) {
  if (table.numel() == 0) return "its table is empty";
  if (table.size(1) % 2 != 0) return "rows of 4 bits need an even number of columns";
  jit::Stack arguments{table};
  arguments.insert(arguments.end(), kNoSearch.begin(), kNoSearch.end());
  const at::Tensor rows = run("quantized::embedding_bag_4bit_prepack", arguments);
  const at::Tensor unpacked = run("quantized::embedding_bag_4bit_unpack", {rows});
  return isWithinOneStep(table, unpacked, 15)
             ? ""
             : "a scale or lowest value of its rows is out of reach for float16, which rows of 4 "
               "bits have for these";
}

// --- depthwise convolutions ---
//
// fbgemm, which also runs the x86 engine's convolutions of more than 100 groups, has kernels for a
// few depthwise shapes only. Measured: every other shape is 20 to 200 times slower than float.

bool all(const std::vector<int64_t>& values, int64_t wanted) {
  return std::all_of(values.begin(), values.end(), [&](int64_t v) { return v == wanted; });
}

// They work on eight groups at a time. Those for 2 to 16 channels a group write past their buffers
// where some groups are left over (10 groups of 2: "double free or corruption").
int64_t missingGroups(const jit::Node* node, const jit::Module& module) {
  const int64_t own_groups = currentEngine().own_groups;
  const auto groups = static_cast<int64_t>(*constantNumber(node->input(6)));
  if (own_groups < 0 || groups <= own_groups) return 0;
  const at::Tensor weight = *constantTensor(node->input(1), module);
  const int64_t inputs = weight.size(1);
  const bool is_square = weight.size(0) == groups * inputs;
  const bool in_eights =
      inputs == 1 || (is_square && (inputs == 2 || inputs == 4 || inputs == 8 || inputs == 16));
  return in_eights ? (8 - groups % 8) % 8 : 0;
}

std::string slowDepthwise(const jit::Node* node, const jit::Module& module) {
  const int64_t own_groups = currentEngine().own_groups;
  const auto groups = static_cast<int64_t>(*constantNumber(node->input(6)));
  if (own_groups < 0 || groups <= own_groups) return "";
  const at::Tensor weight = *constantTensor(node->input(1), module);
  const bool lacks_groups =
      missingGroups(node, module) > 0 && !groupNeighbours(node, module).has_value();
  if (weight.size(1) != 1) {
    return lacks_groups ? "fbgemm corrupts memory for this number of groups" : "";
  }
  const int64_t kernel = weight.size(2);
  const std::vector<int64_t> sizes(weight.sizes().begin() + 2, weight.sizes().end());
  const auto stride = *constantInts(node->input(3));
  const bool fast = weight.dim() >= 4 && all(sizes, kernel) && kernel % 2 == 1 && kernel >= 3 &&
                    kernel <= (weight.dim() == 4 ? 7 : 3) && (all(stride, 1) || all(stride, 2)) &&
                    all(*constantInts(node->input(4)), (kernel - 1) / 2) &&
                    all(*constantInts(node->input(5)), 1) && weight.size(0) <= 2 * groups;
  if (!fast) return "stock int8 kernels run this depthwise shape slower than float";
  return lacks_groups
             ? "stock int8 kernels are slow for channels that are no multiple of 8, and its "
               "neighbours cannot pad them"
             : "";
}

// --- what only some shapes gain from (benchmarks/int8_ops.py) ---

// On contiguous memory, which linear layers leave, int8 takes 0.3 times as long as dequantize, elu,
// quantize; on channels-last memory, which convolutions leave, 1.6 times, and the layout is lost.
std::string slowElu(const jit::Node* node, const jit::Module&) {
  if (node->input(0)->node()->kind() == c10::aten::linear) return "";
  return "its int8 kernel is fast behind a linear layer only";
}

// On channels-last images of less than 512 pixels, with few channels in a group, int8 takes up to 9
// times as long as dequantize, op, quantize; on others 0.1 to 0.9 times.
std::string slowNormalization(const jit::Node* node, const Shapes& shapes) {
  const std::vector<int64_t>& shape = shapes.at(0);
  if (shape.size() != 4) return "its int8 kernel is fast for images only";
  const bool has_groups = node->kind() == c10::aten::group_norm;
  const auto groups = has_groups ? constantNumber(node->input(1)) : std::nullopt;
  const int64_t channels = groups ? shape[1] / static_cast<int64_t>(*groups) : 1;
  if (shape[2] * shape[3] >= 512 || channels >= 64) return "";
  return "its int8 kernel takes up to 9 times as long as float on images this small";
}

Int8Row convolution(const std::string& name) {
  return {.row = "aten::" + name,
          .op = "quantized::" + name,
          .relu_op = "quantized::" + name + "_relu",
          .prepack = "quantized::" + name + "_prepack",
          .prepack_args = {1, 2, 3, 4, 5, 6},
          .args = {0},
          .takes_qparams = true,
          .unfit = slowDepthwise,
          .missing_groups = missingGroups};
}

DynamicRow recurrent(const std::string& name, Activations activations) {
  const bool is_half = activations == Activations::kFloat;
  DynamicRow row{
      .row = "aten::" + name,
      .activations = activations,
      .op = "aten::quantized_" + name,
      .prepack = is_half ? "quantized::linear_prepack_fp16" : "quantized::linear_prepack",
      .takes_reduce_range = !is_half,
      .cell = is_half ? "quantized::make_quantized_cell_params_fp16"
                      : "quantized::make_quantized_cell_params_dynamic",
      .cell_takes_biases = !is_half};
  const at::ScalarType dtype = is_half ? at::kHalf : at::kQInt8;
  if (name == "lstm") row.constants = {static_cast<int64_t>(dtype), /*use_dynamic=*/true};
  return row;
}

Target makeQuantizedTarget() {
  Target target{
      "quantized",
      {
          convolution("conv1d"),
          convolution("conv2d"),
          convolution("conv3d"),
          {"aten::linear",
           "quantized::linear",
           "quantized::linear_relu",
           "quantized::linear_prepack",
           {1, 2},
           {0},
           true},
          {.row = "aten::add",
           .op = "quantized::add",
           .relu_op = "quantized::add_relu",
           .args = {0, 1},
           .takes_qparams = true,
           .larger_first = true},
          {"aten::add.Scalar", "quantized::add", "quantized::add_relu", "", {}, {0, 1}, true},
          {.row = "aten::mul",
           .op = "quantized::mul",
           .relu_op = "quantized::mul_relu",
           .args = {0, 1},
           .takes_qparams = true,
           .larger_first = true},
          // The constant factor follows.
          {.row = "aten::mul.Scalar", .op = "quantized::mul_scalar", .args = {0}},
          {.row = "aten::div", .op = "quantized::mul_scalar", .args = {0}},
          {.row = "aten::neg", .op = "quantized::mul_scalar", .args = {0}},
          {"aten::square", "quantized::mul", "quantized::mul_relu", "", {}, {0, 0}, true},
          {"aten::pow", "quantized::mul", "quantized::mul_relu", "", {}, {0, 0}, true},
          {"aten::cat", "quantized::cat", "quantized::cat_relu", "", {}, {0, 1}, true},
          {"aten::batch_norm",
           "quantized::batch_norm",
           "quantized::batch_norm_relu",
           "",
           {},
           {0, 1, 2, 3, 4, 7},
           true},
          {"aten::hardswish", "quantized::hardswish", "", "", {}, {0}, true},
          {.row = "aten::leaky_relu",
           .op = "quantized::leaky_relu",
           .args = {0, 1},
           .takes_qparams = true,
           .constants = {false}},  // not in place
          {.row = "aten::elu",
           .op = "quantized::elu",
           .args = {0},
           .takes_qparams = true,
           .unfit = slowElu,
           .late_args = {1, 2, 3}},
          {.row = "aten::group_norm",
           .op = "quantized::group_norm",
           .args = {0, 1, 2, 3, 4},
           .takes_qparams = true,
           .slow_shape = slowNormalization},
          {.row = "aten::instance_norm",
           .op = "quantized::instance_norm",
           .args = {0, 1, 2, 7},
           .takes_qparams = true,
           .slow_shape = slowNormalization},
          // Convolutions return channels-last, of which not every view can be taken.
          // The layout of int8 tensors is up to the kernels; see restore_layout.
          {"aten::clone", "aten::detach", "", "", {}, {0}, false},
          // The same, which other than this one is fast on channels-last memory.
          {"aten::native_channel_shuffle", "aten::channel_shuffle", "", "", {}, {0, 1}, false},
          {"aten::view", "aten::reshape", "", "", {}, {0, 1}, false},
          {"aten::view_as", "aten::reshape_as", "", "", {}, {0, 1}, false},
      },
      {{.row = "aten::linear",
        .activations = Activations::kDynamic,
        .op = "quantized::linear_dynamic",
        .relu_op = "quantized::linear_relu_dynamic",
        .prepack = "quantized::linear_prepack",
        .takes_reduce_range = true},
       {.row = "aten::linear",
        .activations = Activations::kFloat,
        .op = "quantized::linear_dynamic_fp16",
        .relu_op = "quantized::linear_relu_dynamic_fp16",
        .prepack = "quantized::linear_prepack_fp16"},
       recurrent("lstm", Activations::kDynamic),
       recurrent("lstm", Activations::kFloat),
       recurrent("gru", Activations::kDynamic),
       recurrent("gru", Activations::kFloat)},
      {{"quantized::conv2d", "quantized::add", "quantized::conv2d_add", true},
       {"quantized::conv2d", "quantized::add_relu", "quantized::conv2d_add_relu", true},
       {"quantized::linear", "quantized::leaky_relu", "quantized::linear_leaky_relu", false, {1}},
       {"quantized::linear", "aten::tanh", "quantized::linear_tanh"}},
      {{Activations::kByteRows,
        "quantized::embedding_bag_byte_prepack",
        "quantized::embedding_bag_byte_unpack",
        "quantized::embedding_bag_byte_rowwise_offsets",
        {},
        whyNotByteRows},
       {Activations::kFourBitRows, "quantized::embedding_bag_4bit_prepack",
        "quantized::embedding_bag_4bit_unpack", "quantized::embedding_bag_4bit_rowwise_offsets",
        kNoSearch, whyNotFourBitRows}},
      safeWeightQParams,
  };
  // Every other op of the table but those that are only dynamic takes quantized tensors as it is.
  for (const OpRow& row : opTable()) {
    if (row.role == Role::kRecurrent) continue;
    if (target.find(row) == nullptr) target.rows.push_back({row.name, row.name, "", "", {}, {}});
  }
  return target;
}

}  // namespace

const Int8Row* Target::find(const std::string& row) const {
  for (const Int8Row& candidate : rows) {
    if (candidate.row == row) return &candidate;
  }
  return nullptr;
}

const DynamicRow* Target::findDynamic(const std::string& row, Activations activations) const {
  for (const DynamicRow& candidate : dynamic_rows) {
    if (candidate.row == row && candidate.activations == activations) return &candidate;
  }
  return nullptr;
}

bool Target::fusesLayers() const { return currentEngine().fuses_layers; }

const FusedRow* Target::findFused(const jit::Node* layer, const jit::Node* behind) const {
  for (const FusedRow& row : fused_rows) {
    if (row.layer == layer->kind().toQualString() && row.behind == behind->kind().toQualString()) {
      return &row;
    }
  }
  return nullptr;
}

const TableRow* Target::findTable(Activations rows) const {
  for (const TableRow& candidate : table_rows) {
    if (candidate.rows == rows) return &candidate;
  }
  return nullptr;
}

bool Target::isPrepack(const jit::Node* node) const {
  const std::string kind = node->kind().toQualString();
  const auto packs = [&](const auto& row) { return !row.prepack.empty() && row.prepack == kind; };
  const auto joins = [&](const DynamicRow& row) { return !row.cell.empty() && row.cell == kind; };
  return std::any_of(rows.begin(), rows.end(), packs) ||
         std::any_of(dynamic_rows.begin(), dynamic_rows.end(), packs) ||
         std::any_of(dynamic_rows.begin(), dynamic_rows.end(), joins) ||
         std::any_of(table_rows.begin(), table_rows.end(),
                     [&](const TableRow& row) { return row.pack == kind; });
}

const Target& quantizedTarget() {
  static const auto* const target = new Target(makeQuantizedTarget());
  return *target;
}

}  // namespace jitquant

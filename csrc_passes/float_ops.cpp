#include "float_ops.h"

#include "conv_transpose.h"
#include "ir_util.h"
#include "tables.h"

namespace jitquant {

namespace {

// Measured by benchmarks/int8_ops.py: the kernel's time over that of dequantize, op, quantize, from
// the best shape to the worst.
std::string slower(const std::string& times) {
  return "its int8 kernel takes " + times +
         " times as long as float between dequantize and quantize";
}

std::vector<FloatOp> makeFloatOps() {
  const std::string no_gain =
      "its int8 kernel is not faster than float between dequantize and "
      "quantize";
  const std::string ties = "values that round alike would change its indices";
  const std::string no_kernel = "torch has no int8 kernel for it";
  const std::string off_grid = "its constant may lie between the steps of its input";
  const std::string look_up = kTableIsFloat;
  const std::string channels_last = "on channels-last memory, which int8 convolutions leave, ";
  const std::string pads = channels_last + slower("1.3 to 3.2");
  const std::string reflects = channels_last + slower("0.9 to 2.6") + ", and loses that layout";
  const std::string at_run_time =
      "its second operand or its alpha is computed at run time, or its alpha is not 1";
  const std::string before = "it was there before, to quantize values or to emulate that";
  const std::string list = "its list is built at run time, or has another user";
  const std::string by_rank = "the dimension that it joins depends on the rank of its tensors";
  const std::string fused =
      "it takes nested tensors, or its sizes or type of mask are computed at run time";
  std::vector<FloatOp> ops{
      {"aten::_native_multi_head_attention", fused},
      {"aten::_transformer_encoder_layer_fwd", fused},
      {"aten::sub", at_run_time},
      {"aten::rsub", at_run_time},
      {"aten::addmm",
       "it is no linear layer: its matrix is computed at run time, what it adds is no bias, or its "
       "alpha or beta is not 1",
       true},
      {"aten::stack", list},
      {"aten::hstack", by_rank},
      {"aten::vstack", by_rank},
      {"aten::dstack", by_rank},
      {"aten::column_stack", by_rank},
      {"aten::constant_pad_nd", pads},
      {"aten::reflection_pad2d", reflects},
      {"aten::pixel_shuffle", channels_last + slower("0.6 (giving 3 channels) to 3.9 (giving 64)") +
                                  ", and loses that layout"},
      {"aten::sigmoid", slower("up to 1.6")},
      {"aten::gelu", slower("1.3 to 1.6")},
      {"aten::prelu", no_gain},
      {"aten::softmax", no_gain},
      {"aten::matmul", no_gain},
      {"aten::mm", no_gain},
      {"aten::bmm", no_gain},
      {"aten::layer_norm", slower("1.0 to 1.4")},
      {"aten::upsample_bilinear2d", slower("2.7 to 5.8")},
      {"aten::grid_sampler", slower("2.4 to 2.7")},
      {"aten::max", no_gain},
      {"aten::min", no_gain},
      {"aten::topk", ties},
      {"aten::sort", ties},
      {"aten::argsort", ties},
      {"aten::argmax", ties},
      {"aten::argmin", ties},
      {"aten::masked_fill", off_grid},
      {"aten::threshold", off_grid},
      {"aten::std", no_gain},
      {"aten::embedding", look_up},
      {"aten::embedding_bag", look_up},
      {"aten::lstm_cell", kOnlyDynamic, true},
      {"aten::gru_cell", kOnlyDynamic, true},
      {"aten::rnn_tanh_cell", kOnlyDynamic, true},
      {"aten::rnn_relu_cell", kOnlyDynamic, true},
      {"aten::rnn_tanh", no_kernel, true},
      {"aten::rnn_relu", no_kernel, true},
      {"aten::tensordot", no_kernel, true},
      {"aten::quantize_per_tensor", before, true},
      {"aten::quantize_per_tensor_dynamic", before, true},
      {"aten::quantize_per_channel", before, true},
      {"aten::dequantize", before, true},
      {"aten::fake_quantize_per_tensor_affine", before, true},
      {"aten::fake_quantize_per_channel_affine", before, true},
      {"aten::fused_moving_avg_obs_fake_quant", before, true},
  };
  for (const char* name : {"abs",
                           "adaptive_max_pool1d",
                           "adaptive_max_pool2d",
                           "adaptive_max_pool3d",
                           "addcdiv",
                           "addcmul",
                           "amax",
                           "amin",
                           "baddbmm",
                           "bilinear",
                           "ceil",
                           "cos",
                           "cosine_similarity",
                           "cumsum",
                           "einsum",
                           "erf",
                           "exp",
                           "floor",
                           "floor_divide",
                           "fmod",
                           "gather",
                           "glu",
                           "hardshrink",
                           "im2col",
                           "lerp",
                           "linalg_vector_norm",
                           "log",
                           "log_sigmoid",
                           "log_softmax",
                           "logsumexp",
                           "max_pool2d_with_indices",
                           "max_pool3d_with_indices",
                           "maximum",
                           "minimum",
                           "mish",
                           "norm",
                           "prod",
                           "reciprocal",
                           "remainder",
                           "replication_pad1d",
                           "replication_pad2d",
                           "replication_pad3d",
                           "roll",
                           "round",
                           "rsqrt",
                           "scaled_dot_product_attention",
                           "sign",
                           "silu",
                           "sin",
                           "softplus",
                           "softshrink",
                           "sqrt",
                           "sum",
                           "take_along_dim",
                           "tril",
                           "triu",
                           "trunc",
                           "upsample_bicubic2d",
                           "upsample_linear1d",
                           "upsample_nearest1d",
                           "upsample_trilinear3d",
                           "var",
                           "where"}) {
    ops.push_back({std::string("aten::") + name, no_kernel});
  }
  return ops;
}

}  // namespace

const std::vector<FloatOp>& floatOps() {
  static const auto* const ops = new std::vector<FloatOp>(makeFloatOps());
  return *ops;
}

std::string whyFloatOp(const jit::Node* node, const jit::Module& module, bool is_dynamic) {
  if (isConvTranspose(node)) {
    const std::string reason = whyNotConvolution(node, module);
    return reason.empty() ? "its qconfig is None" : reason;
  }
  const std::string kind = node->kind().toQualString();
  for (const FloatOp& op : floatOps()) {
    if (op.name != kind) continue;
    return is_dynamic && !op.of_any_qconfig ? kOnlyLayers : op.reason;
  }
  const c10::FunctionSchema* schema = node->maybeSchema();
  const bool writes = kind.back() == '_' && schema != nullptr && schema->is_mutable();
  if (writes) return "it writes memory in place that others read";
  return is_dynamic ? kOnlyLayers : "no int8 form of " + kind;
}

}  // namespace jitquant

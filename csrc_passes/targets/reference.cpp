// Which function spells out which int8 op, and whose kernels run it.

#include "targets/reference.h"

#include <ATen/Context.h>
#include <ATen/core/ivalue.h>

#include <typeinfo>

namespace jitquant {

const std::vector<Reference>& references() {
  static const auto* const table = new std::vector<Reference>{
      {"quantized::conv1d", "conv1d"},
      {"quantized::conv1d_relu", "conv1d", true},
      {"quantized::conv2d", "conv2d"},
      {"quantized::conv2d_relu", "conv2d", true},
      {"quantized::conv2d_add", "conv2d_add"},
      {"quantized::conv2d_add_relu", "conv2d_add", true},
      {"quantized::conv3d", "conv3d"},
      {"quantized::conv3d_relu", "conv3d", true},
      {"quantized::linear", "linear"},
      {"quantized::linear_relu", "linear", true},
      {"quantized::linear_leaky_relu", "linear_leaky_relu"},
      {"quantized::linear_tanh", "linear_tanh"},
      {"quantized::add", "add"},
      {"quantized::add_relu", "add", true},
      {"quantized::mul", "mul"},
      {"quantized::mul_relu", "mul", true},
      {"quantized::mul_scalar", "mul_scalar"},
      {"quantized::cat", "cat"},
      {"quantized::cat_relu", "cat", true},
      {"aten::relu", "relu"},
      {"aten::max_pool1d", "max_pool1d"},
      {"aten::max_pool2d", "max_pool2d"},
      {"aten::max_pool3d", "max_pool3d"},
      {"aten::avg_pool1d", "avg_pool1d"},
      {"aten::avg_pool2d", "avg_pool2d"},
      {"aten::avg_pool3d", "avg_pool3d"},
      {"aten::adaptive_avg_pool1d", "adaptive_avg_pool1d"},
      {"aten::adaptive_avg_pool2d", "adaptive_avg_pool2d"},
      {"aten::adaptive_avg_pool3d", "adaptive_avg_pool3d"},
      {"aten::mean", "mean"},
      {"aten::mean", "mean_of_all"},
      {"quantized::batch_norm", "batch_norm"},
      {"quantized::batch_norm_relu", "batch_norm", true},
      {"quantized::group_norm", "group_norm"},
      {"quantized::instance_norm", "instance_norm"},
      {"quantized::hardswish", "hardswish"},
      {"quantized::elu", "elu"},
      {"quantized::leaky_relu", "leaky_relu"},
      {"aten::hardsigmoid", "hardsigmoid"},
      {"aten::tanh", "tanh"},
      {"aten::clamp", "clamp"},
      {"aten::hardtanh", "hardtanh"},
      {"aten::relu6", "relu6"},
  };
  return *table;
}

Kernels currentKernels() {
  return at::globalContext().qEngine() == at::QEngine::QNNPACK ? Kernels::kQnnpack
                                                               : Kernels::kFbgemm;
}

Kernels kernelsOf(const at::IValue& packed_params) {
  // The x86 engine chooses by weight, groups and CPU; the object says which it chose.
  const auto object = packed_params.toObject()->getSlot(0).toCapsule();
  const std::string name = typeid(*object).name();
  if (name.find("Onednn") != std::string::npos) return Kernels::kOnednn;
  return name.find("Qnnp") != std::string::npos ? Kernels::kQnnpack : Kernels::kFbgemm;
}

}  // namespace jitquant

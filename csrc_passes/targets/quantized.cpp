// The quantized::* ops of stock torch, on quint8 tensors, with the engines x86, onednn, fbgemm and
// qnnpack.

#include "targets/target.h"

namespace jitquant {

namespace {

Target makeQuantizedTarget() {
  const std::vector<size_t> conv_pack{1, 2, 3, 4, 5, 6};
  Target target{
      "quantized",
      {
          {"aten::conv1d", "quantized::conv1d", "quantized::conv1d_relu",
           "quantized::conv1d_prepack", conv_pack, {0}, true},
          {"aten::conv2d", "quantized::conv2d", "quantized::conv2d_relu",
           "quantized::conv2d_prepack", conv_pack, {0}, true},
          {"aten::conv3d", "quantized::conv3d", "quantized::conv3d_relu",
           "quantized::conv3d_prepack", conv_pack, {0}, true},
          {"aten::linear", "quantized::linear", "quantized::linear_relu",
           "quantized::linear_prepack", {1, 2}, {0}, true},
          {"aten::add", "quantized::add", "quantized::add_relu", "", {}, {0, 1}, true},
          {"aten::add.Scalar", "quantized::add", "quantized::add_relu", "", {}, {0, 1}, true},
          {"aten::mul", "quantized::mul", "quantized::mul_relu", "", {}, {0, 1}, true},
          {"aten::mul.Scalar", "quantized::mul_scalar", "", "", {}, {0, 1}, false},
          {"aten::cat", "quantized::cat", "quantized::cat_relu", "", {}, {0, 1}, true},
          {"aten::batch_norm", "quantized::batch_norm", "quantized::batch_norm_relu", "", {},
           {0, 1, 2, 3, 4, 7}, true},
          {"aten::hardswish", "quantized::hardswish", "", "", {}, {0}, true},
          {"aten::sigmoid", "quantized::sigmoid", "", "", {}, {0}, true},
      },
  };
  // Every other op of the table takes quantized tensors as it is.
  for (const OpRow& row : opTable()) {
    if (target.find(row) == nullptr) target.rows.push_back({row.name, row.name, "", "", {}, {}});
  }
  return target;
}

}  // namespace

const Int8Row* Target::find(const OpRow& row) const {
  for (const Int8Row& candidate : rows) {
    if (candidate.row == row.name) return &candidate;
  }
  return nullptr;
}

const Target& quantizedTarget() {
  static const auto* const target = new Target(makeQuantizedTarget());
  return *target;
}

}  // namespace jitquant

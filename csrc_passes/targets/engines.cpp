#include "targets/engines.h"

#include <stdexcept>

namespace jitquant {

const std::vector<Engine>& engines() {
  static const auto* const table = new std::vector<Engine>{
      {.name = "x86",
       .id = at::QEngine::X86,
       .sums_in_16_bits = true,
       .own_groups = 100,
       .weight_zero_points = true,
       .float16_weights = true,
       .fuses_layers = false,
       .lacks = {}},
      {.name = "fbgemm",
       .id = at::QEngine::FBGEMM,
       .sums_in_16_bits = true,
       .own_groups = 1,
       .weight_zero_points = true,
       .float16_weights = true,
       .fuses_layers = false,
       .lacks = {}},
      {.name = "onednn",
       .id = at::QEngine::ONEDNN,
       .sums_in_16_bits = true,
       .own_groups = -1,
       .weight_zero_points = false,
       .float16_weights = false,
       .fuses_layers = true,
       .lacks = {}},
      {.name = "qnnpack",
       .id = at::QEngine::QNNPACK,
       .sums_in_16_bits = false,
       .own_groups = -1,
       .weight_zero_points = true,
       .float16_weights = false,
       .fuses_layers = false,
       .lacks = {{"aten::conv3d", "QNNPACK cannot save a three-dimensional convolution"}}},
  };
  return *table;
}

const Engine& currentEngine() {
  const at::QEngine id = at::globalContext().qEngine();
  for (const Engine& engine : engines()) {
    if (engine.id == id) return engine;
  }
  throw std::logic_error("the quantized engine is none of those that targets/engines.cpp lists");
}

std::string Engine::problemOf(const std::string& row) const {
  for (const Lack& lack : lacks) {
    if (lack.row == row) return lack.reason;
  }
  return "";
}

}  // namespace jitquant

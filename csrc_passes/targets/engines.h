#pragma once
// What is known of the engines that run quantized::* ops. Python reads this table too.

#include <ATen/Context.h>

#include <string>
#include <vector>

namespace jitquant {

struct Engine {
  std::string name;  // torch.backends.quantized.engine
  at::QEngine id;
  // Whether kernels of it, on some CPUs, sum pairs of products in saturating 16 bits.
  bool sums_in_16_bits;
  // Convolutions of more groups run on fbgemm; -1: none do.
  int64_t own_groups;
  bool weight_zero_points;  // whether a weight may have another zero point than 0

  bool float16_weights;  // whether it has linear layers with such weights
  // Whether it has layers that take along the op behind them. These run only while it is set.
  bool fuses_layers;

  struct Lack {
    std::string row;  // OpRow::name
    std::string reason;
  };
  std::vector<Lack> lacks;

  // Why this engine cannot run an op of that row, or "".
  std::string problemOf(const std::string& row) const;
};

const std::vector<Engine>& engines();
// The one that is set.
const Engine& currentEngine();

}  // namespace jitquant

#pragma once
// The range to quantize whose squared error over a histogram is least.

#include <cstdint>
#include <vector>

namespace jitquant {

class Histogram;

// How an observer makes scale and zero point of a range, see Observer._qparams.
struct Grid {
  int64_t quant_min;
  int64_t quant_max;
  float eps;  // lowest scale
  bool symmetric;
  int64_t symmetric_zero_point;
};

struct Bounds {
  float low;
  float high;
};

// Searches as HistogramObserver says. The range seen must not be empty.
Bounds searchBounds(const Histogram& histogram, const Grid& grid);

// The first of those candidates with the least error.
Bounds bestBounds(const Histogram& histogram, const Grid& grid,
                  const std::vector<Bounds>& candidates);

}  // namespace jitquant

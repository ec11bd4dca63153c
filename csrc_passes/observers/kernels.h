#pragma once
// The loops that see every value, or every bin for every range that is tried: with AVX2 where the
// CPU has it, otherwise plain, with the same result.

#include <cstdint>

namespace jitquant {

struct Extremes {
  float low;  // of the values that are not NaN, +inf if there are none
  float high;
  bool nan;
};

Extremes extremes(const float* values, int64_t count);

// Exact zeros get the index kZeroBin + 0 to 7, so that no two in a row wait for one counter.
constexpr int64_t kZeroBins = 8;

// indices[i] = floor(values[i] / width) - offset, or zero_bin to zero_bin + 7 for zeros, where
// inverse_width is a power of two and the result fits 32 bits.
void binIndices(const float* values, int64_t count, float inverse_width, float offset,
                int32_t zero_bin, int32_t* indices);

// The sum of weights[i] * (q / 4 + r^3), with u = edges[i] / scale + zero_point,
// q = round(clamp(u, quant_min, quant_max)) and r = u - q. In four sums that are added at last.
double weightedIntegrals(const double* edges, const double* weights, int64_t count, double scale,
                         double zero_point, double quant_min, double quant_max);

}  // namespace jitquant

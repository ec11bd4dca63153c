#pragma once
// The two loops that see every value: with AVX2 where the CPU has it, otherwise plain.

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

}  // namespace jitquant

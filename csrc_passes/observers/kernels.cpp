#include "observers/kernels.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace jitquant {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Ternaries, not std::min: a NaN leaves them as they were.
void widen(Extremes& extremes, float value) {
  extremes.low = value < extremes.low ? value : extremes.low;
  extremes.high = value > extremes.high ? value : extremes.high;
  extremes.nan = extremes.nan || std::isnan(value);
}

int32_t binIndex(float value, float inverse_width, float offset, int32_t zero_bin) {
  if (value == 0) return zero_bin;
  return static_cast<int32_t>(std::floor(value * inverse_width) - offset);
}

#ifdef __x86_64__

// Each takes a multiple of its step and returns how many it took.

__attribute__((target("avx2"))) int64_t extremesAvx2(const float* values, int64_t count,
                                                     Extremes& found) {
  __m256 low0 = _mm256_set1_ps(kInfinity);
  __m256 high0 = _mm256_set1_ps(-kInfinity);
  __m256 low1 = low0;
  __m256 high1 = high0;
  __m256 nan = _mm256_setzero_ps();
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m256 a = _mm256_loadu_ps(values + i);
    const __m256 b = _mm256_loadu_ps(values + i + 8);
    low0 = _mm256_min_ps(a, low0);  // the second operand where the first is NaN
    low1 = _mm256_min_ps(b, low1);
    high0 = _mm256_max_ps(a, high0);
    high1 = _mm256_max_ps(b, high1);
    nan = _mm256_or_ps(nan, _mm256_cmp_ps(a, b, _CMP_UNORD_Q));
  }
  std::array<float, 16> rest;
  _mm256_storeu_ps(rest.data(), _mm256_min_ps(low0, low1));
  _mm256_storeu_ps(rest.data() + 8, _mm256_max_ps(high0, high1));
  for (size_t lane = 0; lane < 8; ++lane) {
    found.low = std::min(found.low, rest[lane]);
    found.high = std::max(found.high, rest[lane + 8]);
  }
  found.nan = _mm256_movemask_ps(nan) != 0;
  return i;
}

__attribute__((target("avx2"))) int64_t binIndicesAvx2(const float* values, int64_t count,
                                                       float inverse_width, float offset,
                                                       int32_t zero_bin, int32_t* indices) {
  const __m256 scale = _mm256_set1_ps(inverse_width);
  const __m256 first = _mm256_set1_ps(offset);
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256 zero_bins =
      _mm256_castsi256_ps(_mm256_add_epi32(lanes, _mm256_set1_epi32(zero_bin)));
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256 value = _mm256_loadu_ps(values + i);
    const __m256 is_zero = _mm256_cmp_ps(value, _mm256_setzero_ps(), _CMP_EQ_OQ);
    const __m256 bin = _mm256_sub_ps(_mm256_floor_ps(_mm256_mul_ps(value, scale)), first);
    const __m256 index = _mm256_castsi256_ps(_mm256_cvttps_epi32(bin));
    _mm256_storeu_ps(reinterpret_cast<float*>(indices + i),
                     _mm256_blendv_ps(index, zero_bins, is_zero));
  }
  return i;
}

__attribute__((target("avx2"))) int64_t weightedIntegralsAvx2(const double* edges,
                                                              const double* weights, int64_t count,
                                                              double scale, double zero_point,
                                                              double quant_min, double quant_max,
                                                              std::array<double, 4>& sums) {
  const __m256d scales = _mm256_set1_pd(scale);
  const __m256d zeros = _mm256_set1_pd(zero_point);
  const __m256d lowest = _mm256_set1_pd(quant_min);
  const __m256d highest = _mm256_set1_pd(quant_max);
  const __m256d quarter = _mm256_set1_pd(0.25);
  __m256d sum = _mm256_setzero_pd();
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    const __m256d u = _mm256_add_pd(_mm256_div_pd(_mm256_loadu_pd(edges + i), scales), zeros);
    const __m256d q = _mm256_round_pd(_mm256_min_pd(_mm256_max_pd(u, lowest), highest),
                                      _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256d r = _mm256_sub_pd(u, q);
    const __m256d cube = _mm256_mul_pd(_mm256_mul_pd(r, r), r);
    const __m256d integral = _mm256_add_pd(_mm256_mul_pd(q, quarter), cube);
    sum = _mm256_add_pd(sum, _mm256_mul_pd(integral, _mm256_loadu_pd(weights + i)));
  }
  _mm256_storeu_pd(sums.data(), sum);
  return i;
}

bool hasAvx2() { return __builtin_cpu_supports("avx2") != 0; }

#else

int64_t extremesAvx2(const float*, int64_t, Extremes&) { return 0; }
int64_t binIndicesAvx2(const float*, int64_t, float, float, int32_t, int32_t*) { return 0; }
int64_t weightedIntegralsAvx2(const double*, const double*, int64_t, double, double, double, double,
                              std::array<double, 4>&) {
  return 0;
}
bool hasAvx2() { return false; }

#endif

}  // namespace

Extremes extremes(const float* values, int64_t count) {
  Extremes found{kInfinity, -kInfinity, false};
  for (int64_t i = hasAvx2() ? extremesAvx2(values, count, found) : 0; i < count; ++i) {
    widen(found, values[i]);
  }
  return found;
}

void binIndices(const float* values, int64_t count, float inverse_width, float offset,
                int32_t zero_bin, int32_t* indices) {
  int64_t i = 0;
  if (hasAvx2()) i = binIndicesAvx2(values, count, inverse_width, offset, zero_bin, indices);
  for (; i < count; ++i) indices[i] = binIndex(values[i], inverse_width, offset, zero_bin);
}

double weightedIntegrals(const double* edges, const double* weights, int64_t count, double scale,
                         double zero_point, double quant_min, double quant_max) {
  std::array<double, 4> sums{};
  int64_t i = 0;
  if (hasAvx2()) {
    i = weightedIntegralsAvx2(edges, weights, count, scale, zero_point, quant_min, quant_max, sums);
  }
  for (; i < count; ++i) {
    const double u = edges[i] / scale + zero_point;
    const double q = std::nearbyint(std::clamp(u, quant_min, quant_max));
    const double r = u - q;
    sums[static_cast<size_t>(i % 4)] += (q * 0.25 + r * r * r) * weights[i];
  }
  return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}

}  // namespace jitquant

// The ops that observers call, registered as jitquant::* when the extension is loaded. All are
// functions: they return the new state, and write to none of their arguments.

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <mutex>
#include <tuple>

#include "observers/float_values.h"
#include "observers/histogram.h"
#include "observers/kernels.h"
#include "observers/search.h"

namespace jitquant {

namespace {

using at::Tensor;
using Shapes = c10::List<c10::List<int64_t>>;

struct Range {
  float low;
  float high;
  bool nan;
  bool inf;
};

Extremes unite(const Extremes& a, const Extremes& b) {
  return {std::min(a.low, b.low), std::max(a.high, b.high), a.nan || b.nan};
}

Range rangeOf(const FloatValues& values) {
  Extremes all = extremes(nullptr, 0);
  std::mutex mutex;
  at::parallel_for(0, values.size(), kGrain, [&](int64_t begin, int64_t end) {
    Extremes part = extremes(nullptr, 0);
    values.visit(begin, end, [&](const float* block, int64_t count) {
      part = unite(part, extremes(block, count));
      return true;
    });
    const std::lock_guard<std::mutex> lock(mutex);
    all = unite(all, part);
  });
  const bool any = all.low <= all.high;
  return {all.low, all.high, all.nan, any && (std::isinf(all.low) || std::isinf(all.high))};
}

// Of the zeros the one without a sign: which of them comes first depends on the threads.
Tensor scalar(float value) { return at::scalar_tensor(value + 0.0F, at::kFloat); }

bool isRecorded(const Tensor& x, const Shapes& shapes, const c10::List<int64_t>& dtypes) {
  const auto dtype = static_cast<int64_t>(x.scalar_type());
  const auto rank = static_cast<size_t>(x.dim());
  return std::find(dtypes.begin(), dtypes.end(), dtype) != dtypes.end() &&
         std::any_of(shapes.begin(), shapes.end(),
                     [&](const c10::List<int64_t>& shape) { return shape.size() == rank; });
}

std::tuple<Tensor, Tensor, bool, bool> minMax(const Tensor& x) {
  const Range range = rangeOf(FloatValues(x));
  return {scalar(range.low), scalar(range.high), range.nan, range.inf};
}

Histogram readHistogram(const Tensor& counts, const Tensor& low, const Tensor& high,
                        int64_t exponent, int64_t offset, int64_t zeros) {
  const Tensor dense = counts.contiguous();
  Histogram histogram(dense.numel());
  std::copy_n(dense.const_data_ptr<int64_t>(), dense.numel(), histogram.counts.begin());
  histogram.low = low.item<float>();
  histogram.high = high.item<float>();
  histogram.exponent = exponent;
  histogram.offset = offset;
  histogram.zeros = zeros;
  return histogram;
}

using HistogramState = std::tuple<Tensor, Tensor, Tensor, int64_t, int64_t, int64_t>;

// The vector becomes the tensor's memory. Aligned memory, as torch allocates it, would not fit into
// what the last histogram left, and each observer would leave a gap.
Tensor asTensor(std::vector<int64_t> counts) {
  const auto owned = std::make_shared<std::vector<int64_t>>(std::move(counts));
  const auto size = static_cast<int64_t>(owned->size());
  return at::from_blob(owned->data(), {size}, [owned](void*) {}, at::kLong);
}

HistogramState writeHistogram(Histogram histogram) {
  return {asTensor(std::move(histogram.counts)),
          scalar(histogram.low),
          scalar(histogram.high),
          histogram.exponent,
          histogram.offset,
          histogram.zeros};
}

std::tuple<Tensor, Tensor, Tensor, int64_t, int64_t, int64_t, bool, bool> addToHistogram(
    const Tensor& x, const Tensor& counts, const Tensor& low, const Tensor& high, int64_t exponent,
    int64_t offset, int64_t zeros) {
  const FloatValues values(x);
  Histogram histogram = readHistogram(counts, low, high, exponent, offset, zeros);
  if (histogram.add(values)) {
    return std::tuple_cat(writeHistogram(std::move(histogram)), std::make_tuple(false, false));
  }
  const Range range = rangeOf(values);
  return {counts, low, high, exponent, offset, zeros, range.nan, range.inf};
}

HistogramState mergeHistograms(const Tensor& counts, const Tensor& low, const Tensor& high,
                               int64_t exponent, int64_t offset, int64_t zeros,
                               const Tensor& other_counts, const Tensor& other_low,
                               const Tensor& other_high, int64_t other_exponent,
                               int64_t other_offset, int64_t other_zeros) {
  Histogram merged = readHistogram(counts, low, high, exponent, offset, zeros);
  merged.merge(readHistogram(other_counts, other_low, other_high, other_exponent, other_offset,
                             other_zeros));
  return writeHistogram(std::move(merged));
}

std::tuple<Tensor, Tensor> asTensors(Bounds bounds) {
  return {at::full({1}, bounds.low, at::kFloat), at::full({1}, bounds.high, at::kFloat)};
}

std::tuple<Tensor, Tensor> searchRange(const Tensor& counts, const Tensor& low, const Tensor& high,
                                       int64_t exponent, int64_t offset, int64_t quant_min,
                                       int64_t quant_max, double eps, bool symmetric,
                                       int64_t symmetric_zero_point) {
  const Histogram histogram = readHistogram(counts, low, high, exponent, offset, /*zeros=*/0);
  const Grid grid{quant_min, quant_max, static_cast<float>(eps), symmetric, symmetric_zero_point};
  return asTensors(searchBounds(histogram, grid));
}

std::tuple<Tensor, Tensor> bestRange(const Tensor& lows, const Tensor& highs, const Tensor& counts,
                                     const Tensor& low, const Tensor& high, int64_t exponent,
                                     int64_t offset, int64_t quant_min, int64_t quant_max,
                                     double eps, bool symmetric, int64_t symmetric_zero_point) {
  const Histogram histogram = readHistogram(counts, low, high, exponent, offset, /*zeros=*/0);
  const Grid grid{quant_min, quant_max, static_cast<float>(eps), symmetric, symmetric_zero_point};
  TORCH_CHECK(lows.numel() == highs.numel() && lows.numel() > 0, "as many lows as highs, got ",
              lows.numel(), " and ", highs.numel());
  const Tensor first = lows.to(at::kFloat).contiguous();
  const Tensor last = highs.to(at::kFloat).contiguous();
  std::vector<Bounds> candidates;
  for (int64_t i = 0; i < first.numel(); ++i) {
    candidates.push_back({first.const_data_ptr<float>()[i], last.const_data_ptr<float>()[i]});
  }
  return asTensors(bestBounds(histogram, grid, candidates));
}

}  // namespace

// No aliases are declared although a batch that is not finite returns the state that it was given:
// nobody writes to state.
TORCH_LIBRARY(jitquant, library) {
  library.def("is_recorded(Tensor x, int[][] shapes, int[] dtypes) -> bool", &isRecorded);
  library.def("min_max(Tensor x) -> (Tensor low, Tensor high, bool nan, bool inf)", &minMax);
  library.def(
      "add_to_histogram(Tensor x, Tensor counts, Tensor low, Tensor high, int exponent, int offset,"
      " int zeros) -> (Tensor counts, Tensor low, Tensor high, int exponent, int offset, int zeros,"
      " bool nan, bool inf)",
      &addToHistogram);
  library.def(
      "merge_histograms(Tensor counts, Tensor low, Tensor high, int exponent, int offset,"
      " int zeros, Tensor other_counts, Tensor other_low, Tensor other_high, int other_exponent,"
      " int other_offset, int other_zeros) -> (Tensor counts, Tensor low, Tensor high,"
      " int exponent, int offset, int zeros)",
      &mergeHistograms);
  library.def(
      "search_range(Tensor counts, Tensor low, Tensor high, int exponent, int offset, int "
      "quant_min,"
      " int quant_max, float eps, bool symmetric, int symmetric_zero_point)"
      " -> (Tensor low, Tensor high)",
      &searchRange);
  library.def(
      "best_range(Tensor lows, Tensor highs, Tensor counts, Tensor low, Tensor high, int exponent,"
      " int offset, int quant_min, int quant_max, float eps, bool symmetric,"
      " int symmetric_zero_point) -> (Tensor low, Tensor high)",
      &bestRange);
}

}  // namespace jitquant

#include "observers/histogram.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <mutex>
#include <utility>

#include "observers/float_values.h"
#include "observers/kernels.h"

namespace jitquant {

namespace {

constexpr int64_t kSmall = 1 << 14;    // below, four tables of counters cost more than they save
constexpr double kMaxIndex = 1 << 22;  // highest |bin|: with it float32 arithmetic is exact

double binOf(float value, int64_t exponent) {
  return std::floor(std::ldexp(static_cast<double>(value), -static_cast<int>(exponent)));
}

bool fits(float low, float high, int64_t exponent, int64_t capacity) {
  const double first = binOf(low, exponent);
  const double last = binOf(high, exponent);
  return last - first < static_cast<double>(capacity) && first >= -kMaxIndex && last <= kMaxIndex;
}

// Four tables of 32-bit counters: a counter that was just increased cannot be read for some cycles,
// and neighbours often fall into one bin.
class Counters {
 public:
  explicit Counters(int64_t capacity)
      : stride_(capacity + kZeroBins), table_(static_cast<size_t>(4 * stride_), 0) {}

  void add(const int32_t* indices, int64_t count) {
    uint32_t* const table0 = table_.data();
    uint32_t* const table1 = table0 + stride_;
    uint32_t* const table2 = table1 + stride_;
    uint32_t* const table3 = table2 + stride_;
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) {  // two indices in one load
      uint64_t a;
      uint64_t b;
      std::memcpy(&a, indices + i, 8);
      std::memcpy(&b, indices + i + 2, 8);
      ++table0[static_cast<uint32_t>(a)];
      ++table1[a >> 32];
      ++table2[static_cast<uint32_t>(b)];
      ++table3[b >> 32];
    }
    for (; i < count; ++i) ++table0[indices[i]];
    pending_ += count;
  }

  // Adds the counters of the bins from `first` to `last` to `counts`, and clears them: all others
  // are 0.
  void flush(std::vector<int64_t>& counts, int64_t& zeros, int64_t first, int64_t last) {
    if (pending_ == 0) return;
    const auto take = [&](int64_t bin) {
      int64_t total = 0;
      for (uint32_t* counter = &table_[bin]; counter < table_.data() + 4 * stride_;
           counter += stride_) {
        total += *counter;
        *counter = 0;
      }
      return total;
    };
    for (int64_t bin = first; bin <= last; ++bin) counts[bin] += take(bin);
    for (int64_t bin = stride_ - kZeroBins; bin < stride_; ++bin) zeros += take(bin);
    pending_ = 0;
  }

  bool full() const { return pending_ > std::numeric_limits<int32_t>::max(); }

 private:
  int64_t stride_;
  std::vector<uint32_t> table_;
  int64_t pending_ = 0;
};

}  // namespace

bool Histogram::add(const FloatValues& values) {
  if (values.size() < kSmall || at::get_num_threads() == 1) {
    if (!addRange(values, 0, values.size())) return false;
    fit();
    return true;
  }
  std::mutex mutex;
  std::atomic<bool> finite{true};
  at::parallel_for(0, values.size(), kGrain, [&](int64_t begin, int64_t end) {
    Histogram part(capacity());
    part.exponent = exponent;
    part.offset = offset;
    if (!part.addRange(values, begin, end)) {
      finite = false;
      return;
    }
    const std::lock_guard<std::mutex> lock(mutex);
    merge(part);
  });
  return finite;
}

bool Histogram::addRange(const FloatValues& values, int64_t begin, int64_t end) {
  const bool small = end - begin < kSmall;
  Counters counters(small ? 0 : capacity());
  std::array<int32_t, kBlock> indices;
  const auto flush = [&] {
    if (!empty()) counters.flush(counts, zeros, firstBin(), lastBin());
  };
  const auto addBlock = [&](const float* block, int64_t count) {
    const Extremes found = extremes(block, count);
    if (found.nan || !std::isfinite(found.low) || !std::isfinite(found.high)) return false;
    const bool held = holds(found.low, found.high);
    if (!held) flush();
    low = std::min(low, found.low);
    high = std::max(high, found.high);
    if (!held) fit();
    binIndices(block, count, std::ldexp(1.0F, -static_cast<int>(exponent)),
               static_cast<float>(offset), static_cast<int32_t>(capacity()), indices.data());
    if (small) {
      for (int64_t i = 0; i < count; ++i) {
        ++(indices[i] < capacity() ? counts[indices[i]] : zeros);
      }
      return true;
    }
    counters.add(indices.data(), count);
    if (counters.full()) flush();
    return true;
  };
  if (!values.visit(begin, end, addBlock)) return false;
  flush();
  return true;
}

bool Histogram::holds(float first, float last) const {
  return !empty() && binOf(first, exponent) >= static_cast<double>(offset) &&
         binOf(last, exponent) < static_cast<double>(offset + capacity());
}

int64_t Histogram::firstBin() const { return static_cast<int64_t>(binOf(low, exponent)) - offset; }

int64_t Histogram::lastBin() const { return static_cast<int64_t>(binOf(high, exponent)) - offset; }

void Histogram::fit() {
  const int64_t old_exponent = exponent;
  const int64_t old_offset = offset;
  while (!fits(low, high, exponent, capacity())) ++exponent;
  const auto first = static_cast<int64_t>(binOf(low, exponent));
  const auto last = static_cast<int64_t>(binOf(high, exponent));
  offset = first - (capacity() - (last - first + 1)) / 2;
  if (exponent == old_exponent && offset == old_offset) return;
  const std::vector<int64_t> old = std::exchange(counts, std::vector<int64_t>(counts.size(), 0));
  addBins(old, old_exponent, old_offset);
}

void Histogram::addBins(const std::vector<int64_t>& bins, int64_t from_exponent,
                        int64_t from_offset) {
  const int64_t halvings = std::min<int64_t>(exponent - from_exponent, 63);  // more are undefined
  for (size_t i = 0; i < bins.size(); ++i) {
    if (bins[i] == 0) continue;
    const int64_t bin = (from_offset + static_cast<int64_t>(i)) >> halvings;
    counts[static_cast<size_t>(bin - offset)] += bins[i];
  }
}

void Histogram::merge(const Histogram& other) {
  if (other.empty()) return;
  zeros += other.zeros;
  low = std::min(low, other.low);
  high = std::max(high, other.high);
  fit();  // no exponent is larger than its range needs, so this one is at least other's
  addBins(other.counts, other.exponent, other.offset);
}

}  // namespace jitquant

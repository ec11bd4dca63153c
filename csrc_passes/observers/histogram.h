#pragma once
// A histogram whose bins are whole multiples of a power of two: [k w, (k + 1) w), w = 2^exponent.
//
// The exponent is the smallest with which all values seen fit into the bins, so it depends on the
// lowest and highest value only. When it grows, neighbouring bins add up, which loses nothing. So
// counting two halves and adding them gives the same as counting all, in any order.

#include <cstdint>
#include <limits>
#include <vector>

namespace jitquant {

class FloatValues;

class Histogram {
 public:
  explicit Histogram(int64_t capacity) : counts(static_cast<size_t>(capacity), 0) {}

  // Counts the values; false, and then this is no longer of use, if one is NaN or infinite.
  bool add(const FloatValues& values);
  void merge(const Histogram& other);

  bool empty() const { return !(low <= high); }
  int64_t capacity() const { return static_cast<int64_t>(counts.size()); }

  std::vector<int64_t> counts;  // counts[i]: values in bin offset + i, exact zeros left out
  int64_t zeros = 0;
  int64_t exponent = kLowestExponent;
  int64_t offset = 0;  // puts the bins in use into the middle
  float low = std::numeric_limits<float>::infinity();
  float high = -std::numeric_limits<float>::infinity();

  static constexpr int64_t kLowestExponent = -120;  // with which 2^-exponent is a float32

 private:
  bool addRange(const FloatValues& values, int64_t begin, int64_t end);
  bool holds(float first, float last) const;
  int64_t firstBin() const;  // of the bins in use
  int64_t lastBin() const;
  // Raises the exponent until [low, high] fits, and moves the counts there.
  void fit();
  void addBins(const std::vector<int64_t>& bins, int64_t from_exponent, int64_t from_offset);
};

}  // namespace jitquant

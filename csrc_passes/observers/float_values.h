#pragma once
// Reads the values of a tensor as float32, in blocks, without a copy of the tensor.

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

namespace jitquant {

constexpr int64_t kBlock = 1024;     // floats: 4 kB, which stay in the first cache
constexpr int64_t kGrain = 1 << 17;  // values that are worth a thread

// The elements of a tensor on the CPU, of any floating-point dtype and any strides, in the order in
// which memory holds them.
class FloatValues {
 public:
  // Throws c10::Error unless x is a strided floating-point tensor on the CPU.
  explicit FloatValues(const at::Tensor& x);

  int64_t size() const { return size_; }

  // Calls visit(const float* values, int64_t count) for the elements [begin, end), in blocks of at
  // most kBlock, until it returns false. Returns whether it never did.
  template <typename Visit>
  bool visit(int64_t begin, int64_t end, const Visit& visit) const {
    std::array<float, kBlock> buffer;
    while (begin < end) {
      const int64_t wanted = std::min(kBlock, end - begin);
      const float* values = buffer.data();
      int64_t count = 0;
      while (count < wanted) {  // a block is one piece of a long row, or several short rows
        const int64_t column = (begin + count) % row_;
        const int64_t piece = std::min(row_ - column, wanted - count);
        const bool alone = count == 0 && piece >= std::min(kShortRow, wanted);
        const float* read =
            this->read((begin + count) / row_, column, piece, buffer.data() + count, alone);
        count += piece;
        if (!alone) continue;
        values = read;
        break;
      }
      if (!visit(values, count)) return false;
      begin += count;
    }
    return true;
  }

 private:
  static constexpr int64_t kShortRow = 256;

  // The values themselves where that is allowed and they are adjacent float32, otherwise a copy of
  // them in `buffer`.
  const float* read(int64_t row, int64_t column, int64_t count, float* buffer, bool as_is) const;

  at::Tensor x_;  // keeps the memory
  int64_t size_ = 0;
  int64_t row_ = 1;  // elements of a row: the longest run with one stride
  int64_t stride_ = 1;
  std::vector<int64_t> outer_sizes_;  // of the rows, fastest last
  std::vector<int64_t> outer_strides_;
};

}  // namespace jitquant

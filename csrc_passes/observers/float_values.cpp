#include "observers/float_values.h"

#include <numeric>

namespace jitquant {

namespace {

template <typename Scalar>
void convert(const Scalar* from, int64_t stride, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(from[i * stride]);
}

bool isReadAsIs(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf ||
         dtype == at::kBFloat16;
}

}  // namespace

FloatValues::FloatValues(const at::Tensor& x) {
  TORCH_CHECK(x.layout() == at::kStrided && x.is_cpu() && x.is_floating_point(),
              "an observer takes strided floating-point tensors on the CPU, got ", x.toString());
  x_ = x.resolve_neg();
  if (!isReadAsIs(x_.scalar_type())) x_ = x_.to(at::kFloat);
  size_ = x_.numel();
  std::vector<int64_t> axes(static_cast<size_t>(x_.dim()));
  std::iota(axes.begin(), axes.end(), 0);
  std::stable_sort(axes.begin(), axes.end(),
                   [&](int64_t a, int64_t b) { return x_.stride(a) > x_.stride(b); });
  for (const int64_t axis : axes) {
    const int64_t size = x_.size(axis);
    const int64_t stride = x_.stride(axis);
    if (size == 1) continue;
    if (!outer_sizes_.empty() && outer_strides_.back() == size * stride) {
      outer_sizes_.back() *= size;
      outer_strides_.back() = stride;
    } else {
      outer_sizes_.push_back(size);
      outer_strides_.push_back(stride);
    }
  }
  if (outer_sizes_.empty()) return;
  row_ = outer_sizes_.back();
  stride_ = outer_strides_.back();
  outer_sizes_.pop_back();
  outer_strides_.pop_back();
}

const float* FloatValues::read(int64_t row, int64_t column, int64_t count, float* buffer,
                               bool as_is) const {
  int64_t offset = column * stride_;
  for (size_t i = outer_sizes_.size(); i-- > 0;) {
    offset += row % outer_sizes_[i] * outer_strides_[i];
    row /= outer_sizes_[i];
  }
  switch (x_.scalar_type()) {
    case at::kFloat: {
      const float* values = x_.const_data_ptr<float>() + offset;
      if (as_is && stride_ == 1) return values;
      convert(values, stride_, count, buffer);
      break;
    }
    case at::kDouble:
      convert(x_.const_data_ptr<double>() + offset, stride_, count, buffer);
      break;
    case at::kHalf:
      convert(x_.const_data_ptr<at::Half>() + offset, stride_, count, buffer);
      break;
    default:
      convert(x_.const_data_ptr<at::BFloat16>() + offset, stride_, count, buffer);
  }
  return buffer;
}

}  // namespace jitquant

#include "conv_transpose.h"

#include <ATen/ATen.h>

#include "ir_util.h"

namespace jitquant {

using Ints = std::vector<int64_t>;

namespace {

// Measured: int8 convolutions are 4 to 8 times faster than float transposed ones of equal size.
constexpr int64_t kMostWork = 4;

int64_t product(const Ints& values) { return c10::multiply_integers(values); }

int64_t divideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

int64_t SubPixel::phases() const { return product(stride); }

// With q = (o + p) / s and r = (o + p) % s, output o is the sum over t of x[q - t] * w[r + s * t],
// p the padding. So phase r is a convolution with every s-th weight. Its own padding is the least
// with which it gives every q that is wanted.
std::optional<SubPixel> subPixelForm(const jit::Node* node, const jit::Module& module) {
  const auto weight = constantTensor(node->input(1), module);
  const auto stride = constantInts(node->input(3));
  const auto padding = constantInts(node->input(4));
  const auto output_padding = constantInts(node->input(5));
  const auto groups = constantNumber(node->input(6));
  const auto dilation = constantInts(node->input(7));
  if (!weight || !stride || !padding || !output_padding || !groups || !dilation) {
    return std::nullopt;
  }
  SubPixel form;
  form.groups = static_cast<int64_t>(*groups);
  const size_t rank = static_cast<size_t>(weight->dim()) - 2;
  for (const auto* sizes : {&*stride, &*padding, &*output_padding, &*dilation}) {
    if (sizes->size() != rank) return std::nullopt;
  }
  for (size_t i = 0; i < rank; ++i) {
    const int64_t s = (*stride)[i];
    const int64_t p = (*padding)[i];
    const int64_t kernel = weight->size(static_cast<int64_t>(i) + 2);
    const int64_t last = (*dilation)[i] * (kernel - 1);  // place of the last weight
    const bool split = s > 1;
    const int64_t taps = split ? last / s + 1 : kernel;
    const int64_t reach = split ? taps - 1 : last;
    const int64_t end = last + (*output_padding)[i] + 1;
    const int64_t pad = std::max({int64_t{0}, reach - p / s, divideUp(end - p - s, s)});
    form.stride.push_back(s);
    form.taps.push_back(taps);
    form.spacing.push_back(split ? (*dilation)[i] : 1);
    form.dilation.push_back(split ? 1 : (*dilation)[i]);
    form.padding.push_back(pad);
    form.cut_left.push_back(p - (reach - pad) * s);
    form.cut_right.push_back(pad * s + p + s - end);
  }
  return form;
}

std::string whyNotConvolution(const jit::Node* node, const jit::Module& module) {
  const auto weight = constantTensor(node->input(1), module);
  if (!weight) return "its weight is computed at run time";
  if (!isNone(node->input(2)) && !constantTensor(node->input(2), module)) {
    return "its bias is computed at run time";
  }
  const auto form = subPixelForm(node, module);
  if (!form) return "its geometry is computed at run time";
  const int64_t phases = form->phases();
  if (phases > 1 && form->groups > 1 && weight->size(1) == 1 && weight->size(0) == form->groups) {
    return "stock int8 kernels run this depthwise shape slower than float";
  }
  const int64_t kernel = product(weight->sizes().slice(2).vec());
  if (product(form->taps) * phases > kMostWork * kernel) {
    return "as a convolution it would have more than " + std::to_string(kMostWork) +
           " times the multiplications, which int8 does not make up for";
  }
  return "";
}

at::Tensor subPixelWeight(const at::Tensor& weight, const SubPixel& form) {
  const auto rank = static_cast<int64_t>(form.stride.size());
  at::Tensor result = weight.detach();
  Ints split{form.groups, weight.size(0) / form.groups, weight.size(1)};
  Ints order{0};
  Ints last{2, 1};
  Ints flipped;
  Ints shape{form.groups * form.phases() * weight.size(1), split[1]};
  for (int64_t i = 0; i < rank; ++i) {
    const int64_t s = form.stride[i];
    const int64_t taps = form.taps[i];
    Ints size = result.sizes().vec();
    size[i + 2] = taps * s;
    const at::Tensor spaced = at::zeros(size, result.options());
    const int64_t end = form.spacing[i] * (weight.size(i + 2) - 1) + 1;
    spaced.slice(i + 2, 0, end, form.spacing[i]).copy_(result);
    result = spaced;
    split.insert(split.end(), {taps, s});
    flipped.push_back(3 + 2 * i);
    order.push_back(4 + 2 * i);
    last.push_back(3 + 2 * i);
    shape.push_back(taps);
  }
  order.insert(order.end(), last.begin(), last.end());
  return result.reshape(split).flip(flipped).permute(order).reshape(shape).contiguous();
}

at::Tensor subPixelBias(const at::Tensor& bias, const SubPixel& form) {
  return bias.detach().reshape({form.groups, 1, -1}).repeat({1, form.phases(), 1}).flatten();
}

}  // namespace jitquant

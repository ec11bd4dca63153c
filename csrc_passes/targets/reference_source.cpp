// The functions of targets/reference.h, as TorchScript.

#include <ATen/Version.h>
#include <torch/csrc/jit/frontend/resolver.h>

#include <cstdlib>
#include <string>

#include "targets/reference.h"
#include "targets/reference_reductions.h"

namespace jitquant {

namespace {

// What follows was found by comparing candidates with the kernels, bit by bit, on values near ties.
// The float operations and their order are part of the result: a sum that is fused into a product
// or a division in place of a product with the reciprocal changes one output in 10^3 to 10^6.
// Sums of integers are exact in float64.

constexpr const char* kCommon = R"(
def integers(q: Tensor) -> Tensor:
    return q.int_repr().double() - q.q_zero_point()

def single(number: float) -> Tensor:
    return torch.tensor(number, dtype=6)

def inverse(number: Tensor) -> Tensor:
    return torch.div(torch.ones_like(number), number)

def fused_multiply_add(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return (a.double() * b.double() + c.double()).float()

def quantized(steps: Tensor, scale: float, zero_point: int, clamps: bool) -> Tensor:
    lowest = 0
    if clamps:
        lowest = zero_point
    return torch._make_per_tensor_quantized_tensor(
        steps.clamp(lowest, 255).to(0), scale, zero_point)

def quantize(x: Tensor, scale: float, zero_point: int, clamps: bool) -> Tensor:
    steps = torch.round(x * inverse(single(scale))) + zero_point
    return quantized(steps, scale, zero_point, clamps)

def like(q: Tensor, steps: Tensor) -> Tensor:
    return quantized(steps, q.q_scale(), q.q_zero_point(), False)
)";

// --- weighted ops ---

// `sums` has the channels last, as weight_scale and bias have. A 0-dim weight_scale is that of a
// weight quantized per tensor.
constexpr const char* kFbgemmRequantize = R"(
def requantize(sums: Tensor, x_scale: Tensor, weight_scale: Tensor, bias: Tensor,
               scale: Tensor, zero_point: int, in_tiles: bool) -> Tensor:
    product = x_scale * weight_scale
    if weight_scale.dim() == 0:
        biased = fused_multiply_add(bias, inverse(product), sums)
    else:
        biased = sums.float() + bias / product
    return torch.round(biased * (product / scale)) + zero_point
)";

// Kernels on AMX tiles take the product of the scales. Those are convolutions but depthwise ones,
// and some of odd shapes: which ones is up to the library.
constexpr const char* kOnednnRequantize = R"(
def scaled(sums: Tensor, x_scale: Tensor, weight_scale: Tensor, in_tiles: bool) -> Tensor:
    first = inverse(inverse(x_scale))
    if has_tiles() and in_tiles:
        return sums.float() * (first * weight_scale)
    return sums.float() * first * weight_scale

def requantize(sums: Tensor, x_scale: Tensor, weight_scale: Tensor, bias: Tensor,
               scale: Tensor, zero_point: int, in_tiles: bool) -> Tensor:
    real = scaled(sums, x_scale, weight_scale, in_tiles) + bias
    return torch.round(real * inverse(scale) + zero_point)
)";

// Layers with the op behind them, which only this engine has. `sums` has the channels last.
constexpr const char* kOnednnFused = R"(
def real_sums(sums: Tensor, x: Tensor, weight_scale: Tensor, bias: Optional[Tensor],
              in_tiles: bool) -> Tensor:
    real = scaled(sums, single(x.q_scale()), weight_scale, in_tiles)
    if bias is not None:
        real = real + bias.detach()
    return real

def as_steps(real: Tensor, scale: float, zero_point: int) -> Tensor:
    return torch.round(real * inverse(single(scale)) + zero_point)

def conv2d_add(x: Tensor, accumulator: Tensor, weight: Tensor, weight_scale: Tensor,
               weight_zero_point: Tensor, bias: Optional[Tensor], stride: List[int],
               padding: List[int], dilation: List[int], groups: int, scale: float,
               zero_point: int, clamps: bool) -> Tensor:
    sums = torch.conv2d(integers(x), centered(weight, weight_zero_point), None, stride, padding,
                        dilation, groups).movedim(1, -1).contiguous()
    real = real_sums(sums, x, weight_scale, bias, groups < x.size(1))
    accumulator_scale = inverse(inverse(single(accumulator.q_scale())))
    total = fused_multiply_add(integers(accumulator).movedim(1, -1), accumulator_scale, real)
    return quantized(as_steps(total, scale, zero_point), scale, zero_point, clamps).movedim(-1, 1)

def real_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, weight_zero_point: Tensor,
                bias: Optional[Tensor]) -> Tensor:
    sums = torch.matmul(integers(x), centered(weight, weight_zero_point).t())
    return real_sums(sums, x, weight_scale, bias, False)

def linear_leaky_relu(x: Tensor, weight: Tensor, weight_scale: Tensor, weight_zero_point: Tensor,
                      bias: Optional[Tensor], scale: float, zero_point: int,
                      slope: float) -> Tensor:
    real = real_linear(x, weight, weight_scale, weight_zero_point, bias)
    real = torch.where(real > 0.0, real, real * single(slope))
    return quantized(as_steps(real, scale, zero_point), scale, zero_point, False)

def linear_tanh(x: Tensor, weight: Tensor, weight_scale: Tensor, weight_zero_point: Tensor,
                bias: Optional[Tensor], scale: float, zero_point: int) -> Tensor:
    real = torch.tanh(real_linear(x, weight, weight_scale, weight_zero_point, bias))
    return quantized(as_steps(real, scale, zero_point), scale, zero_point, False)
)";

constexpr const char* kQnnpackRequantize = R"(
def requantize(sums: Tensor, x_scale: Tensor, weight_scale: Tensor, bias: Tensor,
               scale: Tensor, zero_point: int, in_tiles: bool) -> Tensor:
    product = x_scale * weight_scale
    biased = (sums + torch.round(bias * inverse(product))).float()
    return torch.round(biased * (product * inverse(scale))) + zero_point
)";

constexpr const char* kWeighted = R"(
def centered(weight: Tensor, zero_point: Tensor) -> Tensor:
    along = [1] * (weight.dim() - 1)
    return weight.double() - zero_point.reshape([-1] + along)

def finish(sums: Tensor, x: Tensor, weight_scale: Tensor, bias: Optional[Tensor],
           scale: float, zero_point: int, clamps: bool, in_tiles: bool) -> Tensor:
    shift = torch.zeros_like(weight_scale)
    if bias is not None:
        shift = bias.detach()
    steps = requantize(sums, single(x.q_scale()), weight_scale, shift, single(scale), zero_point,
                       in_tiles)
    return quantized(steps, scale, zero_point, clamps)

def linear(x: Tensor, weight: Tensor, weight_scale: Tensor, weight_zero_point: Tensor,
           bias: Optional[Tensor], scale: float, zero_point: int, clamps: bool) -> Tensor:
    sums = torch.matmul(integers(x), centered(weight, weight_zero_point).t())
    return finish(sums, x, weight_scale, bias, scale, zero_point, clamps, False)

def conv1d(x: Tensor, weight: Tensor, weight_scale: Tensor, weight_zero_point: Tensor,
           bias: Optional[Tensor], stride: List[int], padding: List[int], dilation: List[int],
           groups: int, scale: float, zero_point: int, clamps: bool) -> Tensor:
    sums = torch.conv1d(integers(x), centered(weight, weight_zero_point), None, stride, padding,
                        dilation, groups).movedim(1, -1).contiguous()
    return finish(sums, x, weight_scale, bias, scale, zero_point, clamps,
                  groups < x.size(1)).movedim(-1, 1)

def conv2d(x: Tensor, weight: Tensor, weight_scale: Tensor, weight_zero_point: Tensor,
           bias: Optional[Tensor], stride: List[int], padding: List[int], dilation: List[int],
           groups: int, scale: float, zero_point: int, clamps: bool) -> Tensor:
    sums = torch.conv2d(integers(x), centered(weight, weight_zero_point), None, stride, padding,
                        dilation, groups).movedim(1, -1).contiguous()
    return finish(sums, x, weight_scale, bias, scale, zero_point, clamps,
                  groups < x.size(1)).movedim(-1, 1)

def conv3d(x: Tensor, weight: Tensor, weight_scale: Tensor, weight_zero_point: Tensor,
           bias: Optional[Tensor], stride: List[int], padding: List[int], dilation: List[int],
           groups: int, scale: float, zero_point: int, clamps: bool) -> Tensor:
    sums = torch.conv3d(integers(x), centered(weight, weight_zero_point), None, stride, padding,
                        dilation, groups).movedim(1, -1).contiguous()
    return finish(sums, x, weight_scale, bias, scale, zero_point, clamps,
                  groups < x.size(1)).movedim(-1, 1)
)";

// --- ATen's own kernels ---
//
// They dequantize whole vectors with one fused multiply-add, and what is left over with a
// difference and a product. A kernel takes `block()` values at a time, two vectors of bytes: along
// the memory where all operands lie alike, else along the channels.

constexpr const char* kElementwise = R"(
def in_one_piece(q: Tensor) -> bool:
    return q.is_contiguous() or q.is_contiguous(memory_format=2) or q.is_contiguous(memory_format=3)

def alike(a: Tensor, b: Tensor) -> bool:
    return a.size() == b.size() and (
        (a.is_contiguous() and b.is_contiguous())
        or (a.is_contiguous(memory_format=2) and b.is_contiguous(memory_format=2))
        or (a.is_contiguous(memory_format=3) and b.is_contiguous(memory_format=3)))

def block() -> int:
    return 8 * lanes()

def in_vectors(number: int, size: int) -> Tensor:
    return torch.arange(number) < number - number % size

def in_blocks(q: Tensor, one_piece: bool) -> Tensor:
    if one_piece:
        return in_vectors(q.numel(), block()).as_strided(q.size(), q.stride())
    if q.dim() > 2 and q.stride(1) == 1:
        return in_vectors(q.size(1), block()).reshape([-1] + [1] * (q.dim() - 2))
    return torch.zeros([1], dtype=11)

def real_in_vectors(q: Tensor) -> Tensor:
    scale = single(q.q_scale())
    return fused_multiply_add(q.int_repr(), scale, scale * (0 - q.q_zero_point()))

def real(q: Tensor) -> Tensor:
    return (q.int_repr().float() - q.q_zero_point()) * single(q.q_scale())

def sum_of(a: Tensor, b: Tensor, scale: float, zero_point: int, clamps: bool) -> Tensor:
    vectors = in_blocks(a, alike(a, b) or (b.numel() == 1 and in_one_piece(a)))
    total = torch.where(vectors, real_in_vectors(a) + real_in_vectors(b), real(a) + real(b))
    return quantize(total, scale, zero_point, clamps)

def product_of(a: Tensor, b: Tensor, scale: float, zero_point: int, clamps: bool) -> Tensor:
    factor = single(a.q_scale()) * single(b.q_scale()) * inverse(single(scale))
    products = (integers(a) * integers(b)).float()
    return quantized(torch.round(products * factor) + zero_point, scale, zero_point, clamps)

def mul(a: Tensor, b: Tensor, scale: float, zero_point: int, clamps: bool) -> Tensor:
    return product_of(a, b, scale, zero_point, clamps)

def mul_scalar(q: Tensor, factor: float) -> Tensor:
    steps = q.int_repr()
    zero_point = q.q_zero_point()
    if factor < 0.0:
        steps = 255 - steps
        zero_point = 255 - zero_point
    return quantized(steps, q.q_scale() * abs(factor), zero_point, False)

def cat(parts: List[Tensor], dim: int, scale: float, zero_point: int, clamps: bool) -> Tensor:
    channels_last = dim == 1
    for part in parts:
        channels_last = (channels_last and part.dim() == 4
                         and part.is_contiguous(memory_format=2))
    reals: List[Tensor] = []
    for part in parts:
        if channels_last:
            vectors = in_vectors(part.size(1), lanes() if lanes() > 16 else 8).reshape([-1, 1, 1])
            reals.append(torch.where(vectors, real_in_vectors(part), real(part)))
        else:
            reals.append(real(part))
    return quantize(torch.cat(reals, dim), scale, zero_point, clamps)

def relu(q: Tensor) -> Tensor:
    return like(q, q.int_repr().clamp(min=q.q_zero_point()))

def max_pool1d(q: Tensor, kernel: List[int], stride: List[int], padding: List[int],
               dilation: List[int], ceil_mode: bool) -> Tensor:
    return like(q, torch.max_pool1d(q.int_repr().float(), kernel, stride, padding, dilation,
                                    ceil_mode))

def max_pool2d(q: Tensor, kernel: List[int], stride: List[int], padding: List[int],
               dilation: List[int], ceil_mode: bool) -> Tensor:
    return like(q, torch.max_pool2d(q.int_repr().float(), kernel, stride, padding, dilation,
                                    ceil_mode))

def max_pool3d(q: Tensor, kernel: List[int], stride: List[int], padding: List[int],
               dilation: List[int], ceil_mode: bool) -> Tensor:
    return like(q, torch.max_pool3d(q.int_repr().float(), kernel, stride, padding, dilation,
                                    ceil_mode))
)";

constexpr const char* kAtenSum = R"(
def add(a: Tensor, b: Tensor, scale: float, zero_point: int, clamps: bool) -> Tensor:
    return sum_of(a, b, scale, zero_point, clamps)
)";

// Fixed point: 21 bits of the larger factor, and ties away from zero.
constexpr const char* kQnnpackSum = R"(
def add(a: Tensor, b: Tensor, scale: float, zero_point: int, clamps: bool) -> Tensor:
    if a.size() != b.size():
        return sum_of(a, b, scale, zero_point, clamps)
    a_factor = (single(a.q_scale()) / single(scale)).double()
    b_factor = (single(b.q_scale()) / single(scale)).double()
    unit = torch.pow(2.0, 21 - torch.floor(torch.log2(torch.maximum(a_factor, b_factor))))
    total = integers(a) * torch.round(a_factor * unit) + integers(b) * torch.round(b_factor * unit)
    steps = torch.sign(total) * torch.floor(total.abs() / unit + 0.5) + zero_point
    return quantized(steps, scale, zero_point, clamps)
)";

// --- functions of one value ---

constexpr const char* kActivations = R"(
def values(q: Tensor) -> Tensor:
    return torch.where(in_blocks(q, in_one_piece(q)), real_in_vectors(q), real(q))

def hardsigmoid_of(x: Tensor) -> Tensor:
    return (x + 3.0).clamp(0.0, 6.0) / 6.0

def hardsigmoid(q: Tensor) -> Tensor:
    return quantize(hardsigmoid_of(values(q)), 0.00390625, 0, False)

def tanh(q: Tensor) -> Tensor:
    return quantize(torch.tanh(values(q)), 0.0078125, 128, False)

# The output is contiguous. Where the input is not, single values are taken.
def elu(q: Tensor, scale: float, zero_point: int, alpha: number, factor: number,
        input_factor: number) -> Tensor:
    x = real(q).contiguous()
    if q.is_contiguous():
        x = values(q)
    below = torch.expm1(x * input_factor) * alpha
    return quantize(torch.where(x > 0.0, x, below) * factor, scale, zero_point, False)

def leaky_relu(q: Tensor, slope: float, inplace: bool, scale: float, zero_point: int) -> Tensor:
    x = values(q)
    return quantize(torch.where(x > 0.0, x, x * single(slope)), scale, zero_point, False)

def bound(q: Tensor, value: float) -> Tensor:
    return (torch.round(single(value) / single(q.q_scale())) + q.q_zero_point()).clamp(0, 255)

def clamp(q: Tensor, low: Optional[float], high: Optional[float]) -> Tensor:
    steps = q.int_repr().float()
    if low is not None:
        steps = torch.maximum(steps, bound(q, low))
    if high is not None:
        steps = torch.minimum(steps, bound(q, high))
    return like(q, steps)

def hardtanh(q: Tensor, low: float, high: float) -> Tensor:
    return clamp(q, low, high)

def relu6(q: Tensor) -> Tensor:
    return clamp(q, 0.0, 6.0)
)";

constexpr const char* kAtenHardswish = R"(
def hardswish(q: Tensor, scale: float, zero_point: int) -> Tensor:
    x = values(q)
    return quantize(x * (x + 3.0).clamp(0.0, 6.0) / 6.0, scale, zero_point, False)
)";

// A table of 256 values.
constexpr const char* kQnnpackHardswish = R"(
def hardswish(q: Tensor, scale: float, zero_point: int) -> Tensor:
    x = real(q)
    y = x * hardsigmoid_of(x) * inverse(single(scale))
    return quantized(torch.round(y + zero_point), scale, zero_point, False)
)";

// Whether oneDNN has kernels for AMX, unless its variable in the environment says less.
bool hasTiles() {
  const char* most = std::getenv("ONEDNN_MAX_CPU_ISA");
  const std::string isa = most == nullptr ? "ALL" : most;
  const bool allows = isa == "ALL" || isa == "DEFAULT" || isa.find("AMX") != std::string::npos;
  return allows && __builtin_cpu_supports("amx-int8") != 0;
}

std::string sourceFor(Kernels kernels, const std::string& capability) {
  // Float32 values in a vector. Without vectors no tensor is as large as one.
  const int64_t lanes = capability == "AVX512" ? 16 : capability == "AVX2" ? 8 : int64_t{1} << 48;
  std::string source = kCommon;
  source += "def lanes() -> int:\n    return " + std::to_string(lanes) + "\n";
  source +=
      std::string("def has_tiles() -> bool:\n    return ") + (hasTiles() ? "True" : "False") + "\n";
  const bool qnnpack = kernels == Kernels::kQnnpack;
  for (const char* part :
       {kernels == Kernels::kFbgemm ? kFbgemmRequantize
        : qnnpack                   ? kQnnpackRequantize
                                    : kOnednnRequantize,
        kWeighted, kernels == Kernels::kOnednn ? kOnednnFused : "", kElementwise,
        qnnpack ? kQnnpackSum : kAtenSum, kAverages, qnnpack ? kQnnpackAverages : kAtenAverages,
        kNormalizations, kActivations, qnnpack ? kQnnpackHardswish : kAtenHardswish}) {
    source += part;
  }
  return source;
}

}  // namespace

std::shared_ptr<jit::CompilationUnit> referenceUnit(Kernels kernels) {
  auto unit = std::make_shared<jit::CompilationUnit>();
  unit->define(std::nullopt, sourceFor(kernels, at::get_cpu_capability()), jit::nativeResolver(),
               nullptr);
  return unit;
}

}  // namespace jitquant

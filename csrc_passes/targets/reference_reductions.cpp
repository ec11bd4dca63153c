// Averages and normalizations of targets/reference.h, as TorchScript.

#include "targets/reference_reductions.h"

namespace jitquant {

// Kernels for channels-last memory round the average and add the zero point, those for contiguous
// memory round their sum. Adaptive ones multiply the sum by the reciprocals of the window's sides.
const char* const kAverages = R"(
def in_channels_last(q: Tensor) -> bool:
    return q.is_contiguous(memory_format=2) or q.is_contiguous(memory_format=3)

def rounded(q: Tensor, sums: Tensor, counts: Tensor, channels_last: bool) -> Tensor:
    if channels_last:
        return like(q, torch.round(sums.float() * inverse(counts.float())) + q.q_zero_point())
    return like(q, torch.round(sums.float() / counts.float() + q.q_zero_point()))

def average(q: Tensor, sums: Tensor, counts: Tensor, by_qnnpack: bool) -> Tensor:
    if by_qnnpack:
        scale = single(q.q_scale())
        steps = torch.round(sums.float() * (scale / (scale * counts.float())))
        return like(q, steps + q.q_zero_point())
    return rounded(q, sums, counts, in_channels_last(q))

def avg_pool2d(q: Tensor, kernel: List[int], stride: List[int], padding: List[int],
               ceil_mode: bool, count_include_pad: bool, divisor: Optional[int]) -> Tensor:
    x = integers(q)
    sums = torch.avg_pool2d(x, kernel, stride, padding, ceil_mode, count_include_pad, 1)
    inside = torch.avg_pool2d(torch.ones_like(x), kernel, stride, padding, ceil_mode,
                              count_include_pad, 1)
    share = torch.avg_pool2d(torch.ones_like(x), kernel, stride, padding, ceil_mode,
                             count_include_pad)
    return average(q, sums, torch.round(inside / share), pools_images() and not ceil_mode)

def avg_pool1d(q: Tensor, kernel: List[int], stride: List[int], padding: List[int],
               ceil_mode: bool, count_include_pad: bool) -> Tensor:
    steps = stride
    if len(stride) == 0:
        steps = kernel
    return avg_pool2d(q.unsqueeze(-2), [1, kernel[0]], [1, steps[0]], [0, padding[0]], ceil_mode,
                      count_include_pad, None).squeeze(-2)

def avg_pool3d(q: Tensor, kernel: List[int], stride: List[int], padding: List[int],
               ceil_mode: bool, count_include_pad: bool, divisor: Optional[int]) -> Tensor:
    x = integers(q)
    sums = torch.avg_pool3d(x, kernel, stride, padding, ceil_mode, count_include_pad, 1)
    inside = torch.avg_pool3d(torch.ones_like(x), kernel, stride, padding, ceil_mode,
                              count_include_pad, 1)
    share = torch.avg_pool3d(torch.ones_like(x), kernel, stride, padding, ceil_mode,
                             count_include_pad)
    averages = rounded(q, sums, torch.round(inside / share), True)
    if q.dim() == 5:
        return averages.contiguous(memory_format=3)
    return averages

def windows(size: int, outputs: int) -> Tensor:
    places = torch.arange(outputs)
    return ((places + 1) * size + outputs - 1) // outputs - places * size // outputs

def adaptive_average(q: Tensor, sums: Tensor, counts: Tensor, share: Tensor) -> Tensor:
    if in_channels_last(q):
        return rounded(q, sums, counts, True)
    return like(q, torch.round((sums + counts * q.q_zero_point()).float() * share))

def adaptive_avg_pool2d(q: Tensor, size: List[int]) -> Tensor:
    x = integers(q)
    height = windows(x.size(-2), size[0]).unsqueeze(-1)
    width = windows(x.size(-1), size[1])
    sums = torch.round(torch.adaptive_avg_pool2d(x, size) * (height * width))
    uniform = x.size(-2) % size[0] == 0 and x.size(-1) % size[1] == 0
    if pools_images() and uniform:
        return average(q, sums, height * width, True)
    return adaptive_average(q, sums, height * width, inverse(height.float()) / width)

def adaptive_avg_pool1d(q: Tensor, size: List[int]) -> Tensor:
    return adaptive_avg_pool2d(q.unsqueeze(-2), [1, size[0]]).squeeze(-2)

def is_innermost(rank: int, dims: List[int]) -> bool:
    answer = True
    for i in range(len(dims)):
        answer = answer and (rank - 1 - i in dims or -1 - i in dims)
    return answer

def mean(q: Tensor, dims: Optional[List[int]], keepdim: bool, dtype: Optional[int]) -> Tensor:
    over: List[int] = []
    if dims is not None:
        over = dims
    if len(over) == 0:
        over = list(range(q.dim()))
    is_image = q.dim() == 4 and over == [2, 3]
    if pools_images() and is_image:
        steps = adaptive_avg_pool2d(q, [1, 1])
        if not keepdim:
            steps = steps.squeeze(-1).squeeze(-1)
        return steps
    if q.is_contiguous() and is_innermost(q.dim(), over):
        sums = integers(q).sum(over, keepdim)
        count = single(float(q.numel() // sums.numel()))
        return rounded(q, sums, count, False)
    average = q.dequantize().mean(over, keepdim)
    return quantize(average, q.q_scale(), q.q_zero_point(), False)

def mean_of_all(q: Tensor, dtype: Optional[int]) -> Tensor:
    return mean(q, None, False, dtype)

def adaptive_avg_pool3d(q: Tensor, size: List[int]) -> Tensor:
    if size == [1, 1, 1]:
        return mean(q, [-1, -2, -3], True, None)
    x = integers(q)
    depth = windows(x.size(-3), size[0]).unsqueeze(-1).unsqueeze(-1)
    height = windows(x.size(-2), size[1]).unsqueeze(-1)
    width = windows(x.size(-1), size[2])
    counts = depth * height * width
    sums = torch.round(torch.adaptive_avg_pool3d(x, size) * counts)
    average = adaptive_average(q, sums, counts, inverse(depth.float()) / height / width)
    if in_channels_last(q):
        return average.contiguous(memory_format=x.dim() - 2)
    return average
)";

const char* const kAtenAverages = R"(
def pools_images() -> bool:
    return False
)";

const char* const kQnnpackAverages = R"(
def pools_images() -> bool:
    return True
)";

// Sums of a group are exact in integers, but for channels-last images of 512 pixels and more, where
// the kernel adds pixel by pixel and then channel by channel in float32. There and in smaller
// channels-last images it multiplies by the weight over the deviation and adds one term; elsewhere
// it subtracts the mean first. Compilers fuse products and sums in what is built for CPUs with
// vectors.
const char* const kNormalizations = R"(
def multiply_add(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    if lanes() > 16:
        return a * b + c
    return fused_multiply_add(a, b, c)

def sums_of_pixels(x: Tensor) -> Tensor:
    sums = torch.zeros_like(x.select(-1, 0))
    for pixel in range(x.size(-1)):
        sums = sums + x.select(-1, pixel)
    total = torch.zeros_like(sums.select(-1, 0))
    for channel in range(sums.size(-1)):
        total = total + sums.select(-1, channel)
    return total

def per_channel(parameter: Optional[Tensor], otherwise: float, size: List[int]) -> Tensor:
    if parameter is not None:
        return parameter.detach().reshape(size)
    return torch.full(size, otherwise)

def group_norm(q: Tensor, groups: int, weight: Optional[Tensor], bias: Optional[Tensor],
               eps: float, scale: float, zero_point: int) -> Tensor:
    channels_last = q.is_contiguous(memory_format=2)
    x = q.int_repr().double().contiguous().reshape([q.size(0), groups, q.size(1) // groups, -1])
    if channels_last and x.size(3) >= 512:
        sums = sums_of_pixels(x.float())
        squares = sums_of_pixels((x * x).float())
    else:
        sums = x.sum([2, 3]).float()
        squares = (x * x).sum([2, 3]).float()
    count = single(float(x.size(2) * x.size(3)))
    shifted = sums / count
    mean = (shifted - q.q_zero_point()).reshape([x.size(0), groups, 1, 1])
    variance = multiply_add(-shifted, shifted, squares / count).clamp(min=0.0)
    x_scale = single(q.q_scale())
    deviation = torch.sqrt((variance * x_scale * x_scale).double() + eps)
    factor = (x_scale.double() / deviation).float().reshape([x.size(0), groups, 1, 1])
    by_channel = [1, groups, x.size(2), 1]
    factor = factor * per_channel(weight, 1.0, by_channel)
    term = per_channel(bias, 0.0, by_channel)
    real = (x - q.q_zero_point()).float()
    if channels_last:
        real = multiply_add(real, factor, multiply_add(-factor, mean, term)).reshape(q.size())
        return quantize(real.contiguous(memory_format=2), scale, zero_point, False)
    real = multiply_add(real - mean, factor, term)
    return quantize(real.reshape(q.size()), scale, zero_point, False)

def instance_norm(q: Tensor, weight: Optional[Tensor], bias: Optional[Tensor], eps: float,
                  scale: float, zero_point: int) -> Tensor:
    return group_norm(q, q.size(1), weight, bias, eps, scale, zero_point)

def batch_norm(q: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float,
               scale: float, zero_point: int, clamps: bool) -> Tensor:
    along = [-1] + [1] * (q.dim() - 2)
    sharpness = inverse(torch.sqrt(variance + single(eps))) * weight.detach()
    factor = (sharpness.double() * (q.q_scale() / scale)).float().reshape(along)
    term = ((bias.detach() - mean * sharpness).double() / scale).float().reshape(along)
    x = integers(q).float()
    if q.dim() > 3:
        x = x.contiguous(memory_format=q.dim() - 2)
    steps = torch.round(multiply_add(x, factor, term)) + zero_point
    return quantized(steps, scale, zero_point, clamps)
)";

}  // namespace jitquant

"""Each function of targets/reference_source.cpp against the int8 kernel that it spells out.

Operands are random integers, saturated ones among them, with random qparams and shapes. Convolutions, linear
layers, pools, normalizations and concatenations must have equal bits; of others, and of convolutions of odd shapes on
onednn, one output in 10,000 may be a step off.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jitquant import _C
from jitquant._engine import engine_set

Draw = Callable[..., Any]
Quantized = Any
Comparison = tuple[Quantized, Quantized]

ENGINES = ("fbgemm", "onednn", "qnnpack")
q: Any = torch.ops.quantized
EXAMPLES = 25

FACTORS = (0.5, 1.0, 2.0, 0.97, 1.31, 3.7)
"""Of an output's scale over an input's. Powers of two make ties."""


@pytest.fixture(autouse=True, params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    with engine_set(request.param) as name:
        yield name


UNITS: dict[str, Any] = {}


def unit() -> Any:
    """The functions for the engine that is set; compiled once for each."""
    engine = str(torch.backends.quantized.engine)
    if engine not in UNITS:
        UNITS[engine] = _C.reference_unit(engine)
    return UNITS[engine]


class Random:
    """Operands, from one generator whose seed hypothesis draws."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def integer(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=self.generator))

    def choice(self, options: Any) -> Any:
        return options[self.integer(0, len(options) - 1)]

    def scale(self) -> float:
        """float32, as observers give them."""
        return float(0.005 + 0.1 * torch.rand(1, generator=self.generator))

    def times(self, scale: float) -> float:
        return float(torch.tensor(scale) * self.choice(FACTORS))

    def tensor(self, *shape: int) -> Quantized:
        """Quantized, contiguous or channels-last."""
        integers = torch.randint(0, 256, shape, generator=self.generator, dtype=torch.uint8)
        if len(shape) == 4 and self.integer(0, 1):
            integers = integers.contiguous(memory_format=torch.channels_last)
        return torch._make_per_tensor_quantized_tensor(integers, self.scale(), self.integer(0, 255))

    def image(self, *sides: int) -> Quantized:
        """Of 3 to 12 pixels a side, if no sides are given."""
        sizes = [self.choice((1, 2)), self.choice((3, 8, 24, 50, 130))]
        return self.tensor(*sizes, *(sides or (self.integer(3, 12), self.integer(3, 12))))

    def video(self) -> Quantized:
        sizes = [self.choice((1, 2)), self.choice((1, 3, 8, 24, 50))]
        video = self.tensor(*sizes, *(self.integer(3, 7) for _ in range(3)))
        return self.laid_out(video, torch.channels_last_3d) if self.integer(0, 1) else video

    def signal(self) -> Quantized:
        """Contiguous, or as convolutions leave it: channels last."""
        sizes = [self.choice((1, 2)), self.choice((1, 3, 8, 24, 50)), 1, self.integer(3, 40)]
        return self.tensor(*sizes).squeeze(2)

    def laid_out(self, x: Quantized, memory_format: torch.memory_format) -> Quantized:
        integers = x.int_repr().contiguous(memory_format=memory_format)
        return torch._make_per_tensor_quantized_tensor(integers, x.q_scale(), x.q_zero_point())

    def floats(self, count: int, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=self.generator)


def layouts(x: Quantized) -> list[bool]:
    """How it lies in memory, which decides on the kernel that runs next."""
    formats = [torch.contiguous_format]
    formats += {4: [torch.channels_last], 5: [torch.channels_last_3d]}.get(x.dim(), [])
    return [x.is_contiguous(memory_format=each) for each in formats]


def each(test: Callable[[Random], Comparison]) -> Callable[..., None]:
    """Draw seeds, and gather what is not equal over all of them."""

    def run(exact: bool) -> None:
        off = total = 0

        @settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
        @given(seed=st.integers(0, 2**32))
        def compare(seed: int) -> None:
            nonlocal off, total
            actual, expected = test(Random(seed))
            assert actual.size() == expected.size()
            assert actual.q_scale() == pytest.approx(expected.q_scale(), rel=1e-7)
            assert actual.q_zero_point() == expected.q_zero_point()
            assert layouts(actual) == layouts(expected)
            steps = (actual.int_repr().int() - expected.int_repr().int()).abs()
            assert steps.numel() == 0 or steps.max() <= (0 if exact else 1)
            off += int(steps.sum())
            total += steps.numel()

        compare()
        assert off <= total / 10_000

    return run


# --- weighted ops ---


def weight_of(r: Random, *shape: int, depthwise: bool = False) -> Quantized:
    """Half the range for depthwise kernels, which may sum in 16 bits; see safeWeightQParams."""
    limit = 63 if depthwise else 127
    integers = torch.randint(-limit, limit + 1, shape, generator=r.generator).to(torch.int8)
    affine = torch.backends.quantized.engine == "fbgemm" and not depthwise
    if torch.backends.quantized.engine == "qnnpack" or r.integer(0, 1):
        zero_point = r.integer(-5, 5) if affine else 0
        scale = r.scale()
        real = (integers.float() - zero_point) * scale
        return torch.quantize_per_tensor(real, scale, zero_point, torch.qint8)
    scales = 0.001 + 0.1 * torch.rand(shape[0], generator=r.generator)
    zero_points = torch.zeros(shape[0], dtype=torch.long)
    real = integers.float() * scales.reshape([-1] + [1] * (len(shape) - 1))
    return torch.quantize_per_channel(real, scales.double(), zero_points, 0, torch.qint8)


def parts(weight: Quantized) -> tuple[Tensor, Tensor, Tensor]:
    if weight.qscheme() == torch.per_tensor_affine:
        scale, zero_point = torch.tensor(weight.q_scale()), torch.tensor(weight.q_zero_point())
    else:
        scale, zero_point = weight.q_per_channel_scales(), weight.q_per_channel_zero_points()
    return weight.int_repr(), scale.float(), zero_point


def output_qparams(r: Random, x: Quantized, weight: Quantized) -> tuple[float, int]:
    """A scale that some outputs exceed."""
    fan_in = weight[0].numel()
    scale = float(x.q_scale() * parts(weight)[1].median() * fan_in**0.5)
    return float(torch.tensor(scale * r.choice((8, 32, 64, 41.3)))), r.integer(0, 255)


def bias_of(r: Random, weight: Quantized) -> Tensor | None:
    return torch.randn(weight.size(0), generator=r.generator) * 5 if r.integer(0, 3) else None


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("relu", [False, True])
def test_convolution(engine: str, rank: int, relu: bool) -> None:
    if engine == "qnnpack" and rank == 3:
        pytest.skip("torch cannot pack it")

    @each
    def compare(r: Random) -> Comparison:
        groups = r.choice((1, 1, 2, 8))
        channels, outputs = groups * r.integer(1, 8), groups * r.integer(1, 4)
        depthwise = channels == groups
        kernel, stride = r.choice((1, 3)), r.choice((1, 2))
        x = r.tensor(2, channels, *(r.integer(4, 9) for _ in range(rank)))
        shape = [outputs, channels // groups] + [kernel] * rank
        weight = weight_of(r, *shape, depthwise=depthwise)
        bias = bias_of(r, weight)
        scale, zero_point = output_qparams(r, x, weight)
        geometry = ([stride] * rank, [kernel // 2] * rank, [1] * rank, groups)
        packed = getattr(q, f"conv{rank}d_prepack")(weight, bias, *geometry)
        kernel_op = getattr(q, f"conv{rank}d_relu" if relu else f"conv{rank}d")
        expected = kernel_op(x, packed, scale, zero_point)
        function = getattr(unit(), f"conv{rank}d")
        return function(x, *parts(weight), bias, *geometry, scale, zero_point, relu), expected

    # Small and odd shapes run on one oneDNN kernel or another, in whose order of products they differ.
    compare(exact=engine != "onednn")


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("kernel", [1, 3])
def test_convolution_as_networks_have_them(kernel: int, depthwise: bool) -> None:
    """No bias, which would hide what the last bits of a product decide."""

    @each
    def compare(r: Random) -> Comparison:
        channels = 16 * r.integer(1, 8)
        outputs = channels if depthwise else 16 * r.integer(1, 8)
        groups = channels if depthwise else 1
        x = r.tensor(1, channels, *(r.integer(7, 14) for _ in range(2)))
        weight = weight_of(r, outputs, channels // groups, kernel, kernel, depthwise=depthwise)
        scale, zero_point = output_qparams(r, x, weight)
        geometry = ([1, 1], [kernel // 2] * 2, [1, 1], groups)
        packed = q.conv2d_prepack(weight, None, *geometry)
        expected = q.conv2d(x, packed, scale, zero_point)
        function = unit().conv2d
        return function(x, *parts(weight), None, *geometry, scale, zero_point, False), expected

    compare(exact=True)


def test_bias_is_rounded_as_the_kernel_does(engine: str) -> None:
    """Sums cancel the bias down to a few steps, so that each unit of it is seen."""
    if engine != "qnnpack":
        pytest.skip("only qnnpack rounds it before it adds")
    r = Random(0)
    x_scale, weight_scale = float(torch.tensor(0.0061922697)), float(torch.tensor(0.00153))
    product = torch.tensor(x_scale) * torch.tensor(weight_scale)
    biases = r.floats(500_000, 0.5, 2)
    # Where a quotient and a product with the inverse round to different integers.
    differ = torch.round(biases / product) != torch.round(biases * (1 / product))
    bias = biases[differ][:64]
    assert len(bias) == 64
    steps = torch.round(bias / product).long()
    whole, rest = steps // (255 * 127), steps % (255 * 127)
    full = torch.where(torch.arange(12) < whole[:, None], -127, 0)
    ones = torch.stack([(rest % 255 - 127 * i).clamp(0, 127) for i in range(3)], 1)
    integers = torch.cat([full, -(rest // 255)[:, None], -ones], 1)
    weight = torch.quantize_per_tensor(integers * weight_scale, weight_scale, 0, torch.qint8)
    values = torch.tensor([[255] * 13 + [1] * 3], dtype=torch.uint8)
    flat = torch._make_per_tensor_quantized_tensor(values, x_scale, 0)
    packed = q.linear_prepack(weight, bias)
    expected = q.linear(flat, packed, float(product), 128)
    actual = unit().linear(flat, *parts(weight), bias, float(product), 128, False)
    assert torch.equal(actual.int_repr(), expected.int_repr())
    assert (expected.int_repr().int() - 128).abs().max() <= 2


@pytest.mark.parametrize("relu", [False, True])
def test_linear(relu: bool) -> None:
    @each
    def compare(r: Random) -> Comparison:
        x = r.tensor(r.integer(1, 20), r.integer(1, 200))
        weight = weight_of(r, r.integer(1, 100), x.size(1))
        bias = bias_of(r, weight)
        scale, zero_point = output_qparams(r, x, weight)
        kernel = q.linear_relu if relu else q.linear
        expected = kernel(x, q.linear_prepack(weight, bias), scale, zero_point)
        return unit().linear(x, *parts(weight), bias, scale, zero_point, relu), expected

    compare(exact=True)


# --- layers with the op behind them ---


@pytest.fixture
def fuses_layers(engine: str) -> None:
    if engine != "onednn":
        pytest.skip("only onednn has such layers")


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.usefixtures("fuses_layers")
def test_convolution_that_adds(relu: bool) -> None:
    """The kernel writes to its accumulator, or to a copy where that is not channels-last."""

    @each
    def compare(r: Random) -> Comparison:
        groups = r.choice((1, 1, 2, 8))
        # oneDNN's kernels on AMX tiles are wrong for more outputs in each of several groups.
        channels, outputs = groups * r.integer(1, 8), groups * r.integer(1, 32)
        kernel, stride = r.choice((1, 3)), r.choice((1, 2))
        x = r.tensor(2, channels, r.integer(4, 9), r.integer(4, 9))
        weight = weight_of(r, outputs, channels // groups, kernel, kernel)
        bias = bias_of(r, weight)
        scale, zero_point = output_qparams(r, x, weight)
        geometry = ([stride] * 2, [kernel // 2] * 2, [1] * 2, groups)
        packed = q.conv2d_prepack(weight, bias, *geometry)
        accumulator = r.tensor(*q.conv2d(x, packed, scale, zero_point).shape)
        arguments = (x, accumulator, *parts(weight), bias, *geometry, scale, zero_point, relu)
        actual = unit().conv2d_add(*arguments)
        kernel_op = q.conv2d_add_relu if relu else q.conv2d_add
        return actual, kernel_op(x, accumulator, packed, scale, zero_point)

    compare(exact=False)


@pytest.mark.parametrize("activation", ["leaky_relu", "tanh"])
@pytest.mark.usefixtures("fuses_layers")
def test_linear_with_activation(activation: str) -> None:
    @each
    def compare(r: Random) -> Comparison:
        x = r.tensor(r.integer(1, 20), r.integer(1, 200))
        weight = weight_of(r, r.integer(1, 100), x.size(1))
        bias = bias_of(r, weight)
        scale, zero_point = output_qparams(r, x, weight)
        if activation == "tanh":
            scale, zero_point = 2 / 256, 128
        further = (r.choice((0.01, 0.2, -0.3)),) if activation == "leaky_relu" else ()
        op = f"linear_{activation}"
        packed = q.linear_prepack(weight, bias)
        expected = getattr(q, op)(x, packed, scale, zero_point, *further)
        actual = getattr(unit(), op)(x, *parts(weight), bias, scale, zero_point, *further)
        return actual, expected

    compare(exact=activation != "tanh")


# --- sums, products, concatenations ---


@pytest.mark.parametrize("operand", ["same", "channels", "number"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("op", ["add", "mul"])
def test_binary(op: str, relu: bool, operand: str) -> None:
    @each
    def compare(r: Random) -> Comparison:
        a = r.image()
        shapes = {"same": a.shape, "channels": (*a.shape[:2], 1, 1), "number": (1,)}
        b = r.tensor(*shapes[operand])
        scale, zero_point = r.times(a.q_scale()), r.integer(0, 255)
        kernel = getattr(q, f"{op}_relu" if relu else op)
        expected = kernel(a, b, scale, zero_point)
        return getattr(unit(), op)(a, b, scale, zero_point, relu), expected

    compare(exact=False)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dim", [1, 2])
def test_concatenation(relu: bool, dim: int) -> None:
    @each
    def compare(r: Random) -> Comparison:
        a = r.image()
        b = r.tensor(*a.shape)
        scale, zero_point = r.times(a.q_scale()), r.integer(0, 255)
        kernel = q.cat_relu if relu else q.cat
        expected = kernel([a, b], dim, scale, zero_point)
        return unit().cat([a, b], dim, scale, zero_point, relu), expected

    compare(exact=True)


@pytest.mark.parametrize("factor", [-2.5, 0.3])
def test_product_with_a_number(factor: float) -> None:
    @each
    def compare(r: Random) -> Comparison:
        a = r.image()
        return unit().mul_scalar(a, factor), q.mul_scalar(a, factor)

    compare(exact=True)


# --- pools and averages ---


def test_max_pool() -> None:
    @each
    def compare(r: Random) -> Comparison:
        a = r.image()
        geometry = ([2, 3], [2, 2], [1, 1], [1, 1], bool(r.integer(0, 1)))
        return unit().max_pool2d(a, *geometry), torch.max_pool2d(a, *geometry)

    compare(exact=True)


@pytest.mark.parametrize("include_pad", [True, False])
def test_avg_pool(engine: str, include_pad: bool) -> None:
    if engine == "qnnpack" and not include_pad:
        pytest.skip("the kernel ignores count_include_pad")

    @each
    def compare(r: Random) -> Comparison:
        a = r.image()
        geometry = ([2, 3], [2, 2], [1, 1], bool(r.integer(0, 1)) and include_pad, include_pad)
        return unit().avg_pool2d(a, *geometry, None), F.avg_pool2d(a, *geometry)

    compare(exact=True)


@pytest.mark.parametrize("size", [[1, 1], [2, 2], [3, 1]])
def test_adaptive_avg_pool(size: list[int]) -> None:
    @each
    def compare(r: Random) -> Comparison:
        a = r.image()
        return unit().adaptive_avg_pool2d(a, size), F.adaptive_avg_pool2d(a, (size[0], size[1]))

    compare(exact=True)


@pytest.mark.parametrize("include_pad", [True, False])
def test_avg_pool_of_signals(engine: str, include_pad: bool) -> None:
    if engine == "qnnpack" and not include_pad:
        pytest.skip("the kernel ignores count_include_pad")

    @each
    def compare(r: Random) -> Comparison:
        a = r.signal()
        stride = r.choice(([], [2]))
        geometry = ([3], stride, [1], bool(r.integer(0, 1)) and include_pad, include_pad)
        return unit().avg_pool1d(a, *geometry), torch.avg_pool1d(a, *geometry)

    compare(exact=True)


@pytest.mark.parametrize("size", [1, 3])
def test_adaptive_avg_pool_of_signals(size: int) -> None:
    @each
    def compare(r: Random) -> Comparison:
        a = r.signal()
        return unit().adaptive_avg_pool1d(a, [size]), F.adaptive_avg_pool1d(a, size)

    compare(exact=True)


def test_avg_pool_of_videos() -> None:
    @each
    def compare(r: Random) -> Comparison:
        a = r.video()
        geometry = ([2, 2, 3], [2, 2, 2], [1, 1, 1], bool(r.integer(0, 1)), bool(r.integer(0, 1)))
        return unit().avg_pool3d(a, *geometry, None), F.avg_pool3d(a, *geometry)

    compare(exact=True)


@pytest.mark.parametrize("size", [[1, 1, 1], [2, 3, 1]])
def test_adaptive_avg_pool_of_videos(size: list[int]) -> None:
    @each
    def compare(r: Random) -> Comparison:
        a = r.video()
        return unit().adaptive_avg_pool3d(a, size), F.adaptive_avg_pool3d(
            a, (size[0], size[1], size[2])
        )

    compare(exact=True)


@pytest.mark.parametrize("dims", [[2, 3], [-1, -2], [1], [3], [0, 2], []])
@pytest.mark.parametrize("keepdim", [False, True])
def test_mean(dims: list[int], keepdim: bool) -> None:
    @each
    def compare(r: Random) -> Comparison:
        a = r.image()
        return unit().mean(a, dims, keepdim, None), a.mean(dims, keepdim)

    compare(exact=True)


# --- normalizations ---


def affine(r: Random, channels: int) -> tuple[Tensor | None, Tensor | None]:
    if not r.integer(0, 3):
        return None, None
    return r.floats(channels, -2, 2), r.floats(channels, -2, 2)


def fine_qparams(r: Random) -> tuple[float, int]:
    """Of values around 1, which some exceed."""
    return float(torch.tensor(r.choice((1 / 64, 0.0137, 1 / 128, 0.031)))), r.integer(0, 255)


@pytest.mark.parametrize("sides", [(5, 8), (23, 24)], ids=["small", "512 pixels"])
@pytest.mark.parametrize("op", ["group_norm", "instance_norm"])
def test_normalization_of_images(op: str, sides: tuple[int, int]) -> None:
    """From 512 pixels on, the kernel for channels-last memory sums in float32."""

    @each
    def compare(r: Random) -> Comparison:
        a = r.image(*sides)
        channels = a.size(1)
        groups = (r.choice((1, 2 - channels % 2, channels)),) if op == "group_norm" else ()
        rest = (*groups, *affine(r, channels), 1e-5, *fine_qparams(r))
        return getattr(unit(), op)(a, *rest), getattr(q, op)(a, *rest)

    compare(exact=True)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_batch_norm(rank: int, relu: bool) -> None:
    @each
    def compare(r: Random) -> Comparison:
        images = {0: lambda: r.tensor(r.integer(1, 9), r.integer(1, 150)), 1: r.signal, 3: r.video}
        a = images.get(rank, r.image)()
        channels = a.size(1)
        statistics = (r.floats(channels, -2, 2), r.floats(channels, 0.1, 3))
        parameters = (r.floats(channels, -2, 2), r.floats(channels, -2, 2), *statistics, 1e-5)
        kernel = q.batch_norm_relu if relu else q.batch_norm
        qparams = fine_qparams(r)
        actual = unit().batch_norm(a, *parameters, *qparams, relu)
        return actual, kernel(a, *parameters, *qparams)

    compare(exact=True)


# --- functions of one value ---


UNARY: dict[str, tuple[Callable[[Any], Any], tuple[Any, ...]]] = {
    "relu": (torch.relu, ()),
    "clamp": (lambda a: torch.clamp(a, -0.3, 0.7), (-0.3, 0.7)),
    "hardtanh": (lambda a: F.hardtanh(a, -1.0, 0.5), (-1.0, 0.5)),
    "relu6": (F.relu6, ()),
    "hardsigmoid": (F.hardsigmoid, ()),
    "tanh": (torch.tanh, ()),
}


@pytest.mark.parametrize("op", UNARY)
def test_unary(op: str) -> None:
    kernel, arguments = UNARY[op]

    @each
    def compare(r: Random) -> Comparison:
        a = r.tensor(r.integer(1, 9), r.integer(1, 300))  # qnnpack clamps channels-last wrongly
        return getattr(unit(), op)(a, *arguments), kernel(a)

    compare(exact=op in ("relu", "clamp", "hardtanh", "relu6"))


def test_elu() -> None:
    @each
    def compare(r: Random) -> Comparison:
        a = r.image()
        slopes = (r.choice((1.0, 0.3, 1.673)), r.choice((1.0, 1.051)), 1.0)
        rest = (r.times(a.q_scale()), r.integer(0, 255), *slopes)
        return unit().elu(a, *rest), q.elu(a, *rest)

    compare(exact=False)


@pytest.mark.parametrize(("op", "arguments"), [("hardswish", ()), ("leaky_relu", (0.1, False))])
def test_unary_with_qparams(op: str, arguments: tuple[Any, ...]) -> None:
    @each
    def compare(r: Random) -> Comparison:
        a = r.image()
        qparams = (r.times(a.q_scale()), r.integer(0, 255))
        return getattr(unit(), op)(a, *arguments, *qparams), getattr(q, op)(a, *arguments, *qparams)

    compare(exact=False)

"""Which ops does torch have an int8 kernel for that is right, and faster than float between q/dq?

    python benchmarks/int8_ops.py
    python benchmarks/int8_ops.py softmax matmul --repeats 50 --details --json results.json

For each op, over several shapes, in contiguous and channels-last memory:

- steps: the largest difference, in steps of the output's scale, between the int8 kernel and
  dequantize, float op, quantize, over zero points 0, 77 and 128 and several scales.
- time: the kernel's time over that of dequantize, float op, quantize; from the best shape to the
  worst. Less than 1 is faster. Both take turns, and the least of all repeats counts, since whatever
  else the machine does only adds.
- keeps: whether a channels-last input gives a channels-last output. Where it does not, the next
  convolution copies.

"no kernel" means that torch raises when the op is given a quantized tensor; what it says is in the
JSON. The engine is torch's default, and there is one thread.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor
from torch.nn import functional as F

sys.path.append(str(Path(__file__).resolve().parent.parent))  # runs from any folder

from benchmarks.report import print_environment, write_json
from tutorials.measure import silence_torch_deprecations
from tutorials.timing import take_turns

quantized: Any = torch.ops.quantized

Shapes = tuple[tuple[int, ...], ...]
FloatOp = Callable[..., Tensor]
QParams = tuple[float, int]

IMAGE: Shapes = ((1, 64, 56, 56),)
SMALL_IMAGE: Shapes = ((1, 256, 14, 14),)
GATE: Shapes = ((1, 256, 1, 1),)
TOKENS: Shapes = ((1, 128, 768),)
HEADS: Shapes = ((12, 128, 64), (12, 64, 128))
HEADS_4D: Shapes = ((1, 12, 128, 64), (1, 12, 64, 128))
SIGNAL: Shapes = ((1, 64, 1024),)
IMAGES = (IMAGE, SMALL_IMAGE)
NORMALIZED = (*IMAGES, ((1, 128, 28, 28),), ((1, 512, 7, 7),))
ALL = (*IMAGES, TOKENS)
GATED = (*ALL, GATE)  # squeeze-and-excitation runs these on one value per channel

# (scale, zero point) of the inputs; the last is what a relu leaves.
INPUTS: tuple[QParams, ...] = ((0.05, 128), (0.013, 77), (0.1, 0))
OUTPUT_ZERO_POINTS = (0, 77, 128)


@dataclass(frozen=True)
class Op:
    """A float op, and the int8 kernel that might replace it.

    Attributes:
        float_op: takes float tensors.
        int8_op: takes quantized tensors, and with `own_qparams` the output's scale and zero point.
        shapes: of the inputs; each entry is measured.
        own_qparams: whether the kernel takes qparams for its output.
        fixed: the output's (scale, zero point) where the kernel chooses them.
    """

    name: str
    float_op: FloatOp
    int8_op: FloatOp
    shapes: tuple[Shapes, ...]
    own_qparams: bool = False
    fixed: QParams | None = None


@dataclass
class Result:
    """What was measured of one op, shape and layout.

    Attributes:
        steps: largest difference, in steps of the output's scale.
        int8_us, float_us: time of one call, the least of all repeats, in microseconds.
        keeps: whether channels-last survives; None for a contiguous input.
        error: why there is nothing to measure, "" if there is.
    """

    op: str
    shapes: str
    layout: str
    steps: int = 0
    int8_us: float = 0.0
    float_us: float = 0.0
    keeps: bool | None = None
    error: str = ""

    @property
    def ratio(self) -> float:
        return self.int8_us / self.float_us


# --- the ops ---


def ops() -> Iterator[Op]:
    yield from activations()
    yield from normalizations()
    yield from pools_and_resizing()
    yield from comparisons()
    yield from products()
    yield from rearranging()
    yield from other_float_math()


def same(name: str, function: FloatOp, shapes: tuple[Shapes, ...] = ALL) -> Op:
    """An op that may take quantized tensors as it is, and give its output the input's qparams."""
    return Op(name, function, function, shapes)


def own(name: str, float_op: FloatOp, int8_op: FloatOp, shapes: tuple[Shapes, ...]) -> Op:
    return Op(name, float_op, int8_op, shapes, own_qparams=True)


def activations() -> Iterator[Op]:
    yield own("elu", F.elu, lambda x, s, z: quantized.elu(x, s, z), ALL)
    yield own("celu", F.celu, lambda x, s, z: quantized.celu(x, s, z), ALL)
    yield own(
        "selu",
        F.selu,
        lambda x, s, z: quantized.elu(x, s, z, 1.6732632423543772, 1.0507009873554805),
        ALL,
    )
    yield same("leaky_relu (input's qparams)", lambda x: F.leaky_relu(x, 0.1))
    yield own(
        "leaky_relu",
        lambda x: F.leaky_relu(x, 0.1),
        lambda x, s, z: quantized.leaky_relu(x, 0.1, False, s, z),
        ALL,
    )
    for sign, low in (("positive slopes", 0.05), ("negative slopes too", -0.25)):
        yield prelu(sign, low)
    yield own("hardswish", F.hardswish, lambda x, s, z: quantized.hardswish(x, s, z), ALL)
    yield own("sigmoid", torch.sigmoid, lambda x, s, z: quantized.sigmoid(x, s, z), GATED)
    yield Op("hardsigmoid", F.hardsigmoid, F.hardsigmoid, GATED, fixed=(1 / 256, 0))
    yield Op("tanh", torch.tanh, torch.tanh, ALL, fixed=(2 / 256, 128))
    yield same("relu", F.relu)
    yield same("relu6", F.relu6)
    yield same("hardtanh", lambda x: F.hardtanh(x, -1.0, 1.5))
    yield same("clamp", lambda x: x.clamp(-1.0, 1.5))
    yield same("clamp (lower bound)", lambda x: x.clamp(min=-1.0))
    yield same("clamp (upper bound)", lambda x: x.clamp(max=1.5))
    yield same("clamp_min", lambda x: torch.clamp_min(x, -1.0))
    yield same("clamp_max", lambda x: torch.clamp_max(x, 1.5))
    yield same("threshold", lambda x: F.threshold(x, 0.1, -0.5))
    yield same("gelu", F.gelu)
    yield same("gelu (tanh)", lambda x: F.gelu(x, approximate="tanh"))
    yield same("silu", F.silu)
    yield same("mish", F.mish)
    yield same("softplus", F.softplus)
    yield same("softsign", F.softsign)
    yield same("log_sigmoid", F.logsigmoid)
    yield same("tanhshrink", F.tanhshrink)
    yield same("hardshrink", F.hardshrink)
    yield same("softshrink", F.softshrink)
    yield same("glu", lambda x: F.glu(x, 1))
    yield own(
        "softmax",
        lambda x: F.softmax(x, -1),
        lambda x, s, z: quantized.softmax(x, -1, s, z),
        ((TOKENS[0],), ((12, 128, 128),), SMALL_IMAGE),
    )
    yield same("log_softmax", lambda x: F.log_softmax(x, -1), (TOKENS,))


def prelu(signs: str, low: float) -> Op:
    """A slope per channel. The kernel wants it quantized, with the zero point that fits."""

    def slopes(channels: int) -> Tensor:
        return torch.linspace(low, 0.3, channels)

    def int8(x: Tensor, scale: float, zero_point: int) -> Tensor:
        at = 0 if low > 0 else 128
        step = 0.3 / 255 if low > 0 else 0.3 / 127
        slope = torch.quantize_per_tensor(slopes(x.size(1)), step, at, torch.quint8)
        result: Tensor = quantized.prelu(x, slope, scale, zero_point)
        return result

    def float_op(x: Tensor) -> Tensor:
        return F.prelu(x, slopes(x.size(1)))

    return own(f"prelu ({signs})", float_op, int8, IMAGES)


def normalizations() -> Iterator[Op]:
    weight, bias = torch.linspace(0.5, 1.5, 768), torch.linspace(-0.3, 0.3, 768)
    yield own(
        "layer_norm",
        lambda x: F.layer_norm(x, x.shape[-1:], weight[: x.size(-1)], bias[: x.size(-1)]),
        lambda x, s, z: quantized.layer_norm(
            x, x.shape[-1:], weight[: x.size(-1)], bias[: x.size(-1)], 1e-5, s, z
        ),
        (TOKENS, ((1, 56, 56, 96),)),
    )
    yield own(
        "group_norm",
        lambda x: F.group_norm(x, 8, weight[: x.size(1)], bias[: x.size(1)]),
        lambda x, s, z: quantized.group_norm(
            x, 8, weight[: x.size(1)], bias[: x.size(1)], 1e-5, s, z
        ),
        NORMALIZED,
    )
    yield own(
        "instance_norm",
        lambda x: F.instance_norm(x, weight=weight[: x.size(1)], bias=bias[: x.size(1)]),
        lambda x, s, z: quantized.instance_norm(
            x, weight[: x.size(1)], bias[: x.size(1)], 1e-5, s, z
        ),
        NORMALIZED,
    )
    yield own(
        "batch_norm",
        lambda x: F.batch_norm(
            x, bias[: x.size(1)], weight[: x.size(1)], weight[: x.size(1)], bias[: x.size(1)]
        ),
        lambda x, s, z: quantized.batch_norm(
            x,
            weight[: x.size(1)],
            bias[: x.size(1)],
            bias[: x.size(1)],
            weight[: x.size(1)],
            *(1e-5, s, z),
        ),
        IMAGES,
    )
    yield same("local_response_norm", lambda x: F.local_response_norm(x, 5), IMAGES)
    yield same("normalize", lambda x: F.normalize(x, dim=1), IMAGES)


def pools_and_resizing() -> Iterator[Op]:
    for mode in ("nearest", "nearest-exact", "bilinear", "bicubic"):
        yield same(f"interpolate ({mode})", resize(mode), IMAGES)
    yield same("interpolate (bilinear, align_corners)", resize("bilinear", True), IMAGES)
    yield same("interpolate (linear, 1d)", resize("linear"), (SIGNAL,))
    yield same("interpolate (nearest, 1d)", resize("nearest"), (SIGNAL,))
    yield same("interpolate (nearest, 3d)", resize("nearest"), (((1, 16, 8, 28, 28),),))
    yield same("interpolate (trilinear)", resize("trilinear"), (((1, 16, 8, 28, 28),),))
    yield same("grid_sample", sample, IMAGES)
    yield same("max_pool1d", lambda x: F.max_pool1d(x, 2), (SIGNAL,))
    yield same("max_pool2d", lambda x: F.max_pool2d(x, 3, 2, 1), IMAGES)
    yield same("max_pool3d", lambda x: F.max_pool3d(x, 2), (((1, 16, 8, 28, 28),),))
    yield same(
        "max_pool2d (with indices)",
        lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True)[0],
        IMAGES,
    )
    yield same("adaptive_max_pool2d", lambda x: F.adaptive_max_pool2d(x, 7), IMAGES)
    yield same("adaptive_max_pool2d (to 1)", lambda x: F.adaptive_max_pool2d(x, 1), IMAGES)
    yield same("adaptive_max_pool1d", lambda x: F.adaptive_max_pool1d(x, 7), (SIGNAL,))
    yield same("adaptive_avg_pool1d", lambda x: F.adaptive_avg_pool1d(x, 7), (SIGNAL,))
    yield same("adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, 7), IMAGES)
    yield same("adaptive_avg_pool2d (to 1)", lambda x: F.adaptive_avg_pool2d(x, 1), IMAGES)
    yield same("avg_pool2d", lambda x: F.avg_pool2d(x, 2), IMAGES)
    yield same("lp_pool2d", lambda x: F.lp_pool2d(x, 2.0, 2), IMAGES)
    yield same("mean (spatial)", lambda x: x.mean((2, 3), keepdim=True), IMAGES)
    yield same("mean (last)", lambda x: x.mean(-1), ALL)


def resize(mode: str, align_corners: bool | None = None) -> FloatOp:
    return lambda x: F.interpolate(x, scale_factor=2, mode=mode, align_corners=align_corners)


def sample(x: Tensor) -> Tensor:
    theta = torch.tensor([[[0.8, 0.1, 0.0], [-0.1, 0.9, 0.1]]])
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def comparisons() -> Iterator[Op]:
    pairs: tuple[Shapes, ...] = tuple((shapes[0], shapes[0]) for shapes in ALL)
    yield same("maximum", torch.maximum, pairs)
    yield same("minimum", torch.minimum, pairs)
    yield same("max (of a dim)", lambda x: x.max(1)[0])
    yield same("min (of a dim)", lambda x: x.min(1)[0])
    yield same("amax", lambda x: x.amax((2, 3), keepdim=True), IMAGES)
    yield same("amin", lambda x: x.amin((2, 3), keepdim=True), IMAGES)
    yield same("topk", lambda x: x.topk(5)[0])
    yield same("sort", lambda x: x.sort(-1)[0])
    yield same("where", lambda x, y: torch.where(x > 0, x, y), pairs)
    yield same("masked_fill", lambda x: x.masked_fill(x > 1, 0.0))


def products() -> Iterator[Op]:
    yield own("matmul (4d)", torch.matmul, quantized.matmul, (HEADS_4D,))
    yield own("matmul (3d)", torch.matmul, quantized.matmul, (HEADS,))
    yield own("matmul (2d)", torch.matmul, quantized.matmul, (((128, 768), (768, 128)),))
    yield same("matmul (aten)", torch.matmul, (HEADS,))
    yield same("bmm", torch.bmm, (HEADS,))
    constant: tuple[Shapes, ...] = (
        HEADS,
        ((1, 128, 768), (1, 768, 768)),
        ((4, 32, 256), (4, 256, 256)),
        ((8, 196, 64), (8, 64, 64)),
    )
    yield own("bmm (constant weight, quantized::matmul)", torch.bmm, quantized.matmul, constant)
    yield own("bmm (constant weight, linears)", torch.bmm, bmm_by_linears(), constant)
    yield same("baddbmm", torch.baddbmm, (((12, 128, 128), *HEADS),))
    yield same("einsum", lambda x, y: torch.einsum("bij,bjk->bik", x, y), (HEADS,))
    yield same(
        "scaled_dot_product_attention",
        F.scaled_dot_product_attention,
        (((1, 12, 128, 64),) * 3,),
    )
    yield same("cosine_similarity", F.cosine_similarity, ((TOKENS[0], TOKENS[0]),))


def bmm_by_linears() -> FloatOp:
    """A linear layer for each matrix of a constant weight, packed before it is timed.

    Its steps are also those of the weight, which is quantized a second time.
    """
    layers: dict[int, tuple[Tensor, list[Any]]] = {}

    def packed(weight: Tensor) -> list[Any]:
        if id(weight) not in layers:
            scale = float(weight.dequantize().abs().max()) / 127
            parts = [
                quantized.linear_prepack(
                    torch.quantize_per_tensor(part.t().contiguous(), scale, 0, torch.qint8), None
                )
                for part in weight.dequantize()
            ]
            layers[id(weight)] = (weight, parts)  # the weight too, so that its id stays its own
        return layers[id(weight)][1]

    def int8(x: Tensor, weight: Tensor, scale: float, zero_point: int) -> Tensor:
        parts = [
            quantized.linear(row, layer, scale, zero_point).unsqueeze(0)
            for row, layer in zip(x, packed(weight), strict=True)
        ]
        result: Tensor = quantized.cat(parts, 0, scale, zero_point)
        return result

    return int8


def rearranging() -> Iterator[Op]:
    """Ops that copy values to other places; by how many channels they work on."""
    by_channels = tuple(((1, channels, 28, 28),) for channels in (12, 32, 64, 256))
    images = (*IMAGES, *by_channels)
    yield same("pad (zeros)", lambda x: F.pad(x, (1, 1, 1, 1)), images)
    yield same("pad (zeros, one side)", lambda x: F.pad(x, (0, 1, 0, 1)), images)
    yield same("pad (channels)", lambda x: F.pad(x, (0, 0, 0, 0, 8, 8)), images)
    yield same("pad (reflect)", lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), images)
    yield same("pad (replicate)", lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate"), images)
    yield same("pad (reflect, 1d)", lambda x: F.pad(x, (3, 3), mode="reflect"), (SIGNAL,))
    yield same("pad (zeros, 1d)", lambda x: F.pad(x, (3, 3)), (SIGNAL,))
    yield same("pixel_shuffle (2)", lambda x: F.pixel_shuffle(x, 2), images)
    for factor, sizes in ((3, (27, 72, 288)), (4, (48, 128, 512))):
        shapes = tuple(((1, channels, 28, 28),) for channels in sizes)
        yield same(f"pixel_shuffle ({factor})", shuffle(factor), shapes)
    yield same("native_channel_shuffle", lambda x: torch.native_channel_shuffle(x, 2), images)


def shuffle(factor: int) -> FloatOp:
    return lambda x: F.pixel_shuffle(x, factor)


def other_float_math() -> Iterator[Op]:
    for function in (torch.abs, torch.neg, torch.exp, torch.sin, torch.cos, torch.erf):
        yield same(function.__name__, function)
    for function in (torch.sqrt, torch.rsqrt, torch.log, torch.reciprocal):
        yield same(function.__name__, function)
    yield same("pow", lambda x: x.pow(2))
    yield same("sum", lambda x: x.sum(-1))
    yield same("cumsum", lambda x: x.cumsum(-1))
    yield same("prod", lambda x: x.prod(-1), (TOKENS,))
    yield same("var", lambda x: x.var(-1))
    yield same("std", lambda x: x.std(-1))
    yield same("norm", lambda x: x.norm(dim=-1))
    yield same("logsumexp", lambda x: x.logsumexp(-1))


# --- measuring ---


def main() -> None:
    arguments = parse_arguments()
    silence_torch_deprecations()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    chosen = [op for op in ops() if any(op.name.startswith(name) for name in arguments.ops)]
    if not chosen:
        sys.exit(f"no op begins with {' or '.join(arguments.ops)}")
    results = [result for op in chosen for result in measure(op, arguments.repeats)]
    print(details(results) if arguments.details else summary(results))
    print_environment()
    if arguments.json:
        write_json(arguments.json, results)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ops", nargs="*", default=[""], help="first letters of ops (default: all)")
    parser.add_argument("--repeats", type=int, default=20, help="timed calls (default: 20)")
    parser.add_argument("--details", action="store_true", help="one line for each shape")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")
    return parser.parse_args()


def measure(op: Op, repeats: int) -> Iterator[Result]:
    """One result for each shape and layout, or the first error."""
    with torch.no_grad():
        for shapes in op.shapes:
            layouts = ["contiguous"]
            if len(shapes[0]) in (4, 5) or shapes == SIGNAL:
                layouts.append("channels-last")
            for layout in layouts:
                result = measure_layout(op, shapes, layout, repeats)
                yield result
                if result.error:
                    return  # no kernel, whatever the shape


def measure_layout(op: Op, shapes: Shapes, layout: str, repeats: int) -> Result:
    result = Result(op.name, " ".join("x".join(map(str, shape)) for shape in shapes), layout)
    try:
        result.steps = max(
            steps_apart(op, shapes, layout, qparams, zero_point)
            for qparams in INPUTS
            for zero_point in (OUTPUT_ZERO_POINTS if op.own_qparams else (0,))
        )
    except (RuntimeError, AttributeError) as error:  # AttributeError: q_scale of a float output
        result.error = str(error).strip().splitlines()[0]
        return result
    inputs = random_inputs(shapes, layout, INPUTS[0])
    output = output_qparams(op, inputs, OUTPUT_ZERO_POINTS[-1])
    if layout == "channels-last":
        result.keeps = is_channels_last(run_int8(op, inputs, output))
    times = take_turns(
        {
            "int8": lambda: run_int8(op, inputs, output),
            "float": lambda: run_float(op, inputs, output),
        },
        repeats,
        warmup=0,
    )
    result.int8_us, result.float_us = times["int8"].least * 1e3, times["float"].least * 1e3
    return result


def random_inputs(shapes: Shapes, layout: str, qparams: QParams) -> list[Tensor]:
    """Uniform integers from 0 to 255."""
    tensors = []
    for shape in shapes:
        integers = torch.randint(0, 256, shape, dtype=torch.uint8)
        if layout == "channels-last":
            rows = torch._make_per_tensor_quantized_tensor(integers.movedim(1, -1), *qparams)
            tensors.append(rows.movedim(-1, 1))
        else:
            tensors.append(torch._make_per_tensor_quantized_tensor(integers, *qparams))
    return tensors


def output_qparams(op: Op, inputs: list[Tensor], zero_point: int) -> QParams:
    """A scale with which the output's values fit into the 8 bits."""
    if op.fixed is not None:
        return op.fixed
    if not op.own_qparams:
        return inputs[0].q_scale(), inputs[0].q_zero_point()
    values = op.float_op(*(x.dequantize() for x in inputs))
    below, above = -values.min().item(), values.max().item()
    needed = max(below / zero_point if zero_point else 0.0, above / (255 - zero_point))
    return needed, zero_point


def run_int8(op: Op, inputs: list[Tensor], output: QParams) -> Tensor:
    return op.int8_op(*inputs, *output) if op.own_qparams else op.int8_op(*inputs)


def run_float(op: Op, inputs: list[Tensor], output: QParams) -> Tensor:
    values = op.float_op(*(x.dequantize() for x in inputs))
    return torch.quantize_per_tensor(values, *output, torch.quint8)


def steps_apart(op: Op, shapes: Shapes, layout: str, qparams: QParams, zero_point: int) -> int:
    inputs = random_inputs(shapes, layout, qparams)
    actual = run_int8(op, inputs, output_qparams(op, inputs, zero_point))
    if not actual.is_quantized:
        raise RuntimeError("gives a float tensor")
    expected = run_float(op, inputs, (actual.q_scale(), actual.q_zero_point()))
    if actual.shape != expected.shape:
        raise RuntimeError("gives another shape")
    return int((actual.int_repr().int() - expected.int_repr().int()).abs().max())


def is_channels_last(tensor: Tensor) -> bool:
    """Whether the channels of one place lie side by side, as the int8 convolutions leave them."""
    return tensor.dim() > 2 and tensor.movedim(1, -1).is_contiguous()


# --- showing ---


def summary(results: list[Result]) -> str:
    """One line for each op."""
    by_op: dict[str, list[Result]] = {}
    for result in results:
        by_op.setdefault(result.op, []).append(result)
    rows = [
        (op, "no kernel", "", "", "")
        if measured[0].error
        else (
            op,
            str(max(result.steps for result in measured)),
            times(measured, "contiguous"),
            times(measured, "channels-last"),
            answer([result.keeps for result in measured if result.keeps is not None]),
        )
        for op, measured in by_op.items()
    ]
    headers = ("op", "steps", "time, contiguous", "time, channels-last", "keeps")
    return str(tabulate(rows, headers=headers, disable_numparse=True))


def times(results: list[Result], layout: str) -> str:
    ratios = sorted(result.ratio for result in results if result.layout == layout)
    if not ratios:
        return ""
    low, high = f"{ratios[0]:.2f}", f"{ratios[-1]:.2f}"
    return low if low == high else f"{low} to {high}"


def answer(values: list[bool]) -> str:
    if not values:
        return ""
    return "yes" if all(values) else "no"


def details(results: list[Result]) -> str:
    """One line for each op, shape and layout."""
    rows = [
        (
            *(result.op, result.shapes, result.layout, str(result.steps)),
            *(f"{result.int8_us:.1f}", f"{result.float_us:.1f}", f"{result.ratio:.2f}"),
            answer([] if result.keeps is None else [result.keeps]),
        )
        for result in results
        if not result.error
    ]
    headers = ("op", "shapes", "layout", "steps", "int8 (us)", "float (us)", "time", "keeps")
    return str(tabulate(rows, headers=headers, disable_numparse=True))


if __name__ == "__main__":
    main()

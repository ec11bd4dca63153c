"""One sample or more for every row of the op table: a small model whose int8 form is known."""

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

Part = Callable[[], nn.Module | nn.Parameter]
Inputs = Callable[[], tuple[Tensor, ...]]

CONV = ("quantized::conv2d",)


@dataclass(frozen=True)
class OpSample:
    """A model that runs one row of the op table, and what convert makes of it.

    Attributes:
        row: the row, such as "aten::add.Scalar".
        name: unique among all samples.
        module_factory: the float model; call it after seeding.
        inputs_factory: its inputs, float32; call it after seeding.
        int8_ops: the ops that compute on quantized tensors, in graph order, without dequantize.
        tolerance_steps: most steps of the output's scale between the int8 and the debug model.
        sqnr: least signal to quantization noise against the float model, in dB.
        resizes: dimensions of all inputs that may have another size than calibrated.
        traceable: whether a traced model has the op (Python numbers are constants of a trace).
        scriptable: whether torch.jit.script takes the model.
    """

    row: str
    name: str
    module_factory: Callable[[], nn.Module]
    inputs_factory: Inputs
    int8_ops: tuple[str, ...]
    tolerance_steps: int = 1
    sqnr: float = 25.0
    resizes: tuple[int, ...] = (0,)
    traceable: bool = True
    scriptable: bool = True


# --- models ---


class _Unary(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class _Binary(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.function(self, x, y)


class _LenOfConv(nn.Module):
    """torch.fx has no `len`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y.view(len(y), -1)


def _module(root: nn.Module, parts: dict[str, Part]) -> nn.Module:
    """`root` as torch.fx writes it out: a module with source, which torch.jit.script needs."""
    for name, part in parts.items():
        setattr(root, name, part())
    return fx.GraphModule(root, fx.Tracer().trace(root)).eval()


def _unary(function: Callable[[Any, Tensor], Tensor], **parts: Part) -> Callable[[], nn.Module]:
    return lambda: _module(_Unary(function), parts)


def _binary(
    function: Callable[[Any, Tensor, Tensor], Tensor], **parts: Part
) -> Callable[[], nn.Module]:
    return lambda: _module(_Binary(function), parts)


def _after_conv(function: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    """`function` of the output of a 3x3 convolution, (2, 4, 8, 8) to (2, 8, 6, 6)."""
    return _unary(lambda m, x: function(m.conv(x)), conv=lambda: nn.Conv2d(4, 8, 3))


def _random(*shapes: tuple[int, ...], gain: float = 1.0) -> Inputs:
    """Normal values; each input has `gain` times the range of the one before it."""
    return lambda: tuple(torch.randn(shape) * gain**i for i, shape in enumerate(shapes))


def _parameter(*shape: int) -> Part:
    return lambda: nn.Parameter(torch.randn(shape))


def _batch_norm(rank: int, channels: int) -> Part:
    def make() -> nn.Module:
        classes = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
        norm = classes[rank](channels)
        for statistics in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert statistics is not None
            nn.init.uniform_(statistics, 0.5, 1.5)
        return norm

    return make


# --- samples ---

IMAGES = _random((2, 4, 8, 8))
ROWS = _random((5, 16))
_CONV_INPUTS = {1: _random((2, 4, 9)), 2: IMAGES, 3: _random((2, 4, 6, 6, 6))}
_CONVS: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}


def _convolutions() -> Iterator[OpSample]:
    variants: dict[str, dict[str, Any]] = {
        "plain": {"kernel_size": 3},
        "no_bias": {"kernel_size": 3, "bias": False},
        "pointwise": {"kernel_size": 1},
        "groups": {"kernel_size": 3, "groups": 2},
        "depthwise": {"kernel_size": 3, "groups": 4},
        "dilation": {"kernel_size": 2, "dilation": 2},
        "stride": {"kernel_size": 3, "stride": 2},
        "padding": {"kernel_size": 3, "padding": 1},
        "padding_and_stride": {"kernel_size": 3, "padding": 2, "stride": 2},
        "same_odd": {"kernel_size": 3, "padding": "same"},
        "same_even": {"kernel_size": 4, "padding": "same"},
        "same_even_depthwise": {"kernel_size": 2, "padding": "same", "groups": 4},
        "valid": {"kernel_size": 3, "padding": "valid"},
    }
    for rank, conv in _CONVS.items():
        for name, options in variants.items():
            yield OpSample(
                f"aten::conv{rank}d",
                f"conv{rank}d_{name}",
                _unary(lambda m, x: m.conv(x), conv=_conv(conv, options)),
                _CONV_INPUTS[rank],
                (f"quantized::conv{rank}d",),
                resizes=(0, -1),
            )
    yield OpSample(
        "aten::conv2d",
        "conv2d_rectangular",
        _unary(
            lambda m, x: m.conv(x),
            conv=_conv(
                nn.Conv2d,
                {"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 1), "dilation": (1, 2)},
            ),
        ),
        IMAGES,
        CONV,
        resizes=(0, -1),
    )
    yield OpSample(
        "aten::conv2d",
        "conv2d_functional",
        _unary(lambda m, x: F.conv2d(x, m.w, m.b), w=_parameter(8, 4, 3, 3), b=_parameter(8)),
        IMAGES,
        CONV,
        resizes=(0, -1),
    )


def _conv(conv: type[nn.Conv1d | nn.Conv2d | nn.Conv3d], options: dict[str, Any]) -> Part:
    return lambda: conv(4, 8, **options)


def _linears() -> Iterator[OpSample]:
    w, v, b = _parameter(8, 16), _parameter(16, 8), _parameter(8)
    both_ranks: dict[str, Callable[[], nn.Module]] = {
        "module": _unary(lambda m, x: m.fc(x), fc=lambda: nn.Linear(16, 8)),
        "module_no_bias": _unary(lambda m, x: m.fc(x), fc=lambda: nn.Linear(16, 8, bias=False)),
        "functional": _unary(lambda m, x: F.linear(x, m.w, m.b), w=w, b=b),
        "functional_no_bias": _unary(lambda m, x: F.linear(x, m.w), w=w),
        "matmul": _unary(lambda m, x: torch.matmul(x, m.v), v=v),
        "matmul_bias": _unary(lambda m, x: torch.matmul(x, m.v) + m.b, v=v, b=b),
        "bias_matmul": _unary(lambda m, x: m.b + torch.matmul(x, m.v), v=v, b=b),
        "matmul_t": _unary(lambda m, x: x @ m.w.t(), w=w),
        "matmul_t_bias": _unary(lambda m, x: x @ m.w.t() + m.b, w=w, b=b),
        "matmul_transpose": _unary(lambda m, x: x @ m.w.transpose(0, 1), w=w),
        "matmul_transpose_negative": _unary(lambda m, x: x @ m.w.transpose(-1, -2), w=w),
        "matmul_permute": _unary(lambda m, x: x @ m.w.permute(1, 0), w=w),
    }
    only_2d: dict[str, Callable[[], nn.Module]] = {
        "addmm": _unary(lambda m, x: torch.addmm(m.b, x, m.v), v=v, b=b),
        "addmm_t": _unary(lambda m, x: torch.addmm(m.b, x, m.w.t()), w=w, b=b),
        "mm": _unary(lambda m, x: torch.mm(x, m.v), v=v),
        "mm_bias": _unary(lambda m, x: torch.mm(x, m.v) + m.b, v=v, b=b),
    }
    for rank, inputs in ((2, ROWS), (3, _random((2, 5, 16)))):
        spellings = both_ranks | only_2d if rank == 2 else both_ranks
        for name, module in spellings.items():
            yield OpSample(
                "aten::linear",
                f"linear_{name}_{rank}d",
                module,
                inputs,
                ("quantized::linear",),
                resizes=(0,) if rank == 2 else (0, 1),
            )


# name -> (row, function, parts, op that follows unless it is absorbed). nn.ReLU6 is an nn.Hardtanh.
# The lower bound of the last does not quantize to 0, so saturation cannot stand for it.
_ACTIVATIONS: dict[str, tuple[str, Callable[[Any, Tensor], Tensor], dict[str, Part], str]] = {
    "relu_functional": ("aten::relu", lambda m, y: F.relu(y), {}, ""),
    "relu_functional_in_place": ("aten::relu", lambda m, y: F.relu(y, inplace=True), {}, ""),
    "relu_torch": ("aten::relu", lambda m, y: torch.relu(y), {}, ""),
    "relu_method_in_place": ("aten::relu", lambda m, y: y.relu_(), {}, ""),
    "relu_module": ("aten::relu", lambda m, y: m.act(y), {"act": nn.ReLU}, ""),
    "relu_module_in_place": (
        "aten::relu",
        lambda m, y: m.act(y),
        {"act": lambda: nn.ReLU(inplace=True)},
        "",
    ),
    "relu6_functional": ("aten::relu6", lambda m, y: F.relu6(y), {}, ""),
    "relu6_functional_in_place": ("aten::relu6", lambda m, y: F.relu6(y, inplace=True), {}, ""),
    "relu6_module": ("aten::hardtanh", lambda m, y: m.act(y), {"act": nn.ReLU6}, ""),
    "relu6_module_in_place": (
        "aten::hardtanh",
        lambda m, y: m.act(y),
        {"act": lambda: nn.ReLU6(inplace=True)},
        "",
    ),
    "hardtanh_functional": ("aten::hardtanh", lambda m, y: F.hardtanh(y), {}, ""),
    "hardtanh_functional_in_place": (
        "aten::hardtanh",
        lambda m, y: F.hardtanh(y, inplace=True),
        {},
        "",
    ),
    "hardtanh_module": (
        "aten::hardtanh",
        lambda m, y: m.act(y),
        {"act": lambda: nn.Hardtanh(-0.25, 0.5)},
        "",
    ),
    "hardtanh_module_in_place": (
        "aten::hardtanh",
        lambda m, y: m.act(y),
        {"act": lambda: nn.Hardtanh(inplace=True)},
        "",
    ),
    "clamp_method": ("aten::clamp", lambda m, y: y.clamp(0, 0.5), {}, ""),
    "clamp_torch": ("aten::clamp", lambda m, y: torch.clamp(y, -0.5, 0.5), {}, ""),
    "clamp_method_in_place": ("aten::clamp", lambda m, y: y.clamp_(0.0, 0.5), {}, ""),
    "clamp_from_above_zero": ("aten::clamp", lambda m, y: y.clamp(0.25, 0.75), {}, "aten::clamp"),
}


def _activations() -> Iterator[OpSample]:
    hosts: list[tuple[str, Part, Inputs]] = [
        (f"conv{rank}d", _conv(conv, {"kernel_size": 3}), _CONV_INPUTS[rank])
        for rank, conv in _CONVS.items()
    ]
    hosts.append(("linear", lambda: nn.Linear(16, 8), ROWS))
    for host, part, inputs in hosts:
        for name, (row, function, parts, follows) in _ACTIVATIONS.items():
            fused = f"quantized::{host}_relu" if row == "aten::relu" else f"quantized::{host}"
            yield OpSample(
                row,
                f"{host}_{name}",
                _unary(_composed(function), host=part, **parts),
                inputs,
                (fused, follows) if follows else (fused,),
                resizes=(0, -1) if host != "linear" else (0,),
            )
    # After an op that cannot absorb it a relu moves values; the others stay float.
    for name, (row, function, parts, _) in _ACTIVATIONS.items():
        if row == "aten::relu":
            yield OpSample(
                row,
                f"max_pool2d_{name}",
                _unary(
                    _after_max_pool(function), conv=_conv(nn.Conv2d, {"kernel_size": 3}), **parts
                ),
                IMAGES,
                (*CONV, "aten::max_pool2d", row),
                resizes=(0, -1),
            )


def _composed(function: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    return lambda m, x: function(m, m.host(x))


def _after_max_pool(function: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    return lambda m, x: function(m, F.max_pool2d(m.conv(x), 2))


def _arithmetic() -> Iterator[OpSample]:
    image = (2, 4, 8, 8)
    shapes = {
        "same_shape": (image, image),
        "per_channel": (image, (1, 4, 1, 1)),
        "per_channel_left": ((1, 4, 1, 1), image),
        "trailing": (image, (8,)),
        "both": ((2, 1, 8, 1), (1, 4, 1, 8)),
    }
    functions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "add": operator.add,
        "mul": operator.mul,
    }
    for op, function in functions.items():
        int8 = f"quantized::{op}"
        for name, pair in shapes.items():
            yield OpSample(
                f"aten::{op}",
                f"{op}_{name}",
                _binary(_of_both(function)),
                _random(*pair, gain=3.0),
                (int8,),
                resizes=(0,) if name == "same_shape" else (),
            )
        yield OpSample(
            f"aten::{op}",
            f"{op}_relu",
            _binary(_relu_of(function)),
            _random(image, image, gain=3.0),
            (f"{int8}_relu",),
        )
        yield OpSample(
            f"aten::{op}",
            f"{op}_of_itself",
            _unary(_with_itself(function)),
            IMAGES,
            (int8,),
        )
        yield OpSample(
            f"aten::{op}",
            f"{op}_in_place",
            _unary(_in_place(f"{op}_"), conv=lambda: nn.Conv2d(4, 4, 3)),
            IMAGES,
            ("aten::max_pool2d", *CONV, int8),
        )

    scalars: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
        "add_positive": (lambda y: y + 0.7, False),
        "add_integer": (lambda y: y + 1, False),
        "add_negative": (lambda y: y + (-0.7), False),
        "add_zero": (lambda y: y + 0.0, False),
        "add_left": (lambda y: 0.7 + y, False),
        "add_in_place": (lambda y: y.add_(0.7), False),
        "add_relu": (lambda y: F.relu(y + 0.1), True),
    }
    for name, (of, relu) in scalars.items():
        yield OpSample(
            "aten::add.Scalar",
            f"scalar_{name}",
            _after_conv(of),
            IMAGES,
            (*CONV, "quantized::add_relu" if relu else "quantized::add"),
            resizes=(0, -1),
        )
    factors: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
        "mul_positive": (lambda y: y * 0.7, False),
        "mul_integer": (lambda y: y * 3, False),
        "mul_negative": (lambda y: y * -1.5, False),
        "mul_left": (lambda y: -0.5 * y, False),
        "mul_in_place": (lambda y: y.mul_(2.5), False),
        "mul_relu": (lambda y: F.relu(y * 0.7), True),
        "mul_negative_relu": (lambda y: F.relu(y * -0.7), True),
    }
    for name, (of, relu) in factors.items():
        yield OpSample(
            "aten::mul.Scalar",
            f"scalar_{name}",
            _after_conv(of),
            IMAGES,
            (*CONV, "quantized::mul_scalar", *(["aten::relu"] if relu else [])),
            resizes=(0, -1),
        )


def _of_both(
    function: Callable[[Tensor, Tensor], Tensor],
) -> Callable[[Any, Tensor, Tensor], Tensor]:
    return lambda m, x, y: function(x, y)


def _relu_of(
    function: Callable[[Tensor, Tensor], Tensor],
) -> Callable[[Any, Tensor, Tensor], Tensor]:
    return lambda m, x, y: F.relu(function(x, y))


def _with_itself(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    return lambda m, x: function(x, x)


def _in_place(method: str) -> Callable[[Any, Tensor], Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        other = F.max_pool2d(x, 3, 1)
        result: Tensor = getattr(m.conv(x), method)(other)
        return result

    return forward


def _concatenations() -> Iterator[OpSample]:
    image = (2, 4, 8, 8)
    for dim in (0, 1, 3, -1, -2):
        yield OpSample(
            "aten::cat",
            f"cat_dim_{dim}",
            _binary(_cat(dim)),
            _random(image, image),
            ("quantized::cat",),
        )
    yield OpSample(
        "aten::cat",
        "cat_different_ranges",
        _binary(_cat(1)),
        _random(image, image, gain=5.0),
        ("quantized::cat",),
    )
    yield OpSample(
        "aten::cat",
        "cat_different_sizes",
        _binary(_cat(1)),
        _random((2, 3, 5), (2, 6, 5)),
        ("quantized::cat",),
    )
    yield OpSample(
        "aten::cat",
        "cat_relu",
        _binary(lambda m, x, y: F.relu(torch.cat([x, y], 1))),
        _random(image, image, gain=3.0),
        ("quantized::cat_relu",),
    )
    yield OpSample(
        "aten::cat",
        "cat_of_three",
        _unary(
            lambda m, x: torch.cat([m.conv(x), x, F.max_pool2d(x, 3, 1, 1)], 1),
            conv=_conv(nn.Conv2d, {"kernel_size": 3, "padding": 1}),
        ),
        IMAGES,
        (*CONV, "aten::max_pool2d", "quantized::cat"),
        resizes=(0, -1),
    )


def _cat(dim: int) -> Callable[[Any, Tensor, Tensor], Tensor]:
    return lambda m, x, y: torch.cat([x, y], dim)


def _pools() -> Iterator[OpSample]:
    max_pools: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
    avg_pools: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
    adaptive: dict[int, Any] = {
        1: F.adaptive_avg_pool1d,
        2: F.adaptive_avg_pool2d,
        3: F.adaptive_avg_pool3d,
    }
    max_variants: dict[str, dict[str, Any]] = {
        "plain": {"kernel_size": 2},
        "padding": {"kernel_size": 3, "stride": 2, "padding": 1},
        "ceil": {"kernel_size": 2, "stride": 3, "ceil_mode": True},
        "dilation": {"kernel_size": 2, "stride": 1, "dilation": 2},
    }
    avg_variants: dict[str, dict[str, Any]] = {
        "plain": {"kernel_size": 2},
        "padding": {"kernel_size": 3, "stride": 2, "padding": 1},
        "padding_not_counted": {
            "kernel_size": 3,
            "stride": 2,
            "padding": 1,
            "count_include_pad": False,
        },
        "ceil": {"kernel_size": 2, "stride": 3, "ceil_mode": True},
        "ceil_padding_not_counted": {
            "kernel_size": 3,
            "stride": 2,
            "padding": 1,
            "ceil_mode": True,
            "count_include_pad": False,
        },
    }
    for rank in (1, 2, 3):
        pools = [("max_pool", max_pools, max_variants), ("avg_pool", avg_pools, avg_variants)]
        sizes: dict[str, dict[str, Any]] = {
            "one": {"output_size": 1},
            "two": {"output_size": 2},
            "uneven": {"output_size": 3},
        }
        for kind, functions, variants in [*pools, ("adaptive_avg_pool", adaptive, sizes)]:
            row = f"aten::{kind}{rank}d"
            for name, options in variants.items():
                yield OpSample(
                    row,
                    f"{kind}{rank}d_{name}",
                    _unary(
                        _pool_after(functions[rank], options),
                        conv=_conv(_CONVS[rank], {"kernel_size": 3}),
                    ),
                    _CONV_INPUTS[rank],
                    (f"quantized::conv{rank}d", row),
                    # An average of many has the step of its input, and less range.
                    sqnr=20.0 if rank == 3 and "avg" in kind else 25.0,
                    resizes=(0, -1),
                )
            before = {"output_size": 3} if kind == "adaptive_avg_pool" else {"kernel_size": 2}
            yield OpSample(
                row,
                f"{kind}{rank}d_before_conv",
                _unary(
                    _pool_before(functions[rank], before),
                    conv=_conv(_CONVS[rank], {"kernel_size": 2}),
                ),
                _CONV_INPUTS[rank],
                (row, f"quantized::conv{rank}d"),
                # Averages that fall between two integers may round either way, and the
                # convolution adds up such steps.
                tolerance_steps=3 if "avg" in kind else 1,
                resizes=(0, -1),
            )
    modules: dict[str, tuple[str, Part]] = {
        "max_pool2d_module": ("aten::max_pool2d", lambda: nn.MaxPool2d(3, 2, 1)),
        "avg_pool2d_module": ("aten::avg_pool2d", lambda: nn.AvgPool2d(2)),
        "adaptive_avg_pool2d_module": (
            "aten::adaptive_avg_pool2d",
            lambda: nn.AdaptiveAvgPool2d((2, 3)),
        ),
    }
    for name, (row, pool) in modules.items():
        yield OpSample(
            row,
            name,
            _unary(
                lambda m, x: m.pool(m.conv(x)),
                conv=_conv(nn.Conv2d, {"kernel_size": 3}),
                pool=pool,
            ),
            IMAGES,
            (*CONV, row),
            resizes=(0, -1),
        )
    means: dict[str, Callable[[Tensor], Tensor]] = {
        "spatial": lambda y: y.mean((2, 3)),
        "spatial_keepdim": lambda y: torch.mean(y, dim=[2, 3], keepdim=True),
        "negative_dims": lambda y: y.mean([-1, -2]),
        "last": lambda y: y.mean(-1),
        "channel": lambda y: y.mean(1),
        "all": lambda y: y.mean(),
    }
    for name, mean in means.items():
        yield OpSample(
            "aten::mean",
            f"mean_{name}",
            _after_conv(_mean_of_relu(mean)),
            IMAGES,
            ("quantized::conv2d_relu", "aten::mean"),
            resizes=(0, -1),
        )


def _mean_of_relu(mean: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Positive values: a mean around zero would be within few steps of its input's qparams."""
    return lambda y: mean(F.relu(y))


def _pool_after(pool: Any, options: dict[str, Any]) -> Callable[[Any, Tensor], Tensor]:
    return lambda m, x: pool(m.conv(x), **options)


def _pool_before(pool: Any, options: dict[str, Any]) -> Callable[[Any, Tensor], Tensor]:
    return lambda m, x: m.conv(pool(x, **options))


def _movers() -> Iterator[OpSample]:
    functions: dict[str, tuple[str, Callable[[Any], Tensor], tuple[int, ...]]] = {
        "flatten": ("flatten", lambda y: torch.flatten(y, 1), (0,)),
        "flatten_all": ("flatten", lambda y: y.flatten(), (0,)),
        "flatten_middle": ("flatten", lambda y: y.flatten(1, 2), (0,)),
        "view": ("view", lambda y: y.view(-1, 288), (0,)),
        "reshape": ("reshape", lambda y: y.reshape(-1, 4, 72), (0,)),
        "reshape_torch": ("reshape", lambda y: torch.reshape(y, (8, -1)), (0,)),
        "permute": ("permute", lambda y: y.permute(0, 2, 3, 1), (0, -1)),
        "permute_negative": ("permute", lambda y: y.permute(-1, 0, -2, 1), (0, -1)),
        "transpose": ("transpose", lambda y: y.transpose(1, 2), (0, -1)),
        "transpose_negative": ("transpose", lambda y: torch.transpose(y, -1, -3), (0, -1)),
        "unsqueeze": ("unsqueeze", lambda y: y.unsqueeze(2), (0, -1)),
        "unsqueeze_negative": ("unsqueeze", lambda y: torch.unsqueeze(y, -1), (0, -1)),
        "contiguous": ("contiguous", lambda y: y.contiguous(), (0, -1)),
    }
    for name, (op, function, resizes) in functions.items():
        yield OpSample(
            f"aten::{op}",
            name,
            _after_conv(function),
            IMAGES,
            (*CONV, "aten::reshape" if op == "view" else f"aten::{op}"),
            resizes=resizes,
        )
    chains: dict[str, tuple[str, Callable[[Any], Tensor], tuple[str, ...]]] = {
        "squeeze": (
            "aten::squeeze",
            lambda y: F.adaptive_avg_pool2d(y, 1).squeeze(),
            ("aten::adaptive_avg_pool2d", "aten::squeeze"),
        ),
        "squeeze_dim": (
            "aten::squeeze",
            lambda y: F.adaptive_avg_pool2d(y, 1).squeeze(-1),
            ("aten::adaptive_avg_pool2d", "aten::squeeze"),
        ),
        "permute_contiguous_view": (
            "aten::contiguous",
            lambda y: y.permute(0, 2, 3, 1).contiguous().view(-1, 8),
            ("aten::permute", "aten::contiguous", "aten::reshape"),
        ),
        "view_by_size": (
            "aten::size",
            lambda y: y.view(y.size(0), -1),
            ("aten::reshape",),
        ),
        "view_by_two_sizes": (
            "aten::size",
            lambda y: y.view(y.size(0), y.size(1), -1).transpose(1, 2),
            ("aten::reshape", "aten::transpose"),
        ),
        "view_by_numel": (
            "aten::numel",
            lambda y: y.view(y.numel()),
            ("aten::reshape",),
        ),
    }
    for name, (row, function, ops) in chains.items():
        yield OpSample(row, name, _after_conv(function), IMAGES, (*CONV, *ops), resizes=(0, -1))
    yield OpSample(
        "aten::dim",
        "flatten_by_dim",
        # torch.jit knows the dim of a convolution's output, so another op comes between.
        _after_conv(lambda y: (z := F.max_pool2d(y, 2)).flatten(1, z.dim() - 2)),
        IMAGES,
        (*CONV, "aten::max_pool2d", "aten::flatten"),
        resizes=(0, -1),
        traceable=False,
    )
    yield OpSample(
        "aten::len",
        "view_by_len",
        lambda: _LenOfConv().eval(),
        IMAGES,
        (*CONV, "aten::reshape"),
        resizes=(0, -1),
        traceable=False,
    )
    yield OpSample(
        "aten::detach",
        "detach",
        _after_conv(lambda y: y.detach()),
        IMAGES,
        CONV,  # freezing drops the detach
        resizes=(0, -1),
    )
    yield OpSample(
        "aten::t",
        "t",
        _unary(lambda m, x: m.fc(x).t(), fc=lambda: nn.Linear(16, 8)),
        ROWS,
        ("quantized::linear", "aten::t"),
    )
    yield OpSample(
        "aten::slice",
        "slice_channels",
        _after_conv(lambda y: y[:, 2:5]),
        IMAGES,
        (*CONV, *["aten::slice"] * 2),
        resizes=(0, -1),
    )
    yield OpSample(
        "aten::slice",
        "slice_with_step",
        _after_conv(lambda y: y[:, :, :, 1::2]),
        IMAGES,
        (*CONV, *["aten::slice"] * 4),
        resizes=(0, -1),
    )
    yield OpSample(
        "aten::view",
        "view_before_linear",
        _unary(lambda m, x: m.fc(x.view(-1, 16)), fc=lambda: nn.Linear(16, 8)),
        _random((2, 5, 16)),
        ("aten::reshape", "quantized::linear"),
    )
    yield OpSample(
        "aten::conv2d",
        "dropout",
        _unary(
            lambda m, x: m.drop(F.dropout(m.conv(x), 0.5, False)),
            conv=_conv(nn.Conv2d, {"kernel_size": 3}),
            drop=nn.Dropout,
        ),
        IMAGES,
        CONV,
        resizes=(0, -1),
    )


def _normalizations() -> Iterator[OpSample]:
    for rank, conv in _CONVS.items():
        for relu in ("", "_relu"):
            yield OpSample(
                "aten::batch_norm",
                f"batch_norm{rank}d{relu}_before_conv",
                _unary(
                    _norm_then_conv(bool(relu)),
                    norm=_batch_norm(rank, 4),
                    conv=_conv(conv, {"kernel_size": 3}),
                ),
                _CONV_INPUTS[rank],
                (f"quantized::batch_norm{relu}", f"quantized::conv{rank}d"),
                # The convolution amplifies a step of its input.
                tolerance_steps=2,
                resizes=(0, -1),
            )
    yield OpSample(
        "aten::batch_norm",
        "batch_norm2d_alone",
        _unary(lambda m, x: m.norm(x), norm=_batch_norm(2, 4)),
        IMAGES,
        ("quantized::batch_norm",),
        resizes=(0, -1),
    )
    yield OpSample(
        "aten::batch_norm",
        "batch_norm2d_of_conv_with_two_readers",
        _unary(
            lambda m, x: torch.cat([m.norm(y := m.conv(x)), y], 1),
            norm=_batch_norm(2, 8),
            conv=_conv(nn.Conv2d, {"kernel_size": 3}),
        ),
        IMAGES,
        (*CONV, "quantized::batch_norm", "quantized::cat"),
        resizes=(0, -1),
    )


def _norm_then_conv(relu: bool) -> Callable[[Any, Tensor], Tensor]:
    if relu:
        return lambda m, x: m.conv(F.relu(m.norm(x)))
    return lambda m, x: m.conv(m.norm(x))


def _curves() -> Iterator[OpSample]:
    functions: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
        "sigmoid": (torch.sigmoid, "quantized::sigmoid"),
        "hardsigmoid": (F.hardsigmoid, "aten::hardsigmoid"),
        "tanh": (torch.tanh, "aten::tanh"),
        "hardswish": (F.hardswish, "quantized::hardswish"),
    }
    modules: dict[str, Part] = {
        "sigmoid": nn.Sigmoid,
        "hardsigmoid": nn.Hardsigmoid,
        "tanh": nn.Tanh,
        "hardswish": nn.Hardswish,
    }
    for name, (function, int8) in functions.items():
        row = f"aten::{name}"
        yield OpSample(row, name, _unary(_alone(function)), IMAGES, (int8,), resizes=(0, -1))
        yield OpSample(
            row, f"{name}_after_conv", _after_conv(function), IMAGES, (*CONV, int8), resizes=(0, -1)
        )
        yield OpSample(
            row,
            f"{name}_module",
            _unary(lambda m, x: m.act(x), act=modules[name]),
            _random((3, 7)),
            (int8,),
        )


def _alone(function: Callable[[Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    return lambda m, x: function(x)


SAMPLES: list[OpSample] = [
    *_convolutions(),
    *_linears(),
    *_activations(),
    *_arithmetic(),
    *_concatenations(),
    *_pools(),
    *_movers(),
    *_normalizations(),
    *_curves(),
]

"""Convolutions and linear layers."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.samples.base import (
    CONV,
    CONV_INPUTS,
    CONVS,
    IMAGES,
    ROWS,
    OpSample,
    conv_of,
    parameter,
    random,
    unary,
)


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
    for rank, conv in CONVS.items():
        for name, options in variants.items():
            yield OpSample(
                f"aten::conv{rank}d",
                f"conv{rank}d_{name}",
                unary(lambda m, x: m.conv(x), conv=conv_of(conv, options)),
                CONV_INPUTS[rank],
                (f"quantized::conv{rank}d",),
                resizes=(0, -1),
            )
    yield OpSample(
        "aten::conv2d",
        "conv2d_rectangular",
        unary(
            lambda m, x: m.conv(x),
            conv=conv_of(
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
        unary(lambda m, x: F.conv2d(x, m.w, m.b), w=parameter(8, 4, 3, 3), b=parameter(8)),
        IMAGES,
        CONV,
        resizes=(0, -1),
    )


def _strided(conv: Callable[..., Tensor]) -> Callable[[Any, Tensor], Tensor]:
    return lambda m, x: conv(x, m.w, m.b, [2], [1])


def _lists_of_one() -> Iterator[OpSample]:
    """Stride, padding and dilation as one number for all dimensions."""
    spellings: dict[str, Callable[[Any, Any], Any]] = {
        "stride_and_padding": lambda m, x: torch.conv2d(x, m.w, m.b, [2], [1]),
        "dilation": lambda m, x: torch.conv2d(x, m.w, m.b, [1], [2], [2]),
        "int": lambda m, x: F.conv2d(x, m.w, m.b, 2, 1),
        "same": lambda m, x: torch.conv2d(x, m.w, m.b, [1], "same", [2]),
    }
    for name, function in spellings.items():
        yield OpSample(
            "aten::conv2d",
            f"conv2d_one_number_{name}",
            unary(function, w=parameter(8, 4, 3, 3), b=parameter(8)),
            IMAGES,
            CONV,
            resizes=(0, -1),
        )
    for rank, shape in ((1, (8, 4, 3)), (3, (8, 4, 3, 3, 3))):
        yield OpSample(
            f"aten::conv{rank}d",
            f"conv{rank}d_one_number",
            unary(
                _strided(getattr(torch, f"conv{rank}d")),
                w=parameter(*shape),
                b=parameter(8),
            ),
            CONV_INPUTS[rank],
            (f"quantized::conv{rank}d",),
            resizes=(0, -1),
        )


TRANSPOSED: dict[int, Any] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}


def _rearranged(rank: int, options: dict[str, Any]) -> tuple[str, ...]:
    """The int8 ops of a transposed convolution of 4 to 8 channels."""
    ops = [f"quantized::conv{rank}d"]
    if options.get("stride", 1) != 1:
        flattened = rank + (options.get("groups", 1) > 1)
        ops += ["aten::unflatten", "aten::movedim", *["aten::flatten"] * flattened, "aten::movedim"]
    return (*ops, *["aten::slice"] * options.get("cut", 0))


def _transposed_convolutions() -> Iterator[OpSample]:
    variants: dict[str, dict[str, Any]] = {
        "plain": {"kernel_size": 3},
        "no_bias": {"kernel_size": 3, "bias": False},
        "padding": {"kernel_size": 3, "padding": 1},
        "dilation": {"kernel_size": 2, "dilation": 2},
        "groups": {"kernel_size": 3, "groups": 2},
        "kernel_is_stride": {"kernel_size": 2, "stride": 2},
        "grouped_kernel_is_stride": {"kernel_size": 2, "stride": 2, "groups": 2},
        "kernel_is_twice_stride": {"kernel_size": 4, "stride": 2, "padding": 1},
        "output_padding": {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
        "large_stride": {"kernel_size": 3, "stride": 4},
        "large_padding": {"kernel_size": 2, "padding": 2},
    }
    cuts = {"kernel_is_twice_stride": 1, "output_padding": 1, "large_stride": 1, "large_padding": 1}
    for rank, conv in TRANSPOSED.items():
        for name, options in variants.items():
            ops = _rearranged(rank, options | {"cut": cuts.get(name, 0) * rank})
            yield OpSample(
                f"aten::conv{rank}d",
                f"conv_transpose{rank}d_{name}",
                unary(
                    lambda m, x: m.conv(x),
                    conv=partial(conv, 4, 8, **options),
                ),
                CONV_INPUTS[rank],
                ops,
                resizes=(0, -1),
            )
    yield OpSample(
        "aten::conv2d",
        "conv_transpose2d_functional",
        unary(
            lambda m, x: F.relu(F.conv_transpose2d(x, m.w, m.b, 2)),
            w=parameter(4, 8, 2, 2),
            b=parameter(8),
        ),
        IMAGES,
        ("quantized::conv2d_relu", *_rearranged(2, {"stride": 2})[1:]),
        resizes=(0, -1),
    )


def _zeros_in_part(bias: Tensor) -> Tensor:
    """As torchvision's Swin V2 does at run time."""
    copy = bias.clone()
    copy.narrow(0, 2, 3).zero_()
    return copy


def _linears() -> Iterator[OpSample]:
    w, v, b = parameter(8, 16), parameter(16, 8), parameter(8)
    both_ranks: dict[str, Callable[[], nn.Module]] = {
        "module": unary(lambda m, x: m.fc(x), fc=lambda: nn.Linear(16, 8)),
        "module_no_bias": unary(lambda m, x: m.fc(x), fc=lambda: nn.Linear(16, 8, bias=False)),
        "functional": unary(lambda m, x: F.linear(x, m.w, m.b), w=w, b=b),
        "functional_no_bias": unary(lambda m, x: F.linear(x, m.w), w=w),
        "zeros_in_bias": unary(lambda m, x: F.linear(x, m.w, _zeros_in_part(m.b)), w=w, b=b),
        "matmul": unary(lambda m, x: torch.matmul(x, m.v), v=v),
        "matmul_bias": unary(lambda m, x: torch.matmul(x, m.v) + m.b, v=v, b=b),
        "bias_matmul": unary(lambda m, x: m.b + torch.matmul(x, m.v), v=v, b=b),
        "matmul_t": unary(lambda m, x: x @ m.w.t(), w=w),
        "matmul_t_bias": unary(lambda m, x: x @ m.w.t() + m.b, w=w, b=b),
        "matmul_transpose": unary(lambda m, x: x @ m.w.transpose(0, 1), w=w),
        "matmul_transpose_negative": unary(lambda m, x: x @ m.w.transpose(-1, -2), w=w),
        "matmul_permute": unary(lambda m, x: x @ m.w.permute(1, 0), w=w),
    }
    only_2d: dict[str, Callable[[], nn.Module]] = {
        "addmm": unary(lambda m, x: torch.addmm(m.b, x, m.v), v=v, b=b),
        "addmm_t": unary(lambda m, x: torch.addmm(m.b, x, m.w.t()), w=w, b=b),
        "mm": unary(lambda m, x: torch.mm(x, m.v), v=v),
        "mm_bias": unary(lambda m, x: torch.mm(x, m.v) + m.b, v=v, b=b),
    }
    for rank, inputs in ((2, ROWS), (3, random((2, 5, 16)))):
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


SAMPLES: list[OpSample] = [
    *_convolutions(),
    *_lists_of_one(),
    *_transposed_convolutions(),
    *_linears(),
]

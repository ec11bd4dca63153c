"""Convolutions and linear layers."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
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


def _linears() -> Iterator[OpSample]:
    w, v, b = parameter(8, 16), parameter(16, 8), parameter(8)
    both_ranks: dict[str, Callable[[], nn.Module]] = {
        "module": unary(lambda m, x: m.fc(x), fc=lambda: nn.Linear(16, 8)),
        "module_no_bias": unary(lambda m, x: m.fc(x), fc=lambda: nn.Linear(16, 8, bias=False)),
        "functional": unary(lambda m, x: F.linear(x, m.w, m.b), w=w, b=b),
        "functional_no_bias": unary(lambda m, x: F.linear(x, m.w), w=w),
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


SAMPLES: list[OpSample] = [*_convolutions(), *_linears()]

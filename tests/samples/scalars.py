"""Sums and products with constants, in all their spellings, and squares."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.samples.base import (
    CONV,
    IMAGES,
    OpSample,
    after_conv,
    binary,
    conv_of,
    parameter,
    random,
    unary,
)

ADD = "quantized::add"
MUL = "quantized::mul"
SCALED = "quantized::mul_scalar"


def _spellings() -> Iterator[OpSample]:
    functions: dict[str, tuple[str, Callable[[Tensor], Tensor], tuple[str, ...]]] = {
        "sub": ("add.Scalar", lambda y: y - 0.7, (ADD,)),
        "sub_integer": ("add.Scalar", lambda y: y - 1, (ADD,)),
        "sub_alpha": ("add.Scalar", lambda y: torch.sub(y, 0.35, alpha=2), (ADD,)),
        "sub_in_place": ("add.Scalar", lambda y: y.sub_(0.7), (ADD,)),
        "sub_relu": ("add.Scalar", lambda y: F.relu(y - 0.1), ("quantized::add_relu",)),
        "add_alpha": ("add.Scalar", lambda y: torch.add(y, 0.35, alpha=-2), (ADD,)),
        "number_minus": ("neg", lambda y: torch.rsub(y, 1.0), (ADD, SCALED)),
        "neg": ("neg", lambda y: -y, (SCALED,)),
        "negative": ("neg", torch.negative, (SCALED,)),
        "neg_relu": ("neg", lambda y: F.relu(-y), (SCALED, "aten::relu")),
        "div": ("div", lambda y: y / 3.0, (SCALED,)),
        "div_integer": ("div", lambda y: y / 255, (SCALED,)),
        "div_negative": ("div", lambda y: y / -0.3, (SCALED,)),
        "div_rounding_none": ("div", lambda y: torch.div(y, 3.0, rounding_mode=None), (SCALED,)),
        "div_in_place": ("div", lambda y: y.div_(3.0), (SCALED,)),
        "true_divide": ("div", lambda y: torch.true_divide(y, 3.0), (SCALED,)),
        "square": ("square", torch.square, (MUL,)),
        "square_relu": ("square", lambda y: F.relu(y.square()), ("quantized::mul_relu",)),
        "pow_2": ("pow", lambda y: y**2, (MUL,)),
        "pow_2.0": ("pow", lambda y: y.pow(2.0), (MUL,)),
        "rescaled": ("div", lambda y: (y - 0.4) / 0.2, (ADD, SCALED)),
    }
    for name, (row, function, ops) in functions.items():
        yield OpSample(
            f"aten::{row}",
            f"arithmetic_{name}",
            after_conv(function),
            IMAGES,
            (*CONV, *ops),
            resizes=(0, -1),
        )


def _differences() -> Iterator[OpSample]:
    pair = random((2, 4, 8, 8), (2, 4, 8, 8), gain=3.0)
    functions: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
        "sub": lambda m, x, y: x - y,
        "rsub": lambda m, x, y: torch.rsub(x, y),
        "subtract": lambda m, x, y: torch.subtract(x, y),
        "sub_alpha": lambda m, x, y: torch.sub(x, y, alpha=0.5),
        "add_alpha": lambda m, x, y: torch.add(x, y, alpha=-0.5),
    }
    for name, function in functions.items():
        yield OpSample(
            "aten::add", f"tensors_{name}", binary(function), pair, (SCALED, ADD), resizes=(0,)
        )
    yield OpSample(
        "aten::add",
        "difference_read_elsewhere",
        binary(lambda m, x, y: (x - y) * y),
        pair,
        (SCALED, ADD, MUL),
        # Each of two ops may round its last step differently; the product passes both on.
        tolerance_steps=2,
    )


def _constants() -> Iterator[OpSample]:
    per_channel = parameter(1, 8, 1, 1)
    functions: dict[str, tuple[str, Callable[[Any, Tensor], Tensor], Any, str]] = {
        "mul": ("mul", lambda m, x: m.conv(x) * m.c, per_channel, MUL),
        "mul_left": ("mul", lambda m, x: m.c * m.conv(x), per_channel, MUL),
        "add": ("add", lambda m, x: m.conv(x) + m.c, per_channel, ADD),
        "add_left": ("add", lambda m, x: m.c + m.conv(x), per_channel, ADD),
        "sub": ("add", lambda m, x: m.conv(x) - m.c, per_channel, ADD),
        "div": ("mul", lambda m, x: m.conv(x) / m.c, _positive(1, 8, 1, 1), MUL),
        "mul_image": ("mul", lambda m, x: m.conv(x) * m.c, parameter(8, 8, 8), MUL),
        "sub_alpha": (
            "add",
            lambda m, x: torch.sub(m.conv(x), m.c, alpha=2),
            per_channel,
            ADD,
        ),
        "mul_no_dimensions": ("mul.Scalar", lambda m, x: m.conv(x) * m.c, _positive(), SCALED),
        "mul_no_dimensions_left": (
            "mul.Scalar",
            lambda m, x: m.c * m.conv(x),
            _positive(),
            SCALED,
        ),
        "div_no_dimensions": ("div", lambda m, x: m.conv(x) / m.c, _positive(), SCALED),
        "sub_no_dimensions": ("add.Scalar", lambda m, x: m.conv(x) - m.c, _positive(), ADD),
    }
    for name, (row, function, part, op) in functions.items():
        yield OpSample(
            f"aten::{row}",
            f"constant_{name}",
            unary(function, conv=conv_of(nn.Conv2d, {"kernel_size": 1}), c=part),
            IMAGES,
            (*CONV, op),
        )


def _positive(*shape: int) -> Callable[[], nn.Parameter]:
    return lambda: nn.Parameter(torch.rand(shape) + 0.5)


SAMPLES: list[OpSample] = [*_spellings(), *_differences(), *_constants()]

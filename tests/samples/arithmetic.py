"""Sums, products and concatenations."""

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.samples.base import CONV, IMAGES, OpSample, after_conv, binary, random, unary


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
                binary(_of_both(function)),
                random(*pair, gain=3.0),
                (int8,),
                resizes=(0,) if name == "same_shape" else (),
            )
        yield OpSample(
            f"aten::{op}",
            f"{op}_relu",
            binary(_relu_of(function)),
            random(image, image, gain=3.0),
            (f"{int8}_relu",),
        )
        yield OpSample(
            f"aten::{op}",
            f"{op}_of_itself",
            unary(_with_itself(function)),
            IMAGES,
            (int8,),
        )
        yield OpSample(
            f"aten::{op}",
            f"{op}_in_place",
            unary(_in_place(f"{op}_"), conv=lambda: nn.Conv2d(4, 4, 3)),
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
            after_conv(of),
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
            after_conv(of),
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
    image = (2, 32, 8, 8)  # of fewer channels float is faster
    for dim in (0, 1, 3, -1, -2):
        yield OpSample(
            "aten::cat",
            f"cat_dim_{dim}",
            binary(_cat(dim)),
            random(image, image),
            ("quantized::cat",),
        )
    yield OpSample(
        "aten::cat",
        "cat_different_ranges",
        binary(_cat(1)),
        random(image, image, gain=5.0),
        ("quantized::cat",),
    )
    yield OpSample(
        "aten::cat",
        "cat_different_sizes",
        binary(_cat(1)),
        random((2, 3, 5), (2, 6, 5)),
        ("quantized::cat",),
    )
    yield OpSample(
        "aten::cat",
        "cat_relu",
        binary(lambda m, x, y: F.relu(torch.cat([x, y], 1))),
        random(image, image, gain=3.0),
        ("quantized::cat_relu",),
    )
    yield OpSample(
        "aten::cat",
        "cat_of_three",
        unary(
            lambda m, x: torch.cat([m.conv(x), x, F.max_pool2d(x, 3, 1, 1)], 1),
            conv=lambda: nn.Conv2d(64, 32, 3, padding=1),
        ),
        random((2, 64, 8, 8)),
        (*CONV, "aten::max_pool2d", "quantized::cat"),
        resizes=(0, -1),
    )


def _cat(dim: int) -> Callable[[Any, Tensor, Tensor], Tensor]:
    return lambda m, x, y: torch.cat([x, y], dim)


SAMPLES: list[OpSample] = [*_arithmetic(), *_concatenations()]

"""Normalizations that no convolution takes in."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.samples.base import (
    CONV,
    CONV_INPUTS,
    CONVS,
    IMAGES,
    OpSample,
    Part,
    batch_norm,
    conv_of,
    random,
    unary,
)


def _normalizations() -> Iterator[OpSample]:
    for rank, conv in CONVS.items():
        for relu in ("", "_relu"):
            yield OpSample(
                "aten::batch_norm",
                f"batch_norm{rank}d{relu}_before_conv",
                unary(
                    _norm_then_conv(bool(relu)),
                    norm=batch_norm(rank, 4),
                    conv=conv_of(conv, {"kernel_size": 3}),
                ),
                CONV_INPUTS[rank],
                (f"quantized::batch_norm{relu}", f"quantized::conv{rank}d"),
                # The convolution amplifies a step of its input.
                tolerance_steps=2,
                resizes=(0, -1),
            )
    yield OpSample(
        "aten::batch_norm",
        "batch_norm2d_alone",
        unary(lambda m, x: m.norm(x), norm=batch_norm(2, 4)),
        IMAGES,
        ("quantized::batch_norm",),
        resizes=(0, -1),
    )
    yield OpSample(
        "aten::batch_norm",
        "batch_norm2d_of_conv_with_two_readers",
        unary(
            lambda m, x: torch.cat([m.norm(y := m.conv(x)), y], 1),
            norm=batch_norm(2, 8),
            conv=conv_of(nn.Conv2d, {"kernel_size": 3}),
        ),
        IMAGES,
        (*CONV, "quantized::batch_norm", "quantized::cat"),
        resizes=(0, -1),
    )


def _group_norms() -> Iterator[OpSample]:
    """On images that the int8 kernels are fast for."""
    parts: dict[str, tuple[str, Part]] = {
        "group_norm": ("aten::group_norm", lambda: nn.GroupNorm(2, 8)),
        "group_norm_plain": ("aten::group_norm", lambda: nn.GroupNorm(4, 8, affine=False)),
        "instance_norm": ("aten::instance_norm", lambda: nn.InstanceNorm2d(8, affine=True)),
        "instance_norm_plain": ("aten::instance_norm", lambda: nn.InstanceNorm2d(8)),
    }
    for name, (row, part) in parts.items():
        yield OpSample(
            row,
            name,
            unary(
                lambda m, x: m.last(m.norm(m.conv(x))),
                conv=conv_of(nn.Conv2d, {"kernel_size": 3}),
                norm=part,
                last=lambda: nn.Conv2d(8, 4, 1),
            ),
            random((2, 4, 26, 26)),
            (*CONV, row.replace("aten", "quantized"), *CONV),
            # The convolution amplifies a step of its input.
            tolerance_steps=2,
            resizes=(0, -1),
        )


def _norm_then_conv(relu: bool) -> Callable[[Any, Tensor], Tensor]:
    if relu:
        return lambda m, x: m.conv(F.relu(m.norm(x)))
    return lambda m, x: m.conv(m.norm(x))


SAMPLES: list[OpSample] = [*_normalizations(), *_group_norms()]

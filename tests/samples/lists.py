"""Ops that give a list of tensors, which is unpacked or indexed."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tests.samples.base import CONV, IMAGES, OpSample, after_conv, conv_of, unary


def _parts() -> Iterator[OpSample]:
    functions: dict[str, tuple[str, Callable[[Any], Tensor]]] = {
        "chunk": ("chunk", lambda y: y.chunk(2, 1)[1]),
        "chunk_negative_dim": ("chunk", lambda y: torch.chunk(y, 3, -1)[0]),
        "split": ("split", lambda y: y.split(3, 1)[1]),
        "split_with_sizes": ("split_with_sizes", lambda y: y.split_with_sizes([2, 6], 1)[1]),
        "unbind": ("unbind", lambda y: y.unbind(1)[3]),
        "tensor_split": ("tensor_split", lambda y: torch.tensor_split(y, 3, 1)[2]),
    }
    for name, (op, function) in functions.items():
        yield OpSample(
            f"aten::{op}",
            name,
            after_conv(function),
            IMAGES,
            (*CONV, f"aten::{op}"),
            resizes=(0,),
        )


def _joined() -> Iterator[OpSample]:
    def halves(m: Any, x: Tensor) -> Tensor:
        parts = m.conv(x).chunk(2, 1)
        return torch.cat([m.left(parts[0]), parts[1]], 1)

    yield OpSample(
        "aten::chunk",
        "chunk_of_two_branches",
        unary(
            halves,
            conv=conv_of(nn.Conv2d, {"kernel_size": 3}),
            left=lambda: nn.Conv2d(4, 4, 1),
        ),
        IMAGES,
        (*CONV, "aten::chunk", *CONV, "quantized::cat"),
        tolerance_steps=2,
        resizes=(0, -1),
    )


SAMPLES: list[OpSample] = [*_parts(), *_joined()]

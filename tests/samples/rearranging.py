"""Ops that pick, repeat or rearrange values."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.samples.base import CONV, IMAGES, ROWS, OpSample, after_conv, conv_of, random, unary

Function = Callable[[Any], Tensor]

# Of a 3x3 convolution's output, (2, 8, 6, 6); the last are dimensions of the input that may grow.
AFTER_CONV: dict[str, tuple[str, Function, tuple[int, ...]]] = {
    "narrow": ("narrow", lambda y: y.narrow(1, 2, 3), (0, -1)),
    "narrow_negative": ("narrow", lambda y: torch.narrow(y, -1, -3, 2), (0, -1)),
    "select": ("select", lambda y: y.select(1, 3), (0, -1)),
    "select_by_index": ("select", lambda y: y[-1], (0, -1)),
    "unflatten_two": ("unflatten", lambda y: y.unflatten(1, (2, -1)), (0, -1)),
    "expand": ("expand", lambda y: y.unsqueeze(2).expand(-1, -1, 3, -1, -1), (0, -1)),
    "expand_as": ("expand_as", lambda y: y.narrow(1, 0, 1).expand_as(y), (0, -1)),
    "repeat": ("repeat", lambda y: y.repeat(1, 2, 1, 3), (0, -1)),
    "repeat_more_dimensions": ("repeat", lambda y: y.repeat(2, 1, 1, 1, 1), (0, -1)),
    "tile": ("tile", lambda y: y.tile((2, 1)), (0, -1)),
    "repeat_interleave": ("repeat_interleave", lambda y: y.repeat_interleave(2, 1), (0, -1)),
    "flip_width": ("flip", lambda y: y.flip((3,)), (0, -1)),
    "flip_channels": ("flip", lambda y: torch.flip(y, [1, 0]), (0, -1)),
    "movedim_first": ("movedim", lambda y: y.movedim(1, -1), (0, -1)),
    "moveaxis": ("movedim", lambda y: torch.moveaxis(y, (0, 1), (2, 0)), (0, -1)),
    "swapaxes": ("transpose", lambda y: y.swapaxes(1, 3), (0, -1)),
    "ravel": ("ravel", lambda y: y.ravel(), (0, -1)),
    "reshape_as": ("reshape_as", lambda y: y.reshape_as(y.flatten(2)), (0, -1)),
    "view_as": ("view_as", lambda y: y.view_as(y.flatten(1, 2)), (0, -1)),
    "mT": ("mT", lambda y: y.mT, (0, -1)),
    "diagonal": ("diagonal", lambda y: y.diagonal(1, 2, 3), (0, -1)),
    "unfold": ("unfold", lambda y: y.unfold(2, 3, 2), (0, -1)),
    "pixel_unshuffle": ("pixel_unshuffle", lambda y: F.pixel_unshuffle(y, 2), (0,)),
    "native_channel_shuffle": (
        "channel_shuffle",
        lambda y: torch.native_channel_shuffle(y, 2),
        (0, -1),
    ),
    "channel_shuffle": ("channel_shuffle", lambda y: F.channel_shuffle(y, 4), (0, -1)),
}


def _after_conv() -> Iterator[OpSample]:
    others = {
        "select_by_index": (),
        "expand": ("aten::unsqueeze",),
        "expand_as": ("aten::narrow",),
        "reshape_as": ("aten::flatten",),
        "view_as": ("aten::flatten",),
    }
    for name, (op, function, resizes) in AFTER_CONV.items():
        int8 = "aten::reshape_as" if op == "view_as" else f"aten::{op}"
        yield OpSample(
            f"aten::{name}" if name.startswith("native") else f"aten::{op}",
            f"move_{name}",
            after_conv(function),
            IMAGES,
            (*CONV, *others.get(name, ()), int8),
            resizes=resizes,
        )


def _with_indices() -> Iterator[OpSample]:
    functions: dict[str, tuple[str, Callable[[Any, Tensor], Tensor]]] = {
        "index_select": ("index_select", lambda m, x: m.conv(x).index_select(1, m.at)),
        "index": ("index", lambda m, x: m.conv(x)[:, m.at]),
    }
    for name, (op, function) in functions.items():
        yield OpSample(
            f"aten::{op}",
            f"move_{name}",
            unary(function, conv=conv_of(nn.Conv2d, {"kernel_size": 3}), at=_indices(5, 0, 2, 2)),
            IMAGES,
            (*CONV, *(("aten::slice",) if name == "index" else ()), f"aten::{op}"),
            resizes=(0, -1),
        )


def _indices(*indices: int) -> Callable[[], nn.Parameter]:
    return lambda: nn.Parameter(torch.tensor(indices), requires_grad=False)


def _of_rows() -> Iterator[OpSample]:
    yield OpSample(
        "aten::numpy_T",
        "move_numpy_T",
        unary(lambda m, x: m.fc(x).T, fc=lambda: nn.Linear(16, 8)),
        ROWS,
        ("quantized::linear", "aten::numpy_T"),
    )


def _of_signals() -> Iterator[OpSample]:
    """Reflected at both ends, behind a Conv1d that gives (2, 8, 9)."""
    functions: dict[str, Function] = {
        "pad": lambda y: F.pad(y, (3, 2), mode="reflect"),
        "reflection_pad1d": lambda y: torch.ops.aten.reflection_pad1d(y, (1, 4)),
    }
    for op, function in functions.items():
        yield OpSample(
            f"aten::{op}",
            f"move_{op}",
            _between_conv1d(function),
            random((2, 4, 9)),
            ("quantized::conv1d", f"aten::{op}", "quantized::conv1d"),
            resizes=(0, -1),
        )


def _between_conv1d(function: Function) -> Callable[[], nn.Module]:
    return unary(
        lambda m, x: m.after(function(m.conv(x))),
        conv=lambda: nn.Conv1d(4, 8, 1),
        after=lambda: nn.Conv1d(8, 8, 3),
    )


def _read_by_int8_ops() -> Iterator[OpSample]:
    """Strides of zero, overlapping windows and steps, each read by an int8 op."""
    functions: dict[str, tuple[str, Callable[[Any, Tensor], Tensor], tuple[str, ...]]] = {
        "expanded_conv": (
            "expand",
            lambda m, x: m.conv(x.narrow(1, 1, 1).expand(-1, 4, -1, -1)),
            ("aten::narrow", "aten::expand", *CONV),
        ),
        "expanded_product": (
            "expand",
            lambda m, x: x * m.conv(x).narrow(1, 1, 1).expand(-1, 4, -1, -1),
            (*CONV, "aten::narrow", "aten::expand", "quantized::mul"),
        ),
        "windows_sum": (
            "unfold",
            lambda m, x: (y := m.conv(x).unfold(2, 3, 1)) + y.flip((4,)),
            (*CONV, "aten::unfold", "aten::flip", "quantized::add"),
        ),
        "flipped_conv": (
            "flip",
            lambda m, x: m.conv(x.flip((1, 3))),
            ("aten::flip", *CONV),
        ),
        "selected_pool": (
            "select",
            lambda m, x: F.max_pool2d(m.conv(x).unsqueeze(2).select(2, 0), 2),
            (*CONV, "aten::unsqueeze", "aten::select", "aten::max_pool2d"),
        ),
        "transposed_mean": (
            "mT",
            lambda m, x: m.conv(x).mT.mean(2),
            (*CONV, "aten::mT", "aten::mean"),
        ),
    }
    for name, (op, function, ops) in functions.items():
        yield OpSample(
            f"aten::{op}",
            f"move_{name}",
            unary(function, conv=lambda: nn.Conv2d(4, 4, 3, padding=1)),
            IMAGES,
            ops,
            resizes=(0, -1),
        )


def _stacks() -> Iterator[OpSample]:
    ranges = random((2, 4, 8, 8), (2, 4, 8, 8), gain=5.0)
    for dim in (0, 1, 2, -2):
        yield OpSample(
            "aten::unsqueeze",
            f"stack_dim_{dim}",
            _stack(dim),
            ranges,
            ("aten::unsqueeze", "aten::unsqueeze", "quantized::cat"),
            resizes=(0,),
        )


class _Stack(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([x, y], self.dim)


def _stack(dim: int) -> Callable[[], nn.Module]:
    return lambda: _Stack(dim).eval()


SAMPLES: list[OpSample] = [
    *_after_conv(),
    *_with_indices(),
    *_of_rows(),
    *_of_signals(),
    *_read_by_int8_ops(),
    *_stacks(),
]

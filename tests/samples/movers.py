"""Ops that move values or read shapes."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.samples.base import CONV, IMAGES, ROWS, OpSample, after_conv, conv_of, random, unary


class _LenOfConv(nn.Module):
    """torch.fx has no `len`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y.view(len(y), -1)


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
        "unflatten": ("unflatten", lambda y: y.unflatten(1, (2, 4)), (0, -1)),
        "unflatten_negative": ("unflatten", lambda y: y.unflatten(-3, (2, -1)), (0, -1)),
        "movedim": ("movedim", lambda y: y.movedim(1, -1), (0, -1)),
        "movedim_list": ("movedim", lambda y: torch.movedim(y, (-1, 2), (0, 1)), (0, -1)),
    }
    for name, (op, function, resizes) in functions.items():
        yield OpSample(
            f"aten::{op}",
            name,
            after_conv(function),
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
        yield OpSample(row, name, after_conv(function), IMAGES, (*CONV, *ops), resizes=(0, -1))
    yield OpSample(
        "aten::dim",
        "flatten_by_dim",
        # torch.jit knows the dim of a convolution's output, so another op comes between.
        after_conv(lambda y: (z := F.max_pool2d(y, 2)).flatten(1, z.dim() - 2)),
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
        after_conv(lambda y: y.detach()),
        IMAGES,
        CONV,  # freezing drops the detach
        resizes=(0, -1),
    )
    for name, clone in {
        "clone": lambda y: y.clone(),
        "clone_contiguous": lambda y: y.clone(memory_format=torch.contiguous_format).view(-1, 8),
    }.items():
        # The layout of int8 tensors is up to the kernels.
        ops = (*CONV, "aten::reshape") if name == "clone_contiguous" else CONV
        yield OpSample("aten::clone", name, after_conv(clone), IMAGES, ops, resizes=(0,))
    yield OpSample(
        "aten::t",
        "t",
        unary(lambda m, x: m.fc(x).t(), fc=lambda: nn.Linear(16, 8)),
        ROWS,
        ("quantized::linear", "aten::t"),
    )
    yield OpSample(
        "aten::slice",
        "slice_channels",
        after_conv(lambda y: y[:, 2:5]),
        IMAGES,
        (*CONV, *["aten::slice"] * 2),
        resizes=(0, -1),
    )
    yield OpSample(
        "aten::slice",
        "slice_with_step",
        after_conv(lambda y: y[:, :, :, 1::2]),
        IMAGES,
        (*CONV, *["aten::slice"] * 4),
        resizes=(0, -1),
    )
    yield OpSample(
        "aten::view",
        "view_before_linear",
        unary(lambda m, x: m.fc(x.view(-1, 16)), fc=lambda: nn.Linear(16, 8)),
        random((2, 5, 16)),
        ("aten::reshape", "quantized::linear"),
    )
    yield OpSample(
        "aten::conv2d",
        "dropout",
        unary(
            lambda m, x: m.drop(F.dropout(m.conv(x), 0.5, False)),
            conv=conv_of(nn.Conv2d, {"kernel_size": 3}),
            drop=nn.Dropout,
        ),
        IMAGES,
        CONV,
        resizes=(0, -1),
    )


SAMPLES: list[OpSample] = [*_movers()]

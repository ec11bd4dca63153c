"""Pooling and averages."""

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
    after_conv,
    conv_of,
    unary,
)


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
            averages = "avg" in kind
            for name, options in variants.items():
                yield OpSample(
                    row,
                    f"{kind}{rank}d_{name}",
                    unary(
                        _pool_after(functions[rank], options, positive=averages),
                        conv=conv_of(CONVS[rank], {"kernel_size": 3}),
                    ),
                    CONV_INPUTS[rank],
                    (
                        f"quantized::conv{rank}d_relu" if averages else f"quantized::conv{rank}d",
                        row,
                    ),
                    # An average of many has the step of its input, and less range.
                    sqnr=20.0 if rank == 3 and averages else 25.0,
                    resizes=(0, -1),
                )
            before = {"output_size": 3} if kind == "adaptive_avg_pool" else {"kernel_size": 2}
            yield OpSample(
                row,
                f"{kind}{rank}d_before_conv",
                unary(
                    _pool_before(functions[rank], before),
                    conv=conv_of(CONVS[rank], {"kernel_size": 2}),
                ),
                CONV_INPUTS[rank],
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
            unary(
                lambda m, x: m.pool(m.conv(x)),
                conv=conv_of(nn.Conv2d, {"kernel_size": 3}),
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
            after_conv(_mean_of_relu(mean)),
            IMAGES,
            ("quantized::conv2d_relu", "aten::mean"),
            resizes=(0, -1),
        )


def _mean_of_relu(mean: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Positive values: a mean around zero would be within few steps of its input's qparams."""
    return lambda y: mean(F.relu(y))


def _pool_after(
    pool: Any, options: dict[str, Any], positive: bool
) -> Callable[[Any, Tensor], Tensor]:
    if positive:  # see _mean_of_relu
        return lambda m, x: pool(F.relu(m.conv(x)), **options)
    return lambda m, x: pool(m.conv(x), **options)


def _pool_before(pool: Any, options: dict[str, Any]) -> Callable[[Any, Tensor], Tensor]:
    return lambda m, x: m.conv(pool(x, **options))


SAMPLES: list[OpSample] = [*_pools()]

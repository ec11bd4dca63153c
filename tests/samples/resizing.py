"""Nearest neighbours, and pools that also give indices."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from tests.samples.base import CONV_INPUTS, CONVS, OpSample, conv_of, unary

Resize = Callable[[Tensor], Tensor]


def _resizes() -> Iterator[OpSample]:
    sizes: dict[str, dict[str, Any]] = {
        "doubled": {"scale_factor": 2.0},
        "uneven": {"scale_factor": 1.7},
        "smaller": {"scale_factor": 0.6},
        "to_size": {"size": 5},
    }
    modes = {"nearest": "upsample_nearest", "nearest-exact": "_upsample_nearest_exact"}
    for mode, op in modes.items():
        for rank in (2, 3):
            row = f"aten::{op}{rank}d"
            for name, size in sizes.items():
                yield OpSample(
                    row,
                    f"{mode}{rank}d_{name}",
                    unary(
                        _between(_resize(mode, size)),
                        conv=conv_of(CONVS[rank], {"kernel_size": 3}),
                        last=_last(rank),
                    ),
                    CONV_INPUTS[rank],
                    (f"quantized::conv{rank}d", row, f"quantized::conv{rank}d"),
                    resizes=(0, -1),
                )
    yield OpSample(
        "aten::upsample_nearest2d",
        "upsample_module",
        unary(
            lambda m, x: m.resize(m.conv(x)),
            conv=conv_of(nn.Conv2d, {"kernel_size": 3}),
            resize=lambda: nn.Upsample(scale_factor=2),
        ),
        CONV_INPUTS[2],
        ("quantized::conv2d", "aten::upsample_nearest2d"),
        resizes=(0, -1),
    )


def _indexed_pools() -> Iterator[OpSample]:
    """Nobody reads the indices, so these are pools like others."""
    pools: dict[int, Any] = {2: F.max_pool2d, 3: F.max_pool3d}
    for rank, pool in pools.items():
        yield OpSample(
            f"aten::max_pool{rank}d",
            f"max_pool{rank}d_with_indices",
            unary(_indexed(pool), conv=conv_of(CONVS[rank], {"kernel_size": 3})),
            CONV_INPUTS[rank],
            (f"quantized::conv{rank}d", f"aten::max_pool{rank}d"),
            resizes=(0, -1),
        )


def _resize(mode: str, size: dict[str, Any]) -> Resize:
    return lambda y: F.interpolate(y, mode=mode, **size)


def _between(resize: Resize) -> Callable[[Any, Tensor], Tensor]:
    return lambda m, x: m.last(resize(m.conv(x)))


def _last(rank: int) -> Callable[[], nn.Module]:
    return lambda: CONVS[rank](8, 4, 1)


def _indexed(pool: Any) -> Callable[[Any, Tensor], Tensor]:
    return lambda m, x: pool(m.conv(x), 2, return_indices=True)[0]


SAMPLES: list[OpSample] = [*_resizes(), *_indexed_pools()]

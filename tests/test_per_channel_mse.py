"""PerChannelMSEObserver: each channel of a weight gets the range of least squared error."""

from typing import Any

import pytest
import torch
from torch import Tensor

import jitquant
from jitquant.observers import PerChannelMinMaxObserver, PerChannelMSEObserver
from tests.ir import sample
from tests.test_observers import rand, randn, squared_error

SYMMETRIC: dict[str, Any] = {"dtype": torch.qint8, "qscheme": torch.per_channel_symmetric}
AFFINE: dict[str, Any] = {"dtype": torch.qint8, "qscheme": torch.per_channel_affine}
both_schemes = pytest.mark.parametrize("kwargs", [SYMMETRIC, AFFINE], ids=["symmetric", "affine"])


def weight() -> Tensor:
    """Five channels: normal, with an outlier, long tails, one-sided, on a grid of two values."""
    outlier = randn(400, seed=1)
    outlier[7] = 12.0
    tails = randn(400, seed=2) / randn(400, seed=3)
    return torch.stack(
        [randn(400), outlier, tails, rand(400, seed=4), torch.tensor([1.0, 2.0] * 200)]
    ).reshape(5, 16, 5, 5)


def errors(observer: Any, x: Tensor, levels: tuple[int, int] = (-128, 127)) -> list[float]:
    """Sum of squared errors of each channel of x along axis 0."""
    pairs = zip(*observer.calculate_qparams(), strict=True)
    return [
        squared_error(channel.double(), qparams, *levels)
        for channel, qparams in zip(x, pairs, strict=True)
    ]


@both_schemes
@pytest.mark.parametrize("levels", [(-128, 127), (-8, 7)], ids=str)
def test_search_is_near_the_best_of_2000_ranges(
    kwargs: dict[str, Any], levels: tuple[int, int]
) -> None:
    """4 %: for 400 values the error has many dips, up to 3 % deep, that 86 ranges may miss.

    Not with the channel of two values, whose error is next to nothing for a few ranges.
    """
    x = weight()[:4]
    own_range: dict[str, Any] = {"quant_min": levels[0], "quant_max": levels[1]}
    observer = PerChannelMSEObserver(**kwargs, **own_range)
    observer(x)
    for channel, ours in zip(x.flatten(1), errors(observer, x, levels), strict=True):
        low, high = channel.min().reshape(1), channel.max().reshape(1)
        if observer.symmetric:
            high = torch.maximum(-low, high)
            low = -high
        best = min(
            squared_error(channel.double(), observer._qparams(low * f, high * f), *levels)
            for f in torch.linspace(0.001, 1.05, 2000)
        )
        assert ours <= 1.04 * best


@both_schemes
def test_error_is_below_that_of_minimum_and_maximum(kwargs: dict[str, Any]) -> None:
    x = weight()
    for levels, ratio_with_an_outlier in (((-128, 127), 0.99), ((-8, 7), 0.8)):
        own_range: dict[str, Any] = {"quant_min": levels[0], "quant_max": levels[1]}
        mse = PerChannelMSEObserver(**kwargs, **own_range)
        min_max = PerChannelMinMaxObserver(**kwargs, **own_range)
        mse(x), min_max(x)
        ours, theirs = (torch.tensor(errors(each, x, levels)) for each in (mse, min_max))
        assert (ours <= theirs).all()
        assert ours[1] < ratio_with_an_outlier * theirs[1]
        if levels == (-128, 127):  # the two values of the last channel can lie on the grid
            assert ours[4] < 0.1 * theirs[4]


def test_a_channel_does_not_depend_on_the_others() -> None:
    """Also where a weight is searched in parts: 8 channels of 40,000 values are."""
    x = randn(8, 40_000) * torch.logspace(0, 3, 8).unsqueeze(1)
    whole = PerChannelMSEObserver(**SYMMETRIC)
    whole(x)
    for index, scale in enumerate(whole.calculate_qparams()[0]):
        one = PerChannelMSEObserver(**SYMMETRIC)
        one(x[index : index + 1])
        assert one.calculate_qparams()[0].item() == scale.item()


def test_channels_of_zeros_and_of_huge_values_have_finite_scales() -> None:
    x = torch.stack([torch.zeros(4), torch.full((4,), 3e38), torch.full((4,), 1e-30)])
    for kwargs in (SYMMETRIC, AFFINE):
        observer = PerChannelMSEObserver(**kwargs)
        observer(x)
        scale, _ = observer.calculate_qparams()
        assert scale[0] == scale[2] == observer.eps
        assert 0 < scale[1] < 3.4e38


def test_as_weight_observer_of_a_qconfig() -> None:
    """The converted model has the scales that the observer chooses.

    Neighbours of opposite signs cannot overflow 16 bits, so that no scale has to be enlarged.
    """
    signs = torch.tensor([1.0, -1.0]).repeat(200)
    module = torch.nn.Linear(400, 5).eval()
    with torch.no_grad():
        module.weight.copy_(weight().flatten(1).abs() * signs)
    own = jitquant.QConfig(
        activation=jitquant.default_qconfig.activation,
        weight=PerChannelMSEObserver.with_args(**SYMMETRIC),
    )
    x = sample(2, 400)
    debug = jitquant.quantize_jit(
        torch.jit.script(module), {"": own}, lambda prepared: prepared(x), debug="exact"
    )
    observer = PerChannelMSEObserver(**SYMMETRIC)
    observer(module.weight)
    assert torch.equal(debug.weight_scale, observer.calculate_qparams()[0])

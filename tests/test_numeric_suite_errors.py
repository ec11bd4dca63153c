"""numeric_suite: sums of errors, exact on tensors made by hand."""

import math
from typing import Any

import pytest
import torch

from jitquant import JitQuantTypeError, JitQuantValueError
from jitquant.numeric_suite import sqnr
from jitquant.numeric_suite.errors import ErrorSum


def test_sums_over_batches() -> None:
    """Signal 9 + 16, error 0.25; one batch would give the same."""
    errors = ErrorSum(axis=None)
    errors.add(torch.tensor([3.0]), torch.tensor([3.0]))
    errors.add(torch.tensor([4.0]), torch.tensor([4.5]))
    result = errors.errors()
    assert result.count == 2
    assert result.sqnr == pytest.approx(20.0)
    assert result.channel_sqnr == result.sqnr
    assert result.max_abs_error == 0.5
    assert result.mean_abs_error == 0.25
    assert result.cosine == pytest.approx(27 / 5 / math.sqrt(29.25))
    assert sqnr(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])) == pytest.approx(20.0)


def test_a_loud_channel_hides_nothing_in_the_mean_over_channels() -> None:
    """Channel 0 has 40 dB, channel 1 lost all of its signal, channel 2 is silent in both."""
    errors = ErrorSum(axis=1)
    errors.add(torch.tensor([[1000.0, 1.0, 0.0]]), torch.tensor([[1010.0, 0.0, 0.0]]))
    result = errors.errors(per_channel=True)
    assert result.sqnr == pytest.approx(40.0, abs=0.1)
    assert result.channel_sqnr == pytest.approx(20.0)
    assert result.damage == -result.channel_sqnr
    assert [each.sqnr for each in result.channels] == [pytest.approx(40.0), 0.0, math.inf]
    assert [each.largest for each in result.channels] == [1000.0, 1.0, 0.0]
    assert errors.errors().channels == ()


def test_equal_values_and_silent_ones() -> None:
    equal = ErrorSum(axis=None)
    equal.add(torch.ones(2), torch.ones(2))
    assert equal.errors().sqnr == math.inf
    assert equal.errors().cosine == pytest.approx(1.0)
    silent = ErrorSum(axis=None)
    silent.add(torch.zeros(2), torch.ones(2))
    assert (silent.errors().sqnr, silent.errors().cosine) == (-math.inf, 0.0)
    wrong = ErrorSum(axis=None)
    wrong.add(torch.ones(1), torch.tensor([math.nan]))
    assert math.isnan(wrong.errors().sqnr) and wrong.errors().damage == math.inf


def test_infinite_float_values_are_left_out_and_counted() -> None:
    errors = ErrorSum(axis=None)
    errors.add(torch.tensor([-math.inf, 2.0]), torch.tensor([-8.0, 1.0]))
    result = errors.errors()
    assert (result.count, result.not_finite, result.max_abs_error) == (1, 1, 1.0)


def test_another_number_of_channels_makes_it_one_value() -> None:
    errors = ErrorSum(axis=1)
    errors.add(torch.ones(1, 2), torch.zeros(1, 2))
    errors.add(torch.ones(1, 3), torch.zeros(1, 3))
    assert errors.errors(per_channel=True).channels == ()
    assert (errors.errors().count, errors.errors().sqnr) == (5, 0.0)


def test_where_nothing_is_finite_nothing_is_said() -> None:
    errors = ErrorSum(axis=None)
    errors.add(torch.full((3,), math.nan), torch.zeros(3))
    result = errors.errors()
    assert (result.count, result.not_finite) == (0, 3)
    values = (result.sqnr, result.channel_sqnr, result.max_abs_error, result.cosine)
    assert all(map(math.isnan, values))
    assert result.damage == math.inf


@pytest.mark.parametrize(
    ("expected", "actual", "error", "message"),
    [
        (torch.ones(3, 1), torch.ones(1, 3), JitQuantValueError, r"\(3, 1\) and \(1, 3\)"),
        ([1.0], torch.ones(1), JitQuantTypeError, "two tensors, got list and Tensor"),
    ],
)
def test_sqnr_takes_tensors_of_one_shape(
    expected: Any, actual: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        sqnr(expected, actual)

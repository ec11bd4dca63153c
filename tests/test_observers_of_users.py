"""Observers that users write: what they need, and what is said of their mistakes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jitquant
from jitquant.observers import Observer
from tests.models import PlainNet

WEIGHT = jitquant.default_qconfig.weight


class Largest(Observer):
    """The largest magnitude, without what merging needs, and without torch.jit.export."""

    def __init__(self) -> None:
        scheme = torch.per_tensor_affine
        super().__init__(torch.quint8, scheme, False, None, None, 1e-7, -1, (scheme,))
        self.largest = 0.0

    def _observe(self, x: Tensor) -> None:
        self.largest = max(self.largest, float(x.abs().max()))

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        return self._qparams(torch.tensor([-self.largest]), torch.tensor([self.largest]))

    def reset(self) -> None:
        self._forget()
        self.largest = 0.0


class NegativeScale(Largest):
    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        return torch.tensor([-0.5]), torch.tensor([0])


class NanScale(Largest):
    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        return torch.tensor([float("nan")]), torch.tensor([0])


class ZeroPointTooLarge(Largest):
    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        return torch.tensor([0.5]), torch.tensor([300])


class TwoScales(Largest):
    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        return torch.tensor([0.5, 0.5]), torch.tensor([0, 0])


class TwoZeroPoints(Largest):
    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        return torch.tensor([0.5]), torch.tensor([0, 0])


class Numbers(Largest):
    def calculate_qparams(self) -> tuple[float, int]:  # type: ignore[override]
        return 0.5, 0


def _data(count: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 8, 8, generator=generator) for _ in range(count)]


def _prepared(observer: Callable[[], nn.Module]) -> torch.jit.ScriptModule:
    torch.manual_seed(0)
    model = torch.jit.script(PlainNet().eval())
    return jitquant.prepare_jit(model, {"": jitquant.QConfig(observer, WEIGHT)})


def _largest(prepared: torch.jit.ScriptModule) -> list[float]:
    children: Any = prepared.children()
    return [child.largest for child in children if child.original_name == "Largest"]


def test_calibrate_needs_no_merging() -> None:
    prepared = _prepared(Largest)
    jitquant.calibrate(prepared, _data(), progress=False)
    assert not jitquant.coverage(jitquant.convert_jit(prepared)).float


def test_after_an_error_it_holds_what_it_held() -> None:
    prepared = _prepared(Largest)
    jitquant.calibrate(prepared, _data(), progress=False)
    before = _largest(prepared)
    with pytest.raises(RuntimeError):
        jitquant.calibrate(prepared, [100 * _data()[0], torch.ones(1, 4, 8, 8)], progress=False)
    assert _largest(prepared) == before and min(before) > 0
    jitquant.calibrate(prepared, [100 * _data()[0]], progress=False)
    assert max(_largest(prepared)) > 10 * max(before)


def test_what_cannot_be_merged_says_so() -> None:
    prepared = _prepared(Largest)
    jitquant.calibrate(prepared, _data(), progress=False)
    message = r"the observers \(Largest\) cannot be merged: one of them does not"
    with pytest.raises(jitquant.JitQuantTypeError, match=message):
        jitquant.merge_calibration([prepared, prepared])


@pytest.mark.parametrize(
    ("observer", "given"),
    [
        (NegativeScale, "the scale -0.5"),
        (NanScale, "the scale nan"),
        (ZeroPointTooLarge, r"the zero point 300, outside of \[0, 255\]"),
        (TwoScales, "2 scales, and quantizes per tensor"),
        (TwoZeroPoints, "1 scales and 2 zero points"),
        (Numbers, r"Tuple\[float, int\]"),
    ],
)
def test_qparams_that_are_none(observer: type[Observer], given: str) -> None:
    prepared = _prepared(observer)
    jitquant.calibrate(prepared, _data(), progress=False)
    message = f"calculate_qparams of the observer {observer.__name__} gave {given}"
    with pytest.raises(jitquant.JitQuantError, match=message):
        jitquant.convert_jit(prepared)

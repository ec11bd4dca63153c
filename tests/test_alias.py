"""Which ops stay float because the graph writes their memory in place, and which need not."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jitquant
from tests.models import scripted, sqnr

IN_PLACE = "aten::mul_ in the top module writes its memory in place"


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1)
        self.last = nn.Conv2d(3, 3, 1)
        self.seen = 0


class KeepsInDict(Base):
    """Writes a copy of the input, sets an attribute and hands values on in a dict."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        batch = torch.zeros_like(x)
        batch[0].copy_(x[0])
        kept = {"x": self.first(x + batch).relu_()}
        y: Tensor = self.last(kept["x"])
        return y


class WritesWhatADictHolds(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        kept = {"x": x}
        if x.size(0) > 0:
            kept["y"] = y
        kept["y"].mul_(2.0)
        z: Tensor = self.last(y) + y
        return z


class WritesInALoop(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        total = torch.zeros_like(x)
        for _ in range(2):
            total = total + self.last(y)
            y.mul_(2.0)
        return total


class ExtendsAList(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        values = [x]
        more = [y]
        if x.size(0) > 0:
            values.extend(more)
        values[-1].mul_(2.0)
        z: Tensor = self.last(y)
        return z


def convert(model: nn.Module, x: Tensor) -> tuple[torch.jit.ScriptModule, list[str]]:
    """The int8 model, and why its convolutions are float or how they are int8."""
    prepared = jitquant.prepare_jit(scripted(model), {"": jitquant.default_qconfig})
    with torch.no_grad():
        prepared(x.clone())
    int8 = jitquant.convert_jit(prepared)
    return int8, [op.reason for op in jitquant.coverage(int8).ops if op.op == "aten::conv2d"]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_containers_and_attributes_do_not_make_everything_alias(x: Tensor) -> None:
    int8, reasons = convert(KeepsInDict(), x)
    assert reasons == ["quantized::conv2d_relu", "quantized::conv2d"]
    assert sqnr(scripted(KeepsInDict())(x), int8(x)) >= 25.0


@pytest.mark.parametrize(
    ("model", "reasons"),
    [
        (WritesWhatADictHolds, [IN_PLACE, IN_PLACE]),
        (WritesInALoop, [IN_PLACE, IN_PLACE]),
        (ExtendsAList, [IN_PLACE, IN_PLACE]),
    ],
)
def test_write_through_an_alias_is_seen(model: Any, reasons: list[str], x: Tensor) -> None:
    int8, actual = convert(model(), x)
    assert [re.sub(r" \(\S+:\d+\)", "", reason) for reason in actual] == reasons
    assert sqnr(scripted(model())(x.clone()), int8(x.clone())) >= 25.0

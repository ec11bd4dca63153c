"""What goes in and out: tuples, lists, dicts, None, early returns, scripted functions."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tests.graph_shapes import check, script
from tests.models import images


class Convs(nn.Module):
    """Two convolutions for the models below."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(3, 8, 3)
        self.conv2 = nn.Conv2d(8, 4, 3)


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class ReturnsTuple(Convs):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv1(x)
        return y, self.conv2(y)


class ReturnsNamedTuple(Convs):
    def forward(self, x: Tensor) -> Pair:
        y = self.conv1(x)
        return Pair(y, self.conv2(y))


class ReturnsNone(Convs):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.conv2(self.conv1(x)), None


class ReturnsList(Convs):
    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = [self.conv1(x)]
        outputs.append(self.conv2(outputs[0]))
        return outputs


class ReturnsDict(Convs):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.conv1(x)
        outputs = {"first": y}
        outputs["second"] = self.conv2(y)
        return outputs


class ReturnsNested(Convs):
    def forward(self, x: Tensor) -> tuple[list[Tensor], dict[str, tuple[Tensor, int]]]:
        y = self.conv1(x)
        return [y, x], {"second": (self.conv2(y), 3)}


class ReturnsSameTwice(Convs):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv2(self.conv1(x))
        return y, y


@pytest.mark.parametrize(
    "module_class",
    [
        ReturnsTuple,
        ReturnsNamedTuple,
        ReturnsNone,
        ReturnsList,
        ReturnsDict,
        ReturnsNested,
        ReturnsSameTwice,
    ],
)
def test_results(module_class: type[nn.Module]) -> None:
    check(script(module_class()), [(images(),)], int8=["aten::conv2d"] * 2)


class TakesTuple(Convs):
    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        return self.conv2(self.conv1(x[0])) + self.conv2(self.conv1(x[1]))


class TakesNamedTuple(Convs):
    def forward(self, x: Pair) -> Tensor:
        return self.conv2(self.conv1(x.first)) + self.conv2(self.conv1(x.second))


class TakesList(Convs):
    def forward(self, x: list[Tensor]) -> Tensor:
        return self.conv2(self.conv1(x[0])) + self.conv2(self.conv1(x[1]))


class TakesDict(Convs):
    def forward(self, x: dict[str, Tensor]) -> Tensor:
        return self.conv2(self.conv1(x["a"])) + self.conv2(self.conv1(x["b"]))


@pytest.mark.parametrize(
    ("module_class", "value"),
    [
        (TakesTuple, (images(), images(seed=1))),
        (TakesNamedTuple, Pair(images(), images(seed=1))),
        (TakesList, [images(), images(seed=1)]),
        (TakesDict, {"a": images(), "b": images(seed=1)}),
    ],
)
def test_arguments(module_class: type[nn.Module], value: Any) -> None:
    check(script(module_class()), [(value,)], int8=["aten::conv2d"] * 4 + ["aten::add"])


class TakesOptional(Convs):
    def forward(self, x: Tensor, skip: Tensor | None = None, scale: float = 1.0) -> Tensor:
        y = self.conv1(x)
        if skip is not None:
            y = y + skip
        return self.conv2(y) * scale


def test_optional_argument_given_and_left_out() -> None:
    samples = [(images(),), (images(), images(2, 8, 6, 6, seed=1))]
    others = [(images(), None, 2.0), (images(), images(2, 8, 6, 6, seed=1), -0.5)]
    ops = ["aten::conv2d", "aten::add", "aten::conv2d"]
    reasons = [("aten::mul", "its factor is computed at run time")]
    check(script(TakesOptional()), samples, others, int8=ops, float_reasons=reasons)


def test_optional_argument_never_given_stays_float() -> None:
    reasons = [("aten::add", "its branch never ran in calibration, or on empty tensors only")]
    check(
        script(TakesOptional()),
        [(images(),)],
        [(images(), images(2, 8, 6, 6, seed=1))],
        float_reasons=[*reasons, ("aten::mul", "its factor is computed at run time")],
    )


class ReturnsEarly(Convs):
    def forward(self, x: Tensor, short: bool) -> Tensor:
        y = self.conv1(x)
        if short:
            return y
        y = self.conv2(y)
        if y.shape[0] > 2:
            return y * 2
        return y


def test_early_return() -> None:
    samples = [(images(), True), (images(), False), (images(3, 3, 8, 8), False)]
    check(script(ReturnsEarly()), samples, int8=["aten::conv2d", "aten::conv2d", "aten::mul"])


@torch.jit.script
def scaled_sum(x: Tensor, y: Tensor) -> Tensor:
    return torch.relu(x + y) * 0.5


def python_sum(x: Tensor, y: Tensor) -> Tensor:
    return scaled_sum(x, y) + x


class CallsFunctions(Convs):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        return python_sum(y, scaled_sum(y, y))


def test_scripted_functions() -> None:
    ops = ["aten::conv2d"] * 2 + ["aten::add", "aten::relu", "aten::mul"] * 2 + ["aten::add"]
    check(script(CallsFunctions()), [(images(),)], int8=ops)


class TracedNested(Convs):
    def forward(self, x: Tensor) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
        y = self.conv1(x)
        return [y, x], (self.conv2(y), y)


def test_traced_with_nested_results() -> None:
    model: Any = torch.jit.trace(TracedNested().eval(), images(), strict=False)
    check(model, [(images(),)], int8=["aten::conv2d"] * 2)

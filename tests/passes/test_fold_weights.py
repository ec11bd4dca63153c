"""fold_weights: weights that are computed from constants are computed once."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.ir import (
    assert_change,
    assert_same_output,
    before_and_after,
    sample,
    scripted,
    trace_prepare,
    traced,
)

X = sample(3, 4)


class Weights(nn.Module):
    """A forward that differs by subclass."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(6, 4))
        self.b = nn.Parameter(torch.zeros(6))
        self.v = nn.Parameter(torch.zeros(3, 4))


class Chunks(Weights):
    def forward(self, x: Tensor) -> Tensor:
        w1, w2 = self.w.chunk(2)
        b1, b2 = self.b.chunk(2)
        return functional.linear(x, w1, b1) + functional.linear(x, w2 * 2, b2)


@pytest.mark.parametrize("mode", [scripted, lambda model: traced(model, X)])
def test_parts_of_a_parameter(mode: Callable[[nn.Module], torch.jit.ScriptModule]) -> None:
    model = mode(Chunks())
    change = before_and_after("fold_weights", model)
    assert "aten::chunk" in change.before
    assert_change(
        change,
        before=change.before,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::linear(%x, self.w_folded, self.b_folded)
              %1 : Tensor = aten::linear(%x, self.w_folded_1, self.b_folded_1)
              %2 : Tensor = aten::add(%0, %1, 1)
              return (%2)
        """,
    )
    assert_same_output(change.model, model, X)
    w = model.w
    assert isinstance(w, Tensor)
    folded = change.model.w_folded_1
    assert isinstance(folded, Tensor) and torch.equal(folded, w[3:] * 2)


class WeightNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 6, 3))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


def test_weight_norm() -> None:
    x = sample(2, 4, 8)
    model = traced(WeightNorm(), x)
    change = before_and_after("fold_weights", model)
    assert "aten::_weight_norm" in change.before and "aten::_weight_norm" not in change.after
    assert_same_output(change.model, model, x)


class Random(Weights):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, torch.rand_like(self.v), self.b[:3])


class OfInput(Weights):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.v * x.sum())


class Written(Weights):
    def forward(self, x: Tensor) -> Tensor:
        v = self.v * 1
        row = v[0]
        y = functional.linear(x, v)
        v += x
        return y + functional.linear(x, v) + row.sum()


class State(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("v", torch.zeros(3, 4))
        self.v: Tensor

    def forward(self, x: Tensor) -> Tensor:
        y = functional.linear(x, self.v + 1)
        self.v = self.v + x
        return y


@pytest.mark.parametrize("module", [OfInput(), Written(), State()])
def test_weights_that_change_stay(module: nn.Module) -> None:
    model = scripted(module)
    change = before_and_after("fold_weights", model)
    assert change.after == change.before
    for _ in range(2):
        assert_same_output(change.model, model, X)


def test_random_weights_stay() -> None:
    text = trace_prepare(scripted(Random())).text("fold_weights")
    assert "aten::rand_like" in text and "v_folded" not in text and "b_folded" in text


class Transposed(Weights):
    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(x, self.w.t())


def test_transposed_matrices_are_left_to_canonicalize_linear() -> None:
    change = before_and_after("fold_weights", scripted(Transposed()))
    assert change.after == change.before


class PartlyZero(Weights):
    """As torchvision's Swin V2 does: a copy of the bias, the second third of which is set to zero."""

    def forward(self, x: Tensor) -> Tensor:
        b = self.b.clone()
        third = b.numel() // 3
        b[third : 2 * third].zero_()
        return functional.linear(x, self.w, b)


@pytest.mark.parametrize("mode", [scripted, lambda model: traced(model, X)])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_constant_that_is_written_in_part(
    mode: Callable[[nn.Module], torch.jit.ScriptModule],
) -> None:
    model = mode(PartlyZero())
    change = before_and_after("fold_weights", model)
    assert "aten::zero_" in change.before
    assert_change(
        change,
        before=change.before,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::linear(%x, self.w, self.b_folded)
              return (%0)
        """,
    )
    b, folded = model.b, change.model.b_folded
    assert isinstance(b, Tensor) and isinstance(folded, Tensor)
    assert torch.equal(folded, torch.cat([b[:2], torch.zeros(2), b[4:]]))
    assert_same_output(change.model, model, X)


class WrittenBetween(Weights):
    """The first layer reads what the second no longer does, and the sum reads the last value."""

    def forward(self, x: Tensor) -> Tensor:
        b = self.b.clone()
        b[0].fill_(3.0)
        y = functional.linear(x, self.w, b)
        b[1:].mul_(2.0)
        return y + functional.linear(x, self.w, b) + b


def test_value_at_the_time_of_each_reader() -> None:
    model = scripted(WrittenBetween())
    change = before_and_after("fold_weights", model)
    # The first reader keeps its own, since a write follows.
    assert change.after.count("b_folded") == 1
    assert_same_output(change.model, model, X)


class WrittenByInput(Weights):
    def forward(self, x: Tensor) -> Tensor:
        b = self.b.clone()
        b[: x.size(0)].zero_()
        return functional.linear(x, self.w, b)


class WrittenWithInput(Weights):
    def forward(self, x: Tensor) -> Tensor:
        b = self.b.clone()
        b[:3].copy_(x.sum(1))
        return functional.linear(x, self.w, b)


class WrittenSometimes(Weights):
    def forward(self, x: Tensor) -> Tensor:
        b = self.b.clone()
        if x.sum() > 0:
            b.zero_()
        return functional.linear(x, self.w, b)


class Resized(Weights):
    def forward(self, x: Tensor) -> Tensor:
        b = self.b.clone()
        first = b[:1]
        half = b.numel() // 2
        b.unsqueeze_(0)
        return functional.linear(x, self.w, b.squeeze(0) * half) + first


@pytest.mark.parametrize(
    "module", [WrittenByInput(), WrittenWithInput(), WrittenSometimes(), Resized()]
)
def test_constant_with_other_writes_stays(module: nn.Module) -> None:
    model = scripted(module)
    change = before_and_after("fold_weights", model)
    assert change.after == change.before
    for x in (X, -X, X[:2] if isinstance(module, WrittenByInput) else X):
        assert_same_output(change.model, model, x)

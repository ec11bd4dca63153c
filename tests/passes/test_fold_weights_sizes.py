"""fold_weights, of weights that are cut by a size which can be one number only."""

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
    traced,
)

X = sample(3, 4)


class Weights(nn.Module):
    """Three square matrices in one; a forward that differs by subclass."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(12, 4))
        self.b = nn.Parameter(torch.zeros(12))


class Split(Weights):
    """As torch.nn does for cross-attention."""

    def forward(self, x: Tensor) -> Tensor:
        size = x.size(-1)
        w1, w2 = self.w.split([size, size * 2])
        b1, _ = self.b.split([size, size * 2])
        return functional.linear(x, w1, b1).sum() + functional.linear(x, w2)


class Sliced(Weights):
    """As torch.nn did before."""

    def forward(self, x: Tensor) -> Tensor:
        _, size = x.size()
        w1, w2 = self.w[:size, :], self.w[size:, :]
        return functional.linear(x, w1, self.b[:size]).sum() + functional.linear(x, w2)


class Indexed(Weights):
    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-1]
        w1, w2 = self.w.narrow(0, 0, size), self.w.narrow(0, size, 2 * size)
        b1 = self.b.narrow(0, 0, size)
        return functional.linear(x, w1, b1).sum() + functional.linear(x, w2)


@pytest.mark.parametrize("module", [Split(), Sliced(), Indexed()])
def test_the_layer_that_reads_the_weight_knows_its_size(module: nn.Module) -> None:
    model = scripted(module)
    change = before_and_after("fold_weights", model)
    assert_change(
        change,
        before=change.before,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::linear(%x, self.w_folded, self.b_folded)
              %1 : Tensor = aten::sum(%0, None)
              %2 : Tensor = aten::linear(%x, self.w_folded_1, None)
              %3 : Tensor = aten::add(%1, %2, 1)
              return (%3)
        """,
    )
    assert_same_output(change.model, model, X)
    with pytest.raises(RuntimeError):
        change.model(sample(3, 3))


def test_traced() -> None:
    model = traced(Split(), X)
    change = before_and_after("fold_weights", model)
    assert "aten::split" in change.before and "aten::split" not in change.after
    assert_same_output(change.model, model, X)


class OtherDimension(Weights):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.w[: x.size(0)])


class OtherTensor(Weights):
    def forward(self, x: Tensor) -> Tensor:
        y = functional.linear(x, self.w)
        return functional.linear(x, self.w[: y[:, :5].size(-1)])


class LayerElsewhere(Weights):
    """The layer that would know the size does not run in the branch that reads it."""

    def forward(self, x: Tensor) -> Tensor:
        if x.size(0) == 3:
            y = functional.linear(x, self.w)
        else:
            y = functional.linear(x[:, :4], self.w[: x.size(-1)])
        return y


class CutColumns(Weights):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.w[:, : x.size(-1)])


UNKNOWN: list[tuple[Callable[[], nn.Module], Tensor]] = [
    (OtherDimension, sample(2, 4)),
    (OtherTensor, X),
    (LayerElsewhere, sample(2, 7)),
    (CutColumns, sample(3, 2)),
]


@pytest.mark.parametrize(("module", "x"), UNKNOWN)
def test_sizes_that_can_differ_stay(module: Callable[[], nn.Module], x: Tensor) -> None:
    model = scripted(module())
    change = before_and_after("fold_weights", model)
    assert change.after == change.before
    assert_same_output(change.model, model, X)
    assert_same_output(change.model, model, x)


class Within(Weights):
    """The layer runs before the branch does."""

    def forward(self, x: Tensor) -> Tensor:
        y = functional.linear(x, self.w).sum()
        if x.size(0) == 3:
            y = y + functional.linear(x, self.w[: x.size(-1)])
        return y


def test_what_is_known_outside_of_a_branch_is_known_in_it() -> None:
    model = scripted(Within())
    change = before_and_after("fold_weights", model)
    assert "aten::slice" in change.before and "aten::slice" not in change.after
    assert_same_output(change.model, model, X)

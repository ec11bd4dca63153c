"""keep_state: a prepared model remembers the state that its methods change."""

import torch
from torch import Tensor, nn

from tests.ir import sample, scripted, trace_prepare

X = sample(2)


class Counts(nn.Module):
    count: int
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.total = torch.zeros(2)
        self.unchanged = 3

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.total.add_(x)
        return x * self.count + self.total * self.unchanged


def test_what_a_method_sets_or_writes_is_kept_beside() -> None:
    prepared = trace_prepare(scripted(Counts())).model
    prepared(X)
    assert prepared.jitquant_initial_paths == ["count", "total"]
    count, total = prepared.jitquant_initial_state
    assert (count, prepared.count) == (0, 1)
    assert not total.any() and torch.equal(prepared.total, X)


def test_model_without_state_gets_no_attributes() -> None:
    prepared = trace_prepare(scripted(nn.Linear(2, 2))).model
    assert not prepared._c.hasattr("jitquant_initial_paths")

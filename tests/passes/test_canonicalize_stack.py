"""canonicalize_stack: a stack becomes a concatenation, which has an int8 form."""

import torch
from torch import Tensor, nn

from tests.ir import (
    assert_change,
    assert_same_output,
    assert_unchanged,
    before_and_after,
    reasons,
    sample,
    scripted,
)

PASS = "canonicalize_stack"


class Stack(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([x, y], -1)


def test_stack_becomes_cat() -> None:
    model = scripted(Stack())
    change = before_and_after(PASS, model)
    assert_change(
        change,
        """
            graph(self, %x : Tensor, %y : Tensor):
              %0 : Tensor[] = prim::ListConstruct(%x, %y)
              %1 : Tensor = aten::stack(%0, -1)
              return (%1)
        """,
        """
            graph(self, %x : Tensor, %y : Tensor):
              %0 : Tensor = aten::unsqueeze(%x, -1)
              %1 : Tensor = aten::unsqueeze(%y, -1)
              %2 : Tensor[] = prim::ListConstruct(%0, %1)
              %3 : Tensor = aten::cat(%2, -1)
              return (%3)
        """,
    )
    assert_same_output(change.model, model, sample(4, 3), sample(4, 3))


def test_tensors_without_dimensions() -> None:
    model = scripted(Stack())
    change = before_and_after(PASS, model)
    assert_same_output(change.model, model, torch.tensor(1.0), torch.tensor(2.0))


class Grown(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        parts = [x]
        parts.append(y)
        return torch.stack(parts)


def test_list_that_grows() -> None:
    """functionalize makes one list of it."""
    change = before_and_after(PASS, scripted(Grown()))
    assert "aten::stack" not in change.after
    assert "aten::append" not in change.before
    assert_same_output(change.model, scripted(Grown()), sample(4, 3), sample(4, 3))


class Given(nn.Module):
    def forward(self, parts: list[Tensor]) -> Tensor:
        return torch.stack(parts)


def test_leaves_a_list_of_run_time_and_says_so() -> None:
    change = before_and_after(PASS, scripted(Given()))
    assert_unchanged(
        change,
        """
            graph(self, %parts : Tensor[]):
              %0 : Tensor = aten::stack(%parts, 0)
              return (%0)
        """,
    )
    reason = "its list is built at run time, or has another user"
    assert reasons(change.model) == [("aten::stack", reason)]


class Shared(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        parts = [x, y]
        return torch.stack(parts), parts


def test_leaves_a_list_with_another_user() -> None:
    change = before_and_after(PASS, scripted(Shared()))
    assert change.after == change.before
    assert "aten::stack" in change.after

"""record_arguments: what the first call of forward gets besides tensors is kept."""

import torch
from torch import Tensor, nn

from tests.ir import assert_change, before_and_after, sample, scripted


class Times(nn.Module):
    def forward(self, x: Tensor, factor: float, offsets: list[Tensor]) -> Tensor:
        return x * factor + offsets[0]


class TensorsOnly(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * y


def test_arguments_that_are_no_tensors_are_kept() -> None:
    model = scripted(Times())
    change = before_and_after("record_arguments", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor, %factor : float, %offsets : Tensor[]):
              %0 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_3, %x)
              %1 : Tensor = aten::mul(%0, %factor)
              %2 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_0, %1)
              %3 : Tensor = aten::__getitem__(%offsets, 0)
              %4 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_1, %3)
              %5 : Tensor = aten::add(%2, %4, 1)
              %6 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_2, %5)
              return (%6)
        """,
        after="""
            graph(self, %x : Tensor, %factor : float, %offsets : Tensor[]):
              %0 : NoneType = prim::CallMethod[name="forward"](self.jitquant_observer_arguments, %factor, %offsets)
              %1 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_3, %x)
              %2 : Tensor = aten::mul(%1, %factor)
              %3 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_0, %2)
              %4 : Tensor = aten::__getitem__(%offsets, 0)
              %5 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_1, %4)
              %6 : Tensor = aten::add(%3, %5, 1)
              %7 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_2, %6)
              return (%7)
        """,
    )
    inputs = (sample(1, 2), 2.0, [sample(1, 2)])
    assert torch.equal(change.model(*inputs), model(*inputs))
    factor, (offset,) = change.model.jitquant_observer_arguments.seen
    assert factor == 2.0
    assert torch.equal(offset, torch.zeros(1, 2))


def test_tensors_have_observers_of_their_own() -> None:
    change = before_and_after("record_arguments", scripted(TensorsOnly()))
    assert change.after == change.before

"""_checks.as_model: C++ modules look in Python as torch's own function makes them look."""

from typing import Any

import torch
from torch import Tensor, nn

import jitquant
from jitquant._checks import as_model
from tests.ir import sample, scripted
from tests.models import Around, Scaler


class Hooked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        self.part.register_forward_hook(double)
        self.part.register_forward_pre_hook(negated)
        self.scaler = Scaler(2.0)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.scaler.apply(self.part(x))
        return y


def double(self: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return output * 2


def negated(self: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0].neg(),)


def test_modules_hooks_and_types_are_those_of_torch() -> None:
    module = scripted(Hooked())._c
    ours: Any = as_model(module)
    theirs: Any = torch.jit._recursive.wrap_cpp_module(module)
    assert [name for name, _ in ours.named_modules()] == [n for n, _ in theirs.named_modules()]
    for mine, other in zip(ours.modules(), theirs.modules(), strict=True):
        assert type(mine) is type(other)
        assert len(mine._forward_hooks) == len(other._forward_hooks)
        assert len(mine._forward_pre_hooks) == len(other._forward_pre_hooks)
        assert mine._concrete_type.jit_type == other._concrete_type.jit_type
        assert mine.original_name == other.original_name
    assert len(ours.part._forward_hooks) == len(ours.part._forward_pre_hooks) == 1
    x = sample(1, 2)
    assert ours(x).equal(theirs(x))


def test_a_prepared_model_and_a_part_of_it_can_be_scripted_into_another() -> None:
    model = scripted(nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.ReLU()))
    prepared = jitquant.prepare_jit(model, {"": jitquant.get_default_qconfig()})
    x = sample(1, 2)
    assert torch.jit.script(Around(prepared))(x).equal(prepared(x) + 1)
    part = prepared.jitquant_observer_0
    assert torch.jit.script(Around(part))(x).equal(x + 1)

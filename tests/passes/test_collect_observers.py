"""collect_observers: takes the observers out of a calibrated graph and keeps what they saw."""

import re

import pytest
import torch
from torch import Tensor, nn

from jitquant import JitQuantError, convert_jit, default_qconfig, prepare_jit
from tests.ir import assert_change, before_and_after, reasons, sample, scripted


class Wrap(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y


def test_observers_go() -> None:
    change = before_and_after("collect_observers", scripted(Wrap()), sample(1, 2))
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_0, %x)
              %1 : Tensor = aten::linear(%0, self.body.0.weight, self.body.0.bias)
              %2 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_1, %1)
              return (%2)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::linear(%x, self.body.0.weight, self.body.0.bias)
              return (%0)
        """,
    )


def test_recorder_of_shapes_goes() -> None:
    class Floats(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.neg()

    change = before_and_after("collect_observers", scripted(Floats()), sample(1, 2))
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_0, %x)
              %1 : Tensor = aten::neg(%0)
              return (%1)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::neg(%x)
              return (%0)
        """,
    )


def test_without_tensors_only_the_record_of_arguments_goes() -> None:
    class Numbers(nn.Module):
        def forward(self, x: int) -> int:
            return x + 1

    change = before_and_after("collect_observers", scripted(Numbers()), 1)
    assert_change(
        change,
        before="""
            graph(self, %x : int):
              %0 : NoneType = prim::CallMethod[name="forward"](self.jitquant_observer_arguments, %x)
              %1 : int = aten::add(%x, 1)
              return (%1)
        """,
        after="""
            graph(self, %x : int):
              %0 : int = aten::add(%x, 1)
              return (%0)
        """,
    )


def test_uncalibrated_model_is_refused() -> None:
    prepared = prepare_jit(scripted(Wrap()), {"": default_qconfig})
    with pytest.raises(JitQuantError, match=r"^the prepared model was not calibrated: no observer"):
        convert_jit(prepared)


class TwoMethods(Wrap):
    @torch.jit.export
    def halve(self, x: Tensor) -> Tensor:
        return self.forward(x * 0.5)


def test_observer_without_data_is_refused_by_name() -> None:
    prepared = prepare_jit(scripted(TwoMethods()), {"": default_qconfig})
    prepared(sample(1, 2))
    convert_jit(prepared)
    with pytest.raises(JitQuantError, match=r"^the observer of the input 'x' of halve saw no data"):
        convert_jit(prepared, preserved_attrs=["halve"])


@pytest.mark.parametrize(
    ("value", "what"), [(float("nan"), "NaN"), (float("inf"), "an infinite value")]
)
def test_values_that_are_not_finite_are_refused_by_place(value: float, what: str) -> None:
    prepared = prepare_jit(scripted(Wrap()), {"": default_qconfig})
    prepared(torch.tensor([[1.0, value]]))
    with pytest.raises(
        JitQuantError, match=re.escape(f"calibration saw {what} in the input 'x' of forward.")
    ):
        convert_jit(prepared)


def test_output_is_named_by_module_and_line() -> None:
    model = scripted(Wrap())
    model.body[0].bias.data[0] = float("inf")
    prepared = prepare_jit(model, {"": default_qconfig})
    prepared(torch.ones(1, 2))
    message = (
        r"an infinite value in the output of aten::linear in 'body\.0' "
        r"\(test_collect_observers\.py:\d+\)\."
    )
    with pytest.raises(JitQuantError, match=message):
        convert_jit(prepared)


class Integers(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x


def test_dtype_that_calibration_saw_becomes_the_reason() -> None:
    prepared = prepare_jit(scripted(Integers()), {"": default_qconfig})
    prepared(torch.ones(2, dtype=torch.float64))
    converted = convert_jit(prepared)
    assert reasons(converted) == [("aten::add", "its input 'x' is Double, not float32")]


def test_a_scale_that_a_file_would_hold_as_an_integer() -> None:
    """2.7e11: TorchScript writes it without a point."""
    model = scripted(Wrap())
    model.body[0].bias.data[0] = 7e13
    prepared = prepare_jit(model, {"": default_qconfig})
    prepared(torch.ones(1, 2))
    message = (
        r"the values of the output of aten::linear in 'body\.0' \(test_collect_observers\.py:\d+\) "
        r"span between 1\.1e\+12 and 2\.6e\+19, and a TorchScript file cannot keep a scale of that"
    )
    with pytest.raises(JitQuantError, match=message):
        convert_jit(prepared)

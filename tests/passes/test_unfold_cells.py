"""unfold_cells: a cell with a dynamic qconfig becomes its linear layers and what is between them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jitquant import QConfig, default_dynamic_qconfig, float16_dynamic_qconfig
from tests.ir import (
    FIXED,
    Change,
    assert_change,
    assert_same_output,
    assert_unchanged,
    before_and_after,
    sample,
    scripted,
)

X, H, C = sample(2, 3), sample(2, 4), sample(2, 4) * 2
INT8 = QConfig(default_dynamic_qconfig.activation, FIXED.weight)


class Weights(nn.Module):
    def __init__(self, gates: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(gates * 4, 3))
        self.u = nn.Parameter(torch.empty(gates * 4, 4))
        self.b = nn.Parameter(torch.empty(gates * 4))
        self.d = nn.Parameter(torch.empty(gates * 4))


class Lstm(Weights):
    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return torch.lstm_cell(x, [h, c], self.w, self.u, self.b, self.d)


class Gru(Weights):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.gru_cell(x, h, self.w, self.u, self.b, self.d)


class Tanh(Weights):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.rnn_tanh_cell(x, h, self.w, self.u, self.b, self.d)


class Relu(Weights):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.rnn_relu_cell(x, h, self.w, self.u)


def change(module: nn.Module, qconfig: Any = INT8, *inputs: Tensor) -> Change:
    is_dynamic = qconfig in (INT8, float16_dynamic_qconfig)
    return before_and_after(
        "unfold_cells",
        scripted(module),
        qconfig_dict={"": qconfig},
        function="prepare_dynamic_jit" if is_dynamic else "prepare_jit",
    )


def test_lstm() -> None:
    assert_change(
        change(Lstm(4)),
        """
            graph(self, %x : Tensor, %h : Tensor, %c : Tensor):
              %0 : Tensor[] = prim::ListConstruct(%h, %c)
              %1 : Tensor, %2 : Tensor = aten::lstm_cell(%x, %0, self.w, self.u, self.b, self.d)
              %3 : (Tensor, Tensor) = prim::TupleConstruct(%1, %2)
              return (%3)
        """,
        """
            graph(self, %x : Tensor, %h : Tensor, %c : Tensor):
              %0 : Tensor[] = prim::ListConstruct(%h, %c)
              %1 : Tensor = aten::linear(%x, self.w, self.b)
              %2 : Tensor = aten::linear(%h, self.u, self.d)
              %3 : Tensor = aten::add(%2, %1, 1)
              %4 : Tensor[] = aten::chunk(%3, 4, 1)
              %5 : Tensor, %6 : Tensor, %7 : Tensor, %8 : Tensor = prim::ListUnpack(%4)
              %9 : Tensor = aten::sigmoid(%5)
              %10 : Tensor = aten::sigmoid(%6)
              %11 : Tensor = aten::tanh(%7)
              %12 : Tensor = aten::sigmoid(%8)
              %13 : Tensor = aten::mul(%10, %c)
              %14 : Tensor = aten::mul(%9, %11)
              %15 : Tensor = aten::add(%13, %14, 1)
              %16 : Tensor = aten::tanh(%15)
              %17 : Tensor = aten::mul(%12, %16)
              %18 : (Tensor, Tensor) = prim::TupleConstruct(%17, %15)
              return (%18)
        """,
    )


def test_gru() -> None:
    assert_change(
        change(Gru(3)),
        """
            graph(self, %x : Tensor, %h : Tensor):
              %0 : Tensor = aten::gru_cell(%x, %h, self.w, self.u, self.b, self.d)
              return (%0)
        """,
        """
            graph(self, %x : Tensor, %h : Tensor):
              %0 : Tensor = aten::linear(%x, self.w, self.b)
              %1 : Tensor[] = aten::chunk(%0, 3, 1)
              %2 : Tensor, %3 : Tensor, %4 : Tensor = prim::ListUnpack(%1)
              %5 : Tensor = aten::linear(%h, self.u, self.d)
              %6 : Tensor[] = aten::chunk(%5, 3, 1)
              %7 : Tensor, %8 : Tensor, %9 : Tensor = prim::ListUnpack(%6)
              %10 : Tensor = aten::add(%7, %2, 1)
              %11 : Tensor = aten::sigmoid(%10)
              %12 : Tensor = aten::add(%8, %3, 1)
              %13 : Tensor = aten::sigmoid(%12)
              %14 : Tensor = aten::mul(%9, %11)
              %15 : Tensor = aten::add(%4, %14, 1)
              %16 : Tensor = aten::tanh(%15)
              %17 : Tensor = aten::sub(%h, %16, 1)
              %18 : Tensor = aten::mul(%17, %13)
              %19 : Tensor = aten::add(%18, %16, 1)
              return (%19)
        """,
    )


def test_tanh() -> None:
    assert_change(
        change(Tanh(1)),
        """
            graph(self, %x : Tensor, %h : Tensor):
              %0 : Tensor = aten::rnn_tanh_cell(%x, %h, self.w, self.u, self.b, self.d)
              return (%0)
        """,
        """
            graph(self, %x : Tensor, %h : Tensor):
              %0 : Tensor = aten::linear(%x, self.w, self.b)
              %1 : Tensor = aten::linear(%h, self.u, self.d)
              %2 : Tensor = aten::add(%1, %0, 1)
              %3 : Tensor = aten::tanh(%2)
              return (%3)
        """,
    )


def test_relu_without_bias() -> None:
    assert_change(
        change(Relu(1)),
        """
            graph(self, %x : Tensor, %h : Tensor):
              %0 : Tensor = aten::rnn_relu_cell(%x, %h, self.w, self.u, None, None)
              return (%0)
        """,
        """
            graph(self, %x : Tensor, %h : Tensor):
              %0 : Tensor = aten::linear(%x, self.w, None)
              %1 : Tensor = aten::linear(%h, self.u, None)
              %2 : Tensor = aten::add(%1, %0, 1)
              %3 : Tensor = aten::relu(%2)
              return (%3)
        """,
    )


class States(Weights):
    def forward(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, Tensor]:
        return torch.lstm_cell(x, states, self.w, self.u, self.b, self.d)


def test_states_in_a_list_of_the_caller() -> None:
    text = change(States(4)).after
    assert "aten::__getitem__(%states, 0)" in text and "aten::__getitem__(%states, 1)" in text


@pytest.mark.parametrize(
    ("module", "inputs"),
    [(Lstm(4), (X, H, C)), (Gru(3), (X, H)), (Tanh(1), (X, H)), (Relu(1), (X, H))],
)
def test_same_bits(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    prepared = change(module).model
    assert_same_output(prepared, scripted(module), *inputs, atol=0)


@pytest.mark.parametrize("module", [Lstm(4), Gru(3), Tanh(1), Relu(1)])
def test_static_cells_are_left(module: nn.Module) -> None:
    left = change(module, FIXED)
    assert_unchanged(left, left.before)


@pytest.mark.parametrize("qconfig", [None, "fused float"])
def test_cells_that_are_left_float(qconfig: object) -> None:
    left = before_and_after(
        "unfold_cells",
        scripted(Gru(3)),
        qconfig_dict={"": INT8, "object_type": [("aten::gru_cell", qconfig)]},
        function="prepare_dynamic_jit",
    )
    assert_unchanged(left, left.before)

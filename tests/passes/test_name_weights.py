"""name_weights: an LSTM or GRU reads each of its weights by name, not all of them as one list."""

import pytest
import torch
from torch import Tensor, nn

import jitquant
from tests.ir import (
    assert_change,
    assert_same_output,
    assert_unchanged,
    before_and_after,
    reasons,
    sample,
)
from tests.models import reloaded

X, H = sample(3, 1, 2), torch.zeros(1, 1, 2)


class Weights(nn.Module):
    """As torch.nn.GRU(2, 2, bias=False) holds them."""

    _flat_weights: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.weight_ih_l0 = nn.Parameter(torch.linspace(-1, 1, 12).reshape(6, 2))
        self.weight_hh_l0 = nn.Parameter(torch.linspace(-2, 1, 12).reshape(6, 2))
        self._flat_weights = [self.weight_ih_l0, self.weight_hh_l0]

    def forward(self, x: Tensor) -> Tensor:
        return x


class Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = Weights()

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        y, _ = torch.gru(x, h, self.gru._flat_weights, False, 1, 0.0, False, False, False)
        return y


def script(module: nn.Module) -> torch.jit.ScriptModule:
    model: torch.jit.ScriptModule = torch.jit.script(module.eval())
    return model


BEFORE = """
    graph(self, %x : Tensor, %h : Tensor):
      %0 : Tensor, %1 : Tensor = aten::gru(%x, %h, self.gru._flat_weights, False, 1, 0.0, False, False, False)
      return (%0)
"""


def test_attributes_of_the_module() -> None:
    model = script(Gru())
    change = before_and_after("name_weights", model)
    assert_change(
        change,
        BEFORE,
        """
            graph(self, %x : Tensor, %h : Tensor):
              %0 : Tensor[] = prim::ListConstruct(self.gru.weight_ih_l0, self.gru.weight_hh_l0)
              %1 : Tensor, %2 : Tensor = aten::gru(%x, %h, %0, False, 1, 0.0, False, False, False)
              return (%1)
        """,
    )
    assert not hasattr(change.model.gru, "_flat_weights")
    assert hasattr(model.gru, "_flat_weights")
    assert_same_output(change.model, model, X, H, atol=0)
    assert_same_output(reloaded(change.model), model, X, H, atol=0)


def test_a_frozen_list() -> None:
    """torch.jit.freeze leaves no names."""
    model = torch.jit.freeze(script(Gru()))
    model_text = str(model.graph)
    assert "_flat_weights" in model_text and "GetAttr" not in model_text
    text = before_and_after("name_weights", model).after
    assert "prim::ListConstruct(tensor(" in text
    result = jitquant.quantize_dynamic_jit(model, {"": jitquant.per_channel_dynamic_qconfig})
    assert "aten::quantized_gru(" in str(result.graph)
    assert_same_output(result, model, X, H, atol=0.02)


class Trace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.gru(x)[0]
        return y


def test_traces_have_names_already() -> None:
    model = torch.jit.trace(Trace().eval(), X)
    change = before_and_after("name_weights", model)
    assert "prim::ListConstruct(self.gru.weight_ih_l0, self.gru.weight_hh_l0, " in change.before
    assert_unchanged(change, change.before)


class Assigns(Gru):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        y, _ = torch.gru(x, h, self.gru._flat_weights, False, 1, 0.0, False, False, False)
        self.gru._flat_weights = [y[0], y[1]]
        return y


class Reads(Gru):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        y, _ = torch.gru(x, h, self.gru._flat_weights, False, 1, 0.0, False, False, False)
        y += self.gru._flat_weights[0].sum()
        return y


def test_a_list_that_is_assigned_stays() -> None:
    change = before_and_after("name_weights", script(Assigns()))
    assert change.after == change.before
    assert '_flat_weights"' in change.after
    assert ("aten::gru", "its weights are computed at run time") in reasons(
        before_and_after(
            "name_weights",
            script(Assigns()),
            qconfig_dict={"": jitquant.default_dynamic_qconfig},
            function="prepare_dynamic_jit",
        ).model
    )


def test_a_list_with_another_reader_stays_in_the_module() -> None:
    model = script(Reads())
    change = before_and_after("name_weights", model)
    assert "prim::ListConstruct(self.gru.weight_ih_l0" in change.after
    assert hasattr(change.model.gru, "_flat_weights")
    assert_same_output(change.model, model, X, H, atol=0)


@pytest.mark.parametrize("module", [nn.LSTM(2, 2), nn.GRU(2, 2, num_layers=2, bidirectional=True)])
def test_modules_of_torch(module: nn.Module) -> None:
    model = script(nn.Sequential(module))
    change = before_and_after("name_weights", model)
    assert "_flat_weights" not in change.after
    assert "weight_ih_l0, " in change.after
    with torch.no_grad():
        torch.testing.assert_close(change.model(X), model(X), rtol=0, atol=0)

"""Models that once gave wrong numbers or crashed, each named for what it guards."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import jitquant
from tests.models import sqnr


def quantized(model: nn.Module, *inputs: Tensor) -> tuple[torch.jit.ScriptModule, float]:
    """The int8 model (scripted) and its SQNR against float, in dB."""
    scripted: Any = torch.jit.script(model.eval())
    prepared = jitquant.prepare_jit(scripted, {"": jitquant.default_qconfig})
    with torch.no_grad():
        expected = scripted(*inputs)
        prepared(*inputs)
        converted = jitquant.convert_jit(prepared)
        return converted, float(sqnr(expected, converted(*inputs)))


class ClampsItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x.clamp(-0.5, 0.5))
        return y


def test_clamp_that_nothing_absorbs_does_not_share_a_wide_range() -> None:
    torch.manual_seed(0)
    model, error = quantized(ClampsItsInput(), torch.randn(1, 3, 16, 16) * 50)
    assert error >= 25.0
    (clamp,) = jitquant.coverage(model).float
    assert (clamp.op, clamp.reason) == ("aten::clamp", "no int8 op before it can absorb it")


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x) * self.factor
        return y


@pytest.mark.parametrize("factor", [1e-38, 1e-300, 1e40, 0.0])
def test_factor_that_no_scale_can_hold_stays_float(factor: float) -> None:
    model, _ = quantized(Scaled(factor), torch.randn(1, 3, 8, 8))
    (mul,) = jitquant.coverage(model).float
    assert mul.reason == "its factor is zero, or too small or large for a scale"


def test_weights_below_the_smallest_scale_stay_float() -> None:
    layer = nn.Linear(8, 8, bias=False)
    layer.weight.data *= 1e-9
    model, error = quantized(nn.Sequential(layer), torch.randn(4, 8))
    assert error >= 25.0
    assert jitquant.coverage(model).float[0].reason == "its weights are too small for int8"


def test_activations_below_the_smallest_scale_stay_float() -> None:
    layer = nn.Linear(8, 8, bias=False)
    model, error = quantized(nn.Sequential(layer), torch.randn(4, 8) * 1e-9)
    assert error >= 25.0
    reason = "its input 'input' spanned less than 3.1e-05 in calibration, too little for int8"
    assert jitquant.coverage(model).float[0].reason == reason


class Divides(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return functional.avg_pool2d(self.conv(x), 3, divisor_override=1)


def test_average_with_another_divisor_stays_float() -> None:
    torch.manual_seed(0)
    model, error = quantized(Divides(1.0), torch.randn(1, 3, 16, 16))
    assert error >= 25.0
    assert jitquant.coverage(model).float[0].reason == "its divisor is not the size of its window"


def test_hooks_of_the_top_module_are_refused() -> None:
    def triple(self: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return output * 3

    model = nn.Sequential(nn.Linear(2, 2)).eval()
    model.register_forward_hook(triple)
    with pytest.raises(jitquant.JitQuantError, match="the top module has forward hooks"):
        jitquant.prepare_jit(torch.jit.script(model), {"": jitquant.default_qconfig})


class Switched(nn.Module):
    flag: bool

    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Linear(4, 4)
        self.c2 = nn.Linear(4, 4)
        self.flag = False

    @torch.jit.export
    def enable(self) -> None:
        self.flag = True

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.c1(x) if self.flag else self.c2(x)
        return y


REMOVED = "it was removed: it can never run, or its result is a constant or never read"


def test_ops_removed_at_convert_do_not_shift_the_records() -> None:
    scripted: Any = torch.jit.script(Switched().eval())
    prepared = jitquant.prepare_jit(scripted, {"": jitquant.default_qconfig, "c1": None})
    prepared(torch.randn(3, 4))
    found = {op.module: op for op in jitquant.coverage(jitquant.convert_jit(prepared)).ops}
    assert found["c2"].int8
    assert not found["c1"].int8
    assert found["c1"].reason == REMOVED


class HoldsItsWeight(nn.Module):
    ws: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.ws = [self.layer.weight.detach()]

    def forward(self, x: Tensor) -> Tensor:
        self.ws[0].mul_(-1.0)
        y: Tensor = self.layer(x)
        return y


def test_weight_that_a_list_also_holds_and_writes_stays_tied() -> None:
    model = HoldsItsWeight().eval()
    before = model.layer.weight.detach().clone()
    scripted: Any = torch.jit.script(model)
    prepared = jitquant.prepare_jit(scripted, {"": jitquant.default_qconfig})
    x = torch.randn(3, 4)
    first, second = prepared(x), prepared(x)
    flipped = functional.linear(x, -before, model.layer.bias)
    assert torch.allclose(first, flipped, atol=1e-5)
    assert torch.allclose(second, functional.linear(x, before, model.layer.bias), atol=1e-5)
    assert torch.equal(model.layer.weight, before)


class GatesWithNothing(nn.Module):
    """The gate's convolution gives only zeros, which no scale can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.gate = nn.Conv2d(3, 4, 3, bias=False)
        nn.init.zeros_(self.gate.weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = functional.hardsigmoid(self.gate(x)) * self.conv(x)
        return y


def test_reader_of_a_value_that_only_had_its_shapes_kept_stays_float() -> None:
    """What has fixed qparams as int8 is observed for its shapes only, and here stays float."""
    model, error = quantized(GatesWithNothing(), torch.randn(1, 3, 8, 8))
    assert error >= 25.0
    reasons = {op.op: op.reason for op in jitquant.coverage(model).float}
    gate = re.escape("its input, given by aten::conv2d in 'gate' (test_regressions.py:")
    zero = rf"{gate}\d+\), was zero in all of calibration"
    assert re.fullmatch(zero, reasons["aten::hardsigmoid"])
    given = re.escape(
        "its input, given by aten::hardsigmoid in the top module (test_regressions.py:"
    )
    float_op = rf"{given}\d+\), has no qparams, since the op that gives it is float"
    assert re.fullmatch(float_op, reasons["aten::mul"])


class FillsContainers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        padding = [1]
        kept: dict[str, Tensor] = {}
        if x.size(0) > 0:
            padding.append(0)
            kept["y"] = functional.conv2d(x, self.conv.weight, padding=padding)
        mask = torch.zeros(4, 1, 1)
        mask[1] = 2.0
        y: Tensor = kept["y"] + self.conv(functional.pad(x, [0, 0, 1, 1])) * mask
        return y


def test_what_the_graph_fills_later_is_no_constant() -> None:
    torch.manual_seed(0)
    model, error = quantized(FillsContainers(), torch.randn(1, 3, 8, 8))
    assert error >= 25.0
    reasons = [op.reason for op in jitquant.coverage(model).float if op.op == "aten::conv2d"]
    twice = "its weight is in the file twice, packed for aten::conv2d in 'conv' too"
    assert reasons == [f"its geometry is computed at run time; {twice}"]


class AddsNoise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x) + torch.rand([1, 1, 64, 64])
        return y


def test_random_values_stay_random() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 1, 64, 64)
    model, _ = quantized(AddsNoise(), x)
    with torch.no_grad():
        assert not torch.equal(model(x), model(x))


class NormalizesWhatAComputedWeightGives(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(functional.linear(x, self.fc.weight.t()))
        return y


def test_batch_norm_behind_a_computed_weight_is_no_crash() -> None:
    torch.manual_seed(0)
    _, error = quantized(NormalizesWhatAComputedWeightGives(), torch.randn(2, 4, 8, 8))
    assert error >= 25.0


class AveragesOfABranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 4:
            x = self.conv(x)
        x = functional.avg_pool2d(x, 3, 1, 1)
        y: Tensor = self.conv(functional.avg_pool2d(x, 3, 1, 1))
        return y


def test_averages_of_what_a_branch_gives_in_int8() -> None:
    """convert_jit did not find the qparams of an average of an average of a joined value."""
    model, error = quantized(AveragesOfABranch(), torch.randn(2, 4, 8, 8))
    assert error >= 25.0
    assert not jitquant.coverage(model).float


class WritesWhatDropoutReturns(nn.Module):
    """Dropout in eval mode returns its input itself, so that `x` is written too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.dropout = nn.Dropout(0.5)

    def hand_on(self, x: Tensor) -> Tensor:
        y: Tensor = self.dropout(x)
        return y

    def forward(self, x: Tensor) -> Tensor:
        x = x * 3
        y = self.hand_on(x)
        both = [y, x]
        both[0].mul_(0.5)
        z: Tensor = self.conv(y + both[1])
        return z


class WritesWhatTypeAsReturns(WritesWhatDropoutReturns):
    def hand_on(self, x: Tensor) -> Tensor:
        return x.type_as(torch.ones(1))


class WritesWhatAtleastReturns(WritesWhatDropoutReturns):
    def hand_on(self, x: Tensor) -> Tensor:
        y: Tensor = torch.atleast_2d(x)
        return y


@pytest.mark.parametrize(
    "net", [WritesWhatDropoutReturns, WritesWhatTypeAsReturns, WritesWhatAtleastReturns]
)
def test_a_write_of_what_an_op_returned_unchanged_is_seen_by_its_input(
    net: type[nn.Module],
) -> None:
    torch.manual_seed(0)
    _, error = quantized(net(), torch.randn(1, 3, 8, 8))
    assert error >= 25.0


class TwoMethods(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3)
        self.second = nn.Conv2d(16, 4, 3)

    @torch.jit.export
    def encode(self, x: Tensor) -> Tensor:
        return torch.relu(self.first(x))

    @torch.jit.export
    def decode(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(x)
        return y

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


@pytest.mark.parametrize("kept", [["encode", "decode"], ["decode", "encode"]])
def test_methods_are_kept_in_any_order(kept: list[str]) -> None:
    torch.manual_seed(0)
    model = TwoMethods().eval()
    x = torch.randn(2, 3, 16, 16)
    prepared: Any = jitquant.prepare_jit(torch.jit.script(model), {"": jitquant.default_qconfig})
    with torch.no_grad():
        prepared(x)
        prepared.decode(prepared.encode(x))
        int8: Any = jitquant.convert_jit(prepared, preserved_attrs=kept)
        assert sqnr(model(x), int8(x)) >= 30.0
        assert sqnr(model(x), int8.decode(int8.encode(x))) >= 30.0
    methods = {op.method for op in jitquant.coverage(int8).ops if op.int8}
    assert methods == {"forward", "encode", "decode"}

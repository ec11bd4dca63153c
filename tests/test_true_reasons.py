"""Counts, reasons and warnings say what is true of models that calibrate in unusual ways."""

import re
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import jitquant

STATIC = {"": jitquant.default_qconfig}
DYNAMIC = {"": jitquant.per_channel_dynamic_qconfig}
NEVER = "its branch never ran in calibration, or on empty tensors only"
ONLY_LAYERS = "its qconfig is dynamic, which is for layers with weights"


def made(module: nn.Module, x: Tensor, trace: bool = False) -> torch.jit.ScriptModule:
    module = module.eval()
    model: torch.jit.ScriptModule
    model = torch.jit.trace(module, x) if trace else torch.jit.script(module)
    return model


def covered(module: nn.Module, x: Tensor, trace: bool = False) -> jitquant.Coverage:
    prepared = jitquant.prepare_jit(made(module, x, trace), STATIC)
    prepared(x)
    return jitquant.coverage(jitquant.convert_jit(prepared))


class Shares(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, again: bool = False) -> Tensor:
        y = self.a(x)
        if again:
            y = self.a(y)
        z: Tensor = self.b(y)
        return z


def test_an_op_that_never_ran_is_not_counted_where_it_shares_a_weight() -> None:
    result = covered(Shares(), torch.rand(2, 8))
    twice = "its weight is in the file twice, packed for aten::linear in 'a' too; "
    assert [op.reason for op in result.never_ran] == [twice + NEVER]
    assert result.summary().startswith("2 of 2 ops int8\n  not counted: 1 of branches")


class Upsamples(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(F.avg_pool2d(self.conv(x), 2), scale_factor=2.0)


def test_a_branch_that_only_moves_int8_values_is_known_to_have_never_run() -> None:
    result = covered(Upsamples(), torch.rand(2, 3, 16, 16))
    never = [op.op for op in result.never_ran]
    assert never == ["aten::upsample_nearest1d", "aten::upsample_nearest3d"]
    assert "aten::upsample_nearest2d" in [op.op for op in result.int8]


@pytest.mark.parametrize("trace", [False, True])
@pytest.mark.parametrize(
    ("module", "size", "reason"),
    [
        (nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), (2, 8, 9, 9), "0.9 to 2.6 times"),
        (nn.Conv2d(8, 8, 3, padding=1, padding_mode="replicate"), (2, 8, 9, 9), "no int8 kernel"),
        (nn.Conv1d(8, 8, 3, padding=1, padding_mode="reflect"), (2, 8, 9), ""),
    ],
)
def test_the_padding_of_a_convolution_is_constant(
    module: nn.Module, size: tuple[int, ...], reason: str, trace: bool
) -> None:
    result = covered(nn.Sequential(module, nn.ReLU()), torch.rand(size), trace)
    reasons = [op.reason for op in result.float]
    assert (len(reasons) == 1 and reason in reasons[0]) if reason else reasons == []


class Splits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(torch.tensor_split(self.conv(x), 3, 1), 1)


def test_a_list_that_another_op_gives() -> None:
    reasons = {op.op: op.reason for op in covered(Splits(), torch.rand(2, 3, 8, 8)).float}
    assert reasons["aten::cat"] == "its list is the result of aten::tensor_split"


class Scales(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.rand(8, 8)), nn.Parameter(torch.rand(8))
        self.last = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(torch.addmm(self.b, x, self.w.t(), beta=0.5, alpha=2.0))
        y = torch.tensordot(F.layer_norm(y, [8]), self.w, ([1], [0]))
        z: Tensor = self.last(torch.sort(y.unsqueeze(0).bmm(y.t().unsqueeze(0))[0] @ y)[0])
        return z


@pytest.mark.parametrize("trace", [False, True])
def test_what_is_no_layer_says_that_a_dynamic_qconfig_is_for_layers(trace: bool) -> None:
    model = made(Scales(), torch.rand(8, 8), trace)
    result = jitquant.coverage(jitquant.quantize_dynamic_jit(model, DYNAMIC))
    reasons = {op.op: op.reason for op in result.float}
    assert reasons.pop("aten::addmm").endswith("or its alpha or beta is not 1")
    assert reasons.pop("aten::tensordot") == "torch has no int8 kernel for it"
    assert {"aten::sigmoid", "aten::layer_norm", "aten::bmm", "aten::sort"} <= set(reasons)
    assert set(reasons.values()) == {ONLY_LAYERS}


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.rnn(x)[0]
        return y


@pytest.mark.parametrize("module", [nn.Conv2d(3, 3, 1), Recurrent(), nn.Embedding(4, 4)])
def test_a_dynamic_qconfig_that_makes_nothing_int8(module: nn.Module) -> None:
    model: Any = torch.jit.script(module.eval())
    with pytest.warns(jitquant.FloatWarning, match=r"prepare_dynamic_jit: none of .* int8; "):
        jitquant.prepare_dynamic_jit(model, DYNAMIC)


def test_layers_of_float16_are_no_reason_to_warn() -> None:
    model: Any = torch.jit.script(nn.Linear(4, 4).eval())
    with warnings.catch_warnings():
        warnings.simplefilter("error", jitquant.FloatWarning)
        jitquant.prepare_dynamic_jit(model, {"": jitquant.float16_dynamic_qconfig})


def test_a_model_without_ops() -> None:
    model: Any = torch.jit.script(nn.Identity().eval())
    text = re.escape("prepare_jit: none of 0 ops will be int8.")
    with pytest.warns(jitquant.FloatWarning, match=rf"^{text}$"):
        jitquant.prepare_jit(model, STATIC)


class Adds(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x


def test_calibration_on_integers_only() -> None:
    model: Any = torch.jit.script(Adds().eval())
    prepared = jitquant.prepare_jit(model, STATIC)
    prepared(torch.arange(4))
    with pytest.raises(jitquant.JitQuantError, match=r"^calibration saw no floating point values"):
        jitquant.convert_jit(prepared)


class NamesItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, input: Tensor) -> Tensor:
        x: Tensor = self.conv(input)
        return x


@pytest.mark.parametrize("trace", [False, True])
def test_calibrate_calls_an_input_by_its_name(trace: bool) -> None:
    x = torch.rand(1, 3, 4, 4)
    prepared = jitquant.prepare_jit(made(NamesItsInput(), x, trace), STATIC)
    with pytest.raises(jitquant.JitQuantValueError, match="gives NaN in the input 'input'"):
        jitquant.calibrate(prepared, [x * torch.nan])

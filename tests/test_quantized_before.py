"""Models that hold int8 parts already: those stay as they are, and the rest is quantized."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.ao.quantization as ao
from torch import Tensor, nn
from torch.nn import functional

import jitquant
from tests.graph_shapes import assert_covered
from tests.models import PlainNet, ResidualNet, reloaded, sqnr
from tests.test_upstream_table import nodes

BEFORE = "it was int8 before"
EMULATES = "it was there before, to quantize values or to emulate that"


@pytest.fixture(autouse=True)
def no_deprecations() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deprecated")
        warnings.filterwarnings("ignore", category=UserWarning, module="torch.ao")
        warnings.filterwarnings("ignore", module=".*", message="Converting a tensor to a Python")
        yield


class Around(nn.Module):
    """A part that was quantized before, between layers that are to be quantized."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.pre = nn.Conv2d(3, 3, 1)
        self.inner = inner
        self.post = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.post(self.inner(self.pre(x)))
        return y


pytestmark = pytest.mark.filterwarnings("ignore::jitquant.DroppedWarning")


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def quantized(model: Any, x: Any, least: float = 25.0) -> Any:
    """`model` converted, after comparing it, its debug model and its file with `model`."""
    model.eval()
    prepared = jitquant.prepare_jit(model, {"": jitquant.default_qconfig})
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(prepared(x), expected)
        converted = jitquant.convert_jit(prepared)
        debug = jitquant.convert_jit(prepared, debug=True)
        actual = converted(x)
        assert sqnr(expected, actual) >= least
        assert sqnr(expected, debug(x)) >= least
        assert torch.equal(reloaded(converted)(x), actual)
    assert_covered(prepared, converted, ["forward"])
    return converted


def int8_ops(model: Any) -> list[tuple[str, str]]:
    return [(op.op.partition("::")[2], op.reason) for op in jitquant.coverage(model).int8]


def kernels(model: Any) -> list[str]:
    kinds = [str(node.kind()) for node in nodes(model.graph)]
    return [kind for kind in kinds if kind.startswith("quantized::")]


def upstream(qconfig: dict[str, Any], debug: bool = False) -> torch.jit.ScriptModule:
    result: torch.jit.ScriptModule = ao.quantize_jit(
        torch.jit.script(PlainNet().eval()), qconfig, lambda m, x: m(x), [images()], debug=debug
    )
    return result


def eager_static() -> nn.Module:
    """Quantized with torch.ao's eager mode: torch.ao.nn.quantized modules."""
    model = PlainNet().eval()
    wrapped: Any = ao.QuantWrapper(model)
    wrapped.qconfig = ao.default_qconfig
    wrapped = ao.prepare(wrapped)
    wrapped(images())
    converted: nn.Module = ao.convert(wrapped)
    return converted.eval()


def test_a_model_that_torch_ao_converted_stays_as_it_is() -> None:
    model = upstream({"": ao.default_qconfig})
    converted = quantized(model, images(), least=float("inf"))
    assert kernels(converted) == ["quantized::conv2d_relu", "quantized::linear"]
    assert {reason for _, reason in int8_ops(converted)} == {BEFORE}
    assert [op.reason for op in jitquant.coverage(converted).float] == [EMULATES] * 2


def test_what_torch_ao_left_float_is_quantized_around_it() -> None:
    converted = quantized(upstream({"": None, "fc": ao.default_qconfig}), images())
    assert int8_ops(converted) == [
        ("conv2d", "quantized::conv2d_relu"),
        ("relu", "absorbed by aten::conv2d"),
        ("mean", "aten::mean"),
        ("linear", BEFORE),
    ]


def test_debug_model_of_torch_ao() -> None:
    """Its weights are constants between quantize and dequantize, its activations are rounded twice."""
    converted = quantized(upstream({"": ao.default_qconfig}, debug=True), images())
    assert kernels(converted) == ["quantized::conv2d_relu", "quantized::linear"]


def test_dynamic_ops_stay() -> None:
    model = ao.quantize_dynamic_jit(
        torch.jit.script(PlainNet().eval()), {"": ao.default_dynamic_qconfig}
    )
    converted = quantized(model, images())
    assert kernels(converted) == ["quantized::conv2d_relu", "quantized::linear_dynamic"]
    assert ("linear_dynamic", BEFORE) in int8_ops(converted)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.cell = nn.GRUCell(6, 6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(x)
        y = y + self.cell(y[0]).mean()
        z: Tensor = self.fc(y)
        return z


@pytest.mark.parametrize("traced", [False, True])
def test_dynamic_recurrent_layers_stay(traced: bool) -> None:
    model = ao.quantize_dynamic(Recurrent().eval(), {nn.LSTM, nn.GRUCell}).eval()
    x = torch.randn(2, 5, 4)
    converted = quantized(torch.jit.trace(model, x) if traced else torch.jit.script(model), x)
    assert ("quantized_lstm", BEFORE) in int8_ops(converted)
    assert ("quantized_gru_cell_dynamic", BEFORE) in int8_ops(converted)
    assert ("linear", "quantized::linear") in int8_ops(converted)


def test_half_precision_dynamic_ops_are_listed_as_float() -> None:
    model = ao.quantize_dynamic(PlainNet().eval(), {nn.Linear}, dtype=torch.float16).eval()
    converted = quantized(torch.jit.script(model), images())
    reasons = {op.op: op.reason for op in jitquant.coverage(converted).float}
    assert reasons["quantized::linear_dynamic_fp16"].startswith("no int8 form")


@pytest.mark.parametrize("how", ["scripted", "traced", "frozen"])
def test_eager_int8_modules_stay_and_their_neighbours_become_int8(how: str) -> None:
    net = Around(eager_static()).eval()
    model = torch.jit.trace(net, images()) if how == "traced" else torch.jit.script(net)
    converted = quantized(torch.jit.freeze(model) if how == "frozen" else model, images())
    assert kernels(converted) == ["quantized::conv2d"] * 2 + ["quantized::linear"] * 2
    assert int8_ops(converted) == [
        ("conv2d", "quantized::conv2d"),
        ("conv2d", BEFORE),
        ("relu", BEFORE),
        ("mean", BEFORE),
        ("linear", BEFORE),
        ("linear", "quantized::linear"),
    ]


class OnInt8(nn.Module):
    """Float names of ops on int8 values, a list of them, and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.fc = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        q = torch.quantize_per_tensor(self.conv(x), 0.05, 100, torch.quint8)
        left, right = torch.relu(q).chunk(2, 1)
        q = torch.cat([right, functional.max_pool2d(left, 3, 1, 1)], 1)
        y: Tensor = self.fc(torch.dequantize(q))
        return y


def test_ops_on_int8_values_are_neither_observed_nor_changed() -> None:
    converted = quantized(torch.jit.script(OnInt8()), images())
    assert int8_ops(converted) == [
        ("conv2d", "quantized::conv2d"),
        *((op, BEFORE) for op in ("relu", "chunk", "max_pool2d", "cat")),
        ("linear", "quantized::linear"),
    ]


class Takes(nn.Module):
    """Is given an int8 tensor, which nothing in the graph says."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(torch.relu(x).reshape(x.shape).dequantize())
        return y


class Gives(Takes):
    """Returns an int8 tensor, of other qparams than calibration would choose."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.quantize_per_tensor(self.conv(x), 0.2, 7, torch.qint8)


def test_an_int8_input() -> None:
    x = torch.quantize_per_tensor(images(), 0.02, 128, torch.quint8)
    converted = quantized(torch.jit.script(Takes()), x)
    assert kernels(converted) == ["quantized::conv2d"]


def test_an_int8_output_keeps_its_own_qparams() -> None:
    model = torch.jit.script(Gives().eval())
    prepared = jitquant.prepare_jit(model, {"": jitquant.default_qconfig})
    with torch.no_grad():
        expected = model(images())
        prepared(images())
        actual = jitquant.convert_jit(prepared)(images())
    assert (actual.q_scale(), actual.q_zero_point(), actual.dtype) == (0.2, 7, torch.qint8)
    assert int((actual.int_repr().int() - expected.int_repr().int()).abs().max()) <= 1


class GivesSigned(Takes):
    """hardsigmoid has the qparams (1/256, 0) in quint8; these are the same in qint8."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.quantize_per_tensor(
            functional.hardsigmoid(self.conv(x)), 1 / 256, 0, torch.qint8
        )


def test_an_int8_output_keeps_its_dtype() -> None:
    model = torch.jit.script(GivesSigned().eval())
    prepared = jitquant.prepare_jit(model, {"": jitquant.default_qconfig})
    with torch.no_grad():
        expected = model(images())
        prepared(images())
        actual = jitquant.convert_jit(prepared)(images())
    assert actual.dtype == torch.qint8
    assert float((actual.dequantize() - expected.dequantize()).abs().max()) <= 3 / 256


class Weight(nn.Module):
    """An int8 tensor as weight."""

    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        weight = torch.randn(4, 3, 1, 1)
        self.register_buffer("weight", torch.quantize_per_tensor(weight, 0.02, 0, torch.qint8))

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight.dequantize())


def test_an_int8_weight() -> None:
    assert kernels(quantized(torch.jit.script(Weight()), images())) == ["quantized::conv2d"]


class Emulating(nn.Module):
    """Fake-quantized input, weight and output."""

    scales: Tensor
    zeros: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.register_buffer("scales", torch.full((3,), 0.01))
        self.register_buffer("zeros", torch.zeros(3, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.fake_quantize_per_tensor_affine(x, 0.05, 128, 0, 255)
        weight = torch.fake_quantize_per_channel_affine(
            self.conv.weight, self.scales, self.zeros, 0, -128, 127
        )
        y = torch.relu(functional.conv2d(x, weight, self.conv.bias))
        return torch.fake_quantize_per_tensor_affine(y, 0.03, 0, 0, 255)


@pytest.mark.parametrize("traced", [False, True])
def test_fake_quantize_stays_and_the_layer_becomes_int8(traced: bool) -> None:
    net = Emulating().eval()
    model = torch.jit.trace(net, images()) if traced else torch.jit.script(net)
    converted = quantized(model, images())
    assert kernels(converted) == ["quantized::conv2d_relu"]
    assert [op.reason for op in jitquant.coverage(converted).float] == [EMULATES] * 2


def prepared_own() -> torch.jit.ScriptModule:
    prepared = jitquant.prepare_jit(
        torch.jit.script(PlainNet().eval()), {"": jitquant.default_qconfig}
    )
    prepared(images())
    return prepared


def test_a_submodule_that_jitquant_converted_stays() -> None:
    inner = jitquant.convert_jit(prepared_own())
    converted = quantized(torch.jit.script(Around(inner)), images())
    assert kernels(converted) == [
        "quantized::conv2d",
        "quantized::conv2d_relu",
        "quantized::linear",
        "quantized::linear",
    ]


def test_a_submodule_that_is_a_debug_model() -> None:
    inner = jitquant.convert_jit(prepared_own(), debug=True)
    converted = quantized(torch.jit.script(Around(inner)), images())
    assert len(kernels(converted)) == 4


def test_a_submodule_that_was_prepared_is_an_error() -> None:
    model = torch.jit.script(Around(prepared_own()).eval())
    with pytest.raises(jitquant.JitQuantError, match="'inner' was prepared by prepare_jit"):
        jitquant.prepare_jit(model, {"": jitquant.default_qconfig})


def test_observers_of_torch_ao_are_an_error() -> None:
    model = ao.prepare_jit(torch.jit.script(PlainNet().eval()), {"": ao.default_qconfig})
    model(images())
    with pytest.raises(jitquant.JitQuantError, match=r"'conv1\._observer_\d' is a MinMaxObserver"):
        jitquant.prepare_jit(model, {"": jitquant.default_qconfig})


def test_fake_quantize_modules_of_torch_ao_are_an_error_that_says_how_to_go_on() -> None:
    trained: Any = ResidualNet().train()
    trained.qconfig = ao.get_default_qat_qconfig("x86")
    trained = ao.prepare_qat(trained)
    trained(images())
    model = torch.jit.trace(trained.eval(), images())
    with pytest.raises(jitquant.JitQuantError, match=r"FusedMovingAvg.* load_state_dict") as error:
        jitquant.prepare_jit(model, {"": jitquant.default_qconfig})
    assert "not converted" in str(error.value)
    plain = ResidualNet()
    plain.load_state_dict(trained.state_dict(), strict=False)
    quantized(torch.jit.script(plain), images(), least=20.0)

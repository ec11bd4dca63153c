"""correct_bias, and its passes watch_means and correct_bias."""

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import jitquant
from jitquant import _C, _checks, _state
from jitquant.bias_correction import _ChannelMeans
from jitquant.errors import JitQuantError, JitQuantTypeError, JitQuantValueError
from jitquant.observers import MinMaxObserver
from tests.ir import readable, scripted

COARSE = jitquant.QConfig(
    activation=jitquant.default_qconfig.activation,
    weight=MinMaxObserver.with_args(
        dtype=torch.qint8, qscheme=torch.per_tensor_symmetric, quant_min=-4, quant_max=3
    ),
)
"""Three bits for weights, so that rounding moves the means a lot."""


def positive(*shape: int, batches: int = 3) -> list[Tensor]:
    """Batches in [0.5, 1.5), no two alike, whose channels have different means."""
    generator = torch.Generator().manual_seed(3)
    channels = torch.linspace(0.5, 1.5, shape[1]).reshape(-1, *[1] * (len(shape) - 2))
    return [torch.rand(shape, generator=generator) * channels for _ in range(batches)]


def prepare(model: torch.jit.ScriptModule, data: list[Tensor]) -> torch.jit.ScriptModule:
    prepared = jitquant.prepare_jit(model, {"": COARSE})
    jitquant.calibrate(prepared, data, progress=False)
    return prepared


def rounding_error(model: torch.jit.ScriptModule, weight: str = "weight") -> Tensor:
    """What convert does to a weight, float64, by the exact debug model."""
    exact: Any = jitquant.convert_jit(model, debug="exact")
    zero_point, scale = exact.weight_zero_point.double(), exact.weight_scale.double()
    quantized = (exact.weight_int8.double() - zero_point) * scale
    difference: Tensor = quantized - getattr(exact, weight).double()
    return difference


def test_bias_takes_back_error_times_mean() -> None:
    """c_o = b_o - sum_i E[x_i] sum_k (q(w) - w)_oik, by hand, for a convolution of two groups."""
    model = scripted(nn.Conv2d(4, 6, 3, groups=2))
    data = positive(2, 4, 5, 5)
    prepared = prepare(model, data)
    error = rounding_error(prepared)
    mean = torch.cat(data).double().mean((0, 2, 3))
    shift = [
        sum(float(mean[2 * (o // 3) + i] * error[o, i].detach().sum()) for i in range(2))
        for o in range(6)
    ]
    corrected = jitquant.correct_bias(prepared, data, progress=False)
    expected = model.bias.double() - torch.tensor(shift, dtype=torch.float64)
    torch.testing.assert_close(corrected.bias, expected.float())
    assert float((corrected.bias - model.bias).detach().abs().max()) > 0.01


def test_graph_stays_as_it_was() -> None:
    data = positive(2, 4, 5, 5)
    prepared = prepare(scripted(nn.Conv2d(4, 6, 3)), data)
    corrected = jitquant.correct_bias(prepared, data, progress=False)
    assert readable(str(corrected.graph)) == readable(str(prepared.graph))


def test_watch_means_records_what_each_layer_reads() -> None:
    data = positive(2, 4, 5, 5)
    prepared = prepare(
        scripted(nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1))), data
    )
    recorder: Any = torch.jit.script(_ChannelMeans())
    module, names = _C.watch_means(
        prepared._c, ["forward"], _state_of(prepared).records(), recorder._c
    )
    assert names == [["jitquant_observer_means_0"], ["jitquant_observer_means_1"]]
    watched: Any = _checks.as_model(module)
    text = readable(torch._C._jit_pass_canonicalize(watched.graph.copy()).str(False))
    assert text.count("jitquant_observer_means_0") == 1
    watched(data[0])
    first, second = watched.jitquant_observer_means_0, watched.jitquant_observer_means_1
    assert (first.count, first.axis) == (2 * 5 * 5, -3)
    torch.testing.assert_close(first.total, data[0].double().sum((0, 2, 3)))
    assert second.total.shape == (6,)


def _state_of(model: torch.jit.ScriptModule) -> _state.State:
    state = _state.read(model)
    assert state is not None
    return state


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(4, 6), (8, 4)),
        (nn.Linear(4, 6, bias=False), (3, 4)),
        (nn.Linear(4, 6), (2, 4, 4)),
        (nn.Conv1d(4, 6, 3, bias=False), (2, 4, 7)),
        (nn.Conv2d(4, 4, 3, groups=4), (2, 4, 7, 7)),
        (nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)), (2, 4, 7, 7)),
        (nn.Conv3d(4, 6, 2), (2, 4, 3, 3, 3)),
    ],
    ids=str,
)
def test_means_of_the_outputs_come_back(module: nn.Module, shape: tuple[int, ...]) -> None:
    """Without padding, the mean of the outputs is the float model's but for activations' rounding.

    Half a step of the input, of 1.5 / 255, times the weights is far below the error of 3 bits.
    """
    model = scripted(module)
    data = positive(*shape)
    prepared = prepare(model, data)
    corrected = jitquant.correct_bias(prepared, data, progress=False)
    errors = []
    with torch.no_grad():
        for each in (prepared, corrected):
            emulated = jitquant.convert_jit(each, debug=True)
            difference = torch.stack([emulated(x) - model(x) for x in data])
            axis = -1 if isinstance(module, nn.Linear) else 2
            others = [
                d
                for d in range(difference.dim())
                if d % difference.dim() != axis % difference.dim()
            ]
            errors.append(float(difference.mean(others).abs().max()))
    assert errors[1] < 0.2 * errors[0]


def test_int8_model_gains() -> None:
    """Two layers of three bits: SQNR of the int8 model's output, in dB."""
    model = scripted(nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)))
    data = positive(2, 4, 7, 7)
    prepared = prepare(model, data)

    def sqnr(of: torch.jit.ScriptModule) -> float:
        int8 = jitquant.convert_jit(of)
        with torch.no_grad():
            expected = torch.stack([model(x) for x in data])
            actual = torch.stack([int8(x) for x in data])
        return 20 * float(torch.log10(expected.norm() / (actual - expected).norm()))

    assert sqnr(jitquant.correct_bias(prepared, data, progress=False)) > sqnr(prepared) + 3


class Twice(nn.Module):
    """One layer, called on values of different means."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.fc(x), self.fc(functional.relu(x + 2.0))])


def test_layer_that_is_called_twice_has_the_mean_of_both() -> None:
    model = scripted(Twice())
    data = positive(2, 4)
    prepared = prepare(model, data)
    corrected = jitquant.correct_bias(prepared, data, progress=False)
    exact: Any = jitquant.convert_jit(prepared, debug="exact").fc
    error = exact.weight_int8.double() * exact.weight_scale.double() - exact.weight.double()
    mean = torch.cat(data).double().mean(0) + 1.0  # of x and of x + 2
    torch.testing.assert_close(corrected.fc.bias, (model.fc.bias.double() - error @ mean).float())


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, other: bool = False) -> Tensor:
        y: Tensor = self.second(x) if other else self.first(x)
        return y


def test_layer_that_no_run_reached_keeps_its_bias() -> None:
    model = scripted(Branch())
    data = positive(2, 4)
    prepared = prepare(model, data)
    corrected = jitquant.correct_bias(prepared, data, progress=False)
    assert torch.equal(corrected.second.bias, model.second.bias)
    assert not torch.equal(corrected.first.bias, model.first.bias)


class SharedBias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.fc(x), self.fc.bias


def test_bias_that_something_else_reads_stays() -> None:
    model = scripted(nn.Sequential(SharedBias()))
    prepared = prepare(model, positive(2, 4))
    with pytest.raises(JitQuantValueError, match="no layer of the model becomes int8"):
        jitquant.correct_bias(prepared, positive(2, 4), progress=False)


def test_layers_left_float_stay() -> None:
    model = scripted(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    data = positive(2, 4)
    prepared = jitquant.prepare_jit(model, {"": COARSE, "1": None})
    jitquant.calibrate(prepared, data, progress=False)
    corrected = jitquant.correct_bias(prepared, data, progress=False)
    state, before = corrected.state_dict(), model.state_dict()
    assert torch.equal(state["1.bias"], before["1.bias"])
    assert not torch.equal(state["0.bias"], before["0.bias"])


def test_dynamic_layers_have_no_bias_to_correct() -> None:
    model = scripted(nn.Linear(4, 4))
    prepared = jitquant.prepare_dynamic_jit(model, {"": jitquant.default_dynamic_qconfig})
    with pytest.raises(JitQuantValueError, match="no layer of the model becomes int8 with calib"):
        jitquant.correct_bias(prepared, positive(2, 4), progress=False)


def test_prepared_model_does_not_change_and_may_be_calibrated_later() -> None:
    model = scripted(nn.Conv2d(4, 6, 3))
    data = positive(2, 4, 5, 5)
    prepared = prepare(model, data)
    before = copy.deepcopy(prepared)
    corrected = jitquant.correct_bias(prepared, data, progress=False)
    assert torch.equal(prepared.bias, before.bias) and torch.equal(model.bias, before.bias)
    assert prepared.jitquant_observer_0.calls == corrected.jitquant_observer_0.calls == 3

    fresh = jitquant.prepare_jit(model, {"": COARSE})
    first = jitquant.correct_bias(fresh, data, progress=False)
    jitquant.calibrate(first, data, progress=False)
    assert torch.equal(first.bias, corrected.bias)


def test_saved_and_loaded_before_and_after(tmp_path: Any) -> None:
    data = positive(2, 4, 5, 5)
    path = tmp_path / "prepared.pt"
    torch.jit.save(prepare(scripted(nn.Conv2d(4, 6, 3)), data), path)
    loaded = torch.jit.load(path)
    corrected = jitquant.correct_bias(loaded, data, progress=False)
    torch.jit.save(corrected, path)
    again = jitquant.convert_jit(torch.jit.load(path))
    assert torch.equal(again(data[0]), jitquant.convert_jit(corrected)(data[0]))


def test_errors() -> None:
    data = positive(2, 4, 5, 5)
    prepared = prepare(scripted(nn.Conv2d(4, 6, 3)), data)
    corrected = jitquant.correct_bias(prepared, data, progress=False)
    untyped: Any = jitquant.correct_bias
    for model, given, kind, message in (
        (corrected, data, JitQuantValueError, "correct_bias: the biases are corrected already, and a second time would be too much."),
        (jitquant.convert_jit(prepared), data, JitQuantValueError, "correct_bias: the model is already converted."),
        (prepared, data[0], JitQuantTypeError, "correct_bias: data must be a DataLoader"),
        (prepared, [], JitQuantValueError, "correct_bias: data gave no batch. A generator runs only once."),
        (prepared, [torch.full((1, 4, 5, 5), float("nan"))], JitQuantError, "correct_bias: the data gives NaN or infinite values in the input of aten::conv2d"),
    ):  # fmt: skip
        with pytest.raises(kind, match=re.escape(message)):
            untyped(model, given, progress=False)
    with pytest.raises(RuntimeError) as caught:
        untyped(prepared, [torch.zeros(1, 3, 5, 5)], progress=False)
    assert "correct_bias: batch 0 is" in str(caught.value.__notes__)

"""One calibration serves all mappings of a search: its statistics are those of their own."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import jitquant
from jitquant._float_rules import FloatRules
from jitquant._observed import activation_observers
from jitquant._one_calibration import OneCalibration
from jitquant.mapping import as_mapping
from jitquant.quantize import _prepare
from jitquant.sensitivity import Trials
from tests.test_auto_mapping import Gate, SqueezeExcite, _script
from tests.test_sensitivity import _data

DEFAULT = jitquant.get_default_qconfig()
OTHER = jitquant.default_qconfig


class TwoFixed(nn.Module):
    """What a fixed range gives is read by another, and by a product with a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.fc1(x))
        z: Tensor = self.fc2(nn.functional.hardsigmoid(y) * 2.0) + y
        return z


class Rows(nn.Module):
    """A branch, and an argument that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, factor: float = 2.0) -> Tensor:
        y: Tensor = self.fc1(x)
        if x.size(0) > 2:
            y = torch.tanh(self.fc2(y))
        return torch.cat([y, x], -1) * factor


class Padded(nn.Module):
    """Padding that a convolution takes, and a transposed convolution, with a BatchNorm each."""

    def __init__(self) -> None:
        super().__init__()
        self.pad, self.conv = nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 4, 3, stride=2)
        self.up, self.norm = nn.ConvTranspose2d(4, 4, 2, stride=2), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.up(torch.relu(self.conv(self.pad(x)))))
        return y


CASES: list[tuple[type[nn.Module], tuple[int, ...], dict[str, Any]]] = [
    (SqueezeExcite, (2, 4, 8, 8), {"": DEFAULT}),
    (Gate, (16, 8), {"": DEFAULT}),
    (Gate, (16, 8), {"": DEFAULT, "fc2": OTHER, "object_type": [("aten::mul", OTHER)]}),
    (TwoFixed, (16, 8), {"": DEFAULT, "fc2": OTHER}),
    (Rows, (16, 8), {"": DEFAULT}),
    (Padded, (2, 4, 8, 8), {"": DEFAULT}),
]


@pytest.mark.filterwarnings("ignore::jitquant.FloatWarning")  # some leave all ops float
@pytest.mark.parametrize(("net", "shape", "config"), CASES)
def test_what_it_hands_on_makes_the_bits_of_an_own_calibration(
    net: type[nn.Module], shape: tuple[int, ...], config: dict[str, Any]
) -> None:
    """For any one or two ops left float, and for all."""
    torch.manual_seed(0)
    model, data, mapping = _script(net()), _data(*shape), as_mapping(config)
    observed = _prepare(model, mapping, None, spares=True)
    calibration = OneCalibration(observed)
    jitquant.calibrate(observed, data, progress=False)
    rules = FloatRules(mapping, model, observed)
    all_int8 = jitquant.prepare_jit(model, mapping)
    assert calibration.give(all_int8)
    units = Trials(all_int8, data, None, "test").units
    sets = [left for size in (0, 1, 2) for left in itertools.combinations(units, size)]
    for left in [*sets[: 1 + len(units)], *sets[1 + len(units) :: 2], tuple(units)]:
        given, own = (jitquant.prepare_jit(model, rules.leaving(left)) for _ in range(2))
        assert calibration.give(given), left
        jitquant.calibrate(own, data, progress=False)
        first, second = jitquant.convert_jit(given), jitquant.convert_jit(own)
        assert jitquant.coverage(first) == jitquant.coverage(second)
        assert all(torch.equal(first(x), second(x)) for x in data), left


def test_it_hands_on_shapes_and_arguments() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: Tensor, y: Tensor, factor: float) -> Tensor:
            z: Tensor = self.fc(x) * factor + y
            return z

    model = _script(Scaled())
    observed = _prepare(model, as_mapping({"": DEFAULT}), None, spares=True)
    calibration = OneCalibration(observed)
    batch = (torch.ones(2, 8), torch.ones(3, 1, 8), 2.5)
    jitquant.calibrate(observed, [batch], progress=False)
    # Shapes alone are kept of y where no int8 op reads it.
    float_sum = {"": DEFAULT, "object_type": [("aten::add", "fused float")]}
    given, own = (jitquant.prepare_jit(model, float_sum) for _ in range(2))
    assert calibration.give(given)
    jitquant.calibrate(own, [batch], progress=False)
    assert given.jitquant_observer_arguments.seen == (2.5,)
    seen = [
        [(each.original_name, each.calls, each.shapes, each.seen_dtypes) for each in observers]
        for observers in map(activation_observers, (given, own))
    ]
    assert seen[0] == seen[1]
    assert ("ShapeRecorder", 1, [[3, 1, 8]], [6]) in seen[0]


@pytest.mark.parametrize(("qconfig", "fits"), [("fused float", True), (None, False)])
def test_it_gives_nothing_to_a_model_of_other_ops(qconfig: Any, fits: bool) -> None:
    """Of None a BatchNorm stays, so that the values differ in their last bits."""
    model, mapping = _script(SqueezeExcite()), as_mapping({"": DEFAULT})
    calibration = OneCalibration(_prepare(model, mapping, None, spares=True))
    for key in (("conv", "aten::conv2d", 0), ("", "aten::relu", 0)):
        mapping = mapping.set_module_name_object_type_order(*key, qconfig)
    assert calibration.give(jitquant.prepare_jit(model, mapping)) == fits


@pytest.mark.parametrize(("config", "fits"), [(DEFAULT, True), (OTHER, False)])
def test_it_gives_nothing_to_observers_of_other_settings(config: Any, fits: bool) -> None:
    model = _script(Gate())
    calibration = OneCalibration(_prepare(model, {"": DEFAULT}, None, spares=True))
    assert calibration.give(jitquant.prepare_jit(model, {"": config})) == fits


def test_it_gives_nothing_where_other_ops_give_as_many_values() -> None:
    def prepare(gate: nn.Module, spares: bool) -> torch.jit.ScriptModule:
        net = _script(nn.Sequential(nn.Linear(8, 8), gate, nn.Linear(8, 8)))
        return _prepare(net, as_mapping({"": DEFAULT}), None, spares=spares)

    calibration = OneCalibration(prepare(nn.Tanh(), spares=True))
    assert calibration.give(prepare(nn.Tanh(), spares=False))
    assert not calibration.give(prepare(nn.Hardsigmoid(), spares=False))


def test_what_the_mapping_leaves_float_is_not_fused() -> None:
    """Ops of the line of one that prepare_jit rewrites are left float with it."""

    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4, 2, 2))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = functional.conv_transpose2d(torch.relu(x) + x, self.weight, stride=2)
            return y

    model = _script(Up())
    mapping = as_mapping({"": DEFAULT, "object_type": [("aten::add", None)]})
    prepared = jitquant.prepare_jit(model, mapping)
    kinds = [op.op for op in jitquant.coverage(prepared).ops]
    found = FloatRules(mapping, model, prepared).leaving([kinds.index("aten::conv2d")])
    fused = {each.op.kind: each.is_fused for each in found.explain(model).decisions}
    assert fused == {"aten::relu": True, "aten::add": False, "aten::conv_transpose2d": True}

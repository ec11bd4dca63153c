"""The search for a mapping finds the ops that hurt, and says what it tried."""

import math
import sys
import warnings
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jitquant
from jitquant import _op_times
from jitquant._one_calibration import OneCalibration
from jitquant.quantize import _convert
from jitquant.sensitivity import OpSensitivity, noise_to_signal
from tests.models import PlainNet, Remembers, ResidualNet, images, scripted
from tests.test_sensitivity import Doubles, Faulty, _data, _sqnr

Costs = Callable[[dict[str, float]], None]


@pytest.fixture(autouse=True)
def set_costs(monkeypatch: pytest.MonkeyPatch) -> Costs:
    """Gives what ops cost in float by their modules, in ms; others cost 1 ms. No test measures."""
    by_module: dict[str, float] = {}

    def costs(int8: Any, in_float: Any, units: Sequence[int], *_: Any) -> list[float]:
        ops = jitquant.coverage(int8).ops
        return [by_module.get(ops[unit].module, 1.0) for unit in units]

    monkeypatch.setattr(sys.modules["jitquant.auto_mapping"], "costs_in_float", costs)
    return by_module.update


def _script(model: nn.Module) -> torch.jit.ScriptModule:
    scripted: torch.jit.ScriptModule = torch.jit.script(model.eval())
    return scripted


def test_only_the_ops_of_the_faulty_value_are_left_float() -> None:
    torch.manual_seed(0)
    model, data = _script(Faulty(broken=1)), _data(2, 4, 12, 12)
    evaluate = _sqnr(model, data)
    found = jitquant.auto_mapping(
        model, data, evaluate, max_drop=100 - 30, qconfig_dict={"": jitquant.default_qconfig},
        progress=False,
    )  # fmt: skip
    assert {op.module for op in found.left_float} == {"convs.1", "convs.2"}
    assert found.float_score == pytest.approx(100)
    assert found.score >= 30 and evaluate(found.model) == found.score
    first = found.trials[0]
    assert (first.left_float, first.passed) == ((), False) and first.score < 30
    assert set(found.latency_ms) == {"float", "all int8", "chosen"}
    assert min(found.latency_ms.values()) > 0
    floats = [op.module for op in jitquant.coverage(found.model).float if op.op == "aten::conv2d"]
    assert floats == ["convs.1", "convs.2"]
    assert "convs.1" in str(found) and "score: float 100" in str(found)


def test_the_mapping_makes_the_same_model() -> None:
    torch.manual_seed(0)
    model, data = _script(Faulty(broken=1)), _data(2, 4, 12, 12)
    found = jitquant.auto_mapping(model, data, _sqnr(model, data), max_drop=70, progress=False)
    first, *others = found.mapping.rules
    assert (first.kind, first.key) == ("", ())
    assert {(rule.kind, rule.key, rule.qconfig) for rule in others} == {
        ("module_name_object_type_order", ("convs.1", "aten::conv2d", 0), None),
        ("module_name_object_type_order", ("convs.2", "aten::conv2d", 0), None),
        # Their activations, which would be int8 on their own.
        ("module_name_object_type_order", ("", "aten::relu", 1), None),
        ("module_name_object_type_order", ("", "aten::relu", 2), None),
    }
    prepared = jitquant.prepare_jit(
        model, jitquant.QConfigMapping.from_json(found.mapping.to_json())
    )
    jitquant.calibrate(prepared, data, progress=False)
    assert torch.equal(jitquant.convert_jit(prepared)(data[0]), found.model(data[0]))


class CatOfTwo(nn.Module):
    """The sum costs nothing but the resolution of its first half, which the scaled one takes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.fc1(x), self.fc2(x) * 100.0], -1)


def _first_half(model: torch.jit.ScriptModule, data: list[Tensor]) -> Any:
    """dB of the first half of the outputs over `model`, at most 100."""
    halves = [model(x).chunk(2, -1)[0] for x in data]

    def evaluate(other: torch.jit.ScriptModule) -> float:
        pairs = [(y, other(x).chunk(2, -1)[0]) for x, y in zip(data, halves, strict=True)]
        loss = sum(noise_to_signal(y, ours) for y, ours in pairs) / len(pairs)
        return -10 * math.log10(loss + 1e-10)

    return evaluate


def test_an_op_behind_one_that_only_scales_is_found() -> None:
    """The product has its input's qparams, and the cat rounds it also where it alone is int8."""
    torch.manual_seed(0)
    model, data = _script(CatOfTwo()), _data(16, 8)

    def metric(reference: Tensor, output: Tensor) -> float:
        return noise_to_signal(reference.chunk(2, -1)[0], output.chunk(2, -1)[0])

    found = jitquant.auto_mapping(
        model, data, _first_half(model, data), max_drop=65, metric=metric, progress=False
    )
    assert [op.op for op in found.left_float] == ["aten::cat"]
    assert [op.op for op in jitquant.coverage(found.model).float] == ["aten::cat"]


class SqueezeExcite(nn.Module):
    """A convolution with BatchNorm, gates for its channels, a factor and a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.gate = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.conv(x)))
        y = y * nn.functional.hardsigmoid(self.gate(y.mean([2, 3], keepdim=True)))
        return torch.relu(y * 0.5 + x)


class Dense(nn.Module):
    """Each layer reads all values before it."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4 * i, 4, 3, padding=1) for i in (1, 2))

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = torch.cat([x, torch.relu(conv(x))], 1)
        return x


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc1(x) * torch.tanh(self.fc2(x))
        return y


@pytest.mark.parametrize(
    ("net", "shape", "share"),
    [
        (SqueezeExcite, (2, 4, 8, 8), 0.3),
        (Dense, (2, 4, 8, 8), 0.5),
        (Gate, (16, 8), 0.1),
    ],
)
def test_the_mapping_makes_the_bits_of_the_model(
    net: type[nn.Module], shape: tuple[int, ...], share: float
) -> None:
    """Where some ops have to be float: `share` of the way from all int8 to all float."""
    torch.manual_seed(0)
    model, data = _script(net()), _data(*shape)
    evaluate = _sqnr(model, data)
    all_int8 = jitquant.prepare_jit(model, {"": jitquant.get_default_qconfig()})
    jitquant.calibrate(all_int8, data, progress=False)
    lowest = evaluate(jitquant.convert_jit(all_int8))
    limit = lowest + share * (60 - lowest)
    found = jitquant.auto_mapping(model, data, evaluate, max_drop=100 - limit, progress=False)
    assert found.left_float and found.score >= limit
    prepared = jitquant.prepare_jit(model, found.mapping)
    jitquant.calibrate(prepared, data, progress=False)
    again = jitquant.convert_jit(prepared)
    for x in data:
        assert torch.equal(again(x), found.model(x))
    ops = jitquant.coverage(found.model)
    assert ops.ops == jitquant.coverage(again).ops
    assert ops.int8 and not [op for op in ops.float if "no qparams" in op.reason]


@pytest.mark.parametrize(("net", "shape"), [(SqueezeExcite, (2, 4, 8, 8)), (Gate, (16, 8))])
def test_a_search_calibrates_once(
    net: type[nn.Module], shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, data = _script(net()), _data(*shape)
    calibrated = []

    def calibrate(prepared: torch.jit.ScriptModule, *args: Any, **kwargs: Any) -> None:
        calibrated.append(prepared)
        jitquant.calibrate(prepared, *args, **kwargs)

    monkeypatch.setattr(sys.modules["jitquant.auto_mapping"], "calibrate", calibrate)
    found = jitquant.auto_mapping(model, data, _sqnr(model, data), max_drop=1, progress=False)
    assert len(found.trials) > 2 and len(calibrated) == 1


def test_what_it_cannot_hand_on_is_calibrated_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, data = _script(Gate()), _data(16, 8)
    evaluate = _sqnr(model, data)
    expected = jitquant.auto_mapping(model, data, evaluate, max_drop=60, progress=False)
    monkeypatch.setattr(OneCalibration, "give", lambda *_: False)
    found = jitquant.auto_mapping(model, data, evaluate, max_drop=60, progress=False)
    assert torch.equal(found.model(data[0]), expected.model(data[0]))


def test_a_model_that_is_good_enough_stays_int8() -> None:
    torch.manual_seed(0)
    model, data = _script(PlainNet()), _data(2, 3, 8, 8)
    scored = []

    def evaluate(candidate: torch.jit.ScriptModule) -> int:
        scored.append(candidate)
        return 1

    found = jitquant.auto_mapping(model, data, evaluate, max_drop=0, progress=False)
    assert found.left_float == () and len(found.trials) == 1 and len(scored) == 2
    assert found.mapping == jitquant.QConfigMapping().set_global(jitquant.get_default_qconfig())
    assert not jitquant.coverage(found.model).float


def test_if_nothing_else_is_good_enough_all_ops_are_float() -> None:
    torch.manual_seed(0)
    model, data = _script(ResidualNet()), _data(2, 3, 8, 8)
    found = jitquant.auto_mapping(model, data, _sqnr(model, data), max_drop=0.5, progress=False)
    assert not [op for op in jitquant.coverage(found.model).int8 if op.op == "aten::conv2d"]
    assert found.score == pytest.approx(100, abs=0.5)


def test_ops_that_bisection_took_along_are_int8_again() -> None:
    """Two ops are needed, the first and third of the ranking: the second is given back."""
    torch.manual_seed(0)
    model, data = _script(Faulty(broken=1)), _data(2, 4, 12, 12)
    ranking = jitquant.auto_mapping(
        model, data, _sqnr(model, data), max_drop=0.5, progress=False
    ).left_float
    needed = {ranking[0].module, ranking[2].module}

    def evaluate(candidate: torch.jit.ScriptModule) -> float:
        if not hasattr(candidate, "jitquant_state"):
            return 1.0
        floats = {op.module for op in jitquant.coverage(candidate).float}
        return 1.0 if needed <= floats else 0.0

    found = jitquant.auto_mapping(model, data, evaluate, max_drop=0, progress=False)
    assert {op.module for op in found.left_float} == needed


def _either(model: Any, *modules: str) -> Callable[[Any], float]:
    """A score that is good if one of these is float."""

    def evaluate(candidate: torch.jit.ScriptModule) -> float:
        if not hasattr(candidate, "jitquant_state"):
            return 1.0
        floats = {op.module for op in jitquant.coverage(candidate).float}
        return float(bool(floats & set(modules)))

    return evaluate


@pytest.mark.parametrize("cheap", ["convs.1", "convs.2"])
def test_of_two_that_help_the_faster_one_is_float(cheap: str, set_costs: Costs) -> None:
    torch.manual_seed(0)
    model, data = _script(Faulty(broken=1)), _data(2, 4, 12, 12)
    set_costs({"convs.1": 1e6, "convs.2": 1e6, cheap: 0.25})
    evaluate = _either(model, "convs.1", "convs.2")
    found = jitquant.auto_mapping(model, data, evaluate, max_drop=0, progress=False)
    assert [op.module for op in found.left_float] == [cheap]
    assert found.costs_ms == (0.25,)
    assert found.estimated_ms == found.latency_ms["all int8"] + 0.25
    assert f"{found.estimated_ms:.2f}" in str(found) and "0.250" in str(found)


def test_the_costliest_is_given_back_first(set_costs: Costs) -> None:
    """Any of the two before the last may be int8 again, and not both."""
    torch.manual_seed(0)
    model, data = _script(Faulty(broken=1)), _data(2, 4, 12, 12)
    losses = {op.module: op.alone_int8 for op in _sensitivity(model, data)}
    first, second, last = sorted(losses, key=lambda module: -losses[module])[:3]
    # In this order of losses for each ms, the first two at 3 and 2 ms.
    set_costs({first: 3.0, second: 2.0 * losses[second] / losses[first], last: 1e3})

    def evaluate(candidate: torch.jit.ScriptModule) -> float:
        if not hasattr(candidate, "jitquant_state"):
            return 1.0
        floats = {op.module for op in jitquant.coverage(candidate).float}
        return float(last in floats and bool(floats & {first, second}))

    found = jitquant.auto_mapping(model, data, evaluate, max_drop=0, progress=False)
    assert {op.module for op in found.left_float} == {second, last}


def _sensitivity(model: Any, data: list[Tensor]) -> tuple[OpSensitivity, ...]:
    prepared = jitquant.prepare_jit(model, {"": jitquant.get_default_qconfig()})
    jitquant.calibrate(prepared, data, progress=False)
    return jitquant.sensitivity(prepared, data, progress=False).ops


def test_what_is_faster_in_float_stays_float(set_costs: Costs) -> None:
    torch.manual_seed(0)
    model, data = _script(Faulty(broken=1)), _data(2, 4, 12, 12)
    set_costs({"convs.0": -0.5})
    evaluate = _either(model, "convs.1")
    found = jitquant.auto_mapping(model, data, evaluate, max_drop=0, progress=False)
    assert {op.module for op in found.left_float} == {"convs.0", "convs.1"}
    assert found.left_float[0].module == "convs.0" and found.costs_ms[0] == -0.5


def test_it_says_if_int8_is_slower() -> None:
    torch.manual_seed(0)
    model, data = _script(PlainNet()), _data(2, 3, 8, 8)
    found = jitquant.auto_mapping(model, data, lambda _: 1.0, max_drop=0, progress=False)
    found.latency_ms.update({"float": 3.0, "all int8": 2.0, "chosen": 2.0})
    assert not found.notes
    found.latency_ms.update({"float": 3.0, "all int8": 2.0, "chosen": 1.5})
    assert found.notes == ("all int8 is slower than chosen: 2.00 against 1.50 ms",)
    assert found.notes[0] in str(found)


def _fake(event: Any, us: float) -> SimpleNamespace:
    time_range = SimpleNamespace(elapsed_us=lambda: us)
    return SimpleNamespace(name=event.name, input_shapes=event.input_shapes, time_range=time_range)


def _profile_in_ms(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first op of a run takes 1 ms, the second 2 ms, and so on."""
    real = _op_times._profiled

    def profiled(model: torch.jit.ScriptModule, batch: Any, seconds: float) -> list[list[Any]]:
        run = real(model, batch, seconds)[0]
        return [
            [_fake(event, 1000 * (place + 1) + extra) for place, event in enumerate(run)]
            for extra in (50, 0, 20)
        ]

    monkeypatch.setattr(_op_times, "_profiled", profiled)


def _both(model: torch.jit.ScriptModule, x: Tensor, units: list[int]) -> tuple[Any, Any]:
    prepared = jitquant.prepare_jit(model, {"": jitquant.get_default_qconfig()})
    jitquant.calibrate(prepared, [x], progress=False)
    return (
        _convert(prepared, False, None, None, []),
        _convert(prepared, False, None, None, units),
    )


def test_costs_are_differences_of_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    _profile_in_ms(monkeypatch)
    x, units = images(2, 3, 8, 8), [0, 2, 3, 7]
    int8, in_float = _both(scripted(ResidualNet()), x, units)
    # int8: quantize 1, conv_relu 2, conv 3, add_relu 4, pool, flatten, linear 7, dequantize 8 ms.
    # float: conv 1, relu 2, conv 3, add 4, relu 5, pool, flatten, linear 8 ms.
    per_element = 1 / (2 * 3 * 8 * 8) + 8 / (2 * 5)
    expected = [
        1 + 2 - 2 + 2 * 3 * 8 * 8 * per_element,
        3 - 3 + 2 * 8 * 8 * 8 * per_element,
        4 + 5 - 4 + 2 * 8 * 8 * 8 * per_element,
        8 - 7 + 2 * 8 * per_element,
    ]
    found = _op_times.costs_in_float(int8, in_float, units, x, 0.0)
    assert found == pytest.approx(expected)


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.first(x)
        if x.dim() > 2:
            y = self.second(y)
        return y


def test_ops_that_cannot_be_told_apart_cost_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two linears runs, and the profile does not say which."""
    _profile_in_ms(monkeypatch)
    x = images(2, 4)
    int8, in_float = _both(scripted(Branch()), x, [0])
    assert _op_times.costs_in_float(int8, in_float, [0], x, 0.0) == [1.0]


def test_a_predicate_is_asked_about_the_other_ops() -> None:
    torch.manual_seed(0)
    model, data = _script(Faulty(broken=1)), _data(2, 4, 12, 12)

    def predicate(op: jitquant.OpInfo) -> object:
        return None if op.module == "convs.3" else jitquant.get_default_qconfig()

    found = jitquant.auto_mapping(
        model, data, _sqnr(model, data), max_drop=70, qconfig_dict=predicate, progress=False
    )
    assert {op.module for op in found.left_float} == {"convs.1", "convs.2"}
    decided = found.mapping.explain(model).decisions
    floats = {
        each.op.module: each.rule
        for each in decided
        if each.op.kind == "aten::conv2d" and not each.qconfig
    }
    assert floats.pop("convs.3") == "predicate"
    assert set(floats) == {"convs.1", "convs.2"}
    assert all("module_name_object_type_order" in rule for rule in floats.values())


def test_an_op_that_prepare_rewrites_is_named_by_its_line() -> None:
    class Upsample(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.up(self.conv(x))
            return y

    torch.manual_seed(0)
    model, data = _script(Upsample()), _data(2, 3, 8, 8)
    found = jitquant.auto_mapping(model, data, _sqnr(model, data), max_drop=0.5, progress=False)
    floats = {each.op.module for each in found.mapping.explain(model).decisions if not each.qconfig}
    assert floats == {"conv", "up"}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"evaluate": 3}, jitquant.JitQuantTypeError, "evaluate must be a function"),
        ({"evaluate": lambda _: "good"}, jitquant.JitQuantTypeError, "return a number, got str"),
        ({"evaluate": lambda _: math.nan}, jitquant.JitQuantValueError, "evaluate gave nan"),
        ({"max_drop": "1"}, jitquant.JitQuantTypeError, "max_drop must be a number, got '1'"),
        ({"max_drop": -1}, jitquant.JitQuantValueError, "max_drop must be 0 or more, got -1"),
        ({"data": torch.ones(1)}, jitquant.JitQuantTypeError, "data must be a DataLoader"),
    ],
)
def test_bad_arguments(changes: Any, error: type[Exception], message: str) -> None:
    model, data = _script(PlainNet()), _data(2, 3, 8, 8)
    arguments = {"data": data, "evaluate": lambda _: 1.0, "max_drop": 0.0, **changes}
    with pytest.raises(error, match=message):
        jitquant.auto_mapping(model, progress=False, **arguments)


def test_a_score_that_cannot_be_reached_is_an_error() -> None:
    model, data = _script(PlainNet()), _data(2, 3, 8, 8)
    scores = iter(range(100, 0, -1))
    with pytest.raises(jitquant.JitQuantError, match="even with all ops float"):
        jitquant.auto_mapping(model, data, lambda _: next(scores), max_drop=0, progress=False)


def test_batches_stay_as_they_are() -> None:
    torch.manual_seed(0)
    data = _data(2, 4)
    jitquant.auto_mapping(_script(Doubles()), data, lambda _: 1.0, max_drop=0, progress=False)
    assert all(torch.equal(x, y) for x, y in zip(data, _data(2, 4), strict=True))


def test_evaluate_changes_copies() -> None:
    torch.manual_seed(0)
    model, data = _script(Remembers()), _data(2, 4)

    def evaluate(candidate: torch.jit.ScriptModule) -> float:
        candidate(data[0])
        candidate.train()
        return 1.0

    found = jitquant.auto_mapping(
        model, data, evaluate, max_drop=0, preserved_attrs=["seen"], progress=False
    )
    assert not model.training
    assert not model.seen.any() and not found.model.seen.any()


def test_only_the_first_model_warns_of_what_it_drops() -> None:
    class TwoMethods(Gate):
        @torch.jit.export
        def other(self, x: Tensor) -> Tensor:
            return x + 1

    torch.manual_seed(0)
    model, data = _script(TwoMethods()), _data(4, 8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = jitquant.auto_mapping(model, data, _sqnr(model, data), max_drop=1, progress=False)
    assert len(found.trials) > 1
    assert [each.category for each in caught].count(jitquant.DroppedWarning) == 1
    assert not [each for each in caught if each.category is jitquant.FloatWarning]


def test_a_method_that_needs_calibration_cannot_be_kept() -> None:
    class Encodes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(4, 4), nn.Linear(4, 2)

        @torch.jit.export
        def encode(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc1(x)
            return y

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc2(torch.relu(self.encode(x)))
            return y

    model, data = _script(Encodes()), _data(2, 4)
    with pytest.raises(jitquant.JitQuantValueError, match="'encode' has ops that will be int8"):
        jitquant.auto_mapping(
            model, data, lambda _: 1.0, max_drop=0, preserved_attrs=["encode"], progress=False
        )

"""fastest_engine: what it measures, on which engine, and what it leaves as it was."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jitquant
from jitquant import JitQuantError, JitQuantTypeError, JitQuantValueError, _cost
from jitquant._engine import engine_set
from tests.ir import sample

ENGINES = ["x86", "fbgemm", "onednn", "qnnpack"]
X = sample(1, 4, 6, 6)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(4, 4, 1)
        self.b = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.a(x).relu() + self.b(x)
        return y.relu()

    @torch.jit.export
    def twice(self, x: Tensor) -> Tensor:
        y: Tensor = 2.0 * x
        return y


def calibrated(qconfig: jitquant.QConfig = jitquant.default_qconfig) -> torch.jit.ScriptModule:
    model: Any = torch.jit.script(Net().eval())
    prepared = jitquant.prepare_jit(model, {"": qconfig})
    prepared(X)
    prepared.twice(X)
    return prepared


class Clock:
    """Time that passes by so much at each look, on the engine that is set then."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += self.seconds[torch.backends.quantized.engine]
        return self.now


def engine_of(model: torch.jit.ScriptModule) -> str:
    """The engine that the record in a model names."""
    needs = jitquant.check(model, strict=False).requirements
    return next(each.needs for each in needs if each.what == "engine")


@pytest.mark.parametrize("fastest", ENGINES)
def test_the_engine_of_the_lowest_latency(fastest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """onednn's model, in which a sum is part of a convolution, runs on onednn only."""
    clock = Clock({engine: 0.25 if engine == fastest else 0.5 for engine in ENGINES})
    monkeypatch.setattr(_cost, "time", clock)
    found = jitquant.fastest_engine(calibrated(), X, seconds=0.1, preserved_attrs=["twice"])
    assert found.engine == fastest
    assert found.latency_ms == {name: 250.0 if name == fastest else 500.0 for name in ENGINES}
    assert found.problems == {}
    assert engine_of(found.model) == fastest
    assert ("conv2d_add_relu" in str(found.model.graph)) == (fastest == "onednn")


def test_it_prints_a_table() -> None:
    found = jitquant.FastestEngine(
        "fbgemm", calibrated(), {"x86": 1.5, "fbgemm": 0.25}, {"onednn": "it cannot"}, 1
    )
    assert str(found).splitlines()[2:] == [
        "x86       1.50",
        "fbgemm    0.25            fastest",
        "onednn                    it cannot",
    ]


@pytest.mark.parametrize("engine", ["fbgemm", "onednn"])
def test_what_was_given_stays_as_it_was(engine: str) -> None:
    prepared, x = calibrated(), X.clone()
    before = jitquant.convert_jit(prepared, preserved_attrs=["twice"])
    with engine_set(engine):
        jitquant.fastest_engine(prepared, x, seconds=0.01, preserved_attrs=["twice"])
        assert torch.backends.quantized.engine == engine
    after = jitquant.convert_jit(prepared, preserved_attrs=["twice"])
    assert torch.equal(x, X)
    assert str(after.graph) == str(before.graph)
    assert torch.equal(after(X), before(X))


def test_every_engine_keeps_what_a_generator_names() -> None:
    names = (name for name in ["twice"])
    found = jitquant.fastest_engine(calibrated(), X, seconds=0.01, preserved_attrs=names)
    assert torch.equal(found.model.twice(X), 2 * X)


def test_the_user_hears_once_what_the_model_dropped() -> None:
    with pytest.warns(jitquant.DroppedWarning, match="the methods 'twice'") as seen:
        jitquant.fastest_engine(calibrated(), X, seconds=0.01)
    dropped = [each for each in seen if each.category is jitquant.DroppedWarning]
    assert [each.filename for each in dropped] == [__file__]


def affine() -> jitquant.QConfig:
    return jitquant.QConfig(
        activation=jitquant.observers.MinMaxObserver,
        weight=jitquant.observers.MinMaxObserver.with_args(
            dtype=torch.qint8, qscheme=torch.per_tensor_affine
        ),
    )


def test_an_engine_that_cannot_run_the_qconfigs_is_listed_with_the_reason() -> None:
    found = jitquant.fastest_engine(
        calibrated(affine()), X, seconds=0.01, preserved_attrs=["twice"]
    )
    assert list(found.latency_ms) == ["x86", "fbgemm", "qnnpack"]
    assert list(found.problems) == ["onednn"]
    assert "the engine onednn takes symmetric weights only" in found.problems["onednn"]


# --- mistakes ---


def test_what_no_engine_can_convert_is_an_error() -> None:
    model: Any = torch.jit.script(Net().eval())
    prepared = jitquant.prepare_jit(model, {"": jitquant.default_qconfig})
    with pytest.raises(JitQuantError, match="the prepared model was not calibrated"):
        jitquant.fastest_engine(prepared, X)


def test_a_model_that_is_not_prepared_is_refused() -> None:
    model: Any = torch.jit.script(Net().eval())
    with pytest.raises(JitQuantValueError, match=r"^fastest_engine: the model was not prepared\."):
        jitquant.fastest_engine(model, X)
    with pytest.raises(JitQuantTypeError, match=r"^fastest_engine takes a ScriptModule, got"):
        jitquant.fastest_engine(Net(), X)  # type: ignore[arg-type]


@pytest.mark.parametrize("seconds", [0, -1.0, float("inf"), float("nan")])
def test_seconds_are_above_zero_and_finite(seconds: float) -> None:
    message = r"^fastest_engine: seconds must be above 0 and finite, got \S+\.$"
    with pytest.raises(JitQuantValueError, match=message):
        jitquant.fastest_engine(calibrated(), X, seconds=seconds)


@pytest.mark.parametrize("seconds", ["2", None, True])
def test_seconds_are_a_number(seconds: Any) -> None:
    message = r"^fastest_engine: seconds must be a number, got \S+\.$"
    with pytest.raises(JitQuantTypeError, match=message):
        jitquant.fastest_engine(calibrated(), X, seconds=seconds)


def test_a_batch_that_does_not_fit_is_named() -> None:
    engine = torch.backends.quantized.engine
    with pytest.raises(JitQuantError, match="the batch"):
        jitquant.fastest_engine(calibrated(), {"y": X})
    assert torch.backends.quantized.engine == engine

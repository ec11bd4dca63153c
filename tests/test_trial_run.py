"""The trial run of a converted model, with what forward got while calibrating."""

import io
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import jitquant
from benchmarks.memory import PeakMemory
from jitquant import _C, _trial_run
from tests.models import reloaded


class Pair(NamedTuple):
    low: Tensor
    times: int


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)


class Takes(Layer):
    """Everything that forward may get. The asserts say what the trial run must pass on."""

    def __init__(self, refuses: bool = False) -> None:
        super().__init__()
        self.refuses = refuses

    def forward(
        self,
        x: Tensor,
        times: int,
        flag: bool,
        name: str,
        mask: Tensor | None,
        nothing: Tensor | None,
        states: list[Tensor],
        named: dict[str, Tensor],
        nested: tuple[list[int], list[tuple[Tensor, float]]],
        pair: Pair,
    ) -> Tensor:
        if self.refuses:
            raise ValueError("refused")
        assert list(x.shape) == [2, 4] and times == 3 and flag and name == "a"
        assert mask is not None and list(mask.shape) == [] and mask.dtype == torch.int64
        assert nothing is None
        assert (
            len(states) == 2 and list(states[1].shape) == [2, 0] and list(states[0].shape) == [2, 4]
        )
        assert list(named.keys()) == ["k"] and named["k"].dtype == torch.bool
        assert nested[0] == [1, 2] and list(nested[1][0][0].shape) == [4] and nested[1][0][1] == 0.5
        assert list(pair.low.shape) == [1] and pair.times == 7
        states[0].add_(pair.low)
        y: Tensor = self.fc(x * times)
        return y


def arguments() -> tuple[Any, ...]:
    states = [torch.rand(2, 4), torch.rand(2, 0)]
    nested = ([1, 2], [(torch.rand(4), 0.5)])
    named = {"k": torch.ones(3, dtype=torch.bool)}
    pair = Pair(torch.rand(1), 7)
    return torch.rand(2, 4), 3, True, "a", torch.tensor(1), None, states, named, nested, pair


def prepared_and_run(net: nn.Module, *values: Any) -> Any:
    prepared: Any = jitquant.prepare_jit(
        torch.jit.script(net.eval()), {"": jitquant.default_qconfig}
    )
    with torch.no_grad():
        prepared(*values)
    return prepared


def inputs_of(prepared: Any, monkeypatch: pytest.MonkeyPatch) -> list[_C.InputSeen]:
    seen: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(_trial_run, "check", lambda *args: seen.extend(args[2]))
        jitquant.convert_jit(prepared)
    return seen


@pytest.mark.parametrize("is_loaded", [False, True])
def test_all_kinds_of_arguments_are_passed_again(
    is_loaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepared_and_run(Takes(), *arguments())
    inputs = inputs_of(prepared, monkeypatch)
    if is_loaded:
        prepared = reloaded(prepared)
    _trial_run.check(torch.jit.script(Takes().eval()), prepared, inputs)  # its asserts hold
    with pytest.raises(
        jitquant.JitQuantError, match=r"cannot run .*: builtins.ValueError: refused"
    ):
        _trial_run.check(torch.jit.script(Takes(refuses=True).eval()), prepared, inputs)


class RefusesZeros(Layer):
    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        assert bool(index.any())
        y: Tensor = self.fc(x)
        return y


def test_a_model_that_refuses_the_values_itself_is_converted() -> None:
    prepared = prepared_and_run(RefusesZeros(), torch.rand(2, 4), torch.tensor([1]))
    converted = jitquant.convert_jit(prepared)
    with pytest.raises(torch.jit.Error):
        converted(torch.rand(2, 4), torch.tensor([0]))


def test_the_first_call_counts() -> None:
    prepared = prepared_and_run(Takes(), *arguments())
    with pytest.raises(torch.jit.Error), torch.no_grad():
        prepared(torch.rand(2, 4), 5, *arguments()[2:])
    jitquant.convert_jit(prepared)
    assert prepared.jitquant_observer_arguments.seen[0] == 3


def test_values_of_tensors_are_not_kept() -> None:
    """A prepared model is saved, and calibration data may be large or private."""
    big = torch.rand(1000, 1000)
    values = (*arguments()[:6], [torch.rand(2, 4), torch.rand(2, 0), big], *arguments()[7:])

    class Loose(Takes):
        def forward(
            self,
            x: Tensor,
            times: int,
            flag: bool,
            name: str,
            mask: Tensor | None,
            nothing: Tensor | None,
            states: list[Tensor],
            named: dict[str, Tensor],
            nested: tuple[list[int], list[tuple[Tensor, float]]],
            pair: Pair,
        ) -> Tensor:
            y: Tensor = self.fc(x)
            return y

    prepared = prepared_and_run(Loose(), *values)
    assert prepared.jitquant_observer_arguments.seen[5][2].shape == big.shape
    file = io.BytesIO()
    torch.jit.save(prepared, file)
    assert len(file.getvalue()) < 200_000


def test_the_converted_model_has_no_recorder() -> None:
    converted = jitquant.convert_jit(prepared_and_run(Takes(), *arguments()))
    assert not hasattr(converted, "jitquant_observer_arguments")
    assert "CallMethod" not in str(converted.graph)


def test_a_forward_that_did_not_run_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    class Times(Layer):
        def forward(self, x: Tensor, times: int = 1) -> Tensor:
            y: Tensor = self.fc(x) * times
            return y

    prepared = prepared_and_run(Times(), torch.rand(2, 4), 2)
    inputs = inputs_of(prepared, monkeypatch)
    fresh = jitquant.prepare_jit(torch.jit.script(Times().eval()), {"": jitquant.default_qconfig})
    _trial_run.check(torch.jit.script(Takes(refuses=True).eval()), fresh, inputs)


class Held:
    def __init__(self, times: int) -> None:
        self.times = times


class TakesObject(Layer):
    def forward(self, x: Tensor, held: Held) -> Tensor:
        y: Tensor = self.fc(x) * held.times
        return y


def test_objects_are_not_recorded() -> None:
    held = torch.jit.script(Held)
    prepared = prepared_and_run(TakesObject(), torch.rand(2, 4), held(2))
    assert not hasattr(prepared, "jitquant_observer_arguments")
    jitquant.convert_jit(prepared)


def test_packed_weights_are_those_that_were_loaded() -> None:
    prepared = prepared_and_run(Takes(), *arguments())
    converted = jitquant.convert_jit(prepared)
    packed = _C.drop_packed(converted._c)
    assert packed == ["fc_packed_params"]
    assert converted.fc_packed_params is None
    _C.take_packed(reloaded(jitquant.convert_jit(prepared))._c, converted._c, packed)
    with torch.no_grad():
        values = arguments()
        assert torch.equal(converted(*values), reloaded(converted)(*values))


def test_packed_weights_are_dropped_while_the_file_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[str] = []

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            called.append(name)
            return function(*arguments)

        return call

    prepared = prepared_and_run(Takes(), *arguments())
    monkeypatch.setattr(_C, "drop_packed", noted("drop", _C.drop_packed))
    monkeypatch.setattr(torch.jit, "load", noted("load", torch.jit.load))
    monkeypatch.setattr(_C, "take_packed", noted("take", _C.take_packed))
    jitquant.convert_jit(prepared)
    assert called == ["drop", "load", "take"]


def test_a_model_that_cannot_be_loaded_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: str) -> torch.jit.ScriptModule:
        raise RuntimeError(f"{path[:6]} is broken\nmore")

    prepared = prepared_and_run(Takes(), *arguments())
    monkeypatch.setattr(torch.jit, "load", load)
    message = (
        r"^the converted model cannot be saved and loaded: /proc/ is broken\n"
        r"Your model was not changed\.$"
    )
    with pytest.raises(jitquant.JitQuantError, match=message):
        jitquant.convert_jit(prepared)
    monkeypatch.undo()
    jitquant.convert_jit(prepared)


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(12)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


def test_convert_does_not_hold_packed_weights_twice() -> None:
    """Packed weights and their file are a quarter of float's each; torch's buffers were four more."""
    prepared = prepared_and_run(Wide(), torch.rand(2, 1024))
    with PeakMemory() as peak:
        jitquant.convert_jit(prepared)
    assert peak.mb is not None and peak.mb < 1.6 * 50.3

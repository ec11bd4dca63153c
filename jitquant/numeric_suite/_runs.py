"""Both models run on the same batches, and their values side by side."""

import copy
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from jitquant import _C, _batches, _checks
from jitquant.numeric_suite._sites import Models, Site, Unmatched
from jitquant.numeric_suite._taps import scripted_tap

__all__ = ["Runs", "Value"]


_NO_TENSOR = "it gives no single tensor"
_NO_NODE = "no node of the quantized model computes its value alone"
_BRANCHES = "the debug model computes it in branches; compare the int8 model"


@dataclass(frozen=True)
class Value:
    """A value of both models.

    Attributes:
        site: the op that computes it. For `kind` "input" that of no op: its module is the
            argument's name.
        kind: "op"; "quantize" for the rounding of what a float op gives; "input" for that of an
            argument of forward; "return" for what forward returns.
        axis: the dimension of its channels, None if it has none.
    """

    site: Site
    kind: Literal["op", "quantize", "input", "return"]
    axis: int | None
    place: int = -1  # tells two roundings of one value apart


@dataclass
class _Place:
    """Where a value is in the watched models."""

    value: Value
    float_tap: Any
    quantized_taps: list[Any] = field(default_factory=list)
    problem: str = ""
    ran: bool = False
    is_written: bool = False  # in place, after it is there


class Runs:
    """A pair of models with taps at all values that both have.

    Args:
        models: the pair.
        shadow: every op of the quantized model gets the float model's values as inputs.

    Memory holds the values of one batch in both models. Neither model of the user changes.
    """

    def __init__(self, models: Models, shadow: bool) -> None:
        self.models = models
        self.shadow = shadow
        self.batches = 0
        floats = models.inspect_float().watch(scripted_tap())
        quantized = models.inspect_quantized().watch(scripted_tap())
        # Copies: a run may move the state of a model.
        self._float = copy.deepcopy(_checks.as_model(floats.module))
        self._quantized = copy.deepcopy(_checks.as_model(quantized.module))
        self._places = self._find(floats.values, quantized.values)
        found = {place.value.site for place in self._places}
        tensors = {each.record for each in floats.values}
        no_node = _BRANCHES if models.state.stage == "debug" else _NO_NODE
        self._unmatched = models.unmatched + [
            Unmatched(site.module, site.op, no_node if site.float_index in tensors else _NO_TENSOR)
            for site in models.sites()
            if site.method == "forward" and site not in found
        ]
        self._switch_off(floats.values, quantized.values)

    @property
    def failed(self) -> set[Value]:
        """What turned out, so far, not to be comparable, for reasons that `unmatched` has."""
        return {place.value for place in self._places if place.problem}

    @property
    def unmatched(self) -> list[Unmatched]:
        """What is not, so far: models may run an op another number of times."""
        problems = [
            Unmatched(place.value.site.module, place.value.site.op, problem)
            for place in self._places
            if (problem := place.problem or ("" if place.ran else "it did not run on the data"))
            and place.value.site.method == "forward"
        ]
        return [*self._unmatched, *problems]

    def run(self, batch: Any) -> Iterator[tuple[Value, Tensor, Tensor]]:
        """Each value of a batch: float, and as the quantized model has it, of equal shape.

        Raises:
            JitQuantTypeError, JitQuantValueError: the batch does not fit forward.
            Exception: what a model raised.
        """
        what = f"{self.models.function}: batch {self.batches}"
        self.batches += 1
        with _batches.briefly():
            random_state = torch.get_rng_state()
            # A model may write into its input.
            expected = _batches.run(self._float, _batches.copied(batch), what)
            if self.shadow:
                for place in self._places:
                    self._give(place)
            torch.set_rng_state(random_state)
            actual = _batches.run(self._quantized, _batches.copied(batch), what)
        for place in self._places:
            yield from _compared(place)
        if not self.shadow:
            yield from _results(expected, actual)
        for place in self._places:
            for tap in (place.float_tap, *place.quantized_taps):
                tap.values = []
                tap.instead = []

    def _give(self, place: _Place) -> None:
        if place.value.kind != "op" or place.is_written:
            return  # it rounds what the float model gave; a copy would miss what is written
        values = place.float_tap.values
        if len(place.quantized_taps) == 1:
            place.quantized_taps[0].instead = values
        elif len(place.quantized_taps) == len(values):
            for tap, value in zip(place.quantized_taps, values, strict=True):
                tap.instead = [value]

    def _find(self, floats: list[_C.Tapped], quantized: list[_C.Tapped]) -> list[_Place]:
        float_ops = {each.record: each.tap for each in floats if each.record >= 0}
        float_inputs = {each.input: each.tap for each in floats if each.input >= 0}
        taps: dict[int, list[str]] = defaultdict(list)
        for each in quantized:
            if each.record >= 0 and not each.rounds:
                taps[each.record].append(each.tap)
        sites = {site.quantized_index: site for site in self.models.sites()}
        places: list[_Place] = []

        def add(site: Site, kind: Any, float_tap: str, quantized_taps: list[str]) -> None:
            places.append(self._place(len(places), site, kind, float_tap, quantized_taps))

        for each in quantized:
            if each.rounds and each.input >= 0 and each.input in float_inputs:
                site = _input_site(self._quantized, each.input)
                add(site, "input", float_inputs[each.input], [each.tap])
            elif each.record in sites and sites[each.record].float_index in float_ops:
                site = sites[each.record]
                tap = float_ops[site.float_index]
                if each.rounds:
                    add(_rounding_of(site), "quantize", tap, [each.tap])
                elif each.tap == taps[each.record][0]:
                    add(site, "op", tap, taps[each.record])
                    places[-1].is_written = each.written
        return places

    def _place(
        self, number: int, site: Site, kind: Any, float_tap: str, quantized_taps: list[str]
    ) -> _Place:
        value = Value(site, kind, _axis(site.op), number)
        taps = [getattr(self._quantized, name) for name in quantized_taps]
        return _Place(value, getattr(self._float, float_tap), taps)

    def _switch_off(self, floats: list[_C.Tapped], quantized: list[_C.Tapped]) -> None:
        used = {id(place.float_tap) for place in self._places}
        used |= {id(tap) for place in self._places for tap in place.quantized_taps}
        for model, values in ((self._float, floats), (self._quantized, quantized)):
            for each in values:
                tap = getattr(model, each.tap)
                tap.on = id(tap) in used


def _compared(place: _Place) -> Iterator[tuple[Value, Tensor, Tensor]]:
    expected = place.float_tap.values
    actual = [value for tap in place.quantized_taps for value in tap.values]
    if len(expected) != len(actual):
        place.problem = (
            f"it ran {len(expected)} times in the float model and {len(actual)} times in the "
            "quantized one, on the same batch"
        )
    for one, other in zip(expected, actual, strict=False):
        if place.problem:
            return
        if not one.is_floating_point() and not one.is_quantized:
            place.problem = f"its values are {str(one.dtype).removeprefix('torch.')}"
            return
        other = _without_padding(other, one)
        if other.shape != one.shape:
            place.problem = (
                f"its value is {tuple(one.shape)} in the float model and {tuple(other.shape)} in "
                "the quantized one"
            )
            return
        place.ran = True
        yield place.value, one, other


def _without_padding(actual: Tensor, expected: Tensor) -> Tensor:
    """Without the channels of zeros that convert adds to be fast."""
    if actual.dim() != expected.dim() or actual.dim() < 2 or actual.size(1) <= expected.size(1):
        return actual
    return actual.narrow(1, 0, expected.size(1))


def _results(expected: Any, actual: Any) -> Iterator[tuple[Value, Tensor, Tensor]]:
    """The floating-point tensors that forward returned."""
    floats, quantized = dict(_batches.leaves(expected)), dict(_batches.leaves(actual))
    for name, value in floats.items():
        other = quantized.get(name)
        if other is None or other.shape != value.shape or not value.is_floating_point():
            continue
        site = Site("forward", name, "return", 0, False, "what forward returns", "", -1, -1)
        yield Value(site, "return", _axis(site.op)), value, other


def _input_site(model: torch.jit.ScriptModule, index: int) -> Site:
    schema: Any = model._c._get_method("forward").schema
    name = schema.arguments[index + 1].name
    how = "an argument of forward, quantized"
    return Site("forward", name, "quantize input", 0, True, how, "", -1, -1)


def _rounding_of(site: Site) -> Site:
    how = f"the value of the float {site.op}, quantized"
    op = f"quantize {site.op}"
    return Site(site.method, site.module, op, site.index, True, how, site.source, -1, -1)


def _axis(op: str) -> int | None:
    """Linear layers have their channels last, all else is taken to have them behind the batch."""
    return -1 if op.removeprefix("quantize ").startswith("aten::linear") else 1

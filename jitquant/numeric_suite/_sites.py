"""Where values of a float model and of a quantized one are the same but for quantization."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from jitquant import _C, _checks, _state
from jitquant.errors import JitQuantValueError
from jitquant.qconfig import default_qconfig, script_qconfig
from jitquant.quantize import converted_quietly

__all__ = ["Models", "Site", "Unmatched"]


@dataclass(frozen=True)
class Site:
    """An op that both models compute.

    Attributes:
        method: "forward", or another method.
        module: path of the module that called the op, "" for the top module.
        op: the float op, with what it absorbs: "aten::conv2d + aten::relu".
        index: how many of the same op come before it in its module.
        int8: whether it runs in int8.
        how: how it is int8, or why it stays float.
        source: file and line of the user's code.
        float_index: the float model's record of the last op of it.
        quantized_index: the quantized model's record of the first op of it.
    """

    method: str
    module: str
    op: str
    index: int
    int8: bool
    how: str
    source: str
    float_index: int
    quantized_index: int


@dataclass(frozen=True)
class Unmatched:
    """An op that has no counterpart in the other model, or no value of its own.

    Attributes:
        module: path of the module that called it, "" for the top module.
        op: the op, such as "aten::conv2d".
        reason: why it is not compared.
    """

    module: str
    op: str
    reason: str


class Models:
    """A float and a quantized model whose ops are known by the same records.

    Args:
        float_model: scripted, traced or loaded, or what `prepare_jit` returned.
        quantized_model: what `convert_jit` or `convert_dynamic_jit` returned; or a prepared and
            calibrated model, which is converted for this.
        function: for errors.

    Raises:
        JitQuantTypeError: either is no ScriptModule.
        JitQuantValueError: float_model is converted; quantized_model is not quantized; the two have
            no op in common.
        JitQuantError: quantized_model is prepared and not calibrated.
    """

    def __init__(self, float_model: object, quantized_model: object, function: str) -> None:
        self.function = function
        checked_float = _checks.check_script_module(float_model, function)
        checked = _checks.check_script_module(quantized_model, function)
        self.quantized_model, self.state = _quantized(checked, function)
        self.float_model = checked_float
        self._methods = list(dict.fromkeys(["forward", *(op.method for op in self.state.ops)]))
        self._first: _C.Inspection | None = self._inspected_float()
        float_ops = [(record.method, record.path, record.kind) for record in self._first.records]
        self.pairs, self.unmatched = _pairs(float_ops, self.state.ops)
        if not self.pairs:
            raise JitQuantValueError(
                f"{function}: the models do not match: {_difference(float_ops, self.state.ops)} "
                "Give the float model that the quantized one was made from."
            )

    def inspect_float(self) -> _C.Inspection:
        """The float model in the form that was quantized; new on each call."""
        inspection, self._first = self._first, None
        return inspection or self._inspected_float()

    def _inspected_float(self) -> _C.Inspection:
        state = _state.read(self.float_model)
        methods = [name for name in self._methods if self.float_model._c._has_method(name)]
        if state is not None and state.stage == "prepared":
            _checks.check_own_biases(state, self.function)
            records = [record for record in state.records() if record.method in methods]
            return _C.inspect_prepared(self.float_model._c, methods, records)
        if state is not None:
            stage = "a debug model" if state.stage == "debug" else "converted"
            raise JitQuantValueError(
                f"{self.function}: the first model is {stage} already. The first one is the float "
                "model, the second one the quantized."
            )
        _checks.check_float_model(self.float_model, self.function)
        preparation = _C.Preparation(self.float_model._c, methods, None)
        observers: Any = script_qconfig(default_qconfig)
        decisions = _decisions(preparation.ops, self.state.ops)
        return preparation.inspect(decisions, [(observers.activation._c, observers.weight._c)])

    def inspect_quantized(self) -> _C.Inspection:
        """The quantized model; new on each call."""
        return _C.inspect_converted(self.quantized_model._c, self._methods, self.state.records())

    def sites(self) -> list[Site]:
        """The ops that both models compute, an op together with what it absorbs."""
        counts: dict[tuple[str, str, str], int] = defaultdict(int)
        sites = []
        for quantized, parts in self._groups().items():
            op = self.state.ops[quantized]
            if not all(part in self.pairs for part in parts):
                continue
            name = " + ".join(self.state.ops[part].kind for part in parts)
            key = (op.method, op.path, name)
            sites.append(
                Site(
                    op.method,
                    op.path,
                    name,
                    counts[key],
                    op.int8,
                    op.reason,
                    op.source,
                    self.pairs[parts[-1]],
                    quantized,
                )
            )
            counts[key] += 1
        return sites

    def _groups(self) -> dict[int, list[int]]:
        """Each op with those that it absorbs, in order, itself first."""
        groups: dict[int, list[int]] = {}
        for index, op in enumerate(self.state.ops):
            if op.part_of < 0:
                groups[index] = [index]
        for index, op in enumerate(self.state.ops):
            if op.part_of >= 0:
                groups[op.part_of].append(index)
        return groups


def _quantized(
    model: torch.jit.ScriptModule, function: str
) -> tuple[torch.jit.ScriptModule, _state.State]:
    state = _state.read(model)
    if state is None:
        raise JitQuantValueError(
            f"{function}: the second model is not quantized: neither prepare_jit nor convert_jit "
            "made it. The first one is the float model, the second one the quantized."
        )
    if state.stage == "prepared":
        model = converted_quietly(model)
        state = _state.read(model)
        assert state is not None
    if not any(op.value_kind for op in state.ops):
        raise JitQuantValueError(
            f"{function}: the quantized model does not say which of its nodes compute its ops: it "
            "was converted before jitquant noted that, or has no ops. Convert it again."
        )
    return model, state


def _decisions(ops: Sequence[_C.ConfiguredOp], quantized: Sequence[_state.OpState]) -> list[int]:
    """Let the float model be folded as the quantized one was.

    A BatchNorm, padding or transposed convolution that is an op of the quantized model was not
    folded or rewritten. To leave it float keeps it so; layers may take in what is left.
    """
    layers = {row.op for row in _C.supported_ops() if row.role == "weighted"}
    kept = {(op.method, op.path, op.kind) for op in quantized if op.kind not in layers}
    return [_C.LEFT_FLOAT if (each.method, each.path, each.kind) in kept else 0 for each in ops]


def _pairs(
    float_ops: Sequence[tuple[str, str, str]], quantized: Sequence[_state.OpState]
) -> tuple[dict[int, int], list[Unmatched]]:
    """Record of the quantized model to record of the float model: by method, module and op."""
    places: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for index, key in enumerate(float_ops):
        places[key].append(index)
    own: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for index, op in enumerate(quantized):
        own[op.method, op.path, op.kind].append(index)
    pairs: dict[int, int] = {}
    unmatched = []
    for key, indices in own.items():
        others = places.get(key, [])
        if len(others) == len(indices):
            pairs.update(zip(indices, others, strict=True))
            continue
        reason = f"the float model has {len(others)} of them there, the quantized {len(indices)}"
        unmatched += [Unmatched(key[1], key[2], reason) for _ in indices]
    for key, others in places.items():
        if key not in own and any(op.method == key[0] for op in quantized):
            reason = f"the float model has {len(others)} of them there, the quantized 0"
            unmatched += [Unmatched(key[1], key[2], reason) for _ in others]
    return pairs, unmatched


def _difference(
    float_ops: Sequence[tuple[str, str, str]], quantized: Sequence[_state.OpState]
) -> str:
    found = [f"{kind} in {path!r}" for _, path, kind in float_ops]
    expected = [f"{op.kind} in {op.path!r}" for op in quantized]
    return f"the float model has {_some(found)}, the quantized one {_some(expected)}."


def _some(ops: Sequence[str]) -> str:
    shown = ", ".join(ops[:2]) or "no ops"
    return shown if len(ops) <= 2 else f"{shown} and {len(ops) - 2} more ops"

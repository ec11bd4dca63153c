"""The record that travels inside a prepared or converted model, as one string attribute."""

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from jitquant import _C
from jitquant.errors import JitQuantError

ATTRIBUTE = "jitquant_state"
FORMAT = 2

Stage = Literal["prepared", "converted", "debug"]


@dataclass(frozen=True)
class OpState:
    """One listed op; the same fields as the records of the passes."""

    method: str
    kind: str
    path: str
    source: str
    qconfig: int
    int8: bool
    reason: str
    part_of: int = -1
    value_kind: str = ""
    value_nodes: tuple[int, ...] = ()


@dataclass(frozen=True)
class State:
    """What a model file says about how it was made."""

    stage: Stage
    ops: tuple[OpState, ...]
    jitquant_version: str
    torch_version: str
    engine: str
    cpu: str  # features of the CPU that convert_jit verified on, "" for a prepared model
    activation_bits: tuple[int, ...]  # of all qconfigs in use, ascending
    bias_corrected: bool = False  # by correct_bias, of a prepared model
    libraries: tuple[str, ...] = ()  # namespaces of ops that torch does not have
    format: int = field(default=FORMAT)

    def records(self, left_float: Collection[int] = ()) -> list[_C.OpRecord]:
        """The ops as the passes take them, with those of these indices left float."""
        records = []
        for op in self.ops:
            record = _C.OpRecord()
            for name, value in vars(op).items():
                setattr(record, name, list(value) if isinstance(value, tuple) else value)
            records.append(record)
        for index in left_float:
            records[index].qconfig = _C.LEFT_FLOAT
        return records


def ops_of(records: list[_C.OpRecord]) -> tuple[OpState, ...]:
    """The passes' records as plain data."""
    names = OpState.__dataclass_fields__
    return tuple(_op_state({name: getattr(record, name) for name in names}) for record in records)


def _op_state(fields: dict[str, Any]) -> OpState:
    return OpState(**{**fields, "value_nodes": tuple(fields.get("value_nodes", ()))})


def read(model: torch.jit.ScriptModule) -> State | None:
    """The state in `model`, or None if jitquant did not make it.

    Raises:
        JitQuantError: the state was written by another version of jitquant, or changed by hand.
    """
    module = model._c
    if not module.hasattr(ATTRIBUTE):
        return None
    try:
        fields: dict[str, Any] = json.loads(module.getattr(ATTRIBUTE))
        found = fields["format"]
        if found == FORMAT:
            fields["ops"] = tuple(_op_state(op) for op in fields["ops"])
            for name in ("activation_bits", "libraries"):
                fields[name] = tuple(fields.get(name, ()))
            return State(**fields)
        version = fields["jitquant_version"]
    except (KeyError, TypeError, ValueError) as error:
        raise JitQuantError(
            f"the model's attribute {ATTRIBUTE!r} is not what jitquant wrote ({error!r}): it was "
            "changed after prepare_jit or convert_jit. Make the model anew."
        ) from error
    raise JitQuantError(
        f"the model was made by jitquant {version} with state format {found}, this jitquant "
        f"reads format {FORMAT}: install that version."
    )


def write(module: torch._C.ScriptModule, state: State) -> None:
    """Put `state` into a C++ module."""
    text = json.dumps(state, default=vars, separators=(",", ":"))
    target: Any = module  # torch's stubs lack both methods
    if target.hasattr(ATTRIBUTE):
        target.setattr(ATTRIBUTE, text)
    else:
        target._register_attribute(ATTRIBUTE, torch._C.StringType.get(), text)

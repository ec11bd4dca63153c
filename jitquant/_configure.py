"""From a model and its configuration to one decision for each op."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from jitquant import _C, _batches, _checks
from jitquant._resolve import Decision, resolve
from jitquant._type_names import module_types
from jitquant.errors import JitQuantError, JitQuantValueError
from jitquant.observers import ShapeRecorder
from jitquant.op_info import op_infos

if TYPE_CHECKING:
    from jitquant.mapping import QConfigMapping

__all__ = ["decide", "shape_recorder"]

Shapes = tuple[tuple[int, ...], ...]


def decide(
    model: torch.jit.ScriptModule,
    mapping: "QConfigMapping",
    preparation: _C.Preparation,
) -> list[Decision]:
    """Decide on each op of a preparation of `model`, in its order.

    Args:
        model: the float model.
        mapping: the rules.
        preparation: of the same model, not finished.

    Raises:
        JitQuantValueError: the model holds inlined observers.
        JitQuantError: see `resolve`; the model raised on the mapping's example_inputs.
    """
    ops = preparation.ops
    inlined = next((op for op in ops if op.kind.startswith("jitquant::")), None)
    if inlined is not None:
        raise JitQuantValueError(
            f"the model runs {inlined.kind}, so it was prepared by prepare_jit and then frozen, "
            "which inlines observers. Prepare the float model that it was made from."
        )
    shapes: Sequence[Shapes | None] = [None] * len(ops)
    if mapping.example_inputs is not None:
        shapes = _as_in_forward(ops, _shapes(model, mapping.example_inputs))
    types = module_types(model)
    return resolve(mapping, op_infos(ops, types, shapes), types, preparation.written)


def shape_recorder() -> torch._C.ScriptModule:
    """A scripted ShapeRecorder, as the passes take it."""
    scripted: Any = torch.jit.script(ShapeRecorder())
    recorder: torch._C.ScriptModule = scripted._c
    return recorder


def _shapes(model: torch.jit.ScriptModule, example_inputs: Any) -> list[Shapes | None]:
    """For each op the first shape of each tensor that it reads; None for an op that did not run."""
    watched = _C.Preparation(model._c, _checks.method_names(model), None).watch(shape_recorder())
    runnable = _checks.as_model(watched.module)
    try:
        with torch.no_grad():
            _batches.run(runnable, _batches.copied(example_inputs), "example_inputs")
    except JitQuantError:
        raise
    except Exception as error:  # torch.jit.Error, RuntimeError, IndexError and others
        raise JitQuantError(
            f"the model cannot run on example_inputs: {str(error).strip().splitlines()[-1]}"
        ) from error
    return [_seen(runnable, names) for names in watched.observers]


def _as_in_forward(
    ops: Sequence[_C.ConfiguredOp], shapes: Sequence[Shapes | None]
) -> list[Shapes | None]:
    """An op of a method that forward calls has the shapes that it has in forward, inlined there."""
    known: dict[tuple[str | int, ...], Shapes] = {}
    count: Counter[tuple[str, ...]] = Counter()
    result = []
    for op, seen in zip(ops, shapes, strict=True):
        place = (op.path, op.kind, op.source)
        key = (*place, count[op.method, *place])
        count[op.method, *place] += 1
        if op.method == "forward" and seen is not None:
            known[key] = seen
        result.append(seen if seen is not None or not op.source else known.get(key))
    return result


def _seen(model: torch.jit.ScriptModule, recorders: list[str]) -> Shapes | None:
    shapes = []
    for name in recorders:
        recorder: Any = getattr(model, name)
        if not recorder.shapes:
            return None
        shapes.append(tuple(recorder.shapes[0]))
    return tuple(shapes)

"""OpInfo: what a configuration can know of an op."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jitquant import _C
from jitquant._type_names import op_names

__all__ = ["OpInfo", "enclosing", "op_infos"]


@dataclass(frozen=True)
class OpInfo:
    """One op of a float model, as rules and predicates see it.

    Attributes:
        kind: the op in jitquant's spelling, such as "aten::linear".
        written: the op in the model's code or trace, such as "aten::addmm".
        module: path of the module that called it, "" for the top module.
        module_type: class of that module, such as "torch.nn.modules.linear.Linear".
        method: the model's method that runs it, such as "forward".
        source: file and line of the user's code, "" if the archive does not say.
        index: how many ops of this kind come before it in its module.
        ordinal: how many ops of this kind come before it in its method.
        shapes: for each tensor that it reads, without weights, the first shape seen with
            `example_inputs`. None without example_inputs, or if with them forward did not
            compute one of the tensors. In a method that forward calls it is what forward saw.
        positions: (module path, type) to index, for all types that the op has.
    """

    kind: str
    written: str
    module: str
    module_type: str
    method: str
    source: str
    index: int
    ordinal: int
    shapes: tuple[tuple[int, ...], ...] | None
    positions: Mapping[tuple[str, str], int] = field(repr=False, compare=False, hash=False)

    def __str__(self) -> str:
        """Such as "aten::conv2d in 'layer1.0.conv1' (resnet.py:92)"."""
        place = f"in {self.module!r}" if self.module else "in the top module"
        return f"{self.kind} {place}" + (f" ({self.source})" if self.source else "")


class _Counter:
    """Numbers distinct members of groups in the order in which they come."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, ...], dict[str | int, int]] = {}

    def number(self, group: tuple[str, ...], member: str | int) -> int:
        members = self._seen.setdefault(group, {})
        return members.setdefault(member, len(members))


def op_infos(
    ops: Sequence[_C.ConfiguredOp],
    types: Mapping[str, str],
    shapes: Sequence[tuple[tuple[int, ...], ...] | None],
) -> list[OpInfo]:
    """What is known of each op; types is `module_types`, shapes has one entry for each op.

    An op counts once, however many ops it became. A module counts in its parent, in the order in
    which modules first run.
    """
    counter = _Counter()
    infos = []
    for op, seen in zip(ops, shapes, strict=True):
        positions = {
            (op.path, name): counter.number((op.method, op.path, name), op.origin)
            for name in op_names(op.written, op.kind)
        }
        for module in enclosing(op.path):
            parent = module.rpartition(".")[0]
            kind = types.get(module, "")
            positions[parent, kind] = counter.number((op.method, parent, kind), module)
        infos.append(
            OpInfo(
                kind=op.kind,
                written=op.written,
                module=op.path,
                module_type=types.get(op.path, ""),
                method=op.method,
                source=op.source,
                index=positions[op.path, op.kind],
                ordinal=counter.number((op.method, op.kind), op.origin),
                shapes=seen,
                positions=positions,
            )
        )
    return infos


def enclosing(path: str) -> list[str]:
    """The path and those of the modules around it, nearest first, without the top module."""
    parts = path.split(".") if path else []
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)]

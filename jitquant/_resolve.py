"""Which rule of a mapping decides on each op, and which rules match nothing."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jitquant._nearest import nearest, nearest_to_regex
from jitquant._type_names import op_names
from jitquant.errors import JitQuantError, JitQuantValueError
from jitquant.op_info import OpInfo, enclosing
from jitquant.qconfig import QConfig, check_qconfig

if TYPE_CHECKING:
    from jitquant.mapping import QConfigMapping, Rule

__all__ = ["Decision", "check_any_qconfig", "resolve"]


@dataclass(frozen=True)
class Decision:
    """What was decided on one op.

    Attributes:
        op: the op.
        rule: what decided, such as "module_name 'fc'"; "" if nothing matches.
        qconfig: None leaves it float.
        is_fused: see `Rule`.
    """

    op: OpInfo
    rule: str
    qconfig: QConfig | None
    is_fused: bool = False


def resolve(
    mapping: "QConfigMapping",
    ops: Sequence[OpInfo],
    types: Mapping[str, str],
    written: Sequence[str],
) -> list[Decision]:
    """Decide on each op.

    Args:
        mapping: the rules.
        ops: all ops, in graph order.
        types: class of each submodule by its path.
        written: all kinds of ops in the user's code, also of ops that are gone.

    Raises:
        JitQuantValueError: a rule matches nothing, or the predicate gave a qconfig that no engine
            can run.
        JitQuantTypeError: the predicate gave something else.
        JitQuantError: the predicate raised.
    """
    rules = _Rules(mapping, types)
    rules.check(ops, written)
    return [rules.decide(op) for op in ops]


def check_any_qconfig(
    mapping: "QConfigMapping", decisions: Sequence[Decision], example: str
) -> None:
    """Raise if the mapping quantizes nothing; `example` is the code of a qconfig.

    Raises:
        JitQuantValueError: no rule has a qconfig, and the predicate gave none.
    """
    given = [rule.qconfig for rule in mapping.rules]
    if mapping.predicate is not None:
        given += [decision.qconfig for decision in decisions]
    if any(given):
        return
    if mapping.predicate is not None:
        raise JitQuantValueError(
            f"the predicate gave no qconfig for any of {len(decisions)} ops, nor does a rule, "
            "so nothing would be quantized. Without example_inputs op.shapes is None; rules, "
            "such as set_global, decide where the predicate returns NotImplemented."
        )
    raise JitQuantValueError(
        "qconfig_dict gives no qconfig, so nothing would be quantized. "
        f"Use {{'': {example}}} for the whole model. The setters of a QConfigMapping "
        "return a new one: mapping = mapping.set_global(...)."
    )


class _Rules:
    def __init__(self, mapping: "QConfigMapping", types: Mapping[str, str]) -> None:
        self._mapping = mapping
        self._types = types
        self._by_key = {(rule.kind, rule.key): rule for rule in mapping.rules}
        self._regexes = [rule for rule in mapping.rules if rule.kind == "module_name_regex"]

    def decide(self, op: OpInfo) -> Decision:
        if self._mapping.predicate is not None:
            answer = self._ask(op)
            if answer is not NotImplemented:
                return Decision(op, "predicate", answer)
        rule = (
            self._find("module_name_object_type_order", [(*k, i) for k, i in op.positions.items()])
            or self._find("module_name", [(path,) for path in enclosing(op.module)])
            or next((r for r in self._regexes if re.match(r.key[0], op.module)), None)
            or self._find("object_type", [(name,) for name in self._types_of(op)])
            or self._by_key.get(("", ()))
        )
        if rule is None:
            return Decision(op, "", None)
        return Decision(op, str(rule), rule.qconfig, rule.is_fused)

    def _find(self, kind: str, keys: Sequence[tuple[Any, ...]]) -> "Rule | None":
        return next((self._by_key[kind, key] for key in keys if (kind, key) in self._by_key), None)

    def _ask(self, op: OpInfo) -> Any:
        assert self._mapping.predicate is not None
        try:
            answer = self._mapping.predicate(op)
        except Exception as error:
            blind = " (op.shapes is None without example_inputs)" if op.shapes is None else ""
            raise JitQuantError(
                f"the predicate raised {type(error).__name__} for {op}: {error}{blind}"
            ) from error
        if answer is None or answer is NotImplemented:
            return answer
        return check_qconfig(answer, f"what the predicate gave for {op}")

    def _types_of(self, op: OpInfo) -> list[str]:
        """Most decisive first, see QConfigMapping.set_object_type."""
        names = list(op_names(op.written, op.kind))
        classes = [self._types.get(path, "") for path in [*enclosing(op.module), ""]]
        is_layer = op.module_type.startswith("torch.nn.")
        return [*classes[:1], *names, *classes[1:]] if is_layer else [*names, *classes]

    def check(self, ops: Sequence[OpInfo], written: Sequence[str]) -> None:
        """Raise for the first rule that matches nothing."""
        running = (path for op in ops for path in enclosing(op.module))
        paths = dict.fromkeys([*self._types, *running])
        names = dict.fromkeys([*(n for op in ops for n in op_names(op.written, op.kind)), *written])
        names.update(dict.fromkeys(self._types.values()))
        for rule in self._mapping.rules:
            problem = _problem(rule, ops, paths, names, self._types)
            if problem and rule.required:
                raise JitQuantValueError(
                    f"qconfig_dict: the rule {rule} matches nothing: {problem}"
                )


_NO_MODULES = (
    "the model has no submodules (torch.jit.freeze inlines them): use set_global, set_object_type "
    "with ops, or a predicate."
)

_PATTERN = "For regular expressions use module_name_regex; a name covers all inside of its module."


def _problem(
    rule: "Rule",
    ops: Sequence[OpInfo],
    paths: Mapping[str, None],
    names: Mapping[str, None],
    types: Mapping[str, str],
) -> str:
    """Why a rule matches nothing, and what may have been meant; "" if it matches."""
    if rule.kind == "object_type":
        return "" if rule.key[0] in names else _type_problem(rule.key[0], names, types)
    if rule.kind == "module_name_regex":
        return _regex_problem(rule.key[0], paths)
    if rule.kind in ("module_name", "module_name_object_type_order") and rule.key[0] not in paths:
        if not any(paths):
            return _NO_MODULES
        problem = f"the model has no submodule {rule.key[0]!r}. {nearest(rule.key[0], paths)}"
        is_pattern = any(character in rule.key[0] for character in "*?[(|")
        return f"{problem} {_PATTERN}" if is_pattern else problem
    if rule.kind == "module_name_object_type_order":
        return _order_problem(rule.key, ops)
    return ""


def _type_problem(name: str, names: Mapping[str, None], types: Mapping[str, str]) -> str:
    ops = [each for each in names if "::" in each]
    if "::" in name:
        return f"the model has no op of that type. {nearest(name, ops)}"
    if not any(types):
        return f"{_NO_MODULES} {nearest(name, ops)}"
    classes = [each for each in names if "::" not in each]
    last = name.rpartition(".")[2].lower()
    ops_of_it = [op for op in ops if op.rpartition("::")[2].replace("_", "") == last]
    if ops_of_it:
        return f"the model has no module of that class, and calls the function: {ops_of_it[0]!r}."
    return f"the model has no module of that class. {nearest(name, classes)}"


def _regex_problem(regex: str, paths: Mapping[str, None]) -> str:
    if any(re.match(regex, path) for path in paths):
        return ""
    if not any(paths):
        return _NO_MODULES
    return f"no submodule's path matches. {nearest_to_regex(regex, paths)}"


def _order_problem(key: tuple[Any, ...], ops: Sequence[OpInfo]) -> str:
    module, kind, index = key
    found = [op.positions[module, kind] for op in ops if (module, kind) in op.positions]
    if index in found:
        return ""
    if found:
        count = max(found) + 1
        return f"that module has {count} of this type, so the highest index is {count - 1}."
    there = dict.fromkeys(name for op in ops for path, name in op.positions if path == module)
    parent = module.rpartition(".")[0]
    if module and any((parent, kind) in op.positions for op in ops):
        return (
            f"a module counts in the one around it: give {parent!r} as the name, and as index how "
            "many modules of this class come before it there."
        )
    return f"nothing of this type is in that module itself. {nearest(kind, there)}"

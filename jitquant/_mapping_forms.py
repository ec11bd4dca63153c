"""The dictionary forms of a configuration, read into a QConfigMapping."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeGuard

from jitquant import _torch_ao
from jitquant._plain import read_qconfig
from jitquant._rule import KEY_LENGTH, KINDS
from jitquant._type_names import type_name
from jitquant.errors import JitQuantTypeError, JitQuantValueError
from jitquant.qconfig import QConfig, default_qconfig

if TYPE_CHECKING:
    from jitquant.mapping import QConfigMapping

__all__ = ["read_entries", "with_entries", "with_torch_ao"]


def with_entries(
    mapping: "QConfigMapping", config: Mapping[Any, Any], where: str
) -> "QConfigMapping":
    """`mapping` with the rules of a dictionary, see `as_mapping`.

    Raises:
        JitQuantTypeError, JitQuantValueError: see the setters of QConfigMapping.
    """
    for key, value in config.items():
        mapping = _with_entry(mapping, key, value, where)
    return mapping


def with_torch_ao(mapping: "QConfigMapping", config: Any, where: str) -> "QConfigMapping":
    """`mapping` with the rules of a QConfigMapping of torch.ao.

    Rules for types that its default mapping has may match nothing.
    """
    given = config.global_qconfig
    base = given if isinstance(given, tuple) else default_qconfig
    mapping = with_entries(mapping, _torch_ao.mapping_dict(config, tuple(base)), where)
    defaults = {(type_name(kind, where),) for kind in _torch_ao.default_types(config)}
    rules = (
        replace(rule, required=rule.kind != "object_type" or rule.key not in defaults)
        for rule in mapping.rules
    )
    return replace(mapping, rules=tuple(rules))


def read_entries(plain: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A dictionary with QConfigs in place of what stands for them in plain data."""
    return {key: _read_entry(key, plain[key], where) for key in plain}


def _with_entry(
    mapping: "QConfigMapping", key: object, value: object, where: str
) -> "QConfigMapping":
    if not isinstance(key, str):
        advice = " For a type give {'object_type': [(type, qconfig)]}." if callable(key) else ""
        raise JitQuantTypeError(
            f"{where}: keys are submodule names, got {key!r} of type {type(key).__name__}.{advice}"
        )
    entry = f"{where}[{key!r}]"
    lines = _lines(key, value)
    if lines is not None:
        for line in lines:
            mapping = _with_line(mapping, key, line, entry)
        return mapping
    if _is_list(value) or _is_table(value):
        raise JitQuantTypeError(
            f"{entry}: got a {type(value).__name__}, and the keys for lists of rules are "
            f"{', '.join(map(repr, KINDS[1:]))}. Any other key is the path of a "
            "submodule, with one qconfig or None."
        )
    if key == "global":  # a word of Python's, so no submodule
        raise JitQuantValueError(f"{entry}: the key for the whole model is ''.")
    if key == "":
        return mapping._with("", (), value, entry)
    return mapping._with("module_name", (key,), value, entry)


def _lines(key: object, value: object) -> Sequence[Any] | None:
    """The rules of an entry, if it holds rules; else it holds one qconfig."""
    if key not in KINDS[1:]:
        return None
    if _is_table(value):
        return [(name, qconfig) for name, qconfig in value.items()]
    return value if _is_list(value) else None


def _is_table(value: object) -> TypeGuard[Mapping[Any, Any]]:
    """A dict, but none that is a qconfig as plain data."""
    return isinstance(value, Mapping) and not set(value) & set(QConfig._fields)


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    """QConfigs are named tuples, ours and torch.ao's."""
    return isinstance(value, list | tuple) and not hasattr(value, "_fields")


def _read_entry(key: object, value: Any, where: str) -> Any:
    entry = f"{where}[{key!r}]"
    lines = _lines(key, value)
    if lines is None and (_is_list(value) or _is_table(value)):
        return value
    if lines is None:
        try:
            return read_qconfig(value, entry)
        except JitQuantValueError as error:
            if key not in KINDS[1:]:
                raise
            line = "[name, type, index, qconfig]" if KEY_LENGTH.get(str(key)) else "[key, qconfig]"
            raise JitQuantValueError(
                f"{error}. Rules of this kind are a list of {line}."
            ) from error
    length = KEY_LENGTH.get(str(key), 1) + 1
    return [
        [*line[:-1], read_qconfig(line[-1], entry)]
        if _is_list(line) and len(line) == length
        else line
        for line in lines
    ]


def _with_line(mapping: "QConfigMapping", kind: str, line: Any, where: str) -> "QConfigMapping":
    length = KEY_LENGTH.get(kind, 1)
    if not _is_list(line) or len(line) != length + 1:
        names = "module name, type, index" if length == 3 else kind.replace("_", " ")
        raise JitQuantTypeError(f"{where}: expected ({names}, qconfig), got {line!r}.")
    setter: Callable[..., QConfigMapping] = getattr(mapping, f"set_{kind}")
    return setter(*line)

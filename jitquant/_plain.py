"""QConfigs as plain data, which JSON and TOML hold, and back."""

import json
import tomllib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from jitquant import observers
from jitquant._nearest import nearest
from jitquant._rule import FUSED_FLOAT
from jitquant.errors import JitQuantError, JitQuantTypeError, JitQuantValueError
from jitquant.observers import Observer, ObserverFactory
from jitquant.qconfig import NAMED, QConfig, get_default_qconfig

__all__ = ["parse", "read_qconfig", "write_qconfig"]

FLOAT = "float"
"""What stands for None: TOML has no null."""

_OBSERVERS: dict[str, type[Observer]] = {
    name: cls
    for name in observers.__all__
    if isinstance(cls := getattr(observers, name), type) and issubclass(cls, Observer)
    if cls is not Observer
}
_TORCH_TYPES = {"dtype": torch.dtype, "qscheme": torch.qscheme}


def write_qconfig(qconfig: QConfig | None, where: str) -> dict[str, Any] | None:
    """`{"activation": {"observer": class name, argument: value, ...}, "weight": ...}`, or None.

    Raises:
        JitQuantValueError: an observer that is made by a function of the user's, or is no class of
            jitquant.observers.
    """
    if qconfig is None:
        return None
    return {
        part: _write_factory(factory, f"{where}, {part}")
        for part, factory in zip(qconfig._fields, qconfig, strict=True)
    }


def _write_factory(factory: object, where: str) -> dict[str, Any]:
    name = factory.cls.__name__ if isinstance(factory, ObserverFactory) else ""
    if not isinstance(factory, ObserverFactory) or _OBSERVERS.get(name) is not factory.cls:
        raise JitQuantValueError(
            f"{where}: {factory!r} is code, which cannot be written. Use an observer of "
            "jitquant.observers and its with_args(...)."
        )
    return {"observer": name, **{key: _write_value(value) for key, value in factory.kwargs}}


def _write_value(value: object) -> object:
    is_torch = isinstance(value, torch.dtype | torch.qscheme)
    return str(value).removeprefix("torch.") if is_torch else value


def read_qconfig(plain: object, where: str) -> object:
    """The qconfig that plain data stands for; anything but a dict and a string is returned as is.

    Args:
        plain: what `write_qconfig` gives, where an observer's name may stand for a dict without
            arguments; "float" for None; a name in NAMED; or the name of an engine, such as "x86",
            for its default.
        where: what the errors call it.

    Raises:
        JitQuantTypeError, JitQuantValueError: an unknown name, or arguments that an observer does
            not take.
    """
    if isinstance(plain, str):
        return _read_name(plain, where)
    if not isinstance(plain, Mapping):
        return plain
    if set(plain) != set(QConfig._fields):
        raise JitQuantValueError(
            f"{where}: a qconfig has the keys 'activation' and 'weight', got {sorted(plain)}."
        )
    return QConfig(**{part: _read_factory(plain[part], f"{where}, {part}") for part in plain})


def _read_name(name: str, where: str) -> QConfig | str | None:
    if name == FLOAT:
        return None
    if name == FUSED_FLOAT:
        return name
    if name in NAMED:
        return NAMED[name]
    try:
        return get_default_qconfig(name)
    except JitQuantError as error:
        raise JitQuantValueError(
            f"{where}: {name!r} is none of {', '.join(map(repr, [FLOAT, *NAMED]))}, and no engine: "
            f"{error}"
        ) from error


def _read_factory(plain: object, where: str) -> ObserverFactory:
    if isinstance(plain, str):
        plain = {"observer": plain}
    if not isinstance(plain, Mapping) or "observer" not in plain:
        raise JitQuantTypeError(
            f"{where}: expected the name of an observer, or a dict with the key 'observer', such "
            f"as {{'observer': 'MinMaxObserver'}}, got {plain!r}."
        )
    arguments = {key: value for key, value in plain.items() if key != "observer"}
    name = plain["observer"]
    if name not in _OBSERVERS:
        raise JitQuantValueError(
            f"{where}: there is no observer {name!r}. {nearest(str(name), _OBSERVERS)}"
        )
    for key, kind in _TORCH_TYPES.items():
        if key not in arguments:
            continue
        known = [name for name in dir(torch) if isinstance(getattr(torch, name), kind)]
        found = getattr(torch, str(arguments[key]).removeprefix("torch."), None)
        if not isinstance(found, kind):
            raise JitQuantValueError(
                f"{where}: torch has no {key} {arguments[key]!r}. "
                f"{nearest(str(arguments[key]), known)}"
            )
        arguments[key] = found
    try:
        return _OBSERVERS[name].with_args(**arguments)
    except JitQuantError as error:
        raise type(error)(f"{where}: {error}") from error


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError if a key comes twice, as in TOML."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twins = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        raise ValueError(f"the key {twins[0]!r} comes twice")
    return found


def parse(text: str, form: str, where: str) -> Mapping[str, Any]:
    """The dict that a JSON or TOML text holds.

    Args:
        text: the text.
        form: "json" or "toml".
        where: what the errors call it.

    Raises:
        JitQuantValueError: a text of another form.
        JitQuantTypeError: no text, or a JSON text that holds no dict.
    """
    if not isinstance(text, str):
        raise JitQuantTypeError(f"{where}: expected a text, got {type(text).__name__}.")
    try:
        found = (
            json.loads(text, object_pairs_hook=_without_twins)
            if form == "json"
            else tomllib.loads(text)
        )
    except ValueError as error:
        raise JitQuantValueError(f"{where}: no {form.upper()} text: {error}.") from error
    if not isinstance(found, Mapping):
        raise JitQuantTypeError(f"{where}: expected a dict, got {type(found).__name__}.")
    return found

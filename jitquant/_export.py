"""Results as tables, CSV and JSON."""

import csv
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from jitquant.errors import JitQuantTypeError

__all__ = ["check_path", "decibels", "number", "plain", "write_csv", "write_json"]


def decibels(value: float) -> str:
    """One digit: it is what batches differ by."""
    return f"{value:.1f}"


def number(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}"


def plain(value: Any) -> Any:
    """Dataclasses as dicts, and what JSON has no number for as "inf", "-inf" and "nan"."""
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def check_path(path: object, function: str) -> None:
    """Raise unless path is one: `open` takes an int for a file that is open already.

    Raises:
        JitQuantTypeError: it is something else.
    """
    if not isinstance(path, str | os.PathLike):
        raise JitQuantTypeError(f"{function}: path must be a path, got {type(path).__name__}.")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """A dataclass as JSON, UTF-8."""
    check_path(path, "to_json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(plain(value), file, indent=1, allow_nan=False)
        file.write("\n")


def write_csv(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """One line for each row under the names of the first one, UTF-8."""
    check_path(path, "to_csv")
    listed: Sequence[Mapping[str, Any]] = list(rows)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(listed[0]) if listed else [])
        writer.writeheader()
        writer.writerows(listed)

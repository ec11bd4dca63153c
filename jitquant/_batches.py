"""Batches, and a batch as the arguments of forward."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from jitquant.errors import JitQuantTypeError, JitQuantValueError

__all__ = [
    "batches_of",
    "briefly",
    "check_iterable",
    "copied",
    "described",
    "leaves",
    "noted",
    "run",
    "taken",
]


def check_iterable(data: object, function: str) -> None:
    """Raise unless data gives batches.

    Raises:
        JitQuantTypeError: it cannot be iterated, or is itself a batch.
    """
    if isinstance(data, (Tensor, Mapping, str)) or not isinstance(data, Iterable):
        raise JitQuantTypeError(
            f"{function}: data must be a DataLoader, list or generator of batches, got "
            f"{type(data).__name__}. {_instead_of(data)}"
        )


def batches_of(data: Iterable[Any], function: str) -> Iterator[Any]:
    """The batches of data.

    Raises:
        JitQuantTypeError: data gives no batches, see `calibrate`.
        JitQuantValueError: data is empty.
        Exception: what data raised, with a note that says which batch it was.
    """
    check_iterable(data, function)
    is_empty = True
    for batch in noted(data, function, itertools.count()):
        is_empty = False
        yield batch
    if is_empty:
        raise JitQuantValueError(f"{function}: data gave no batch. A generator runs only once.")


def noted(data: Iterable[Any], function: str, numbers: Iterator[int]) -> Iterator[Any]:
    """The batches of data; what data raises gets a note that says in place of which batch.

    Args:
        data: may be empty.
        function: for the note.
        numbers: of the batches.
    """
    batches = iter(data)
    for number in numbers:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception as error:
            error.add_note(f"{function}: data raised this and gave no batch {number}.")
            raise
        yield batch


def run(model: torch.jit.ScriptModule, batch: Any, what: str) -> Any:
    """Run a model on a batch, and return what forward returns.

    Args:
        model: its forward is called.
        batch: a tensor, a tuple or list of positional arguments, or a dict of keyword arguments.
        what: what the errors call the batch, such as "calibrate: batch 3".

    Raises:
        JitQuantTypeError: batch is something else, or has something else than a tensor where
            forward takes one.
        JitQuantValueError: it has more elements than forward has arguments, keys that are none of
            them, or lacks an argument that has no default.
        Exception: what the model raised, with a note that says for which batch.
    """
    arguments, original = _arguments(model), batch
    if isinstance(batch, Tensor):
        batch = (batch,)
    if isinstance(batch, Mapping):
        given = dict(batch)
        unknown = [repr(key) for key in given if key not in arguments]
        if unknown:
            raise JitQuantValueError(
                f"{what} has the keys {', '.join(unknown)}, and forward takes {taken(model)}. "
                "Leave out what is no input, such as labels."
            )
    elif isinstance(batch, tuple | list):
        if len(batch) > len(arguments):
            raise JitQuantValueError(
                f"{what} has {len(batch)} elements, and forward takes {taken(model)}. Leave out "
                "what is no input, such as labels: give (x for x, _ in loader)."
            )
        given = dict(zip(arguments, batch, strict=False))
    else:
        raise JitQuantTypeError(
            f"{what} is {described(batch)}; expected a tensor, a tuple or list of arguments, or a "
            f"dict of keyword arguments.{_advice(batch)}"
        )
    for name, argument in arguments.items():
        if name not in given and not argument.has_default_value():
            raise JitQuantValueError(
                f"{what} is {described(original)}, without the argument {name!r}; forward takes "
                f"{taken(model)}."
            )
        wants_tensor = isinstance(argument.type, torch._C.TensorType)
        if wants_tensor and name in given and not isinstance(given[name], Tensor):
            raise JitQuantTypeError(
                f"{what} has {described(given[name])} for the argument {name!r}, which is a "
                f"tensor.{_advice(given[name])}"
            )
    try:
        return model(**batch) if isinstance(batch, Mapping) else model(*batch)
    except Exception as error:
        error.add_note(f"{what} is {described(original)}; forward takes {taken(model)}.")
        raise


@contextmanager
def briefly() -> Iterator[None]:
    """Without gradients, and without the JIT's optimizer: for models that run a few times."""
    jit: Any = torch.jit  # its stubs lack optimized_execution
    with torch.no_grad(), jit.optimized_execution(False):
        yield


def copied(batch: Any) -> Any:
    """The batch with tensors of its own, into which a model may write."""
    if isinstance(batch, Tensor):
        return batch.detach().clone()
    if isinstance(batch, Mapping):
        return {key: copied(each) for key, each in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(copied, batch))
    return type(batch)(map(copied, batch)) if type(batch) in (list, tuple) else batch


def leaves(value: Any, name: str = "output") -> Iterator[tuple[str, Tensor]]:
    """The tensors in what forward gives, named such as "output.0", in order."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from leaves(each, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, each in enumerate(value):
            yield from leaves(each, f"{name}.{index}")


def taken(model: torch.jit.ScriptModule) -> str:
    """What forward takes, such as "x: Tensor, scale: float = 2.0"."""
    return ", ".join(
        f"{name}: {argument.type}"
        + (f" = {argument.default_value!r}" if argument.has_default_value() else "")
        for name, argument in _arguments(model).items()
    )


def described(value: object) -> str:
    """Such as "a float32 tensor (1, 3, 8, 8)", "a tuple (int, str)" or "a dict (x: int)"."""
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"a {dtype} tensor {tuple(value.shape)}"
    parts: Sequence[str] = ()
    if isinstance(value, Mapping):
        parts = [f"{key}: {described(part)}" for key, part in value.items()]
    elif isinstance(value, tuple | list):
        parts = [described(part) for part in value]
    else:
        return f"{type(value).__name__}"
    shown = [*parts[:4], *(["..."] if len(parts) > 4 else [])]
    return f"a {type(value).__name__} ({', '.join(shown)})"


def _instead_of(data: object) -> str:
    if isinstance(data, torch.utils.data.Dataset):
        return "Give a DataLoader of it: torch.utils.data.DataLoader(dataset)."
    return "For a single batch give [batch]."


def _arguments(model: torch.jit.ScriptModule) -> dict[str, Any]:
    schema: Any = model._c._get_method("forward").schema
    return {argument.name: argument for argument in schema.arguments[1:]}


def _advice(value: object) -> str:
    is_array = type(value).__module__.partition(".")[0] == "numpy"
    return " Make it one: torch.from_numpy(array)." if is_array else ""

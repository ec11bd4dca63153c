"""Running samples through prepared models, in one process or several, and adding the results."""

import copy
import hashlib
import itertools
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from jitquant import _C, _batches, _checks
from jitquant._observed import activation_observers, observed_value
from jitquant.errors import JitQuantError, JitQuantTypeError, JitQuantValueError

__all__ = ["Calibration", "calibrate", "calibrate_distributed", "merge_calibration"]


@dataclass(frozen=True)
class Calibration:
    """What a calibration did.

    Attributes:
        batches: how many batches the model ran on, in all processes.
        interrupted: whether Ctrl-C ended it.
    """

    batches: int
    interrupted: bool


def calibrate(
    prepared: torch.jit.ScriptModule,
    data: Iterable[Any],
    *,
    batches: int | None = None,
    progress: bool = True,
) -> Calibration:
    """Run a prepared model on samples, without gradients, so that its observers see real values.

    Ctrl-C ends the calibration after the batch that runs; what was seen until then stays. Calling
    it again goes on from there, also on a model that was saved and loaded in between. After an
    error nothing of this call counts.

    Args:
        prepared: what `prepare_jit` returned. Its observers change.
        data: a DataLoader, list or generator. Each batch is a tensor, a tuple or list of positional
            arguments, or a dict of keyword arguments of `forward`.
        batches: stop after so many; None for all.
        progress: show a bar, if stderr is a terminal.

    Returns:
        The number of batches, and whether Ctrl-C ended it.

    Raises:
        JitQuantTypeError: data cannot be iterated, is one tensor or dict, gives other batches, or
            has something else where forward takes a tensor.
        JitQuantValueError: prepared was not prepared; batches is not positive; data is empty; a
            batch has more elements than forward has arguments, keys that are none of them, or
            lacks one, or gives NaN or infinite values where the model is observed.
        KeyboardInterrupt: Ctrl-C before the first batch was done.
        Exception: what data or the model raised, with a note that says which batch it was.
    """
    _check(prepared, data, batches, "calibrate")
    before = [copy.deepcopy(observer._c) for observer in activation_observers(prepared)]
    total, numbers = _length(data, batches), itertools.count()
    try:
        taken = itertools.islice(_batches.batches_of(data, "calibrate"), batches)
        done = _run(prepared, taken, total, progress, numbers, "calibrate")
    except Exception:
        for observer, earlier in zip(activation_observers(prepared), before, strict=True):
            _C.copy_attributes(earlier, observer._c)
        raise
    if done.batches == 0:
        raise KeyboardInterrupt
    return done


def merge_calibration(models: Sequence[torch.jit.ScriptModule]) -> torch.jit.ScriptModule:
    """Return one prepared model that saw what all of `models` saw.

    Equal to one model that saw all data, but for moving averages (see
    `MovingAverageMinMaxObserver`), and for the example shapes: the first model's come first.

    Args:
        models: prepared from the same model with the same configuration, and each calibrated on a
            part of the data. They do not change.

    Raises:
        JitQuantTypeError: not a list of ScriptModules.
        JitQuantValueError: no models, not prepared, or not of the same model.
    """
    if isinstance(models, torch.nn.Module) or not isinstance(models, Sequence):
        raise JitQuantTypeError(
            f"merge_calibration: expected a list of prepared models, got {type(models).__name__}."
        )
    if not models:
        raise JitQuantValueError("merge_calibration: the list of models is empty.")
    prints = [_fingerprint(model, "merge_calibration") for model in models]
    for index, other in enumerate(prints):
        if other != prints[0]:
            raise JitQuantValueError(
                f"merge_calibration: model {index} was not prepared from the same model, with the "
                "same configuration, as model 0."
            )
    merged = copy.deepcopy(models[0])
    for model in models[1:]:
        _merge(merged, _states(model))
    return merged


def calibrate_distributed(
    prepared: torch.jit.ScriptModule,
    data: Iterable[Any],
    *,
    sharded: bool = False,
    batches: int | None = None,
    progress: bool = True,
    group: Any = None,
) -> Calibration:
    """Calibrate in all processes of a torch.distributed group, each on its part of the data.

    Afterwards the observers of every process hold what all of them saw, in the order of the ranks,
    so that `convert_jit` gives the same file in each. To be called in every process, after
    `torch.distributed.init_process_group("gloo")`, with equally prepared models.

    Args:
        prepared: see `calibrate`. What it saw before, on rank 0, counts once.
        data: see `calibrate`. Rank r of n takes the batches r, r + n, ...; of a list it touches no
            others, a DataLoader loads them all.
        sharded: data is this process's part already, as of a DataLoader with a DistributedSampler.
        batches: stop after so many, in all processes together, or in this one if sharded.
        progress: show a bar on rank 0, if stderr is a terminal.
        group: the process group; None for the default one.

    Returns:
        The number of batches in all processes, and whether Ctrl-C ended any of them.

    Raises:
        JitQuantError: torch.distributed is not initialized, or another process failed; then nothing
            of this calibration counts.
        Others: see `calibrate`.
    """
    function = "calibrate_distributed"
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        raise JitQuantError(
            "calibrate_distributed: torch.distributed is not initialized. Start the script with "
            "torchrun, and call torch.distributed.init_process_group('gloo') first."
        )
    rank, world = distributed.get_rank(group), distributed.get_world_size(group)
    before: list[list[Tensor]] = []
    error: Exception | None = None
    done = Calibration(0, False)
    fingerprint = ""
    try:
        _check(prepared, data, batches, function)
        fingerprint = _fingerprint(prepared, function)
        before = _states(prepared)
        _reset(prepared)
        total = _length(data, batches)
        if not sharded:
            data, total = _shard(data, batches, rank, world), total and -(-(total - rank) // world)
        data = itertools.islice(data, batches if sharded else None)
        start, step = (0, 1) if sharded else (rank, world)
        shard = _batches.noted(data, function, itertools.count(start, step))
        numbers = itertools.count(start, step)
        done = _run(prepared, shard, total, progress and rank == 0, numbers, function)
    except Exception as caught:
        error = caught
    message = None
    if error is not None:
        message = "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])
    states = _states(prepared) if error is None else []
    mine = (message, fingerprint, before if rank == 0 else [], states, done)
    gathered: list[Any] = [None] * world
    distributed.all_gather_object(gathered, mine, group=group)
    failures = [f"rank {r}: {each[0]}" for r, each in enumerate(gathered) if each[0] is not None]
    if not failures and len({each[1] for each in gathered}) > 1:
        failures = ["the ranks prepared different models, or with different configurations"]
    if not failures and sum(each[4].batches for each in gathered) == 0:
        failures = ["data gave no batch in any process"]
    if failures and before:
        _restore(prepared, before)
    if error is not None:
        raise error
    if failures:
        raise JitQuantError(f"calibrate_distributed: {'; '.join(failures).rstrip('.')}.")
    _restore(prepared, gathered[0][2], *(each[3] for each in gathered))
    all_done = [each[4] for each in gathered]
    return Calibration(
        sum(each.batches for each in all_done), any(each.interrupted for each in all_done)
    )


def _check(prepared: object, data: object, batches: object, function: str) -> None:
    _checks.check_prepared(_checks.check_script_module(prepared, function), function)
    _batches.check_iterable(data, function)
    if batches is None:
        return
    if not isinstance(batches, int) or isinstance(batches, bool):
        raise JitQuantTypeError(f"{function}: batches must be an int or None, got {batches!r}.")
    if batches < 1:
        raise JitQuantValueError(f"{function}: batches must be positive, got {batches}.")


def _length(data: Iterable[Any], batches: int | None) -> int | None:
    """The number of batches, None where only running through them would tell."""
    try:
        length = len(data) if isinstance(data, Sized) else None
    except TypeError:  # a DataLoader of an IterableDataset
        length = None
    if length is None or batches is None:
        return length if batches is None else batches
    return min(length, batches)


def _shard(data: Iterable[Any], batches: int | None, rank: int, world: int) -> Iterator[Any]:
    if isinstance(data, Sequence):
        length = _length(data, batches) or 0
        return (data[index] for index in range(rank, length, world))
    return itertools.islice(data, rank, batches, world)


def _run(
    model: torch.jit.ScriptModule,
    data: Iterable[Any],
    total: int | None,
    progress: bool,
    numbers: Iterator[int],
    function: str,
) -> Calibration:
    done = 0
    not_finite = _C.observers_of_not_finite(model._c)
    # disable=None shows the bar on terminals only.
    with tqdm(total=total, desc="calibrating", disable=None if progress else True) as bar:
        try:
            with torch.no_grad():
                for batch in data:
                    what = f"{function}: batch {next(numbers)}"
                    with _interrupts_afterwards():
                        # A model may write into its input.
                        _batches.run(model, _batches.copied(batch), what)
                        _check_finite(model, not_finite, what)
                        done += 1
                        bar.update()
        except KeyboardInterrupt:
            return Calibration(done, True)
    return Calibration(done, False)


def _check_finite(model: torch.jit.ScriptModule, before: list[str], what: str) -> None:
    """Raise if this batch gave the first values somewhere that are not finite."""
    new = [name for name in _C.observers_of_not_finite(model._c) if name not in before]
    if new:
        observer: Any = getattr(model, new[0])
        raise JitQuantValueError(
            f"{what} gives {'NaN' if observer.saw_nan else 'an infinite value'} in "
            f"{observed_value(model, new[0])}. Look at the batch and at the float model's output "
            "there, or set the qconfig of that module to None. Nothing of this call counts."
        )


@contextmanager
def _interrupts_afterwards() -> Iterator[None]:
    """Holds back a Ctrl-C, so that a batch is seen and counted, or neither."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    interrupted = False

    def note(*_: object) -> None:
        nonlocal interrupted
        interrupted = True

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if interrupted:
        raise KeyboardInterrupt


def _states(model: torch.jit.ScriptModule) -> list[list[Tensor]]:
    observers = activation_observers(model)
    try:
        return [observer.state() for observer in observers]
    except torch.jit.Error as error:
        names = sorted({observer.original_name for observer in observers})
        raise JitQuantTypeError(
            f"the observers ({', '.join(names)}) cannot be merged: one of them does not define "
            "_statistics, or raises in it."
        ) from error


def _reset(model: torch.jit.ScriptModule) -> None:
    for observer in activation_observers(model):
        observer.reset()


def _merge(model: torch.jit.ScriptModule, states: list[list[Tensor]]) -> None:
    for observer, state in zip(activation_observers(model), states, strict=True):
        observer.merge_state(state)


def _restore(model: torch.jit.ScriptModule, *states: list[list[Tensor]]) -> None:
    """Let the observers hold what `states` hold, in this order, and nothing else."""
    _reset(model)
    for each in states:
        _merge(model, each)


def _fingerprint(model: object, function: str) -> str:
    """Equal for models that were prepared from one model with one configuration."""
    checked = _checks.check_script_module(model, function)
    state = _checks.check_prepared(checked, function)
    digest = hashlib.sha256(repr(state.ops).encode())
    for observer in activation_observers(checked):
        qparams = (observer.dtype, str(observer.qscheme), observer.quant_min, observer.quant_max)
        digest.update(repr((observer.original_name, qparams)).encode())
    for name, parameter in checked.named_parameters():
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        values = parameter.detach().contiguous().reshape(-1).view(torch.uint8)
        digest.update(values.numpy().data)
    return digest.hexdigest()

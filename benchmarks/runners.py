"""Processes that each run files of one runtime, pinned to the same CPUs, when they are told to."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy
import torch

from benchmarks.report import first_line, silence_warnings

Array = Any  # numpy.ndarray
Model = Callable[[Array], Array]

ROOT = Path(__file__).resolve().parent.parent
LOADS = 3  # the least counts: whatever else the machine does only adds
WARM_UP = 5  # in these calls runtimes choose kernels and TorchScript optimizes


class RunnerError(Exception):
    """What went wrong in the other process."""


class Runner:
    """A process that loads files and calls them, from its first use until it is closed.

    Args:
        runtime: "torch", "onnxruntime" or "openvino".
        engine: torch.backends.quantized.engine.
        threads: for one call, on the first CPUs that this process may use.
    """

    def __init__(self, runtime: str, engine: str, threads: int) -> None:
        self._arguments = (runtime, engine, threads)
        self._process: Any = None
        self._connection: Any = None

    def load(self, path: Path, x: torch.Tensor) -> float:
        """How long it takes to load a file, in ms; `times_ms` will give it the input `x`."""
        ms: float = self._ask("load", (path, x.numpy()))
        return ms

    def outputs(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """What the model gives for these inputs, concatenated."""
        arrays = self._ask("outputs", [x.numpy() for x in inputs])
        return torch.cat([torch.from_numpy(array) for array in arrays])

    def times_ms(self, calls: int) -> list[float]:
        """Times of some calls in ms. One before does not count: others have used the caches."""
        times: list[float] = self._ask("times", calls)
        return times

    def close(self) -> None:
        if self._process is not None:
            self._connection.close()
            self._process.wait()
            self._process = None

    def _start(self) -> None:
        """multiprocessing would import the script that runs, and all that it needs, there too."""
        self._connection, theirs = multiprocessing.Pipe()
        arguments = ", ".join(map(repr, (theirs.fileno(), *self._arguments)))
        code = f"from benchmarks.runners import serve; serve({arguments})"
        command = [sys.executable, "-c", code]
        self._process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()])
        theirs.close()

    def _ask(self, command: str, argument: Any) -> Any:
        if self._process is None:
            self._start()
        try:
            self._connection.send((command, argument))
            worked, answer = self._connection.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            status, self._process = self._process.wait(), None
            raise RunnerError(f"the process ended with status {status}") from None
        if not worked:
            raise RunnerError(answer)
        return answer


def serve(pipe: int, runtime: str, engine: str, threads: int) -> None:
    """Answer until the other side closes the pipe."""
    connection = Connection(pipe)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    silence_warnings()
    torch.set_num_threads(threads)
    torch.backends.quantized.engine = engine
    server = Server(RUNTIMES[runtime], threads)
    while True:
        try:
            command, argument = connection.recv()
        except EOFError:
            return
        try:
            with torch.inference_mode():
                answer = getattr(server, command)(argument)
        except Exception as error:
            connection.send((False, first_line(error)))
        else:
            connection.send((True, answer))


class Server:
    """The other side of a Runner."""

    def __init__(self, open_model: Callable[[Path, int], Model], threads: int) -> None:
        self.open_model = open_model
        self.threads = threads

    def load(self, argument: tuple[Path, Array]) -> float:
        path, x = argument
        times = []
        for _ in range(LOADS):
            start = time.perf_counter()
            self.model = self.open_model(path, self.threads)
            times.append((time.perf_counter() - start) * 1e3)
        self.x = x
        for _ in range(WARM_UP):
            self.model(self.x)
        return min(times)

    def outputs(self, inputs: list[Array]) -> list[Array]:
        return [numpy.array(self.model(x)) for x in inputs]

    def times(self, calls: int) -> list[float]:
        self.model(self.x)
        times = []
        for _ in range(calls):
            start = time.perf_counter()
            self.model(self.x)
            times.append((time.perf_counter() - start) * 1e3)
        return times


def open_torch(path: Path, threads: int) -> Model:
    model = torch.jit.load(path)
    return lambda x: model(torch.from_numpy(x)).numpy()


def open_onnxruntime(path: Path, threads: int) -> Model:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x})[0]


def open_openvino(path: Path, threads: int) -> Model:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
    return lambda x: request.infer({0: x}, share_inputs=True, share_outputs=True)[0]


RUNTIMES: dict[str, Callable[[Path, int], Model]] = {
    "torch": open_torch,
    "onnxruntime": open_onnxruntime,
    "openvino": open_openvino,
}

"""Time and memory to prepare and convert, against the size of the graph: ours and torch.ao's.

    python benchmarks/quantize_time.py
    python benchmarks/quantize_time.py --plot quantize_time.png --json quantize_time.json
    python benchmarks/quantize_time.py --sizes 100 1600 --only jitquant --check

Chains of convolution, BatchNorm, ReLU and add, with 16 channels and images of 8 x 8, traced.
torch.ao's quantizer gets no longer chains than 200, since it takes minutes for them. At the end
densenet201, scripted and traced. Each measurement runs in a process of its own, with one thread,
and the least of `--repeats` processes counts. Seconds are CPU time, which is what the clock shows
on a machine with nothing else to do, and elsewhere not much more.

"memory" is how far resident memory rises above where it stood after the float model had run, over
prepare, calibration and convert together; "models" is the same in sizes of the float model's
weights. A chain has few weights for its length, so there it tells what the graph costs. Without
that first run the parts of torch's libraries that any float model needs would count, for both
tools.

`--check` exits with status 1 unless the time per convolution of the longest chain is at most 1.2
of that of the shortest, ours at most half of torch.ao's, and densenet201 within 10 s and 2.5 times
the memory of its weights.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parent.parent))  # runs from any folder

from benchmarks.memory import PeakMemory
from benchmarks.quantizers import ours, torch_ao
from benchmarks.report import markdown, number, print_environment, silence_warnings, write_json
from tutorials.measure import run_all

SIZES = (100, 200, 400, 800, 1600)
LONGEST_FOR_UPSTREAM = 200
DENSENET = ("densenet201 scripted", "densenet201 traced")
QUANTIZERS = {"jitquant": ours, "torch.ao": torch_ao}

LARGEST_GROWTH = 1.2
LARGEST_PART_OF_UPSTREAM = 0.5
LONGEST_DENSENET_S = 10.0
MOST_MEMORY = 2.5  # of the weights; chains have too few for that


@dataclass
class Result:
    """What was measured of one tool and model.

    Attributes:
        model: "chain of N" or one of densenet201.
        convolutions: how many.
        prepare_s, convert_s: seconds of CPU time.
        memory_mb: rise of resident memory over both, in MB (10^6 bytes); None where unknown.
        weights_mb: of the float model's parameters and buffers, in MB.
        failure: "" or the last line that the process printed before it failed.
    """

    tool: str
    model: str
    convolutions: int = 0
    prepare_s: float = 0.0
    convert_s: float = 0.0
    memory_mb: float | None = None
    weights_mb: float = 0.0
    failure: str = ""

    @property
    def seconds(self) -> float:
        return self.prepare_s + self.convert_s

    @property
    def ms_per_convolution(self) -> float:
        return 1e3 * self.seconds / self.convolutions

    @property
    def memory_models(self) -> float | None:
        """The rise of memory, in sizes of the float model's weights."""
        return None if self.memory_mb is None else self.memory_mb / self.weights_mb


class Link(nn.Module):
    """Convolution, BatchNorm, ReLU and add; the sum's spread does not grow with the length."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.bn(self.conv(x))) + x
        return y


def chain(convolutions: int, channels: int = 16) -> nn.Module:
    """A chain in eval mode, with weights so small that values stay about as large as the input."""
    links = [Link(channels) for _ in range(convolutions)]
    for link in links:
        nn.init.normal_(link.conv.weight, std=1 / (convolutions * channels))
    return nn.Sequential(*links).eval()


def main() -> None:
    arguments = parse_arguments()
    if arguments.worker:
        tool, name = arguments.worker
        print(json.dumps(asdict(measure(tool, name))))
        return
    results = []
    for tool, name in wanted(arguments.sizes, arguments.only, arguments.densenet):
        results.append(least_of(tool, name, arguments.repeats))
        print(f"{tool}, {name} done", file=sys.stderr)
    print(table(results))
    complaints = shortcomings(results)
    print("\n" + "\n".join(complaints or ["all as required"]))
    print_environment()
    if arguments.json:
        write_json(arguments.json, results)
    if arguments.plot:
        plot(results, arguments.plot)
    if arguments.check and complaints:
        sys.exit(1)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="convolutions")
    parser.add_argument("--only", choices=list(QUANTIZERS), help="default: both")
    parser.add_argument(
        "--densenet", action=argparse.BooleanOptionalAction, default=True, help="densenet201 too"
    )
    parser.add_argument("--repeats", type=int, default=2, help="processes each (default: 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="a chart (needs .[plot])")
    parser.add_argument("--check", action="store_true", help="fail if a requirement is not met")
    parser.add_argument("--worker", nargs=2, metavar=("TOOL", "MODEL"), help=argparse.SUPPRESS)
    return parser.parse_args()


def wanted(sizes: Sequence[int], only: str | None, densenet: bool) -> list[tuple[str, str]]:
    """Tools and models to measure."""
    models = [f"chain of {size}" for size in sizes] + list(DENSENET if densenet else ())
    pairs = [(tool, name) for name in models for tool in QUANTIZERS if only in (None, tool)]
    return [
        (tool, name)
        for tool, name in pairs
        if tool == "jitquant" or name in DENSENET or chain_length(name) <= LONGEST_FOR_UPSTREAM
    ]


def chain_length(name: str) -> int:
    return int(name.removeprefix("chain of "))


def least_of(tool: str, name: str, repeats: int) -> Result:
    """The fastest of some processes, or the first that failed."""
    results = []
    for _ in range(repeats):
        command = [sys.executable, __file__, "--worker", tool, name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            return Result(tool, name, failure=lines[-1])
        results.append(Result(**json.loads(done.stdout.splitlines()[-1])))
    return min(results, key=lambda result: result.seconds)


def measure(tool: str, name: str) -> Result:
    """Prepare, calibrate and convert one model in this process."""
    silence_warnings()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, samples = make(name)
    quantizer = QUANTIZERS[tool]()
    weights = [*model.parameters(), *model.buffers()]
    result = Result(
        tool,
        name,
        convolutions=sum(tensor.dim() == 4 for tensor in weights),
        weights_mb=sum(tensor.nbytes for tensor in weights) / 1e6,
    )
    with torch.no_grad():
        run_briefly(model, samples)
    with PeakMemory() as peak, torch.no_grad():
        start = time.process_time()
        prepared = quantizer.prepare(model)
        result.prepare_s = time.process_time() - start
        run_briefly(prepared, samples)
        start = time.process_time()
        converted = quantizer.convert(prepared)
        result.convert_s = time.process_time() - start
    if not all(output.isfinite().all() for output in run_briefly(converted, samples)):
        raise ValueError(f"{name} does not give finite values")
    result.memory_mb = peak.mb
    return result


def run_briefly(model: torch.jit.ScriptModule, samples: list[Tensor]) -> Tensor:
    """The outputs, without what torch optimizes before it runs a graph: minutes for a long one."""
    with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        return run_all(model, samples)


def make(name: str) -> tuple[torch.jit.ScriptModule, list[Tensor]]:
    """A float model, and inputs to calibrate with."""
    if name in DENSENET:
        x = torch.randn(1, 3, 64, 64)
        model = torchvision.models.densenet201(weights=None).eval()
    else:
        x = torch.randn(1, 16, 8, 8)
        model = chain(chain_length(name))
    with torch.no_grad():
        made: torch.jit.ScriptModule
        if name.endswith("scripted"):
            made = torch.jit.script(model)
        else:
            made = torch.jit.trace(model, x, check_trace=False)
    return made, [x, 2 * x]


def shortcomings(results: list[Result]) -> list[str]:
    """What is not as required, in words."""
    found = [f"{of.tool}, {of.model}: {of.failure}" for of in results if of.failure]
    measured = {(of.tool, of.model): of for of in results if not of.failure}
    own = [of for (tool, _), of in measured.items() if tool == "jitquant"]
    chains = sorted((of for of in own if of.model not in DENSENET), key=lambda of: of.convolutions)
    if len(chains) > 1:
        growth = chains[-1].ms_per_convolution / chains[0].ms_per_convolution
        if growth > LARGEST_GROWTH:
            found.append(
                f"time per convolution, {chains[-1].model} over {chains[0].model}: {growth:.2f}, "
                f"more than {LARGEST_GROWTH}"
            )
    for of in own:
        upstream = measured.get(("torch.ao", of.model))
        if upstream and of.seconds > LARGEST_PART_OF_UPSTREAM * upstream.seconds:
            part = of.seconds / upstream.seconds
            found.append(f"{of.model}: {part:.2f} of torch.ao's time, more than a half")
        if of.model in DENSENET and of.seconds > LONGEST_DENSENET_S:
            found.append(f"{of.model}: {of.seconds:.1f} s, more than {LONGEST_DENSENET_S:g} s")
        if of.model in DENSENET and of.memory_models is not None and of.memory_models > MOST_MEMORY:
            found.append(
                f"{of.model}: memory {of.memory_models:.2f} times that of the weights, more than "
                f"{MOST_MEMORY:g}"
            )
    return found


def table(results: list[Result]) -> str:
    rows = [
        (of.model, of.tool, *[""] * 7, of.failure[:60])
        if of.failure
        else (
            *(of.model, of.tool, str(of.convolutions)),
            *(f"{of.prepare_s:.2f}", f"{of.convert_s:.2f}", f"{of.seconds:.2f}"),
            f"{of.ms_per_convolution:.2f}",
            number(of.memory_mb, ".0f"),
            number(of.memory_models, ".2f"),
            "",
        )
        for of in results
    ]
    headers = (
        *("model", "tool", "convolutions", "prepare (s)", "convert (s)", "both (s)"),
        *("both / convolution (ms)", "memory (MB)", "memory (models)", "failure"),
    )
    return markdown(headers, rows, left=2)


def plot(results: list[Result], path: Path) -> None:
    """Seconds, milliseconds per convolution, and memory of the chains."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    drawn: list[tuple[str, Callable[[Result], float | None]]] = [
        ("prepare + convert (s of CPU time)", lambda of: of.seconds),
        ("prepare + convert per convolution (ms)", lambda of: of.ms_per_convolution),
        ("rise of memory (MB)", lambda of: of.memory_mb),
    ]
    for axis, (title, value) in zip(axes, drawn, strict=True):
        for tool in QUANTIZERS:
            chains = [
                of
                for of in results
                if of.tool == tool and of.model not in DENSENET and not of.failure
            ]
            x = [of.convolutions for of in chains]
            axis.plot(x, [value(of) for of in chains], marker="o", label=tool)
        axis.set(title=title, xlabel="convolutions", ylim=(0, None))
        axis.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()

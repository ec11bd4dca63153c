"""Size and load time of int8 files: `torch.jit.save` against `jitquant.save`.

    python benchmarks/file_size.py
    python benchmarks/file_size.py --models resnet18 --engine onednn --loads 20 --json sizes.json

Models have random weights. "ratio" is the file's size over that of int8 weights, float biases and
100 kB. Loading is `torch.jit.load` of a path, the least of several; the two files take turns.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parent.parent))  # runs from any folder

import jitquant
from benchmarks.compare_peers import MODELS, SPARE_MB
from benchmarks.profile_model import positive
from benchmarks.quantizers import ours
from benchmarks.report import (
    markdown,
    parse_with_models,
    print_environment,
    silence_warnings,
    write_json,
)
from benchmarks.subjects import make_subject
from tutorials.measure import file_mb

SAVES: dict[str, Callable[..., None]] = {
    "torch.jit.save": torch.jit.save,
    "jitquant.save": jitquant.save,
}


@dataclass
class Result:
    """One file.

    Attributes:
        weights_mb: size of int8 weights and float biases, in MB (10^6 bytes).
        size_mb: of the file, in MB.
        size_ratio: over weights_mb and 0.1 MB.
        save_ms: to write the file, once.
        load_ms: least of several.
    """

    model: str
    save: str
    weights_mb: float
    size_mb: float
    size_ratio: float
    save_ms: float
    load_ms: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS, help=f"default: {' '.join(MODELS)}")
    parser.add_argument("--engine", default="x86", help="default: x86")
    parser.add_argument("--loads", type=positive, default=10, help="of each file (default: 10)")
    parser.add_argument("--pixels", type=positive, help="size of images (default: the model's)")
    parser.add_argument("--json", type=Path)
    arguments = parse_with_models(parser)
    silence_warnings()
    torch.set_num_threads(1)
    torch.backends.quantized.engine = arguments.engine
    results: list[Result] = []
    for name in arguments.models:
        results += measure(name, arguments.engine, arguments.loads, arguments.pixels)
    print(table(results))
    print_environment()
    if arguments.json:
        write_json(arguments.json, results)


def measure(name: str, engine: str, loads: int, pixels: int | None) -> list[Result]:
    """One result for each way to save."""
    subject = make_subject(name, pixels=pixels)
    model = ours(engine).quantized(subject)
    with tempfile.TemporaryDirectory() as folder:
        paths = {save: Path(folder, save) for save in SAVES}
        save_ms = {save: time_ms(SAVES[save], model, path) for save, path in paths.items()}
        load_ms: dict[str, list[float]] = {save: [] for save in SAVES}
        for _ in range(loads):
            for save, path in paths.items():
                load_ms[save].append(time_ms(torch.jit.load, path))
        return [
            Result(
                model=name,
                save=save,
                weights_mb=subject.int8_mb,
                size_mb=file_mb(path),
                size_ratio=file_mb(path) / (subject.int8_mb + SPARE_MB),
                save_ms=save_ms[save],
                load_ms=min(load_ms[save]),
            )
            for save, path in paths.items()
        ]


def time_ms(function: Callable[..., object], *arguments: object) -> float:
    start = time.perf_counter()
    function(*arguments)
    return 1000 * (time.perf_counter() - start)


def table(results: list[Result]) -> str:
    """One row for each model; the columns of the two files stand side by side."""
    headers = ["model", "weights (MB)"]
    for save in SAVES:
        headers += [f"{save} (MB)", "ratio", "save (ms)", "load (ms)"]
    rows: dict[str, list[str]] = {}
    for of in results:
        row = rows.setdefault(of.model, [of.model, f"{of.weights_mb:.2f}"])
        row += [f"{of.size_mb:.2f}", f"{of.size_ratio:.2f}"]
        row += [f"{of.save_ms:.0f}", f"{of.load_ms:.0f}"]
    return markdown(headers, list(rows.values()))


if __name__ == "__main__":
    main()

"""How the benchmarks describe the machine, and show and write what they measured."""

import argparse
import datetime
import json
import math
import os
import platform
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from tutorials.measure import silence_torch_deprecations


def silence_warnings() -> None:
    """Hide deprecations, and what torch.ao warns about its own code."""
    silence_torch_deprecations()
    for message in (
        "torch.ao.quantization is deprecated",
        "You are using the legacy TorchScript-based ONNX export",
        "Please use quant_min and quant_max",
        r"The \.grad attribute of a Tensor that is not a leaf",
        "must run observer before calling calculate_qparams",
    ):
        warnings.filterwarnings("ignore", message=message)


def parse_with_models(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments; an error for names in `models` that torchvision does not have."""
    import torchvision  # takes seconds

    arguments = parser.parse_args()
    unknown = sorted(set(arguments.models) - set(torchvision.models.list_models()))
    if unknown:
        parser.error(f"torchvision has no model {', '.join(unknown)}")
    return arguments


def describe_environment() -> dict[str, str]:
    return {
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "engine": torch.backends.quantized.engine,
        "threads": str(torch.get_num_threads()),
        "CPU": cpu_name(),
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
        "platform": f"{platform.system()} {platform.machine()}",
        "malloc": os.environ.get("GLIBC_TUNABLES", "defaults"),
    }


def cpu_name() -> str:
    """As Linux says; "unknown" elsewhere."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"


def print_environment() -> None:
    """One line, with the command that was run."""
    environment = {**describe_environment(), "command": " ".join(sys.argv)}
    print("\n" + ", ".join(f"{key}: {value}" for key, value in environment.items()))


def write_json(path: Path, results: Sequence[Any]) -> None:
    """Write the environment, and the results, which are dataclass instances."""
    report = {
        "environment": describe_environment(),
        "results": [asdict(result) for result in results],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def number(value: float | None, form: str) -> str:
    """`value` in the format `form`, "-" if there is none or it is no number."""
    return "-" if value is None or math.isnan(value) else format(value, form)


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table for documents: the first `left` columns are texts, the others numbers."""
    columns = ["left"] * left + ["right"] * (len(headers) - left)
    return str(
        tabulate(rows, headers=headers, colalign=columns, tablefmt="github", disable_numparse=True)
    )


def first_line(error: BaseException) -> str:
    """The error's type, and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__

"""Where the time of int8 models of torchvision goes, layer by layer, in one Markdown file.

    python benchmarks/where_time_goes.py --engine onednn --no-amx --markdown benchmarks/LAYERS.md
    python benchmarks/where_time_goes.py --models mobilenet_v2

Quantizes each model with random weights, loads its file, and measures each op like
`profile_layers.py`. The overview has milliseconds by group of layers, and in brackets the share
that they reach of what the CPU can do; the file has a table of every layer of every model besides.
"""

import argparse
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parent.parent))  # runs from any folder

from benchmarks.compare_peers import MODELS
from benchmarks.mac_limit import Limit, measure_or_say_why_not
from benchmarks.profile_layers import FEW_CHANNELS, Layer, layer_table, measure, note_shares
from benchmarks.profile_model import positive, set_engine
from benchmarks.quantizers import ours
from benchmarks.report import (
    markdown,
    number,
    parse_with_models,
    print_environment,
    silence_warnings,
)
from benchmarks.subjects import make_subject
from benchmarks.without_amx import refuse_amx

GROUPS = ("first layer", "1x1", "larger kernels", "grouped, depthwise", "linear", "other ops")
WARM_UP_CALLS = 10


def main() -> None:
    arguments = parse_arguments()
    silence_warnings()
    if arguments.no_amx:
        refuse_amx()
    torch.set_num_threads(1)
    set_engine(arguments.engine)
    limit = measure_or_say_why_not(1)
    profiles = {}
    for name in arguments.models:
        profiles[name] = profile_of(name, arguments.repeats)
        note_shares(profiles[name], limit)
        print(f"{name} done", file=sys.stderr, flush=True)
    table = overview(profiles, limit)
    print(f"{table}\n\n{limit or ''}")
    print_environment()
    if arguments.markdown:
        arguments.markdown.write_text(document(table, profiles, limit), encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS, help=f"default: {' '.join(MODELS)}")
    parser.add_argument("--engine", help="torch.backends.quantized.engine (default: torch's)")
    parser.add_argument("--no-amx", action="store_true", help="as on a CPU that has VNNI only")
    parser.add_argument("--repeats", type=positive, default=50, help="timed calls (default: 50)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write all tables here")
    return parse_with_models(parser)


def profile_of(name: str, repeats: int) -> list[Layer]:
    """The layers of the int8 model's file, in the order in which they run."""
    subject = make_subject(name)
    file = io.BytesIO()
    torch.jit.save(ours(str(torch.backends.quantized.engine)).quantized(subject), file)
    file.seek(0)
    model = torch.jit.load(file)
    image = subject.evaluation[0]
    with torch.no_grad():
        for _ in range(WARM_UP_CALLS):
            model(image)
        return measure(model, [image], repeats)


def group_of(layer: Layer) -> str:
    if layer.weight is None or layer.input is None:
        return "other ops"
    if len(layer.weight) == 2:
        return "linear"
    if layer.weight[1] != layer.input[1]:
        return "grouped, depthwise"
    if layer.input[1] <= FEW_CHANNELS:
        return "first layer"
    return "1x1" if layer.weight[2:] == (1, 1) else "larger kernels"


def overview(profiles: dict[str, list[Layer]], limit: Limit | None) -> str:
    rows = []
    for name, layers in profiles.items():
        cells = [
            cell([layer for layer in layers if group_of(layer) == group], limit) for group in GROUPS
        ]
        rows.append((name, cell(layers, limit), *cells))
    return markdown(("model", "all", *GROUPS), rows)


def cell(layers: Sequence[Layer], limit: Limit | None) -> str:
    if not layers:
        return "-"
    ms, macs = sum(layer.ms for layer in layers), sum(layer.macs for layer in layers)
    share = limit.share(macs, ms) if limit is not None and macs else None
    return f"{ms:.2f}" + (f" ({number(share, '.0%')})" if share is not None else "")


def document(table: str, profiles: dict[str, list[Layer]], limit: Limit | None) -> str:
    command = " ".join(["python", *sys.argv])
    parts = [
        "# Where the time of int8 models goes",
        f"Made by `{command}` with torch {torch.__version__}, engine "
        f"{torch.backends.quantized.engine}, one thread, one image. Milliseconds are the least of "
        "all calls, with the profiler running; in brackets is the share of the "
        f"{limit or 'limit of this CPU, which could not be measured'}.",
        table,
        *(f"## {name}\n\n{layer_table(layers)}" for name, layers in profiles.items()),
    ]
    return re.sub(" +", " ", "\n\n".join(parts)) + "\n"  # without the padding of columns


if __name__ == "__main__":
    main()

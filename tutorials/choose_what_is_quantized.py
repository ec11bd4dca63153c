"""Choosing what is quantized, and how: EfficientNet-Lite0 in three configurations.

Run it with `python tutorials/choose_what_is_quantized.py`. Each step prints what it does; the last
one compares accuracy, size and latency of the three.
"""

import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch
from tabulate import tabulate

import jitquant

sys.path.append(str(Path(__file__).resolve().parent.parent))  # runs from any folder

from tutorials.efficientnet_lite0_demo import count_hits, trace_model
from tutorials.measure import file_mb, run_all, silence_torch_deprecations, sqnr_db
from tutorials.photos import LabelledPhotos, calibration_photos, evaluation_photos
from tutorials.timing import latency_ms

# The two blocks that work on large images, and what comes before them. In a file, "x86" stands for
# get_default_qconfig("x86"), and "float" for None.
FIRST_BLOCKS_FLOAT = r"""
"" = "x86"
module_name_regex = [['_conv_stem|_bn0|_swish|_blocks\.[01]\.', "float"]]
"""
LARGE_IMAGE = 112  # pixels


def main() -> None:
    silence_torch_deprecations()
    torch.set_num_threads(1)
    calibration, evaluation = calibration_photos()[:10], evaluation_photos()
    model = trace_model(evaluation.images[0])

    step(1, "One qconfig for all ops")
    everywhere = jitquant.QConfigMapping().set_global(jitquant.get_default_qconfig())
    print(first_lines(everywhere.explain(model), 12))

    step(2, "Another one: a single scale for each weight, instead of one for each channel")
    default = jitquant.get_default_qconfig()
    per_tensor = everywhere.set_global(
        jitquant.QConfig(default.activation, jitquant.get_default_qconfig("qnnpack").weight)
    )
    print(per_tensor.to_json())

    step(3, "Parts of the model stay float: rules, here from a TOML text")
    first_blocks_float = jitquant.QConfigMapping.from_toml(FIRST_BLOCKS_FLOAT)
    print(FIRST_BLOCKS_FLOAT.strip())
    print(f"\n{decided_by(first_blocks_float.explain(model))}")

    step(4, "Rules that match nothing are errors")
    try:
        everywhere.set_module_name("_block.0", None).explain(model)
    except jitquant.JitQuantError as error:
        print(f"JitQuantError: {error}")

    step(5, "A function decides: large images stay float, and every other sum")
    by_function = everywhere.set_predicate(small_images, example_inputs=evaluation.images[0])
    print(decided_by(by_function.explain(model)))

    step(6, "What the engine can do")
    print(first_lines(jitquant.get_backend("x86").capabilities(), 14))

    step(7, "Accuracy, size and latency")
    mappings = {
        "int8 everywhere": everywhere,
        "weights per tensor": per_tensor,
        "first blocks float": first_blocks_float,
    }
    converted = {name: quantize(model, mapping, calibration) for name, mapping in mappings.items()}
    print(compare({"float": model, **converted}, evaluation))


def step(number: int, title: str) -> None:
    print(f"\n=== {number}. {title}\n")


def small_images(op: jitquant.OpInfo) -> object:
    """A predicate: None leaves an op float, NotImplemented lets the rules decide."""
    if op.kind == "aten::add" and op.ordinal % 2 == 1:
        return None
    is_large = op.shapes is not None and op.shapes[0][-1] >= LARGE_IMAGE
    return None if is_large else NotImplemented


def first_lines(table: object, count: int) -> str:
    lines = str(table).splitlines()
    return "\n".join([*(line.rstrip() for line in lines[:count]), f"... {len(lines)} lines"])


def decided_by(explanation: jitquant.Explanation) -> str:
    """How many ops each rule decides on."""
    counts = Counter(
        (each.rule, "float" if each.qconfig is None else "quantized")
        for each in explanation.decisions
    )
    rows = [(rule, what, count) for (rule, what), count in counts.items()]
    return str(tabulate(rows, headers=("decided by", "so that ops are", "count")))


def quantize(
    model: torch.jit.ScriptModule,
    mapping: jitquant.QConfigMapping,
    images: list[torch.Tensor],
) -> torch.jit.ScriptModule:
    prepared = jitquant.prepare_jit(model, mapping)
    run_all(prepared, images)
    return jitquant.convert_jit(prepared)


def compare(models: dict[str, torch.jit.ScriptModule], photos: LabelledPhotos) -> str:
    """A table of what is measured on the models' files."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder, f"{name}.pt") for name in models}
        for name, model in models.items():
            torch.jit.save(model, paths[name])
        loaded = {name: torch.jit.load(path) for name, path in paths.items()}
        sizes = {name: file_mb(path) for name, path in paths.items()}
    latency = latency_ms(loaded, photos.images[0])
    logits = {name: run_all(model, photos.images) for name, model in loaded.items()}
    rows = [
        (
            name,
            f"{sizes[name]:.2f}",
            f"{count_hits(logits[name], photos, among=1)}/{len(photos.images)}",
            f"{count_hits(logits[name], photos, among=5)}/{len(photos.images)}",
            "" if name == "float" else f"{sqnr_db(logits['float'], logits[name]):.1f}",
            f"{latency[name]:.2f}",
        )
        for name in models
    ]
    headers = ("configuration", "size (MB)", "top-1", "top-5", "SQNR (dB)", "latency (ms)")
    return str(tabulate(rows, headers=headers, disable_numparse=True))


if __name__ == "__main__":
    main()

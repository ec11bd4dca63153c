"""Finding the layers that hurt, and mending them: EfficientNet-Lite0 with one scale per weight.

Run it with `python tutorials/find_what_hurts.py [FOLDER]`. It writes a report and, with matplotlib,
two plots into the folder, and prints a table of accuracy before and after.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from tabulate import tabulate

import jitquant
from jitquant import numeric_suite

sys.path.append(str(Path(__file__).resolve().parent.parent))  # runs from any folder

from tutorials.choose_what_is_quantized import first_lines, quantize, step
from tutorials.efficientnet_lite0_demo import count_hits, trace_model
from tutorials.measure import run_all, silence_torch_deprecations, sqnr_db
from tutorials.photos import LabelledPhotos, calibration_photos, evaluation_photos

MENDED = 5
"""How many of the worst layers get a scale for each channel."""


def main(folder: Path) -> None:
    silence_torch_deprecations()
    torch.set_num_threads(1)
    calibration, evaluation = calibration_photos()[:10], evaluation_photos()
    samples = calibration[:2]
    model = trace_model(evaluation.images[0])

    step(1, "A model that int8 hurts: each weight has a single scale")
    per_channel = jitquant.get_default_qconfig()
    per_tensor = jitquant.QConfig(
        per_channel.activation, jitquant.get_default_qconfig("qnnpack").weight
    )
    mapping = jitquant.QConfigMapping().set_global(per_tensor)
    before = quantize(model, mapping, calibration)
    print(f"SQNR of the logits: {sqnr(model, before, evaluation):.1f} dB")

    step(2, "What did quantizing the weights cost?")
    weights = numeric_suite.compare_weights(model, before)
    print(first_lines(weights, 10))

    step(3, "Which op makes the error? Each one runs on the float model's values")
    ops = numeric_suite.compare_ops(model, before, samples)
    print(first_lines(ops, 10))

    step(4, "Plots, and a report with all of this")
    numeric_suite.write_report(folder / "before.html", model, before, samples)
    print(f"wrote {folder / 'before.html'}")
    worst = [op for op in ops.ranked if op.op.startswith("aten::conv2d")][:MENDED]
    draw(model, before, samples, ops, worst[0].module, folder)

    step(5, f"Mending: the {MENDED} worst convolutions get a scale for each channel")
    for op in worst:
        print(f"{op.module}: {op.errors.sqnr:.1f} dB, {op.errors.channel_sqnr:.1f} by channel")
        mapping = mapping.set_module_name(op.module, per_channel)
    after = quantize(model, mapping, calibration)
    everywhere = jitquant.QConfigMapping().set_global(per_channel)
    print()
    print(
        compare(
            model,
            {
                "one scale per weight": before,
                f"and the {MENDED} worst per channel": after,
                "all per channel (the default)": quantize(model, everywhere, calibration),
            },
            evaluation,
        )
    )


def sqnr(
    model: torch.jit.ScriptModule, quantized: torch.jit.ScriptModule, photos: LabelledPhotos
) -> float:
    return sqnr_db(run_all(model, photos.images), run_all(quantized, photos.images))


def draw(
    model: torch.jit.ScriptModule,
    quantized: torch.jit.ScriptModule,
    samples: list[torch.Tensor],
    ops: numeric_suite.Comparison,
    module: str,
    folder: Path,
) -> None:
    """SQNR by layer, and the worst layer's histograms, as files."""
    if find_spec("matplotlib") is None:
        print("no plots without matplotlib: pip install .[plot]")
        return
    outputs = numeric_suite.compare_outputs(model, quantized, samples)
    numeric_suite.plot_sqnr(ops, outputs).savefig(folder / "sqnr.png")
    histograms = numeric_suite.histograms(model, quantized, samples)
    numeric_suite.plot_histograms(histograms, module).savefig(folder / "histograms.png")
    print(f"wrote {folder / 'sqnr.png'} and {folder / 'histograms.png'}")


def compare(
    model: torch.jit.ScriptModule,
    models: dict[str, torch.jit.ScriptModule],
    photos: LabelledPhotos,
) -> str:
    """A table of accuracy."""
    logits = {
        name: run_all(each, photos.images) for name, each in {"float": model, **models}.items()
    }
    rows = [
        (
            name,
            f"{count_hits(of, photos, among=1)}/{len(photos.images)}",
            "" if name == "float" else f"{sqnr_db(logits['float'], of):.1f}",
        )
        for name, of in logits.items()
    ]
    return str(tabulate(rows, headers=("weights", "top-1", "SQNR (dB)"), disable_numparse=True))


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    target.mkdir(parents=True, exist_ok=True)
    main(target)

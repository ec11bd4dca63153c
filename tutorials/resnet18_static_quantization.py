"""Static quantization of a TorchScript model, step by step, with torchvision's ResNet-18.

For users of PyTorch's graph mode tutorial: the steps and the names of the functions are the same,
and what differs is said where it does. Run it with

    python tutorials/resnet18_static_quantization.py

Static quantization turns the float32 weights and activations of a network into 8-bit integers. An
activation x becomes round(x / scale) + zero_point; "static" means that scale and zero point are
constants of the model, found beforehand by running sample data through it (calibration).

The steps:

1. load a float model, in eval mode
2. script or trace it
3. choose a qconfig: how ranges are observed
4. calibrate and quantize
5. compare size and outputs, from the saved file
6. debug: an emulation in float, to find out where precision goes
7. compare with eager-mode quantization
8. profile
"""

import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from tabulate import tabulate
from torch.profiler import ProfilerActivity, profile

# The one line that changes in a script written for torch.ao's quantizer:
#   from torch.ao.quantization import get_default_qconfig, quantize_jit
from jitquant import coverage, get_default_qconfig, quantize_jit

sys.path.append(str(Path(__file__).resolve().parent.parent))  # runs from any folder

from tutorials.measure import (
    file_mb,
    run_all,
    silence_torch_deprecations,
    sqnr_db,
)
from tutorials.photos import (
    CALIBRATION_SOURCE,
    EVALUATION_SOURCE,
    calibration_photos,
    evaluation_photos,
)
from tutorials.timing import latency_ms

Images = Sequence[torch.Tensor]


def load_float_model(images: Images) -> torch.nn.Module:
    """Step 1. ResNet-18 in eval mode.

    Its weights are random, since torchvision's trained ones have to be downloaded. A fresh
    BatchNorm would then do nothing in eval mode (mean 0, variance 1), and the activations would
    have ranges that no trained network has. A few batches in training mode give it the statistics
    of real activations, so that folding BatchNorm into the convolutions is put to the test too.
    """
    torch.manual_seed(0)
    model: torch.nn.Module = torchvision.models.resnet18(weights=None)
    model.train()
    batch = torch.cat(list(images))
    with torch.no_grad():
        for _ in range(8):
            model(batch[torch.randperm(len(batch))[:8]])
    return model.eval()


def calibrate(model: torch.jit.ScriptModule, images: Images) -> None:
    """Step 4, first half. Runs sample data; the observers inside the model note what they see."""
    with torch.no_grad():
        for image in images:
            model(image)


def quantize_eager(model: torch.nn.Module, images: Images) -> torch.nn.Module:
    """Step 7. The same weights in torchvision's hand-written quantizable ResNet-18.

    Eager mode needs the Python source, changed by hand: `FloatFunctional` in place of +, stubs
    where quantized tensors begin and end, and a list of modules to fuse.
    """
    from torch.ao import quantization

    eager: Any = torchvision.models.quantization.resnet18(weights=None, quantize=False)
    eager.load_state_dict(model.state_dict())
    eager.eval()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.ao.quantization is deprecated")
        warnings.filterwarnings("ignore", message="Please use quant_min and quant_max")
        eager.fuse_model()
        eager.qconfig = quantization.get_default_qconfig("x86")
        quantization.prepare(eager, inplace=True)
        run_all(eager, images)
        quantization.convert(eager, inplace=True)
    quantized: torch.nn.Module = eager
    return quantized


def torch_ao_qconfig() -> object:
    """Step 3, the other way: a qconfig that a user already has."""
    from torch.ao import quantization

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Please use quant_min and quant_max")
        qconfig: object = quantization.get_default_qconfig("x86")
    return qconfig


def same_class(expected: torch.Tensor, outputs: torch.Tensor) -> str:
    """For how many images two models favour the same class.

    With random weights one class has the highest output for every image, so the mean over the
    images is taken off first: what remains tells the images apart.
    """
    mean = expected.mean(0)
    same = (expected - mean).argmax(1) == (outputs - mean).argmax(1)
    return f"{int(same.sum())}/{len(same)}"


def profile_one_call(model: torch.jit.ScriptModule, x: torch.Tensor) -> str:
    """Step 8. Where one call spends its time; the table ends with 'Self CPU time total'."""
    with torch.no_grad():
        for _ in range(3):  # TorchScript optimizes during its first calls
            model(x)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            model(x)
    averages = profiler.key_averages()
    return str(averages.table(sort_by="self_cpu_time_total", row_limit=8))


def step(title: str) -> None:
    print(f"\n=== {title} ===")


def main() -> None:
    silence_torch_deprecations()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler looks for GPUs, and says so
    torch.set_num_threads(1)
    samples, evaluation = calibration_photos(), evaluation_photos().images

    step("1. Load the float model")
    float_model = load_float_model(samples)
    print("Its weights are random: look at errors and latencies, not at the classes it favours.")
    print(f"For BatchNorm statistics and calibration: {len(samples)} {CALIBRATION_SOURCE}.")
    print(f"For evaluation: {len(evaluation)} {EVALUATION_SOURCE}.")

    step("2. Script or trace it")
    # Scripting compiles the source and keeps control flow. Tracing records one run, and takes
    # models that do not script. Either will do; so will a file that torch.jit.load opens.
    scripted = torch.jit.script(float_model)
    traced = torch.jit.trace(float_model, evaluation[0])
    equal = torch.equal(run_all(scripted, evaluation[:1]), run_all(traced, evaluation[:1]))
    print(f"scripted and traced model give the same output: {equal}")

    step("3. Choose a qconfig")
    # The key is a submodule's path, and "" is the whole model. A longer path wins, and None leaves
    # a part float: {"": qconfig, "layer4.1": other_qconfig, "fc": None}. A path that the model does
    # not have is an error.
    qconfig = get_default_qconfig("x86")
    qconfig_dict = {"": qconfig}
    print(f"activation: {qconfig.activation}\nweight:     {qconfig.weight}")

    step("4. Calibrate and quantize")
    int8_model = quantize_jit(scripted, qconfig_dict, calibrate, [samples])
    int8_traced = quantize_jit(traced, qconfig_dict, calibrate, [samples])
    # torch.ao's default takes 7 bits for activations, ours 8, so it costs some precision.
    int8_torch_ao = quantize_jit(scripted, {"": torch_ao_qconfig()}, calibrate, [samples])
    # Every op is int8, or has a reason.
    print(f"coverage: {coverage(int8_model).summary()}")

    step("5. Compare size and outputs")
    eager_model = quantize_eager(float_model, samples)
    expected = run_all(scripted, evaluation)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pt")
        # What is saved needs no jitquant where it is loaded, in Python or C++.
        for name, model in {
            "float, scripted": scripted,
            "int8 of the scripted model": int8_model,
            "int8 of the traced model": int8_traced,
            "int8 with torch.ao's qconfig": int8_torch_ao,
            "int8, eager mode (step 7)": torch.jit.script(eager_model),
        }.items():
            torch.jit.save(model, path)
            outputs = run_all(torch.jit.load(path), evaluation)
            sqnr = f"{sqnr_db(expected, outputs):.1f}"
            rows.append((name, f"{file_mb(path):.2f}", sqnr, same_class(expected, outputs)))
    # With random weights accuracy means nothing: the distance to the float outputs does.
    print(tabulate(rows, headers=("model", "size (MB)", "SQNR (dB)", "same class as float")))

    step("6. Debug")
    # debug=True stops before float ops become int8 ops: it computes in float, with values rounded
    # as int8 would. Weights are still float, and reachable by name.
    debug_model = quantize_jit(scripted, qconfig_dict, calibrate, [samples], debug=True)
    emulated, outputs = run_all(debug_model, evaluation), run_all(int8_model, evaluation)
    weight = dict(debug_model.named_parameters())["layer1.0.conv1.weight"]
    print(f"layer1.0.conv1.weight is {weight.dtype}")
    print(f"debug model against float: {sqnr_db(expected, emulated):.1f} dB")
    print(f"int8 model against debug:  {sqnr_db(emulated, outputs):.1f} dB")
    print(f"outputs equal in both:     {(emulated == outputs).float().mean().item():.1%}")

    step("7. Compare with eager mode")
    # Above, in the table: size and SQNR. Here: the time of one call.
    models = {
        "float": scripted,
        "int8 of jitquant": int8_model,
        "int8 of eager mode": eager_model,
    }
    latency = latency_ms(models, evaluation[0], runs=30)
    rows_ms = [(name, f"{ms:.1f}") for name, ms in latency.items()]
    print(tabulate(rows_ms, headers=("model", "latency (ms, 1 thread)")))

    step("8. Profile")
    print(f"float:\n{profile_one_call(scripted, evaluation[0])}")
    print(f"int8:\n{profile_one_call(int8_model, evaluation[0])}")


if __name__ == "__main__":
    main()

"""What `compare_peers.py` compares: ways to make an int8 file out of a float model."""

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.quantizers import Quantizer, ours, torch_ao
from benchmarks.subjects import OPTIONS, Subject
from tutorials.measure import run_all

INSTALL = "pip install .[peers]"


@dataclass(frozen=True)
class Variant:
    """One way to quantize and run a model.

    Attributes:
        name: what tables call it.
        runtime: "torch", "onnxruntime" or "openvino".
        suffix: of the file.
        make: writes the file; raises NotAvailable where there is nothing to make.
        engine: torch.backends.quantized.engine while the file is made, loaded and run.
        needs: modules that must be importable.
        file_of: the variant whose file this one runs; "" for its own.
    """

    name: str
    runtime: str
    suffix: str
    make: Callable[[Subject, Path], None]
    engine: str = "x86"
    needs: tuple[str, ...] = ()
    file_of: str = ""

    @property
    def file_name(self) -> str:
        return (self.file_of or self.name).replace(" ", "_") + self.suffix

    @property
    def missing(self) -> list[str]:
        """Modules of `needs` that are not installed."""
        return [module for module in self.needs if importlib.util.find_spec(module) is None]


class NotAvailable(Exception):
    """A variant that does not exist for a model; the message says why."""


# --- torch ---


def make_float(subject: Subject, path: Path) -> None:
    torch.jit.save(subject.traced, path)


def make_frozen(subject: Subject, path: Path) -> None:
    """BatchNorm is folded: the part of a speed-up that needs no int8."""
    torch.jit.save(torch.jit.freeze(subject.traced), path)


def make_quantized(
    quantizer: Callable[[str], Quantizer], engine: str
) -> Callable[[Subject, Path], None]:
    def make(subject: Subject, path: Path) -> None:
        torch.jit.save(quantizer(engine).quantized(subject), path)

    return make


def make_eager(subject: Subject, path: Path) -> None:
    """torch.ao's eager mode, which needs other source; torchvision has that for some models."""
    from torch.ao.quantization import convert, get_default_qconfig, prepare
    from torchvision.models import quantization

    make_model = getattr(quantization, subject.name, None)
    if make_model is None:
        raise NotAvailable("torchvision has no source of this model for eager mode")
    model = make_model(weights=None, quantize=False, **OPTIONS.get(subject.name, {})).eval()
    model.load_state_dict(subject.module.state_dict())
    model.fuse_model(is_qat=False)
    model.qconfig = get_default_qconfig("x86")
    prepared = prepare(model)
    run_all(prepared, subject.calibration)
    save_module(convert(prepared), subject, path)


def make_fx(subject: Subject, path: Path) -> None:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    prepared = prepare_fx(
        subject.module, get_default_qconfig_mapping("x86"), (subject.calibration[0],)
    )
    run_all(prepared, subject.calibration)
    save_module(convert_fx(prepared), subject, path)


def save_module(module: nn.Module, subject: Subject, path: Path) -> None:
    """Traced and frozen, which is the fastest way that torch has to run a Python module."""
    with torch.no_grad():
        traced = torch.jit.trace(module.eval(), subject.calibration[0], check_trace=False)
    torch.jit.save(torch.jit.freeze(traced.eval()), path)


# --- others ---


def make_onnxruntime(subject: Subject, path: Path) -> None:
    """QDQ, per channel, unsigned activations and signed weights: its fastest way on x86.

    Signed activations were tried: with VNNI they take 1.8 times as long (mobilenet_v2).
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.images = iter(subject.calibration)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.images, None)
            return None if image is None else {"x": image.numpy()}

    float_path, ready_path = path.with_suffix(".float.onnx"), path.with_suffix(".ready.onnx")
    export_onnx(subject, float_path)
    quant_pre_process(str(float_path), str(ready_path))
    quantization.quantize_static(
        str(ready_path),
        str(path),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    float_path.unlink()
    ready_path.unlink()


def make_openvino(subject: Subject, path: Path) -> None:
    """NNCF with its defaults, as its documentation shows it."""
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    float_path = path.with_suffix(".float.onnx")
    export_onnx(subject, float_path)
    model = openvino.convert_model(float_path)
    images = nncf.Dataset([image.numpy() for image in subject.calibration])
    quantized = nncf.quantize(model, images, subset_size=len(subject.calibration))
    openvino.save_model(quantized, path)
    float_path.unlink()


def export_onnx(subject: Subject, path: Path) -> None:
    torch.onnx.export(
        subject.module,
        (subject.evaluation[0],),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["x"],
        output_names=["y"],
    )


VARIANTS = (
    Variant("float", "torch", ".pt", make_float),
    Variant("float, frozen", "torch", ".pt", make_frozen),
    Variant("torch.ao x86", "torch", ".pt", make_quantized(torch_ao, "x86")),
    Variant("torch.ao onednn", "torch", ".pt", make_quantized(torch_ao, "onednn"), engine="onednn"),
    Variant(
        "torch.ao fbgemm",
        "torch",
        ".pt",
        make_quantized(torch_ao, "fbgemm"),
        engine="fbgemm",
        file_of="torch.ao x86",
    ),
    Variant("eager", "torch", ".pt", make_eager),
    Variant("FX", "torch", ".pt", make_fx),
    Variant(
        "ONNX Runtime",
        "onnxruntime",
        ".onnx",
        make_onnxruntime,
        needs=("onnx", "onnxruntime"),
    ),
    Variant("OpenVINO", "openvino", ".xml", make_openvino, needs=("onnx", "openvino", "nncf")),
    Variant("jitquant", "torch", ".pt", make_quantized(ours, "x86")),
    Variant("jitquant onednn", "torch", ".pt", make_quantized(ours, "onednn"), engine="onednn"),
)

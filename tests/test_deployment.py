"""A converted model is one file that stock torch runs, in Python and in C++, and nothing else."""

import gc
import hashlib
import os
import site
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import jitquant
from tests.cpp_runtime import run_cpp
from tests.models import (
    ResidualNet,
    calibrate,
    graph_text,
    images,
    scripted,
    settle,
    sqnr,
    traced,
)

ROOT = Path(__file__).resolve().parent.parent
KINDS = ["scripted", "traced"]
SAVES = pytest.mark.parametrize(
    "save", [torch.jit.save, jitquant.save], ids=["torch.jit.save", "jitquant.save"]
)

RUN_WITHOUT_JITQUANT = """
import sys
from importlib.abc import MetaPathFinder

class Blocker(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "jitquant":
            raise ImportError("blocked: " + name)

sys.meta_path.insert(0, Blocker())
try:
    import jitquant
except ImportError:
    pass
else:
    raise SystemExit("jitquant can be imported, so this shows nothing")

import torch
model_path, input_path, output_path = sys.argv[1:]
model = torch.jit.load(model_path)
with torch.inference_mode():
    torch.save([model(x) for x in torch.load(input_path)], output_path)
if any(name.partition(".")[0] == "jitquant" for name in sys.modules):
    raise SystemExit("jitquant was imported")
"""

SAVE_A_MODEL = """
import sys
import jitquant, torch
from tests.models import ResidualNet, calibrate, images, scripted, traced
kind, path, deflated_path = sys.argv[1:]
model = scripted(ResidualNet()) if kind == "scripted" else traced(ResidualNet(), images())
qconfig = {"": jitquant.get_default_qconfig(), "stem": jitquant.default_qconfig, "fc": None}
quantized = jitquant.quantize_jit(model, qconfig, calibrate, [images(), images(seed=2)])
torch.jit.save(quantized, path)
jitquant.save(quantized, deflated_path)
"""


def quantized(kind: str) -> torch.jit.ScriptModule:
    model = scripted(ResidualNet()) if kind == "scripted" else traced(ResidualNet(), images())
    qconfig = {"": jitquant.get_default_qconfig()}
    return jitquant.quantize_jit(model, qconfig, calibrate, [images(), images(seed=2)])


def run(model: torch.jit.ScriptModule, x: Tensor) -> Tensor:
    with torch.inference_mode():
        y = model(x)
    assert isinstance(y, Tensor)
    return y


def python(code: str, *arguments: object, **environment: str) -> None:
    """Runs `code` in a fresh interpreter, with only torch importable unless PYTHONPATH is given."""
    isolated = () if environment else ("-I",)
    done = subprocess.run(
        [sys.executable, *isolated, "-c", code, *map(str, arguments)],
        cwd="/",
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", KINDS)
@SAVES
def test_runs_without_jitquant(kind: str, save: Callable[..., None], tmp_path: Path) -> None:
    model_path, input_path, output_path = (tmp_path / name for name in ("m.pt", "x.pt", "y.pt"))
    model = quantized(kind)
    save(model, model_path)
    inputs = [images(), images(1, 3, 32, 32), images(5, 3, 7, 9, seed=1)]
    torch.save(inputs, input_path)
    python(RUN_WITHOUT_JITQUANT, model_path, input_path, output_path)
    outputs = torch.load(output_path)
    assert len(outputs) == len(inputs)
    for x, y in zip(inputs, outputs, strict=True):
        assert torch.equal(y, run(model, x))


@pytest.mark.parametrize("kind", KINDS)
@SAVES
def test_runs_in_cpp(kind: str, save: Callable[..., None], tmp_path: Path) -> None:
    model = quantized(kind)
    save(model, tmp_path / "model.pt")
    for x in (images(), images(5, 3, 7, 9, seed=1)):
        assert torch.equal(run_cpp(tmp_path / "model.pt", x), run(model, x))


@pytest.mark.parametrize("kind", KINDS)
def test_outlives_the_models_that_it_was_made_from(kind: str, tmp_path: Path) -> None:
    model = scripted(ResidualNet()) if kind == "scripted" else traced(ResidualNet(), images())
    prepared = jitquant.prepare_jit(model, {"": jitquant.default_qconfig})
    calibrate(prepared, images())
    converted = jitquant.convert_jit(prepared)
    expected = run(converted, images())
    del model, prepared
    gc.collect()
    assert torch.equal(run(converted, images()), expected)
    torch.jit.save(converted, tmp_path / "model.pt")
    del converted
    gc.collect()
    assert torch.equal(run(torch.jit.load(tmp_path / "model.pt"), images()), expected)


def test_prepared_model_outlives_the_float_model(tmp_path: Path) -> None:
    model = scripted(ResidualNet())
    prepared = jitquant.prepare_jit(model, {"": jitquant.default_qconfig})
    expected = run(model, images())
    del model
    gc.collect()
    torch.jit.save(prepared, tmp_path / "prepared.pt")
    for it in (prepared, torch.jit.load(tmp_path / "prepared.pt")):
        torch.testing.assert_close(run(it, images()), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (7, 3, 8, 8), (2, 3, 31, 17), (1, 3, 224, 224)])
def test_other_batch_and_image_sizes(kind: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    """Calibration ran on (2, 3, 8, 8) only."""
    model = quantized(kind)
    torch.jit.save(model, tmp_path / "model.pt")
    x = images(*shape, seed=3)
    y = run(torch.jit.load(tmp_path / "model.pt"), x)
    assert torch.equal(y, run(model, x))
    assert y.shape == (shape[0], 5)
    with torch.inference_mode():
        assert sqnr(settle(ResidualNet())(x), y) > 20


# What is in the file


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("debug", [False, True])
def test_file_names_no_path_of_this_machine(kind: str, debug: bool, tmp_path: Path) -> None:
    model = scripted(ResidualNet()) if kind == "scripted" else traced(ResidualNet(), images())
    qconfig_dict = {"": jitquant.default_qconfig}
    result = jitquant.quantize_jit(model, qconfig_dict, calibrate, [images()], debug=debug)
    torch.jit.save(model, tmp_path / "float.pt")
    torch.jit.save(result, tmp_path / "model.pt")
    places = {
        *(str(ROOT), str(Path.home()), str(tmp_path), sys.prefix, sys.base_prefix),
        *(sysconfig.get_paths()["purelib"], "site-packages", "dist-packages", os.sep + "torch"),
        *site.getsitepackages(),
    } - {"/", "/usr"}

    def found(path: Path) -> set[str]:
        content = b"\n".join(members(path).values())
        return {place for place in places if place.encode() in content}

    assert "site-packages" in found(tmp_path / "float.pt"), "the search can find something"
    assert found(tmp_path / "model.pt") == set()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_packed_or_quantized_at_run_time(kind: str, tmp_path: Path) -> None:
    torch.jit.save(quantized(kind), tmp_path / "model.pt")
    text = graph_text(torch.jit.load(tmp_path / "model.pt"))
    assert "prepack" not in text and "unpack" not in text
    assert "per_channel" not in text
    assert text.count("aten::quantize_per_tensor(") == 1, "the input, and nothing else"
    assert text.count("aten::dequantize(") == 1, "the output, and nothing else"


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_training_or_calibration_is_left(kind: str, tmp_path: Path) -> None:
    torch.jit.save(quantized(kind), tmp_path / "model.pt")
    content = members(tmp_path / "model.pt")
    code = b"\n".join(data for name, data in content.items() if name.endswith(".py")).decode()
    for word in ("training", "dropout", "batch_norm", "running_mean", "observer", "histogram"):
        assert word not in code, word
    assert "uninitialized" not in code and "raise" not in code
    model = torch.jit.load(tmp_path / "model.pt")
    assert not list(model.parameters()) and not list(model.buffers()) and not list(model.children())


def test_file_is_smaller(tmp_path: Path) -> None:
    model = scripted(nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256)))
    x = images(4, 256)
    result = jitquant.quantize_jit(model, {"": jitquant.default_qconfig}, calibrate, [x])
    torch.jit.save(model, tmp_path / "float.pt")
    torch.jit.save(result, tmp_path / "int8.pt")
    ratio = (tmp_path / "float.pt").stat().st_size / (tmp_path / "int8.pt").stat().st_size
    assert ratio > 3, ratio


# The same bytes twice


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("debug", [False, True])
def test_same_bytes_twice_in_one_process(kind: str, debug: bool, tmp_path: Path) -> None:
    """Another model is converted in between, and the models differ in nothing but their address."""
    files = []
    for folder in ("a", "b"):
        model = scripted(ResidualNet()) if kind == "scripted" else traced(ResidualNet(), images())
        qconfig_dict = {"": jitquant.get_default_qconfig(), "stem": jitquant.default_qconfig}
        result = jitquant.quantize_jit(model, qconfig_dict, calibrate, [images()], debug=debug)
        (tmp_path / folder).mkdir()
        files.append(tmp_path / folder / "model.pt")
        torch.jit.save(result, files[-1])
        quantized("scripted")
    assert members(files[0]) == members(files[1])
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_same_bytes_in_two_processes(kind: str, tmp_path: Path) -> None:
    files: list[list[Path]] = []
    for seed in ("1", "77"):
        folder = tmp_path / seed
        folder.mkdir()
        files.append([folder / "model.pt", folder / "deflated.pt"])
        python(SAVE_A_MODEL, kind, *files[-1], PYTHONHASHSEED=seed, PYTHONPATH=str(ROOT))
    for first, second in zip(*files, strict=True):
        assert members(first) == members(second)
        digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in (first, second)]
        assert digests[0] == digests[1]

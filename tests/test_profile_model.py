"""benchmarks/profile_model.py profiles any TorchScript file, and says what is wrong with its input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import profile_model
from benchmarks.profile_model import UsageError, parse_input
from jitquant import convert_jit, get_default_qconfig, prepare_jit
from jitquant._engine import engine_set
from tests.models import PlainNet, ResidualNet, scripted

ROOT = Path(__file__).resolve().parent.parent


class ManyInputs(nn.Module):
    def forward(self, ids: Tensor, mask: Tensor, rate: int, shift: int = 0) -> Tensor:
        assert ids.dtype == torch.int64 and mask.dtype == torch.bool
        return ids * mask * rate + shift


class Sum(nn.Module):
    """On onednn one convolution takes the sum along."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.b = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.a(x) + self.b(x)
        return y


def run(*arguments: object) -> None:
    profile_model.run(profile_model.parse_arguments([str(of) for of in arguments]))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    made = {
        "residual": scripted(ResidualNet()),
        "plain": scripted(PlainNet()),
        "many": torch.jit.script(ManyInputs()),
    }
    paths = {name: folder / f"{name}.pt" for name in made}
    for name, model in made.items():
        torch.jit.save(model, paths[name])
    paths["state"] = folder / "state.pt"
    torch.save(PlainNet().state_dict(), paths["state"])
    return paths


def test_two_files_are_profiled_and_compared(models: dict[str, Path], tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/profile_model.py")]
    command += [str(models["residual"]), str(models["plain"]), "--input", "1,3,16,16"]
    command += ["--warmup", "2", "--repeats", "3", "--profiled", "2", "--rows", "4"]
    command += ["--json", str(tmp_path / "new/report.json"), "--chrome-trace", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)

    assert done.stdout.count("Self CPU time total: ") == 2
    rows = [line.split() for line in done.stdout.splitlines()]
    (first,) = [row for row in rows if len(row) > 1 and row[0] == "residual.pt"]
    (second,) = [row for row in rows if len(row) > 1 and row[0] == "plain.pt"]
    assert first[-1] == "1.00x" and second[-1].endswith("x")

    report = json.loads((tmp_path / "new/report.json").read_text())
    assert report["environment"]["threads"] == "1"
    residual, plain = report["results"]
    assert residual["ops"]["aten::conv2d"]["calls"] == 2
    assert plain["ops"]["aten::conv2d"]["calls"] == 1
    assert residual["self_cpu_ms"] > 0 and residual["memory_mb"] >= 0
    p50 = {name: of["latency_ms"]["p50"] for name, of in (("r", residual), ("p", plain))}
    assert plain["speed_up"] == pytest.approx(p50["r"] / p50["p"])
    for result in (residual, plain):
        latency = result["latency_ms"]
        assert 0 < latency["least"] <= latency["p50"] <= latency["p90"] <= latency["p99"]
        trace = json.loads((tmp_path / f"{result['label']}.trace.json").read_text())
        names = [event.get("name") for event in trace["traceEvents"]]
        assert names.count("aten::conv2d") == result["ops"]["aten::conv2d"]["calls"]


def test_inputs_of_other_types(models: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    inputs = ["--input", "1,4:int64", "--input", "1,4:bool", "--input", "=16000"]
    run(models["many"], *inputs, "--warmup", 1, "--repeats", 1, "--profiled", 1)
    assert "aten::mul" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "shape", "dtype"),
    [
        ("1,3,4", (1, 3, 4), torch.float32),
        ("2:bfloat16", (2,), torch.bfloat16),
        ("1,128:int64", (1, 128), torch.int64),
        ("7:bool", (7,), torch.bool),
    ],
)
def test_a_shape_becomes_a_tensor(text: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = parse_input(text)
    assert (tuple(tensor.shape), tensor.dtype) == (shape, dtype)
    if not dtype.is_floating_point:
        assert set(tensor.unique().int().tolist()) <= {0, 1}


@pytest.mark.parametrize(("text", "value"), [("=16000", 16000), ("=0.5", 0.5), ("=True", True)])
def test_a_number_is_given_as_it_is(text: str, value: object) -> None:
    assert parse_input(text) == value and type(parse_input(text)) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,a", "a shape is sizes with commas, as in 1,3,224,224"),
        ("1,-3", "a shape is sizes with commas"),
        ("", "a shape is sizes with commas"),
        ("1,3:float", "no dtype float; give one of float32, float64"),
        ("=print()", "behind = a number is needed"),
        ("=", "behind = a number is needed"),
        ("='a'", "behind = a number is needed"),
    ],
)
def test_an_input_that_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        parse_input(text)
    assert f"--input {text}:" in str(error.value)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("absent", ["--input", "1"], "there is no file .*absent.pt"),
        ("state", ["--input", "1"], "state.pt is not a file that torch.jit.load can load"),
        ("plain", ["--input", "1,4,8,8"], r"(?s)but got 4 channels.*takes \(x: Tensor\)"),
        ("plain", ["--input", "1,3,8,8", "--input", "1"], r"(?s)expected at most 2 argument"),
        ("many", ["--input", "=1"], r"mask: Tensor, rate: int, shift: int = 0\); give one --input"),
        ("plain", ["--input", "1,3,8,8", "--engine", "none"], "no engine none here; give one of"),
    ],
)
def test_what_cannot_be_profiled(
    models: dict[str, Path], name: str, arguments: list[str], message: str
) -> None:
    path = models.get(name, models["plain"].with_name(f"{name}.pt"))
    with pytest.raises(UsageError, match=message):
        run(path, *arguments)


def test_a_model_of_another_engine(tmp_path: Path) -> None:
    qconfig = get_default_qconfig("onednn")
    with engine_set("onednn"):
        prepared = prepare_jit(scripted(Sum()), {"": qconfig})
        prepared(torch.rand(1, 3, 8, 8))
        torch.jit.save(convert_jit(prepared), tmp_path / "onednn.pt")
    with engine_set("x86"):
        arguments = [tmp_path / "onednn.pt", "--input", "1,3,8,8", "--repeats", "1"]
        with pytest.raises(UsageError, match="made for another engine than x86: give --engine on"):
            run(*arguments)
        run(*arguments, "--engine", "onednn")


def test_a_file_given_twice(models: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="a file is given twice"):
        run(models["plain"], models["plain"], "--input", "1,3,8,8")


def test_errors_end_the_script_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, models: dict[str, Path]
) -> None:
    monkeypatch.setattr(sys, "argv", ["profile_model.py", str(models["plain"]), "--input", "x"])
    with pytest.raises(SystemExit, match=r"profile_model\.py: --input x: a shape is"):
        profile_model.main()


def test_files_of_one_name_are_told_apart() -> None:
    assert profile_model.labels([Path("a/m.pt"), Path("b/m.pt")]) == ["a/m.pt", "b/m.pt"]
    assert profile_model.labels([Path("a/m.pt"), Path("b/n.pt")]) == ["m.pt", "n.pt"]

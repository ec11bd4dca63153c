"""benchmarks/compare_peers.py measures files of all makers alike, and says what it leaves out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.compare_peers import (
    Result,
    closing_lines,
    installed,
    overview,
    plot,
    speed_against,
)
from benchmarks.runners import Runner, RunnerError
from benchmarks.subjects import int8_bytes, make_subject
from benchmarks.variants import VARIANTS, Variant, make_float

ROOT = Path(__file__).resolve().parent.parent


def test_compare_peers(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "benchmarks/compare_peers.py", "--models", "squeezenet1_1"]
    command += ["--pixels", "64", "--turns", "2", "--calls", "2", "--json", str(report)]
    command += ["--variants", "float", "torch.ao fbgemm", "eager", "jitquant"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    results = {of["variant"]: of for of in json.loads(report.read_text())["results"]}
    assert list(results) == ["float", "torch.ao fbgemm", "eager", "jitquant"]
    assert "eager mode" in results.pop("eager")["error"]
    for result in results.values():
        assert not result["error"]
        assert 0 < result["least_ms"] <= result["median_ms"] and result["load_ms"] > 0
    assert results["float"]["sqnr_db"] > 100 > results["jitquant"]["sqnr_db"] > 25
    assert results["float"]["size_ratio"] > 3 and 0.9 < results["jitquant"]["size_ratio"] < 1.2
    assert results["float"]["share_of_limit"] is None
    assert 0 < results["jitquant"]["share_of_limit"] < 1
    assert done.stdout.startswith("| model ")  # a table for documents
    assert "jitquant: " in done.stdout and "limit of this CPU: " in done.stdout


def test_what_is_not_installed_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    there = Variant("there", "torch", ".pt", make_float, needs=("torch",))
    gone = Variant("gone", "torch", ".pt", make_float, needs=("torch", "no_such_module"))
    assert installed([there, gone]) == [there]
    error = capsys.readouterr().err
    assert error == "gone is left out: pip install .[peers] installs no_such_module\n"


def test_names_are_those_of_files_that_do_not_clash() -> None:
    files = {of.file_name for of in VARIANTS}
    assert len(files) == len([of for of in VARIANTS if not of.file_of])


class Doubled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


@pytest.fixture(scope="module")
def doubled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runner") / "doubled.pt"
    torch.jit.save(torch.jit.script(Doubled()), path)
    return path


def test_runner(doubled: Path) -> None:
    runner = Runner("torch", "x86", threads=1)
    try:
        with pytest.raises(RunnerError, match="no_such_file"):
            runner.load(doubled.with_name("no_such_file.pt"), torch.ones(2))
        assert runner.load(doubled, torch.ones(2)) > 0  # it goes on after an error
        assert runner.outputs([torch.ones(1), torch.zeros(2)]).tolist() == [2, 0, 0]
        assert len(runner.times_ms(3)) == 3
        runner._process.kill()
        with pytest.raises(RunnerError, match="the process ended with status -9"):
            runner.times_ms(1)
    finally:
        runner.close()


def test_a_subject_is_the_same_each_time() -> None:
    first, second = (make_subject("mnasnet0_5", batch=2, pixels=32) for _ in range(2))
    assert torch.equal(first.evaluation[0], second.evaluation[0])
    assert first.evaluation[0].shape == (2, 3, 32, 32) and len(first.calibration) == 4
    with torch.no_grad():
        x = first.evaluation[0]
        assert torch.equal(first.traced(x), second.module(x))
    assert first.macs == 2 * make_subject("mnasnet0_5", pixels=32).macs


def test_size_of_an_int8_layer() -> None:
    assert int8_bytes(nn.Conv2d(8, 16, 3, groups=4, bias=False)) == 16 * 2 * 9 + 16 * 4
    assert int8_bytes(nn.Linear(5, 3)) == 15 + 3 * 4
    assert int8_bytes(nn.BatchNorm2d(4)) == 0


MEDIANS: dict[str, dict[str, float | None]] = {
    "a": {"float": 20, "torch.ao x86": 6, "FX": 5, "ONNX Runtime": 3, "jitquant": 4},
    "b": {"float": 30, "torch.ao x86": 8, "FX": 9, "OpenVINO": None, "jitquant": 10},
}
RESULTS = [
    Result(model, variant, 1, median_ms=ms)
    for model, medians in MEDIANS.items()
    for variant, ms in medians.items()
]


def test_speed_is_against_the_fastest_of_a_group() -> None:
    group = ("torch.ao x86", "FX")
    assert speed_against(RESULTS, "jitquant", group) == {"a": 5 / 4, "b": 8 / 10}
    # Only models that both can run count.
    assert speed_against(RESULTS, "jitquant", ("ONNX Runtime", "OpenVINO")) == {"a": 3 / 4}


def test_closing_lines() -> None:
    assert closing_lines(RESULTS) == [
        "jitquant: 1.000 times as fast as the fastest of torch.ao and FX (geometric mean of 2 "
        "models; least 0.800, b)",
        "jitquant: 0.750 times as fast as the fastest of ONNX Runtime and OpenVINO (geometric mean "
        "of 1 models; least 0.750, a)",
    ]


def test_overview() -> None:
    head, _, a, b = overview(RESULTS).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (head, a, b)]
    columns = ["float", "torch.ao x86", "FX", "ONNX Runtime", "jitquant", "OpenVINO"]
    assert cells == [
        ["median (ms)", *columns],
        ["a", "20.00", "6.00", "5.00", "3.00", "4.00", "-"],
        ["b", "30.00", "8.00", "9.00", "-", "10.00", "-"],
    ]


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot(RESULTS, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")

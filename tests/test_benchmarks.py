"""The scripts in benchmarks/ run, and measure what they say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.report import describe_environment

ROOT = Path(__file__).resolve().parent.parent


def test_int8_ops(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "benchmarks/int8_ops.py", "relu6", "silu", "interpolate (nearest)"]
    finished = subprocess.run(
        [*command, "--repeats", "1", "--json", report],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = {line.split("  ")[0]: line.split() for line in finished.stdout.splitlines()}
    assert lines["relu6"][1] == "0" and lines["relu6"][-1] == "yes"
    assert lines["silu"][1:] == ["no", "kernel"]
    results = json.loads(report.read_text())["results"]
    assert [result["op"] for result in results].count("relu6") == 5
    for result in results:
        assert (result["op"] == "silu") == bool(result["error"])
        assert result["error"] or (result["int8_us"] > 0 and result["float_us"] > 0)
        assert result["steps"] == 0


def test_calibration_cost(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "benchmarks/calibration_cost.py", "mobilenet_v3_small"]
    subprocess.run(
        [*command, "--runs", "3", "--json", report], cwd=ROOT, capture_output=True, check=True
    )
    results = json.loads(report.read_text())["results"]
    assert [result["form"] for result in results] == ["scripted", "traced"]
    for result in results:
        assert result["ratio"] > 0
        assert result["memory_ratio"] > 0 and result["float_mb"] > 100
        assert result["torch_ao_error"] or result["torch_ao_ratio"] > 0


def test_quantize_time(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "benchmarks/quantize_time.py", "--sizes", "2", "4", "--repeats", "1"]
    subprocess.run(
        [*command, "--no-densenet", "--json", report], cwd=ROOT, capture_output=True, check=True
    )
    results = json.loads(report.read_text())["results"]
    assert [(result["tool"], result["convolutions"]) for result in results] == [
        ("jitquant", 2),
        ("torch.ao", 2),
        ("jitquant", 4),
        ("torch.ao", 4),
    ]
    for result in results:
        assert not result["failure"]
        assert result["prepare_s"] > 0 and result["convert_s"] > 0 and result["weights_mb"] > 0


def test_accuracy_methods(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "benchmarks/accuracy_methods.py", "faces", "--engines", "qnnpack"]
    subprocess.run(
        [*command, "--runs", "2", "--json", report], cwd=ROOT, capture_output=True, check=True
    )
    results = json.loads(report.read_text())["results"]
    assert [result["method"] for result in results] == [
        *("float", "int8", "MSE weights", "equalized", "bias corrected"),
        *("equalized, bias corrected", "all three"),
    ]
    for result in results:
        assert result["right"] >= 98 and result["samples"] == 100 and result["latency_ms"] > 0
        assert result["method"] == "float" or result["sqnr_db"] > 30


def test_dynamic(tmp_path: Path) -> None:
    """One model has Python source and one has none, which torch.ao cannot quantize either."""
    report = tmp_path / "report.json"
    variants = ["float", "torch.ao", "eager", "jitquant"]
    command = [sys.executable, "benchmarks/dynamic.py", "--variants", *variants]
    command += ["--models", "BERT, 312 wide", "silero-stress", "--tokens", "6", "9"]
    command += ["--turns", "2", "--calls", "1", "--json", str(report)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    results = json.loads(report.read_text())["results"]
    measured = [of for of in results if not of["error"]]
    assert [of["variant"] for of in measured] == [*variants, "float", "jitquant"]
    for result in measured:
        assert list(result["median_ms"]) == ["6", "9"]
        assert min(result["median_ms"].values()) > 0
    in_float, upstream, eager, ours = measured[:4]
    assert in_float["sqnr_db"] > 100 > ours["sqnr_db"] > 30
    assert ours["size_mb"] < 0.7 * in_float["size_mb"]
    assert ours["size_mb"] == pytest.approx(upstream["size_mb"], rel=0.01)
    assert ours["size_mb"] == pytest.approx(eager["size_mb"], rel=0.01)
    errors = {of["variant"]: of["error"] for of in results if of["error"]}
    assert errors.pop("torch.ao").startswith("RuntimeError: Graph::copy() encountered a use of")
    assert errors == {"eager": "it comes without Python source"}
    assert done.stdout.startswith("| median (ms) ")
    assert [line.split(": ")[0] for line in done.stdout.splitlines() if "as fast" in line] == [
        "jitquant"
    ] * 3


def test_exact_share(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "benchmarks/exact_share.py", "shufflenet_v2_x1_0", "--pixels", "64"]
    engines = ["fbgemm", "qnnpack"]
    finished = subprocess.run(
        [*command, "--images", "2", "--engines", *engines, "--json", report],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "2,000 of 2,000 |" in finished.stdout
    results = json.loads(report.read_text())["results"]
    assert [result["engine"] for result in results] == engines
    assert all(result["outputs"] == 2000 for result in results)
    assert results[0]["equal"] == 2000 and results[0]["worst"] == 0


def test_file_size(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "benchmarks/file_size.py", "--pixels", "64"]
    command += ["--models", "shufflenet_v2_x0_5"]
    command += ["--engine", "onednn", "--loads", "2", "--json", str(report)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("| model ") and "engine: onednn" in done.stdout
    theirs, ours = json.loads(report.read_text())["results"]
    assert (theirs["save"], ours["save"]) == ("torch.jit.save", "jitquant.save")
    for result in (theirs, ours):
        assert result["size_ratio"] == result["size_mb"] / (result["weights_mb"] + 0.1)
        assert result["save_ms"] > 0 and result["load_ms"] > 0
    assert ours["size_mb"] < theirs["size_mb"]


def test_settings_of_malloc_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert describe_environment()["malloc"] == "defaults"
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    assert describe_environment()["malloc"] == "glibc.malloc.hugetlb=1"

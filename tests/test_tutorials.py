"""The tutorials run, keep what they promise, and the generated page is what the code says."""

import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from tutorials import efficientnet_lite0_demo as demo
from tutorials import generate_supported_ops

ROOT = Path(__file__).resolve().parent.parent


DYNAMIC = ("float", "int8 linears", "int8 linears and tables")


@cache
def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script as a user does, from another folder than the project's."""
    command = [sys.executable, str(ROOT / script), *arguments]
    return subprocess.run(command, cwd=ROOT.parent, capture_output=True, text=True, timeout=600)


def lines_of(script: str, *arguments: str) -> list[str]:
    done = run(script, *arguments)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout.splitlines()


def row(lines: list[str], name: str) -> list[str]:
    """The cells after `name` in a printed table's row, which columns of two spaces separate."""
    (line,) = [line for line in lines if re.split(r"\s{2,}", line)[0] == name]
    return re.split(r"\s{2,}", line)[1:]


DEMO = "tutorials/efficientnet_lite0_demo.py"
CONFIGURATION = "tutorials/choose_what_is_quantized.py"
TRANSFORMER = "tutorials/dynamic_transformer.py"
TUTORIAL = "tutorials/resnet18_static_quantization.py"


def test_demo_meets_its_requirements() -> None:
    lines = lines_of(DEMO)
    assert len([line for line in lines if line.startswith("ok ")]) == 4
    assert not [line for line in lines if line.startswith("FAILED")]


GOOD = demo.Figures(size_mb=5.0, top1=18, top5=19, latency_ms=4.0)
FLOAT = demo.Figures(size_mb=20.0, top1=18, top5=19, latency_ms=16.0)
GOOD_OPS = Counter({"quantized::conv2d": 49})


@pytest.mark.parametrize(
    ("int8", "ops", "failing"),
    [
        (GOOD, GOOD_OPS, []),
        (replace(GOOD, top1=17), GOOD_OPS, []),
        (replace(GOOD, top1=16), GOOD_OPS, ["top-1"]),
        (replace(GOOD, size_mb=6.0), GOOD_OPS, ["file"]),
        (replace(GOOD, latency_ms=8.1), GOOD_OPS, ["faster"]),
        (GOOD, Counter({"aten::conv2d": 1}), ["aten::conv2d"]),
        (GOOD, Counter({"aten::hardtanh_": 1}), ["aten::hardtanh_"]),
    ],
)
def test_demo_fails_if_a_requirement_is_not_met(
    int8: demo.Figures, ops: Counter[str], failing: list[str]
) -> None:
    checks = demo.check({"float": FLOAT, "int8": int8}, ops)
    texts = [text for passed, text in checks if not passed]
    assert len(texts) == len(failing)
    assert all(word in text for word, text in zip(failing, texts, strict=True))
    assert demo.report(checks) == (1 if failing else 0)


def test_demo_prints_size_accuracy_and_latency_of_both_models() -> None:
    lines = lines_of(DEMO)
    for name in ("float", "int8"):
        size, top1, top5, latency = row(lines, name)
        assert float(size) > 0 and float(latency) > 0
        assert re.fullmatch(r"\d+/20", top1) and re.fullmatch(r"\d+/20", top5)


def test_demo_says_which_photos_it_used() -> None:
    text = "\n".join(lines_of(DEMO))
    assert "Calibrated on 30 crops of the scikit-image photos" in text
    assert "Evaluated on 20 centre crops of the labelled ImageNet photos in foolbox" in text


def test_demo_prints_coverage_and_op_counts() -> None:
    lines = lines_of(DEMO)
    assert "Coverage: 102 of 102 ops int8" in lines
    assert row(lines, "quantized::conv2d") == ["49"]
    assert row(lines, "quantized::linear") == ["1"]


def test_tutorial_shows_every_step() -> None:
    lines = lines_of(TUTORIAL)
    steps = [line for line in lines if line.startswith("=== ")]
    assert [line.split()[1] for line in steps] == [f"{number}." for number in range(1, 9)]
    assert "scripted and traced model give the same output: True" in lines
    assert "coverage: 49 of 49 ops int8" in lines


@pytest.mark.parametrize(
    "name",
    [
        "int8 of the scripted model",
        "int8 of the traced model",
        "int8 with torch.ao's qconfig",
        "int8, eager mode (step 7)",
    ],
)
def test_tutorial_models_are_small_and_near_float(name: str) -> None:
    """A wrong op costs far more than 5 dB of the 28 to 31 dB that these models reach."""
    lines = lines_of(TUTORIAL)
    float_size = float(row(lines, "float, scripted")[0])
    size, sqnr, _ = row(lines, name)
    assert float(size) < 0.26 * float_size
    assert float(sqnr) > 24


def test_tutorial_debug_model_has_float_weights() -> None:
    assert "layer1.0.conv1.weight is torch.float32" in lines_of(TUTORIAL)


def test_tutorial_profiles_float_and_int8() -> None:
    lines = lines_of(TUTORIAL)
    assert len([line for line in lines if line.startswith("Self CPU time total:")]) == 2
    assert [line for line in lines if line.strip().startswith("quantized::conv2d_relu")]


def test_configuration_tutorial_shows_every_step() -> None:
    lines = lines_of(CONFIGURATION)
    steps = [line for line in lines if line.startswith("=== ")]
    assert [line.split()[1] for line in steps] == [f"{number}." for number in range(1, 8)]
    text = "\n".join(lines)
    assert "JitQuantError: qconfig_dict: the rule module_name '_block.0' matches nothing" in text
    assert row(lines, "predicate") == ["float", "20"]  # 16 ops on large images, 4 of 9 sums


def test_configurations_differ_as_the_tutorial_says() -> None:
    """Weights per tensor lose 12 dB, and float where images are large gains 3; half of it here."""
    lines = lines_of(CONFIGURATION)
    assert row(lines, "float")[1:3] == ["18/20", "19/20"]
    names = ("weights per tensor", "int8 everywhere", "first blocks float")
    per_tensor, everywhere, first_float = (float(row(lines, name)[3]) for name in names)
    assert per_tensor < everywhere - 6
    assert first_float > everywhere + 1.5
    for name in names[1:]:
        size, top1, top5, _, latency = row(lines, name)
        assert float(size) < 6 and float(latency) > 0
        assert int(top1.split("/")[0]) >= 16 and int(top5.split("/")[0]) >= 18


def test_transformer_tutorial_shows_every_step() -> None:
    lines = lines_of(TRANSFORMER)
    steps = [line for line in lines if line.startswith("=== ")]
    assert [line.split()[1] for line in steps] == [f"{number}." for number in range(1, 7)]
    assert "float.pt: 117.5 MB, 21 linear layers" in lines
    assert row(lines, "tables")[1] == "91.3%"
    assert len([line for line in lines if line.startswith("Self CPU time total:")]) == 2
    assert [line for line in lines if line.strip().startswith("quantized::linear_dynamic")]


def test_transformer_tutorial_compares_answers_and_sizes() -> None:
    lines = lines_of(TRANSFORMER)
    tables = [row([line for line in lines if "/" in line], name) for name in DYNAMIC]
    (size, *exact), *others = tables
    assert exact == ["300/300", "inf"]
    for each, same, sqnr in others:
        assert float(each) < float(size)
        assert int(same.split("/")[0]) >= 294 and float(sqnr) > 26
    assert float(tables[2][0]) < 0.27 * float(size)


@pytest.mark.parametrize("script", [DEMO, TUTORIAL, CONFIGURATION, TRANSFORMER])
def test_no_warning_reaches_the_reader(script: str) -> None:
    assert run(script).stderr == ""


def test_supported_ops_page_is_up_to_date() -> None:
    found = generate_supported_ops.OUTPUT.read_text(encoding="utf-8")
    assert found == generate_supported_ops.document(), (
        "tutorials/supported_ops.md is not what the op table says. Update it with:\n"
        "    python tutorials/generate_supported_ops.py"
    )


def test_mending_the_worst_layers_helps(tmp_path: Path) -> None:
    lines = lines_of("tutorials/find_what_hurts.py", str(tmp_path))
    names = ("one scale per weight", "and the 5 worst per channel", "all per channel (the default)")
    before, mended, default = (float(row(lines, name)[1]) for name in names)
    assert before + 2 < mended < default - 2
    for name in ("sqnr.png", "histograms.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "before.html").read_text(encoding="utf-8")
    assert "_blocks.7._depthwise_conv" in page and "src=" not in page and "<link" not in page

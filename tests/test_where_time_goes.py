"""benchmarks/where_time_goes.py sorts layers into groups; without_amx.py hides AMX tiles."""

import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import without_amx
from benchmarks.profile_layers import Layer
from benchmarks.where_time_goes import group_of

ROOT = Path(__file__).resolve().parent.parent
LINUX = (platform.system(), platform.machine()) == ("Linux", "x86_64")


def test_overview_and_file(tmp_path: Path) -> None:
    file = tmp_path / "layers.md"
    command = [sys.executable, "benchmarks/where_time_goes.py", "--models", "squeezenet1_1"]
    command += ["--repeats", "2", "--markdown", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    row = next(line for line in done.stdout.splitlines() if "squeezenet1_1" in line)
    _, _, total, *groups, _ = [cell.strip() for cell in row.split("|")]
    ms = [float(re.split(r"[ (]", cell)[0]) for cell in groups if cell != "-"]
    assert sum(ms) == pytest.approx(float(total.split()[0]), abs=0.05)
    text = file.read_text()
    assert re.sub(" +", " ", row) in text
    assert text.count("| quantized::conv2d_relu |") == 26


@pytest.mark.parametrize(
    ("image", "weight", "group"),
    [
        ((1, 3, 8, 8), (16, 3, 3, 3), "first layer"),
        ((1, 16, 8, 8), (8, 16, 1, 1), "1x1"),
        ((1, 16, 8, 8), (8, 16, 1, 7), "larger kernels"),
        ((1, 16, 8, 8), (16, 1, 3, 3), "grouped, depthwise"),
        ((1, 16), (8, 16), "linear"),
        ((1, 16, 8, 8), None, "other ops"),
    ],
)
def test_groups(image: tuple[int, ...], weight: tuple[int, ...] | None, group: str) -> None:
    assert group_of(Layer("op", "", "kind", image, None, weight, 1, 1.0)) == group


@pytest.mark.skipif(not LINUX, reason="the filter is for Linux on x86-64")
def test_no_process_gets_tiles() -> None:
    """The kernel's refusal reaches what the process starts, and nothing else is refused."""
    code = """
import subprocess, sys
from benchmarks.without_amx import refuse_amx
refuse_amx()
ask = "import ctypes; libc = ctypes.CDLL(None, use_errno=True); "
ask += "print(libc.syscall(158, 0x1023, 18), ctypes.get_errno())"
print(subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True).stdout)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["-1", "22"]


def test_other_systems_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(SystemExit, match="--no-amx works on Linux on x86-64 only"):
        without_amx.refuse_amx()

"""Quantizing in a loop does not grow memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Prints the resident memory in MB after each call, and the size of the model in MB.
LOOP = """
import ctypes, gc, json, sys, warnings
sys.path.insert(0, sys.argv[1])
warnings.simplefilter("ignore")
import torch, torchvision
import jitquant

torch.set_num_threads(1)
libc = ctypes.CDLL(None)
if sys.argv[3] == "resnet18":
    module = torchvision.models.resnet18(weights=None)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
else:
    module = torch.nn.Linear(16, 16)
    x = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
model = torch.jit.script(module.eval())
size = sum(t.numel() * t.element_size() for t in model.state_dict().values()) / 1e6

def calibrate(prepared):
    with torch.inference_mode():
        prepared(x)

def resident():
    gc.collect()
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)  # what is free but not given back is no growth
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * 4096 / 1e6

used = []
for _ in range(int(sys.argv[2])):
    jitquant.quantize_jit(model, {"": jitquant.default_qconfig}, calibrate, [])
    used.append(resident())
print(json.dumps({"size": size, "used": used}))
"""


def growth_per_call(calls: int, model: str) -> tuple[float, float, list[float]]:
    """Growth per call after the third, the model's size, and memory after each call, all in MB."""
    done = subprocess.run(
        [sys.executable, "-c", LOOP, str(ROOT), str(calls), model], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    used: list[float] = found["used"]
    return (used[-1] - used[2]) / (calls - 3), found["size"], used


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("calls", [8, pytest.param(30, marks=pytest.mark.sweep)])
def test_resnet18_in_a_loop(calls: int) -> None:
    growth, size, used = growth_per_call(calls, "resnet18")
    print(f"{calls} calls: {growth:.2f} MB per call, model {size:.1f} MB, resident {used}")
    assert growth <= 0.05 * size, f"{growth:.1f} MB per call: {used}"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_layer_in_a_loop() -> None:
    """What one call leaves behind whatever the model: no class and no graph."""
    growth, _, used = growth_per_call(33, "one layer")
    print(f"33 calls: {1000 * growth:.0f} kB per call, resident {used}")
    assert growth <= 0.1, f"{growth:.2f} MB per call: {used}"

"""Int8 weights never overflow the 16 bits in which CPUs without VNNI sum pairs of products.

vpmaddubsw adds two products of an activation (0 to 255) and a weight (-128 to 127) in saturating 16
bits: two weights of one sign that sum to at most 128 in size are safe, since 255 * 128 < 32768.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jitquant
from jitquant._engine import engine_set

ROOT = Path(__file__).resolve().parent.parent
ENGINES = [name for name in torch.backends.quantized.supported_engines if name != "none"]
SATURATING = [name for name in ("x86", "fbgemm", "onednn") if name in ENGINES]
MOST = 128


@pytest.fixture(params=SATURATING)
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each engine that sums in 16 bits, set during the test."""
    with engine_set(request.param) as name:
        yield name


@pytest.fixture
def qnnpack() -> Iterator[str]:
    if "qnnpack" not in ENGINES:
        pytest.skip("this torch has no qnnpack")
    with engine_set("qnnpack") as name:
        yield name


def integer_weights(converted: torch.jit.ScriptModule) -> list[Tensor]:
    """The quantized weights of all packed parameters, in graph order."""
    weights = []
    for node in converted.graph.nodes():
        kind = str(node.kind()).removeprefix("quantized::").removesuffix("_relu")
        if kind not in ("linear", "conv1d", "conv2d", "conv3d"):
            continue
        packed = getattr(converted, node.inputsAt(1).node().s("name"))
        # A conv1d is packed as a conv2d of height 1.
        unpack: Any = getattr(torch.ops.quantized, f"{kind}_unpack")
        weights.append(unpack(packed)[0])
    return weights


def largest_pair(weight: Tensor) -> int:
    """The largest size of the sum of two neighbours of one sign, in the orders of both libraries.

    fbgemm pairs neighbours of (kernel..., in_channel), flat; onednn pairs in_channels of one tap.
    Both alignments of the flat order are counted.
    """
    rows = weight.int_repr().int().movedim(1, -1)
    flat = rows.flatten(1)
    taps = rows.reshape(rows.shape[0], -1, rows.shape[-1])
    return max(
        largest_sum(flat[:, ::2], flat[:, 1::2]), largest_sum(taps[..., ::2], taps[..., 1::2])
    )


def largest_sum(first: Tensor, second: Tensor) -> int:
    count = second.shape[-1]  # an odd one has no partner
    first = first[..., :count]
    sums = ((first + second).abs() * (first.sign() == second.sign())).flatten()
    return int(sums.max()) if sums.numel() else 0


def convert(module: nn.Module, *shape: int, engine: str) -> torch.jit.ScriptModule:
    model = torch.jit.script(module.eval())
    prepared = jitquant.prepare_jit(model, {"": jitquant.get_default_qconfig(engine)})
    prepared(torch.randn(shape))
    return jitquant.convert_jit(prepared)


LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(32, 24), (4, 32)),
    "linear_odd": (lambda: nn.Linear(33, 5), (4, 33)),
    "conv1d": (lambda: nn.Conv1d(6, 5, 3), (2, 6, 9)),
    "conv1d_odd": (lambda: nn.Conv1d(5, 6, 3), (2, 5, 9)),
    "conv2d": (lambda: nn.Conv2d(16, 24, 3), (2, 16, 8, 8)),
    "conv2d_odd": (lambda: nn.Conv2d(3, 8, 3), (2, 3, 8, 8)),
    "conv2d_odd_even_kernel": (lambda: nn.Conv2d(7, 9, 2), (2, 7, 8, 8)),
    "conv2d_1x1": (lambda: nn.Conv2d(17, 8, 1), (2, 17, 8, 8)),
    "conv3d": (lambda: nn.Conv3d(4, 8, 3), (2, 4, 5, 5, 5)),
    "conv3d_odd": (lambda: nn.Conv3d(3, 8, 3), (2, 3, 5, 5, 5)),
    "grouped": (lambda: nn.Conv2d(16, 24, 3, groups=4), (2, 16, 8, 8)),
    "grouped_odd": (lambda: nn.Conv2d(15, 30, 3, groups=3), (2, 15, 8, 8)),
    "depthwise": (lambda: nn.Conv2d(16, 16, 3, padding=1, groups=16), (2, 16, 8, 8)),
    "depthwise_many": (lambda: nn.Conv2d(128, 128, 3, padding=1, groups=128), (2, 128, 8, 8)),
    "depthwise_odd": (lambda: nn.Conv2d(9, 9, 5, padding=2, groups=9), (2, 9, 8, 8)),
}


def random_layer(name: str, seed: int) -> nn.Module:
    """Weights that are normal (0), all positive (1), nearly all equal (2), or one large (3)."""
    torch.manual_seed(seed)
    module: nn.Module = LAYERS[name][0]()
    assert isinstance(module.weight, Tensor)
    weight = module.weight.data
    if seed == 0:
        weight.normal_()
    elif seed == 1:
        weight.abs_()
    elif seed == 2:
        weight.copy_(1 - torch.rand_like(weight) / 100)
    else:
        weight.flatten(1)[:, -1] = 3.0
    return module


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", LAYERS)
def test_neighbouring_weights_of_one_sign_are_small(name: str, seed: int, engine: str) -> None:
    converted = convert(random_layer(name, seed), *LAYERS[name][1], engine=engine)
    weights = integer_weights(converted)
    if not weights:  # fbgemm runs some depthwise shapes slowly, so they stay float
        assert engine == "fbgemm" and name == "depthwise_odd"
        return
    (weight,) = weights
    assert largest_pair(weight) <= MOST
    assert weight.int_repr().int().abs().max() >= 63, "the range is not wasted"


def test_measure_of_pairs_notices_large_ones() -> None:
    """The check that the tests here rest on can fail."""

    def pair(integers: list[list[int]]) -> int:
        values = torch.tensor(integers, dtype=torch.float32)[:, :, None, None]
        return largest_pair(torch.quantize_per_tensor(values, 1.0, 0, torch.qint8))

    assert pair([[100, 100]]) == 200
    assert pair([[100, -100]]) == 0
    assert pair([[100, 28], [-100, -29]]) == 129
    assert pair([[1, 100, 100]]) == 101


def test_qnnpack_keeps_the_scales_of_the_observer(qnnpack: str) -> None:
    """It sums in 32 bits."""
    module = random_layer("conv2d", 2)
    assert isinstance(module.weight, Tensor)
    qconfig = jitquant.get_default_qconfig(qnnpack)
    observer: Any = qconfig.weight()
    observer(module.weight.detach())
    scale, _ = observer.calculate_qparams()
    (weight,) = integer_weights(convert(module, *LAYERS["conv2d"][1], engine=qnnpack))
    per_tensor = weight.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric)
    actual = torch.tensor([weight.q_scale()]) if per_tensor else weight.q_per_channel_scales()
    assert torch.equal(actual.float(), scale.float().reshape(-1))
    assert largest_pair(weight) > MOST


# Runs one layer on inputs that are all 255 with large weights, and prints by how many steps int8 and
# debug differ.
WITHOUT_VNNI = """
import json, sys, warnings
sys.path.insert(0, sys.argv[1])
warnings.simplefilter("ignore")
import torch
import jitquant
from jitquant.observers import FixedQParamsObserver

torch.backends.quantized.engine = sys.argv[2]
torch.set_num_threads(1)
nn = torch.nn
layers = {
    "linear": (nn.Linear(64, 16), (4, 64)),
    "linear_odd": (nn.Linear(63, 16), (4, 63)),
    "conv2d": (nn.Conv2d(16, 16, 3, padding=1), (1, 16, 9, 9)),
    "conv2d_odd": (nn.Conv2d(3, 16, 3, padding=1), (1, 3, 9, 9)),
    "grouped": (nn.Conv2d(32, 32, 3, padding=1, groups=8), (1, 32, 9, 9)),
    "depthwise": (nn.Conv2d(128, 128, 3, padding=1, groups=128), (1, 128, 9, 9)),
    "depthwise_5x5": (nn.Conv2d(128, 128, 5, padding=2, groups=128), (1, 128, 9, 9)),
}
found = {}
for name, (module, shape) in layers.items():
    torch.manual_seed(0)
    module.weight.data.copy_(1 - torch.rand_like(module.weight) / 4)
    prepared = jitquant.prepare_jit(
        torch.jit.script(module.eval()), {"": jitquant.get_default_qconfig(sys.argv[2])}
    )
    x = torch.ones(shape)
    prepared(x)
    int8, debug = jitquant.convert_jit(prepared), jitquant.convert_jit(prepared, debug=True)
    coverage = [op.reason for op in jitquant.coverage(int8).ops]
    scale = max(
        node.inputsAt(1).toIValue()
        for node in debug.graph.nodes()
        if node.kind() == "aten::quantize_per_tensor"
    )
    steps = ((int8(x) - debug(x)).abs().max() / scale).item()
    found[name] = [steps, coverage]
print(json.dumps(found))
"""


@pytest.mark.parametrize("engine", SATURATING)
def test_saturating_inputs_without_vnni(engine: str) -> None:
    """A process of its own, since the libraries look at the CPU once."""
    environment = {
        **os.environ,
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
    }
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_VNNI, str(ROOT), engine],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for name, (steps, reasons) in found.items():
        assert reasons in (["quantized::conv2d"], ["quantized::linear"]), name
        assert steps <= 1.01, f"{name}: {steps} steps"

"""benchmarks/profile_layers.py says of each op that runs where it comes from, and what it costs."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import jitquant
from benchmarks import mac_limit, profile_layers
from benchmarks.mac_limit import Limit
from benchmarks.macs import CallRecorder, macs_by_module
from benchmarks.profile_model import UsageError


class Layers(nn.Module):
    """A plain, a depthwise, a grouped and a transposed convolution, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(3, 16, 3)
        self.depthwise = nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16)
        self.grouped = nn.Conv2d(16, 8, 1, groups=2)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.fc = nn.Linear(4, 10)
        self.no_bias = nn.Linear(10, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.grouped(self.depthwise(self.plain(x))))
        y: Tensor = self.no_bias(self.fc(x.mean([2, 3])))
        return y


IMAGE = (2, 3, 18, 18)
MACS = {
    "plain": 2 * 16 * 16 * 16 * 27,
    "depthwise": 2 * 16 * 8 * 8 * 9,
    "grouped": 2 * 8 * 8 * 8 * 8,
    "up": 2 * 8 * 8 * 8 * 4 * 2 * 2,
    "fc": 2 * 4 * 10,
    "no_bias": 2 * 10 * 6,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The model in float, and in int8 but for its transposed convolution and last layer."""
    torch.manual_seed(0)
    model = torch.jit.script(Layers().eval())
    configuration = {"": jitquant.default_qconfig, "up": None, "no_bias": None}
    prepared = jitquant.prepare_jit(model, configuration)
    prepared(torch.randn(IMAGE))
    folder = tmp_path_factory.mktemp("layers")
    paths = {"float": folder / "float.pt", "int8": folder / "int8.pt"}
    torch.jit.save(model, paths["float"])
    torch.jit.save(jitquant.convert_jit(prepared), paths["int8"])
    return paths


def profiled(path: Path, tmp_path: Path) -> list[dict[str, object]]:
    """What the script writes."""
    report = tmp_path / "report.json"
    texts = [str(path), "--input", ",".join(map(str, IMAGE)), "--warmup", "1", "--repeats", "2"]
    profile_layers.run(profile_layers.parse_arguments([*texts, "--json", str(report)]))
    layers: list[dict[str, object]] = json.loads(report.read_text())["results"]
    return layers


def test_multiply_accumulates_of_a_float_model() -> None:
    assert macs_by_module(Layers().eval(), torch.randn(IMAGE)) == {
        name: [macs] for name, macs in MACS.items()
    }


def test_int8_layers(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = profiled(files["int8"], tmp_path)
    weighted = [layer for layer in layers if layer["weight"]]
    assert [layer["macs"] for layer in weighted] == list(MACS.values())
    assert [layer["kind"] for layer in weighted] == [
        "int8 convolution 3x3, 3 channels",
        "int8 convolution 3x3, depthwise",
        "int8 convolution 1x1, grouped",
        "float convolution 2x2",
        "int8 linear",
        "float linear",
    ]
    assert weighted[1]["input"] == [2, 16, 16, 16] and weighted[1]["output"] == [2, 16, 8, 8]
    assert weighted[1]["weight"] == [16, 1, 3, 3]
    # Modules are known of all layers, or of none.
    assert [layer["module"] for layer in weighted] == list(MACS)
    ops = [layer["op"] for layer in layers]
    assert ops[0] == "aten::quantize_per_tensor" and "aten::mean" in ops
    assert "aten::empty" not in ops  # a part of an op
    for layer in layers:
        assert isinstance(layer["ms"], float) and layer["ms"] > 0
        assert (layer["share_of_limit"] is None) == (layer["macs"] == 0)

    lines = capsys.readouterr().out.splitlines()
    (total,) = [line for line in lines if line.startswith("| all ")]
    assert total.split("|")[2].strip() == str(len(layers))
    assert total.split("|")[3].strip() == f"{sum(MACS.values()) / 1e6:.1f}"


def test_a_float_file_has_no_record_of_modules(files: dict[str, Path], tmp_path: Path) -> None:
    weighted = [layer for layer in profiled(files["float"], tmp_path) if layer["weight"]]
    assert [layer["macs"] for layer in weighted] == list(MACS.values())
    assert all(layer["module"] == "" for layer in weighted)


class Alternating(nn.Module):
    """Runs another op in every second call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.relu() if self.calls % 2 == 0 else x.tanh()


def test_a_model_that_runs_other_ops_each_time_is_an_error() -> None:
    with pytest.raises(UsageError, match="run different ops"):
        profile_layers.measure(torch.jit.script(Alternating()), [torch.randn(2)], repeats=4)


def test_recorder_sees_int8_weights(files: dict[str, Path]) -> None:
    model = torch.jit.load(files["int8"])
    with CallRecorder() as recorder, torch.no_grad():
        model(torch.randn(IMAGE))
    (grouped,) = [call for call in recorder.calls if call.weight == (8, 8, 1, 1)]
    assert grouped.op == "quantized::conv2d" and grouped.groups == 2


def test_limit_of_the_cpu() -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    limit = mac_limit.measure(threads=2)
    vnni = "avx512_vnni" in flags or "avx_vnni" in flags
    expected = {"vpdpbusd"} if vnni else {"vpmaddubsw"}
    if "amx_int8" in flags:
        expected.add("tdpbusd")  # unless Linux does not let this process use tiles
    assert limit.instruction in expected
    assert limit.threads == 2 and limit.macs_per_second > 1e8


def test_share_of_the_limit() -> None:
    assert Limit("vpdpbusd", 2e11, 1).share(macs=1e9, ms=10) == pytest.approx(0.5)


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"])
def test_no_limit_without_a_compiler(
    compiler: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", compiler)
    assert mac_limit.measure_or_say_why_not(1) is None
    error = capsys.readouterr().err
    assert error.startswith("no shares of the CPU's limit: ") and compiler in error

"""A saved model gives the same bits in a plain libtorch program as in Python."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.cpp_runtime import build_program, run_cpp


@pytest.fixture(scope="module", autouse=True)
def program() -> Path:
    """The program, compiled on first use."""
    return build_program()


def test_float_convolution(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()).eval()
    torch.jit.save(torch.jit.script(model), tmp_path / "model.pt")
    x = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        expected = model(x)
    assert torch.equal(run_cpp(tmp_path / "model.pt", x), expected)


def test_quantized_ops_are_registered(tmp_path: Path) -> None:
    class Add(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q = torch.quantize_per_tensor(x, 0.1, 128, torch.quint8)
            y: torch.Tensor = torch.ops.quantized.add(q, q, 0.2, 128)
            return y.dequantize()

    torch.jit.save(torch.jit.script(Add()), tmp_path / "model.pt")
    x = torch.randn(64)
    assert torch.equal(run_cpp(tmp_path / "model.pt", x), Add()(x))


def test_a_failure_is_reported(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"run_model failed with 1:\nrun_model: .*no_such\.pt"):
        run_cpp(tmp_path / "no_such.pt", torch.zeros(1))

"""What the samples are made of: a small model, its inputs, and the int8 ops that are expected."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

Part = Callable[[], nn.Module | nn.Parameter]
Inputs = Callable[[], tuple[Tensor, ...]]

CONV = ("quantized::conv2d",)


@dataclass(frozen=True)
class OpSample:
    """A model that runs one row of the op table, and what convert makes of it.

    Attributes:
        row: the row, such as "aten::add.Scalar".
        name: unique among all samples.
        module_factory: the float model; call it after seeding.
        inputs_factory: its inputs, float32; call it after seeding.
        int8_ops: the ops that compute on quantized tensors, in graph order, without dequantize.
        tolerance_steps: most steps of the output's scale between the int8 and the debug model.
        sqnr: least signal to quantization noise against the float model, in dB.
        resizes: dimensions of all inputs that may have another size than calibrated.
        traceable: whether a traced model has the op (Python numbers are constants of a trace).
        scriptable: whether torch.jit.script takes the model.
    """

    row: str
    name: str
    module_factory: Callable[[], nn.Module]
    inputs_factory: Inputs
    int8_ops: tuple[str, ...]
    tolerance_steps: int = 1
    sqnr: float = 25.0
    resizes: tuple[int, ...] = (0,)
    traceable: bool = True
    scriptable: bool = True


# --- models ---


class Unary(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Binary(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.function(self, x, y)


def module(root: nn.Module, parts: dict[str, Part]) -> nn.Module:
    """`root` as torch.fx writes it out: a module with source, which torch.jit.script needs."""
    for name, part in parts.items():
        setattr(root, name, part())
    return fx.GraphModule(root, fx.Tracer().trace(root)).eval()


def unary(function: Callable[[Any, Tensor], Tensor], **parts: Part) -> Callable[[], nn.Module]:
    return lambda: module(Unary(function), parts)


def binary(
    function: Callable[[Any, Tensor, Tensor], Tensor], **parts: Part
) -> Callable[[], nn.Module]:
    return lambda: module(Binary(function), parts)


def after_conv(function: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    """`function` of the output of a 3x3 convolution, (2, 4, 8, 8) to (2, 8, 6, 6)."""
    return unary(lambda m, x: function(m.conv(x)), conv=lambda: nn.Conv2d(4, 8, 3))


def random(*shapes: tuple[int, ...], gain: float = 1.0) -> Inputs:
    """Normal values; each input has `gain` times the range of the one before it."""
    return lambda: tuple(torch.randn(shape) * gain**i for i, shape in enumerate(shapes))


def parameter(*shape: int) -> Part:
    return lambda: nn.Parameter(torch.randn(shape))


def batch_norm(rank: int, channels: int) -> Part:
    def make() -> nn.Module:
        classes = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
        norm = classes[rank](channels)
        for statistics in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert statistics is not None
            nn.init.uniform_(statistics, 0.5, 1.5)
        return norm

    return make


IMAGES = random((2, 4, 8, 8))
ROWS = random((5, 16))
CONV_INPUTS = {1: random((2, 4, 9)), 2: IMAGES, 3: random((2, 4, 6, 6, 6))}
CONVS: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}


def conv_of(conv: type[nn.Conv1d | nn.Conv2d | nn.Conv3d], options: dict[str, Any]) -> Part:
    return lambda: conv(4, 8, **options)


def composed(function: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    return lambda m, x: function(m, m.host(x))


def alone(function: Callable[[Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    return lambda m, x: function(x)

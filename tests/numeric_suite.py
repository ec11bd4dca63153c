"""Models and steps that the tests of numeric_suite share."""

import io
from typing import Any

import torch
from torch import Tensor, nn

import jitquant
from jitquant import QConfig
from jitquant.numeric_suite import Comparison, OpError
from jitquant.observers import MinMaxObserver
from tests.ir import FIXED, scripted

PER_TENSOR = QConfig(
    activation=MinMaxObserver.with_args(dtype=torch.quint8, reduce_range=True),
    weight=MinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric),
)


def quantized_of(
    model: torch.jit.ScriptModule, data: list[Any], qconfig: QConfig = FIXED, **options: Any
) -> torch.jit.ScriptModule:
    return jitquant.convert_jit(prepared_of(model, data, qconfig), **options)


def prepared_of(
    model: torch.jit.ScriptModule, data: list[Any], qconfig: QConfig = FIXED
) -> torch.jit.ScriptModule:
    prepared = jitquant.prepare_jit(model, {"": qconfig})
    jitquant.calibrate(prepared, data, progress=False)
    return prepared


def reloaded(model: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    buffer = io.BytesIO()
    torch.jit.save(model, buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    assert isinstance(loaded, torch.jit.ScriptModule)
    return loaded


def key(each: OpError) -> tuple[str, str, int]:
    return each.module, each.op, each.index


def rows(result: Comparison) -> list[tuple[str, str]]:
    return [(each.module, each.op) for each in result.ops]


class Two(nn.Module):
    """Two layers of one weight: 0.26, which is 0.25 in int8, and 1."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(1, 1, bias=False)
        self.second = nn.Linear(1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def two_layers() -> torch.jit.ScriptModule:
    """`Two`, scripted."""
    model = scripted(Two())
    model.first.weight.data.fill_(0.26)
    model.second.weight.data.fill_(1.0)
    return model


X = [
    torch.tensor([[4.0]])
]  # 4 * 0.26 = 1.04 and 4 * 0.25 = 1.0; steps are 1/16, and 1.04 is 1.0625

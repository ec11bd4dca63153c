"""Models that something else worked on before: frozen, optimized, quantized."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import jitquant
from tests.graph_shapes import check, script
from tests.models import images, settle, sqnr


class Net(nn.Module):
    """Every op that optimize_for_inference rewrites."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv3 = nn.Conv2d(8, 8, 1, groups=8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        y = functional.hardswish(self.conv2(x)) + x
        y = functional.relu6(self.conv3(y) * 0.5)
        y = functional.max_pool2d(y, 2)
        y = torch.relu(self.conv2(functional.hardsigmoid(self.conv2(y))) + y)
        y = self.fc(torch.flatten(functional.adaptive_avg_pool2d(y, 1), 1))
        return y


def kinds(model: torch.jit.ScriptModule) -> list[str]:
    """The int8 ops."""
    prepared = jitquant.prepare_jit(model, {"": jitquant.default_qconfig})
    prepared(images())
    return [op.op for op in jitquant.coverage(jitquant.convert_jit(prepared)).int8]


@pytest.mark.parametrize("change", [torch.jit.freeze, torch.jit.optimize_for_inference])
def test_frozen_and_optimized(change: Any) -> None:
    model = script(settle(Net()))
    changed = change(model)
    reasons = []
    prepared = jitquant.prepare_jit(changed, {"": jitquant.default_qconfig})
    prepared(images())
    converted = jitquant.convert_jit(prepared)
    assert sqnr(model(images()), converted(images())) >= 20
    reasons = [(op.op, op.reason) for op in jitquant.coverage(converted).float]
    check(changed, [(images(),)], float_reasons=reasons, least=20)
    assert kinds(changed).count("aten::conv2d") == kinds(model).count("aten::conv2d") == 5
    assert kinds(changed).count("aten::linear") == 1

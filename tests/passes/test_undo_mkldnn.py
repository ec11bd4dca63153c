"""undo_mkldnn: what torch.jit.optimize_for_inference made becomes plain ops again."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jitquant import JitQuantError, default_qconfig, prepare_jit
from tests.ir import assert_same_output, assert_text, example_model, readable, sample, trace_prepare

X = sample(1, 3, 8, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x))


def script(module: nn.Module) -> Any:
    model: Any = torch.jit.script(example_model(module))
    return model


def test_convolution_is_a_plain_one_again() -> None:
    model = torch.jit.optimize_for_inference(script(Net()))
    assert "prim::mkldnn_convolution" in [node.kind() for node in model.graph.nodes()]
    prepared = trace_prepare(model)
    text = readable(prepared.text("undo_mkldnn"))
    assert_text(
        text,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, tensor(<Tensor>), tensor(-0.0551 0.1501 -0.4095 0.5934 [ CPUFloatType{4} ]), [1, 1], [0, 0], [1, 1], 1)
              %1 : Tensor = aten::relu(%0)
              return (%1)
        """,
    )
    assert_same_output(prepared.model, script(Net()), X)


def test_plain_model_stays_as_it_is() -> None:
    steps = trace_prepare(script(Net()))
    assert steps.text("undo_mkldnn") == steps.text("note_origins")


class ByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.aten.mkldnn_linear(x.to_mkldnn(), self.weight.to_mkldnn(), None)
        return y.to_dense()


def test_op_that_it_does_not_know_is_refused() -> None:
    with pytest.raises(JitQuantError, match="mkldnn"):
        prepare_jit(script(ByHand()), {"": default_qconfig})

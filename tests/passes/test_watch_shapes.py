"""watch_shapes: every tensor that an op reads passes through a shape recorder."""

import torch
from torch import Tensor, nn

from jitquant import _C
from jitquant._checks import as_model
from jitquant._configure import shape_recorder
from tests.ir import assert_text, readable, sample, scripted


class Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x), x, x + 1.0])


def test_each_tensor_is_recorded_once_and_weights_are_not() -> None:
    watched = _C.Preparation(scripted(Reads())._c, ["forward"], None).watch(shape_recorder())
    prefix = "jitquant_observer_"
    model = as_model(watched.module)
    assert_text(
        readable(torch._C._jit_pass_canonicalize(model.graph).str(False)),
        """
        graph(self, %x : Tensor):
          %0 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_0, %x)
          %1 : Tensor = aten::conv2d(%0, self.conv.weight, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
          %2 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_1, %1)
          %3 : Tensor = aten::add(%0, 1.0, 1)
          %4 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_2, %3)
          %5 : Tensor[] = prim::ListConstruct(%2, %0, %4)
          %6 : Tensor = aten::cat(%5, 0)
          return (%6)
        """,
    )
    assert watched.observers == [
        [f"{prefix}0"],
        [f"{prefix}0"],
        [f"{prefix}1", f"{prefix}0", f"{prefix}2"],
    ]
    assert model(sample(1, 2, 3, 3)).shape == (3, 2, 3, 3)

"""note_origins: each op remembers how the user's code spells it."""

import re

import torch
import torchvision  # noqa: F401  # registers its ops
from torch import Tensor, nn

from jitquant import _C
from tests.ir import before_and_after, sample, scripted, traced


class Spellings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x).relu_()
        return torch.addmm(self.fc.bias, y, self.fc.weight.t())


def scopes(text: str) -> list[tuple[str, str]]:
    """(op, scope) of each op that has one."""
    found = []
    for line in text.splitlines():
        match = re.search(r"= (aten::\w+).*, scope: (\S*)", line)
        if match:
            found.append((match[1], match[2]))
    return found


def test_an_op_remembers_its_kind_and_module() -> None:
    change = before_and_after("note_origins", scripted(Spellings()), show=str)
    assert scopes(change.before) == [("aten::linear", "fc")]
    assert scopes(change.after) == [
        ("aten::linear", "fc/linear"),
        ("aten::relu_", "/relu_"),
        ("aten::t", "/t"),
        ("aten::addmm", "/addmm"),
    ]


def test_what_libtorch_and_the_passes_make_of_an_op_remembers_it_too() -> None:
    for model in (scripted(Spellings()), traced(Spellings(), sample(1, 2))):
        after = before_and_after("configure", model, show=str).after
        assert scopes(after) == [
            ("aten::linear", "fc/linear"),
            ("aten::relu", "/relu_"),
            ("aten::linear", "/addmm"),
        ]


def suppress(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    first = torch.ops.torchvision.nms(boxes, scores, 0.5)
    return first, torch.ops.torchvision.nms(boxes, scores, 0.7)


class Boxes(nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        return suppress(boxes, scores)


def test_two_ops_of_another_library_in_one_call_are_of_two_origins() -> None:
    ops = _C.Preparation(scripted(Boxes())._c, ["forward"], None).ops
    assert [(op.kind, op.origin) for op in ops] == [
        ("torchvision::nms", 0),
        ("torchvision::nms", 1),
    ]

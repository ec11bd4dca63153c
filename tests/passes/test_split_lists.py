"""split_lists: each reader of a list that grows gets a list of its own."""

import pytest
import torch
import torchvision
from torch import Tensor, nn

from jitquant import convert_jit, coverage, default_qconfig, prepare_jit
from tests.ir import (
    assert_change,
    assert_same_output,
    assert_unchanged,
    before_and_after,
    sample,
    scripted,
)

PASS = "split_lists"


class Grows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        parts = [x]
        y = torch.cat(parts, 1)
        parts.append(y * 2)
        return torch.cat(parts, 1)


def test_each_reader_gets_what_is_in_the_list_then() -> None:
    model = scripted(Grows())
    change = before_and_after(PASS, model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor[] = prim::ListConstruct(%x)
              %1 : Tensor = aten::cat(%0, 1)
              %2 : Tensor = aten::mul(%1, 2)
              %3 : Tensor[] = aten::append(%0, %2)
              %4 : Tensor = aten::cat(%0, 1)
              return (%4)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor[] = prim::ListConstruct(%x)
              %1 : Tensor = aten::cat(%0, 1)
              %2 : Tensor = aten::mul(%1, 2)
              %3 : Tensor[] = prim::ListConstruct(%x, %2)
              %4 : Tensor = aten::cat(%3, 1)
              return (%4)
        """,
    )
    assert_same_output(change.model, model, sample(2, 3))


class ReadTwice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        parts = [x, x]
        return torch.cat(parts, 0).sum() * torch.cat(parts, 1)


class ReadInBranch(nn.Module):
    """The branch reads what is in the list when it runs, not what comes after it."""

    def forward(self, x: Tensor) -> Tensor:
        parts = [x]
        y = torch.cat(parts, 1) if x.size(0) == 2 else x
        parts.append(y)
        z = torch.cat(parts, 1) if x.size(0) == 2 else x
        parts.append(z)
        return torch.cat(parts, 1) * len(parts) + parts[1][0, 0]


class MadeInLoop(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            parts = [x]
            y = torch.cat(parts, 1)
            parts.append(y)
            x = torch.cat(parts, 1)
        return x


@pytest.mark.parametrize("module", [ReadTwice(), ReadInBranch(), MadeInLoop()])
@pytest.mark.parametrize("rows", [2, 3])
def test_numbers(module: nn.Module, rows: int) -> None:
    model = scripted(module)
    change = before_and_after(PASS, model)
    assert change.after != change.before
    assert "aten::append" not in change.after
    assert_same_output(change.model, model, sample(rows, 2))


class Returned(nn.Module):
    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        parts = [x]
        y = torch.cat(parts, 1)
        parts.append(y)
        return parts, torch.cat(parts, 1)


class GrowsInLoop(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        parts = [x]
        y = torch.cat(parts, 1)
        for _ in range(x.size(0)):
            parts.append(y)
        return torch.cat(parts, 1)


class TwoNames(nn.Module):
    """`other` is the same list, or another one."""

    def forward(self, x: Tensor) -> Tensor:
        parts = [x]
        other = parts if x.size(0) == 2 else [x]
        other.append(x * 2)
        return torch.cat(parts, 1)


class Pops(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        parts = [x]
        y = torch.cat(parts, 1)
        parts.append(y)
        parts.pop(0)
        return torch.cat(parts, 1)


@pytest.mark.parametrize("module", [Returned(), GrowsInLoop(), TwoNames(), Pops()])
def test_lists_of_which_more_is_known_than_their_elements_stay(module: nn.Module) -> None:
    model = scripted(module)
    change = before_and_after(PASS, model)
    assert change.after == change.before
    assert "prim::ListConstruct" in change.before
    assert_same_output(change.model, model, sample(2, 3))


def test_one_reader_of_a_list_that_stays_the_same() -> None:
    class Once(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, x], 1)

    assert_unchanged(
        before_and_after(PASS, scripted(Once())),
        """
            graph(self, %x : Tensor):
              %0 : Tensor[] = prim::ListConstruct(%x, %x)
              %1 : Tensor = aten::cat(%0, 1)
              return (%1)
        """,
    )


def test_scripted_densenet_is_int8_from_end_to_end() -> None:
    """Its blocks append to the list that each of their layers joins."""
    torch.manual_seed(0)
    model = torchvision.models.DenseNet(8, (2, 2), num_init_features=16, num_classes=10)
    prepared = prepare_jit(torch.jit.script(model.eval()), {"": default_qconfig})
    prepared(sample(2, 3, 32, 32))
    int8 = convert_jit(prepared)
    assert coverage(int8).float == ()
    kinds = [node.kind() for node in int8.inlined_graph.nodes()]
    assert kinds.count("aten::quantize_per_tensor") == 1
    assert kinds.count("aten::dequantize") == 1
    first, last = kinds.index("aten::quantize_per_tensor"), kinds.index("aten::dequantize")
    language = ("prim::", "aten::dim", "aten::ne", "aten::size", "aten::len", "aten::gt")
    between = {kind for kind in kinds[first + 1 : last] if not kind.startswith(language)}
    assert between == {
        "quantized::conv2d",
        "quantized::conv2d_relu",
        "quantized::batch_norm_relu",
        "quantized::cat",
        "quantized::linear",
        "aten::max_pool2d",
        "aten::avg_pool2d",
        "aten::adaptive_avg_pool2d",
        "aten::flatten",
    }

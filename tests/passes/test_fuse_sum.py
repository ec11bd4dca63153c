"""fuse_sum: a convolution adds what the sum behind it adds, in the memory of that operand."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jitquant
from jitquant._engine import engine_set
from jitquant.errors import JitQuantError
from tests.ir import (
    ACTIVATION_SCALE,
    Change,
    assert_change,
    before_and_after,
    reasons,
    sample,
    scripted,
)


@pytest.fixture(autouse=True)
def onednn() -> Iterator[None]:
    """The only engine with such convolutions."""
    with engine_set("onednn"):
        yield


class Residual(nn.Module):
    """Two convolutions, and a sum of their results. Negative tests change `join`."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 4, 1)
        self.b = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.join(self.b(y), y)

    def join(self, z: Tensor, y: Tensor) -> Tensor:
        return z + y


def check(module: nn.Module, *inputs: Tensor) -> Change:
    """The change. The int8 model gives the same twice, and what the model without the pass gives.

    Of that, four steps: a rounding less in the sum, and what later convolutions make of it.
    """
    model = scripted(module)
    change = before_and_after("fuse_sum", model, *inputs)
    torch.backends.quantized.engine = "x86"
    plain = before_and_after("fuse_sum", model, *inputs)
    assert plain.before == plain.after
    with torch.no_grad():
        expected = plain.model(*inputs)
        torch.backends.quantized.engine = "onednn"
        for _ in range(2):
            results = change.model(*inputs)
            torch.testing.assert_close(results, expected, rtol=0, atol=4 * ACTIVATION_SCALE)
    return change


def is_fused(module: nn.Module, *inputs: Tensor) -> bool:
    """Whether any sum moved into a convolution; there was one to move."""
    change = check(module, *inputs or (sample(2, 2, 4, 4),))
    assert "= quantized::conv2d(" in change.before and "= quantized::add" in change.before
    assert ("quantized::conv2d_add" in change.after) == (change.after != change.before)
    return change.after != change.before


class Separate(Residual):
    """Its accumulator is not what the convolution reads."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.join(self.b(torch.relu(y)), y)


def test_sum_moves_into_the_convolution() -> None:
    change = check(Separate(), sample(1, 2, 3, 3))
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::quantize_per_tensor(self.a.weight, 0.03125, 0, 12)
              %2 : __torch__.torch.classes.quantized.Conv2dPackedParamsBase = quantized::conv2d_prepack(%1, self.a.bias, [1, 1], [0, 0], [1, 1], 1)
              %3 : Tensor = quantized::conv2d(%0, %2, 0.0625, 128)
              %4 : Tensor = aten::relu(%3)
              %5 : Tensor = aten::quantize_per_tensor(self.b.weight, 0.03125, 0, 12)
              %6 : __torch__.torch.classes.quantized.Conv2dPackedParamsBase = quantized::conv2d_prepack(%5, self.b.bias, [1, 1], [1, 1], [1, 1], 1)
              %7 : Tensor = quantized::conv2d(%4, %6, 0.0625, 128)
              %8 : Tensor = quantized::add(%7, %3, 0.0625, 128)
              %9 : Tensor = aten::dequantize(%8)
              return (%9)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::quantize_per_tensor(self.a.weight, 0.03125, 0, 12)
              %2 : __torch__.torch.classes.quantized.Conv2dPackedParamsBase = quantized::conv2d_prepack(%1, self.a.bias, [1, 1], [0, 0], [1, 1], 1)
              %3 : Tensor = quantized::conv2d(%0, %2, 0.0625, 128)
              %4 : Tensor = aten::relu(%3)
              %5 : Tensor = aten::quantize_per_tensor(self.b.weight, 0.03125, 0, 12)
              %6 : __torch__.torch.classes.quantized.Conv2dPackedParamsBase = quantized::conv2d_prepack(%5, self.b.bias, [1, 1], [1, 1], [1, 1], 1)
              %7 : Tensor = quantized::conv2d_add(%4, %3, %6, 0.0625, 128)
              %8 : Tensor = aten::dequantize(%7)
              return (%8)
        """,
    )


class SumBeforeRelu(Separate):
    def join(self, z: Tensor, y: Tensor) -> Tensor:
        return torch.relu(y + z)


def test_either_operand_and_a_relu() -> None:
    change = check(SumBeforeRelu(), sample(1, 2, 3, 3))
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::quantize_per_tensor(self.a.weight, 0.03125, 0, 12)
              %2 : __torch__.torch.classes.quantized.Conv2dPackedParamsBase = quantized::conv2d_prepack(%1, self.a.bias, [1, 1], [0, 0], [1, 1], 1)
              %3 : Tensor = quantized::conv2d(%0, %2, 0.0625, 128)
              %4 : Tensor = aten::relu(%3)
              %5 : Tensor = aten::quantize_per_tensor(self.b.weight, 0.03125, 0, 12)
              %6 : __torch__.torch.classes.quantized.Conv2dPackedParamsBase = quantized::conv2d_prepack(%5, self.b.bias, [1, 1], [1, 1], [1, 1], 1)
              %7 : Tensor = quantized::conv2d(%4, %6, 0.0625, 128)
              %8 : Tensor = quantized::add_relu(%3, %7, 0.0625, 128)
              %9 : Tensor = aten::dequantize(%8)
              return (%9)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::quantize_per_tensor(self.a.weight, 0.03125, 0, 12)
              %2 : __torch__.torch.classes.quantized.Conv2dPackedParamsBase = quantized::conv2d_prepack(%1, self.a.bias, [1, 1], [0, 0], [1, 1], 1)
              %3 : Tensor = quantized::conv2d(%0, %2, 0.0625, 128)
              %4 : Tensor = aten::relu(%3)
              %5 : Tensor = aten::quantize_per_tensor(self.b.weight, 0.03125, 0, 12)
              %6 : __torch__.torch.classes.quantized.Conv2dPackedParamsBase = quantized::conv2d_prepack(%5, self.b.bias, [1, 1], [1, 1], [1, 1], 1)
              %7 : Tensor = quantized::conv2d_add_relu(%4, %3, %6, 0.0625, 128)
              %8 : Tensor = aten::dequantize(%7)
              return (%8)
        """,
    )


def test_unfused_without_the_engine() -> None:
    torch.backends.quantized.engine = "x86"
    change = before_and_after("fuse_sum", scripted(Separate()), sample(1, 2, 3, 3))
    assert "= quantized::add(" in change.before
    assert change.before == change.after


class ReadByTheConvolution(Residual):
    """The kernel would write over what it reads."""


class ReadLater(Separate):
    def join(self, z: Tensor, y: Tensor) -> Tensor:
        result: Tensor = self.b(z + y) + torch.relu(y)
        return result


class ReadByALaterConvolution(Separate):
    def join(self, z: Tensor, y: Tensor) -> Tensor:
        total = z + y
        return torch.cat([total, self.b(y)], 1)


class Returned(Separate):
    """What the model returns is dequantized, so it is no int8 memory."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        y = self.a(x)
        return self.b(torch.relu(y)) + y, y


class ViewedBefore(Separate):
    """The view is of the accumulator's memory."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        part = y[:, :2]
        return torch.cat([self.b(torch.relu(y)) + y, part], 1)


class UsedTwice(Separate):
    """The convolution's own result is needed as well."""

    def join(self, z: Tensor, y: Tensor) -> Tensor:
        return torch.cat([z + y, z], 1)


class InALoop(Separate):
    def join(self, z: Tensor, y: Tensor) -> Tensor:
        for _ in range(2):
            w = self.b(y)
            z = self.b(torch.relu(w)) + w
        return z


class InABranch(Separate):
    """The convolution would move into the branch, and the accumulator be of another block."""

    def join(self, z: Tensor, y: Tensor) -> Tensor:
        if z.size(0) > 1:
            z = z + y
        return z


class OtherPool(Separate):
    """Equal sizes in calibration only, of 4 x 4 images."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(4)

    def join(self, z: Tensor, y: Tensor) -> Tensor:
        result: Tensor = z + self.pool(y)
        return result


class OtherStride(Residual):
    """One size is (n + 1) // 2 and the other n // 2, which is the same for 4 x 4 images."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Conv2d(4, 4, 1, stride=2)
        self.c = nn.Conv2d(4, 4, 2, stride=2)

    def join(self, z: Tensor, y: Tensor) -> Tensor:
        result: Tensor = z + self.c(torch.relu(y))
        return result


class Twins(Separate):
    """torch computes equal convolutions of one input once."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        total = self.b(torch.relu(y)) + y
        return torch.cat([total, self.a(x)], 1)


@pytest.mark.parametrize(
    "module",
    [
        ReadByTheConvolution,
        ReadLater,
        ReadByALaterConvolution,
        ViewedBefore,
        UsedTwice,
        InALoop,
        InABranch,
        OtherPool,
        OtherStride,
        Twins,
    ],
)
def test_sums_that_stay(module: Callable[[], nn.Module]) -> None:
    assert not is_fused(module())


def test_returned_accumulator() -> None:
    assert is_fused(Returned())


class TwoInputs(Residual):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        result: Tensor = self.a(x) + self.b(self.a(y))
        return result


def test_batches_of_two_inputs_may_differ() -> None:
    assert not is_fused(TwoInputs(), sample(2, 2, 3, 3), sample(2, 2, 3, 3))


def test_sizes_that_differ_later() -> None:
    """The kernel would take such sizes, and write past the end of the smaller one."""
    change = check(OtherStride(), sample(2, 2, 4, 4))
    assert change.model(sample(2, 2, 3, 3)).shape == (2, 4, 2, 2)


class Overwritten(Separate):
    """What the second convolution reads is gone when its sum comes."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        w = self.c(y)
        result: Tensor = w + torch.relu(self.b(torch.relu(y)) + y)
        return result


def test_convolution_of_what_was_overwritten_stays() -> None:
    change = check(Overwritten(), sample(2, 2, 4, 4))
    assert change.after.count("quantized::conv2d_add_relu(") == 1
    assert change.after.count("quantized::add(") == 1


class Chain(Separate):
    """Each sum is where the one before was."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.c = nn.Conv2d(4, 8, 1, stride=2)
        self.d = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.e = nn.Conv2d(8, 8, 1, groups=4)
        self.gate = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(self.a(x))
        y = torch.relu(self.b(torch.relu(y)) + y)
        y = torch.relu(self.b(torch.relu(y)) + y)
        z = self.c(y) + self.d(y)
        factor = torch.sigmoid(self.gate(F.adaptive_avg_pool2d(z, 1)))
        result: Tensor = self.e(F.hardswish(z) * factor) + z
        return result


def test_blocks_of_known_networks() -> None:
    """Pooling, strides, groups, and squeeze-and-excitation."""
    change = check(Chain(), sample(2, 2, 9, 8))
    assert change.after.count("= quantized::conv2d_add(") == 2
    assert change.after.count("= quantized::conv2d_add_relu(") == 2
    assert "= quantized::add" not in change.after
    for shape in ((1, 2, 16, 16), (3, 2, 7, 10)):
        x = sample(*shape)
        assert torch.equal(change.model(x), change.model(x))


def test_file_runs_while_the_engine_is_set() -> None:
    """The words are in the README, and `check` says it before."""
    change = before_and_after("fuse_sum", scripted(Separate()), sample(1, 2, 3, 3))
    file = io.BytesIO()
    torch.jit.save(change.model, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    x = sample(2, 2, 5, 5)
    with torch.inference_mode():
        assert torch.equal(loaded(x), change.model(x))
        assert torch.equal(loaded(x), change.model(x))
    assert jitquant.check(loaded).problems == ()
    torch.backends.quantized.engine = "x86"
    with pytest.raises(JitQuantError, match="It needs the engine onednn, and x86 is set"):
        jitquant.check(loaded)
    message = r"Didn't find engine for operation quantized::conv2d_add"
    with pytest.raises(RuntimeError, match=message):
        loaded(x)
    readme = Path(__file__).parent.parent.parent / "README.md"
    assert message in readme.read_text()


def test_coverage_names_the_fused_op_for_both() -> None:
    change = before_and_after("fuse_sum", scripted(Separate()), sample(1, 2, 3, 3))
    assert reasons(change.model) == [
        ("aten::conv2d", "quantized::conv2d"),
        ("aten::relu", "aten::relu"),
        ("aten::conv2d", "quantized::conv2d_add"),
        ("aten::add", "quantized::conv2d_add"),
    ]

"""simplify: an op that for its arguments equals another op becomes that op."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from jitquant import JitQuantError
from tests.ir import (
    assert_change,
    assert_same_output,
    assert_unchanged,
    before_and_after,
    sample,
    scripted,
    trace_prepare,
    traced,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:Converting a tensor to a Python boolean:torch.jit.TracerWarning"
)

X = sample(2, 4, 6, 6)


class Pool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.max_pool2d(x, 2, return_indices=True)[0]


def test_pool_whose_indices_nobody_reads() -> None:
    model = traced(Pool(), X)
    change = before_and_after("simplify", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor, %1 : Tensor = aten::max_pool2d_with_indices(%x, [2, 2], annotate(List[int], []), [0, 0], [1, 1], False)
              return (%0)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::max_pool2d(%x, [2, 2], annotate(List[int], []), [0, 0], [1, 1], False)
              return (%0)
        """,
    )
    assert_same_output(change.model, model, X)


class PoolWithIndices(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return functional.max_pool2d(x, 2, return_indices=True)


def test_pool_whose_indices_are_read() -> None:
    text = trace_prepare(traced(PoolWithIndices(), X)).text("simplify")
    assert "aten::max_pool2d_with_indices" in text and "aten::max_pool2d(" not in text


class Activations(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = functional.celu(functional.selu(x), 0.5)
        x = functional.threshold(x, 0.0, 0.0) - 1
        return x.clamp(min=0) + x.clamp_min(0)


def test_activations() -> None:
    model = scripted(Activations())
    change = before_and_after("simplify", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::selu(%x)
              %1 : Tensor = aten::celu(%0, 0.5)
              %2 : Tensor = aten::threshold(%1, 0.0, 0.0)
              %3 : Tensor = aten::add(%2, -1, 1)
              %4 : Tensor = aten::clamp(%3, 0, None)
              %5 : Tensor = aten::clamp_min(%3, 0)
              %6 : Tensor = aten::add(%4, %5, 1)
              return (%6)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::elu(%x, 1.6732632423543772, 1.0507009873554805, 1.0)
              %1 : Tensor = aten::elu(%0, 0.5, 1.0, 2.0)
              %2 : Tensor = aten::relu(%1)
              %3 : Tensor = aten::add(%2, -1, 1)
              %4 : Tensor = aten::relu(%3)
              %5 : Tensor = aten::relu(%3)
              %6 : Tensor = aten::add(%4, %5, 1)
              return (%6)
        """,
    )
    assert_same_output(change.model, model, X, atol=0)


class FloatZero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min=0.0)


def test_clamp_at_a_float_zero_makes_integers_float() -> None:
    text = """
        graph(self, %x : Tensor):
          %0 : Tensor = aten::clamp(%x, 0.0, None)
          return (%0)
    """
    model = scripted(FloatZero())
    change = before_and_after("simplify", model)
    assert_unchanged(change, text)
    integers = torch.arange(-3, 3)
    assert_same_output(change.model, model, integers)
    assert change.model(integers).dtype == torch.float32


@pytest.mark.parametrize(
    "clamp",
    [
        lambda x: x.clamp(min=1),
        lambda x: x.clamp(0, 1),
        lambda x: x.clamp(max=0),
        lambda x: functional.threshold(x, 0.0, 1.0),
        lambda x: functional.threshold(x, 1.0, 0.0),
    ],
)
def test_clamps_that_are_not_relu(clamp: Callable[[Tensor], Tensor]) -> None:
    class Clamp(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return clamp(x)

    assert "aten::relu" not in trace_prepare(traced(Clamp(), X)).text("simplify")


class Norm(nn.Module):
    def __init__(self, statistics: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=statistics)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        return y


@pytest.mark.parametrize("mode", [scripted, lambda model: traced(model, X)])
def test_instance_norm_with_statistics_is_a_batch_norm(
    mode: Callable[[nn.Module], torch.jit.ScriptModule],
) -> None:
    model = mode(Norm(statistics=True))
    change = before_and_after("simplify", model)
    assert "aten::instance_norm" in change.before
    assert "aten::batch_norm" in change.after and "aten::instance_norm" not in change.after
    assert_same_output(change.model, model, X)


def test_that_batch_norm_goes_into_the_convolution() -> None:
    """In a trace; a script asks for the rank between the two."""
    text = trace_prepare(traced(Norm(statistics=True), X)).text("fold_conv_bn")
    assert "aten::conv2d" in text and "aten::batch_norm" not in text


def test_instance_norm_without_statistics_stays() -> None:
    change = before_and_after("simplify", scripted(Norm(statistics=False)))
    assert change.before == change.after and "aten::instance_norm" in change.after


class TrainingNorm(nn.Module):
    """In training mode whatever the module's mode is."""

    def forward(self, x: Tensor) -> Tensor:
        mean, var = torch.zeros(4), torch.ones(4)
        return functional.instance_norm(x, mean, var, use_input_stats=True)


def test_instance_norm_in_training_mode_is_an_error() -> None:
    with pytest.raises(JitQuantError, match=r"aten::instance_norm .* runs in training mode"):
        trace_prepare(scripted(TrainingNorm()))

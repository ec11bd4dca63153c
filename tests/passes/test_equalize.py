"""equalize: factors of channels move between two layers, so that their weights' ranges agree."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from jitquant import _C, _checks
from tests.ir import assert_same_output, assert_text, readable, sample, scripted, traced


class Equalized(NamedTuple):
    """The graph before and after, the float model, and what the pass counted."""

    before: str
    after: str
    model: torch.jit.ScriptModule
    pairs: int
    bounded: int


def equalized(model: torch.jit.ScriptModule, unbound: bool = False) -> Equalized:
    texts: dict[str, str] = {}

    def keep(name: str, method: str, text: str) -> None:
        if method == "forward":
            texts[name] = readable(text)

    methods = _checks.method_names(model)
    result, pairs, bounded = _C.equalize(model._c, methods, unbound, keep)
    model = _checks.as_model(result)
    return Equalized(texts["fold_conv_bn"], texts["equalize"], model, pairs, bounded)


def weights(model: torch.jit.ScriptModule) -> list[Tensor]:
    return [value for name, value in model.state_dict().items() if name.endswith("weight")]


def uneven(module: nn.Module) -> torch.jit.ScriptModule:
    """Scripted, with output channels of weights and biases that differ by up to 100 times."""
    model = scripted(module)
    with torch.no_grad():
        for parameter in model.parameters():
            steps = torch.logspace(-1, 1, max(2, parameter.shape[0]))[: parameter.shape[0]]
            parameter.mul_(steps.reshape(-1, *[1] * (parameter.dim() - 1)))
    return model


def assert_left_alone(model: torch.jit.ScriptModule, bounded: int = 0) -> None:
    result = equalized(model)
    assert (result.pairs, result.bounded) == (0, bounded)
    assert result.after == result.before
    for before, after in zip(weights(model), weights(result.model), strict=True):
        assert torch.equal(before, after)


def test_two_convolutions_share_the_range_of_each_channel() -> None:
    """Both ranges become sqrt(r1 * r2), and the output stays: the formula of the paper."""
    model = uneven(nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 1)))
    result = equalized(model)
    graph = """
        graph(self, %x : Tensor):
          %0 : Tensor = aten::conv2d(%x, self.0.weight, self.0.bias, [1, 1], [0, 0], [1, 1], 1)
          %1 : Tensor = aten::relu(%0)
          %2 : Tensor = aten::conv2d(%1, self.2.weight, self.2.bias, [1, 1], [0, 0], [1, 1], 1)
          return (%2)
    """.replace("%x", "%input")
    assert_text(result.before, graph)
    assert_text(result.after, graph)
    assert (result.pairs, result.bounded) == (1, 0)
    first, second = weights(model)
    given, taken = first.abs().amax((1, 2, 3)), second.abs().amax((0, 2, 3))
    factor = torch.sqrt(given / taken)
    assert factor.max() > 2 * factor.min()  # otherwise there would be nothing to equalize
    state, old = result.model.state_dict(), model.state_dict()
    torch.testing.assert_close(state["0.weight"], first / factor.reshape(-1, 1, 1, 1))
    torch.testing.assert_close(state["0.bias"], old["0.bias"] / factor)
    torch.testing.assert_close(state["2.weight"], second * factor.reshape(1, -1, 1, 1))
    assert torch.equal(state["2.bias"], old["2.bias"])
    assert_same_output(result.model, model, sample(1, 2, 5, 5), atol=1e-4)


def test_depthwise_in_the_middle_comes_to_rest() -> None:
    module = nn.Sequential(
        nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 2, 1)
    )
    model = uneven(module)
    result = equalized(model)
    assert result.pairs == 2
    first, depthwise, last = weights(result.model)
    of_depthwise = depthwise.abs().amax((1, 2, 3))
    for other in (first.abs().amax((1, 2, 3)), last.abs().amax((0, 2, 3))):
        torch.testing.assert_close(other, of_depthwise, rtol=0.01, atol=0)
    assert_same_output(result.model, model, sample(1, 2, 5, 5), atol=1e-4)


class Between(nn.Module):
    """Two layers, and something between them."""

    def __init__(self, first: nn.Module, between: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.between, self.second = first, between, second

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.between(self.first(x)))
        return y


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean([3, 2])


class PoolAndView(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(functional.adaptive_avg_pool2d(x, 1).view(x.shape[0], -1))


def conv(inputs: int = 4, outputs: int = 4, groups: int = 1) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups)


MOVES: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], Callable[[], nn.Module], tuple[int, ...]]] = {
    "nothing": (conv, nn.Identity, conv, (1, 4, 6, 6)),
    "batch_norm": (lambda: nn.Sequential(conv(), nn.BatchNorm2d(4)), nn.ReLU, conv, (1, 4, 6, 6)),
    "leaky_relu": (conv, lambda: nn.LeakyReLU(0.2), conv, (1, 4, 6, 6)),
    "prelu": (conv, lambda: nn.PReLU(4), conv, (1, 4, 6, 6)),
    "clamp": (conv, lambda: nn.Hardtanh(0.0, float("inf")), conv, (1, 4, 6, 6)),
    "max_pool": (conv, lambda: nn.MaxPool2d(2, padding=1), conv, (1, 4, 6, 6)),
    "avg_pool": (conv, lambda: nn.AvgPool2d(2, padding=1), conv, (1, 4, 6, 6)),
    "pad": (conv, lambda: nn.ConstantPad2d(2, 0.0), conv, (1, 4, 6, 6)),
    "mean": (conv, Mean, lambda: nn.Linear(4, 3), (2, 4, 6, 6)),
    "pool_and_view": (conv, PoolAndView, lambda: nn.Linear(4, 3), (4, 4, 6, 6)),
    "pool_and_flatten": (
        conv,
        lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        lambda: nn.Linear(4, 3),
        (2, 4, 6, 6),
    ),
    "groups": (lambda: conv(4, 6, 2), nn.ReLU, lambda: conv(6, 9, 3), (1, 4, 6, 6)),
    "linear": (lambda: nn.Linear(4, 5), nn.ReLU, lambda: nn.Linear(5, 3), (2, 4)),
    "conv1d": (lambda: nn.Conv1d(4, 5, 3), lambda: nn.MaxPool1d(2), lambda: nn.Conv1d(5, 3, 1), (1, 4, 9)),
    "conv3d": (lambda: nn.Conv3d(2, 5, 1), nn.ReLU, lambda: nn.Conv3d(5, 3, 2), (1, 2, 3, 3, 3)),
    "conv_transpose": (
        lambda: nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2),
        nn.ReLU,
        lambda: nn.ConvTranspose2d(6, 9, 2, groups=3),
        (1, 4, 3, 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MOVES)
def test_factors_move_through(case: str) -> None:
    first, between, second, shape = MOVES[case]
    model = uneven(Between(first(), between(), second()))
    result = equalized(model)
    assert (result.pairs, result.bounded) == (1, 0)
    assert result.after == result.before
    before, after = weights(model)[-1], weights(result.model)[-1]
    assert not torch.allclose(before, after, rtol=0.1)
    with torch.no_grad():
        scale = float(model(sample(*shape)).abs().max())
    # float32 rounds each of some hundred terms by 6e-8.
    assert_same_output(result.model, model, sample(*shape), atol=1e-5 * scale)


class AlsoReturned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), conv()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = functional.relu(self.first(x))
        return self.second(y), y


class Residual(AlsoReturned):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        y = self.first(x)
        z: Tensor = self.second(y) + y
        return z


class ReadsWeight(AlsoReturned):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.second(self.first(x)), self.first.weight


class Twice(AlsoReturned):
    """The second layer reads the first one's values once, and others the other time."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.second(self.first(x)), self.second(x)


class Itself(AlsoReturned):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        y: Tensor = self.first(functional.relu(self.first(x)))
        return y


class Reversed(AlsoReturned):
    """Subtraction reads the values as its second input."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        y: Tensor = self.second(x - self.first(x))
        return y


LEFT_ALONE: dict[str, Callable[[], nn.Module]] = {
    "also_returned": AlsoReturned,
    "residual": Residual,
    "weight_is_read": ReadsWeight,
    "other_input_too": Twice,
    "into_itself": Itself,
    "second_input": Reversed,
    "sigmoid": lambda: Between(conv(), nn.Sigmoid(), conv()),
    "hardswish": lambda: Between(conv(), nn.Hardswish(), conv()),
    "pad_with_ones": lambda: Between(conv(), nn.ConstantPad2d(1, 1.0), conv()),
    "pad_of_channels": lambda: Between(
        conv(), nn.ConstantPad3d((0, 0, 0, 0, 1, 1), 0.0), conv(6, 2)
    ),
    "flatten_of_more_pixels": lambda: Between(
        conv(), nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), nn.Linear(16, 3)
    ),
    "unbatched_flatten": lambda: Between(conv(), nn.Flatten(), nn.Linear(36, 3)),
    "last_dimension": lambda: Between(conv(), nn.ReLU(), nn.Linear(6, 3)),
    "last_dimension_of_as_many": lambda: Between(conv(), nn.ReLU(), nn.Linear(4, 3)),
    "pool_of_features": lambda: Between(
        nn.Linear(6, 4), nn.MaxPool1d(3, stride=1, padding=1), nn.Linear(4, 3)
    ),
    "pool_over_channels": lambda: Between(conv(), nn.AvgPool3d(3, stride=1, padding=1), conv()),
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_left_alone(case: str) -> None:
    assert_left_alone(scripted(LEFT_ALONE[case]()))


class MeanOf(nn.Module):
    def __init__(self, dims: list[int]) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.dims)


@pytest.mark.parametrize("dims", [[1, 2], [2], [0, 1]], ids=str)
def test_mean_of_other_dimensions_is_left_alone(dims: list[int]) -> None:
    assert_left_alone(scripted(Between(conv(), MeanOf(dims), nn.Linear(4, 3))))


@pytest.mark.parametrize("activation", [nn.ReLU6(), nn.Hardtanh(-2.0, 2.0)], ids=str)
def test_other_bounds_are_left_alone_and_counted(activation: nn.Module) -> None:
    assert_left_alone(scripted(Between(conv(), activation, conv())), bounded=1)


def test_on_request_relu6_becomes_relu() -> None:
    model = uneven(nn.Sequential(conv(), nn.ReLU6(), conv()))
    result = equalized(model, unbound=True)
    graph = """
        graph(self, %input : Tensor):
          %0 : Tensor = aten::conv2d(%input, self.0.weight, self.0.bias, [1, 1], [1, 1], [1, 1], 1)
          %1 : Tensor = aten::RELU(%0)
          %2 : Tensor = aten::conv2d(%1, self.2.weight, self.2.bias, [1, 1], [1, 1], [1, 1], 1)
          return (%2)
    """
    assert_text(result.before, graph.replace("RELU(%0)", "hardtanh(%0, 0.0, 6.0)"))
    assert_text(result.after, graph.replace("RELU", "relu"))
    assert (result.pairs, result.bounded) == (1, 0)
    small = sample(1, 4, 6, 6) * 0.01  # below 6 everywhere
    assert_same_output(result.model, model, small, atol=1e-4)


def test_bounds_below_zero_stay_on_request_too() -> None:
    result = equalized(scripted(Between(conv(), nn.Hardtanh(-2.0, 2.0), conv())), unbound=True)
    assert (result.pairs, result.bounded) == (0, 1)


class Siamese(nn.Module):
    """Both layers are called twice, one behind the other each time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(), conv()

    def embed(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(functional.relu(self.first(x)))
        return y

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.embed(a) - self.embed(b)

    @torch.jit.export
    def encode(self, x: Tensor) -> Tensor:
        return self.embed(x)


def test_layers_that_are_called_several_times() -> None:
    model = uneven(Siamese())
    result = equalized(model)
    assert result.pairs == 1
    a, b = sample(1, 4, 6, 6), sample(1, 4, 6, 6) * 0.5
    assert_same_output(result.model, model, a, b, atol=1e-3)
    assert_same_output(result.model.encode, model.encode, a, atol=1e-3)


def test_channels_of_zeros_keep_their_factor() -> None:
    """Of the four channels one is given by zeros, and one is taken by zeros."""
    model = uneven(nn.Sequential(conv(), nn.ReLU(), conv()))
    state = model.state_dict()
    state["0.weight"][1] = 0.0
    state["2.weight"][:, 2] = 0.0
    result = equalized(model)
    assert result.pairs == 1
    for index in (1, 2):
        assert torch.equal(weights(result.model)[0][index], state["0.weight"][index])
        assert torch.equal(weights(result.model)[1][:, index], state["2.weight"][:, index])
    assert_same_output(result.model, model, sample(1, 4, 6, 6), atol=1e-4)


def test_weights_that_are_not_finite_are_left_alone() -> None:
    model = scripted(nn.Sequential(conv(), conv()))
    model.state_dict()["0.weight"][0, 0, 0, 0] = float("inf")
    assert_left_alone(model)


def test_frozen_model_has_its_weights_in_constants() -> None:
    model = torch.jit.freeze(uneven(nn.Sequential(conv(), nn.ReLU(), conv())))
    result = equalized(model)
    assert result.pairs == 1
    assert_same_output(result.model, model, sample(1, 4, 6, 6), atol=1e-4)


def test_traced() -> None:
    x = sample(1, 4, 6, 6)
    model = traced(nn.Sequential(conv(), nn.ReLU(), conv()), x)
    result = equalized(model)
    assert result.pairs == 1
    assert_same_output(result.model, model, x)


def test_branches_and_loops() -> None:
    """A layer in a loop's body gives to the next one there; what goes round is left alone."""

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = conv(), conv()

        def forward(self, x: Tensor, n: int) -> Tensor:
            for _ in range(n):
                x = self.second(functional.relu(self.first(x)))
            return x

    model = uneven(Loop())
    result = equalized(model)
    assert result.pairs == 1
    x = sample(1, 4, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(result.model(x, 2), model(x, 2), rtol=1e-4, atol=1e-3)

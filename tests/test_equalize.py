"""equalize_jit: the public face, and what it gains. tests/passes/test_equalize.py has the pass."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jitquant
from jitquant.errors import JitQuantTypeError, JitQuantValueError
from tests.ir import sample, scripted


def uneven() -> torch.jit.ScriptModule:
    """Convolutions whose channels have ranges from 0.1 to 10, which the next layer undoes."""
    module = nn.Sequential(
        *(nn.Conv2d(3, 16, 3), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, groups=16), nn.ReLU()),
        nn.Conv2d(16, 8, 1),
    )
    model = scripted(module)
    steps = torch.logspace(-1, 1, 16).reshape(-1, 1, 1, 1)
    state = model.state_dict()
    state["0.weight"].mul_(steps)
    state["0.bias"].mul_(steps.flatten())
    state["2.weight"].div_(steps * steps)
    state["2.bias"].div_(steps.flatten())
    state["4.weight"].mul_(steps.reshape(1, -1, 1, 1))
    return model


def sqnr(expected: Tensor, actual: Tensor) -> float:
    return 20 * float(torch.log10(expected.norm() / (actual - expected).norm()))


def test_int8_model_with_one_scale_for_each_weight_gains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At least 6 dB: a bit more for each value."""
    monkeypatch.setattr(torch.backends.quantized, "engine", "qnnpack")
    model, x = uneven(), sample(4, 3, 12, 12)
    qconfig = {"": jitquant.get_default_qconfig("qnnpack")}
    with torch.no_grad():
        expected = model(x)
        plain, better = (
            jitquant.quantize_jit(each, qconfig, lambda prepared: prepared(x))(x)
            for each in (model, jitquant.equalize_jit(model))
        )
    assert sqnr(expected, better) > sqnr(expected, plain) + 6


def test_model_does_not_change_unless_inplace() -> None:
    model, x = uneven(), sample(1, 3, 12, 12)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    result = jitquant.equalize_jit(model)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    assert not torch.equal(result.state_dict()["0.weight"], state["0.weight"])
    expected = model(x)
    assert jitquant.equalize_jit(model, inplace=True) is model
    assert torch.equal(model(x), result(x))
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-3)


def test_batch_norm_is_folded_first() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)
    )
    model = scripted(module)
    result = jitquant.equalize_jit(model)
    assert "aten::batch_norm" not in str(result.graph)
    x = sample(2, 3, 4, 4)
    torch.testing.assert_close(result(x), model(x), rtol=1e-4, atol=1e-5)


def test_twice_changes_nothing_more() -> None:
    """0.2 %: the search ends where factors change by less than 0.1 %."""
    once = jitquant.equalize_jit(uneven())
    twice = jitquant.equalize_jit(once)
    for a, b in zip(once.parameters(), twice.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=0)


def test_a_nearly_dead_channel_does_not_take_the_range_of_the_others() -> None:
    """Its bias, which would grow 1400 times, stays near the largest one; the median factor is 1.1."""
    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 3))
    model, x = scripted(module), sample(4, 3, 8, 8)
    with torch.no_grad():
        model.state_dict()["0.weight"][4] *= 1e-8
        model.state_dict()["0.bias"][4] = 0.3
    largest = float(model.state_dict()["0.bias"].abs().max())
    result = jitquant.equalize_jit(model)
    assert 0 < float(result.state_dict()["0.bias"][4]) <= 2 * largest
    qconfig = {"": jitquant.get_default_qconfig()}
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(result(x), expected, rtol=1e-4, atol=1e-5)
        plain, equal = (
            jitquant.quantize_jit(each, qconfig, lambda prepared: prepared(x))(x)
            for each in (model, result)
        )
    # Half a bit: the largest value of the activation may be that of the channel now.
    assert sqnr(expected, equal) > sqnr(expected, plain) - 3


def test_biases_grow_where_all_channels_do() -> None:
    """Layers that differ by one factor, 100, meet in the middle, as without biases."""
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model = scripted(module)
    with torch.no_grad():
        state = model.state_dict()
        state["0.weight"].copy_(torch.eye(4))
        state["2.weight"].copy_(100 * torch.eye(4))
    result = jitquant.equalize_jit(model).state_dict()
    torch.testing.assert_close(result["0.weight"], 10 * torch.eye(4))
    torch.testing.assert_close(result["0.bias"], 10 * state["0.bias"])


RELU6 = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU6(), nn.Conv2d(4, 2, 1))
NO_LAYERS = (
    "equalize_jit: the model has no two convolutions or linear layers with only relu, leaky_relu, "
    "prelu, pooling or zero padding between them, of which nothing else reads the weights or the "
    "values between."
)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Linear(3, 3), f"{NO_LAYERS} Quantize the model as it is."),
        (
            RELU6,
            f"{NO_LAYERS} There are 1 with an activation that clips at another value than 0: "
            "relu6_as_relu=True lets relu6 become relu. Quantize the model as it is.",
        ),
    ],
)
def test_nothing_to_equalize_is_an_error(module: nn.Module, message: str) -> None:
    with pytest.raises(JitQuantValueError, match=f"^{re.escape(message)}$"):
        jitquant.equalize_jit(scripted(module))


def test_relu6_as_relu() -> None:
    model = jitquant.equalize_jit(scripted(RELU6), relu6_as_relu=True)
    assert "aten::relu(" in str(model.graph) and "hardtanh" not in str(model.graph)
    untyped: Any = jitquant.equalize_jit
    with pytest.raises(JitQuantTypeError, match="relu6_as_relu must be a bool, got 'yes'"):
        untyped(scripted(RELU6), relu6_as_relu="yes")

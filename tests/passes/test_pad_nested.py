"""pad_nested: the nested tensors inside of torch.nn.TransformerEncoder stay padded."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.ir import assert_same_output, before_and_after, example_model, sample

X = sample(2, 5, 8)
PAD = torch.arange(5) >= torch.tensor([[3], [5]])
NESTED = ("aten::_nested_tensor_from_mask(", "aten::to_padded_tensor(")


class Twice(nn.Module):
    """One encoder, called twice with different masks."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor, pad: Tensor) -> Tensor:
        y: Tensor = self.encoder(x, src_key_padding_mask=pad)
        z: Tensor = self.encoder(y + x, src_key_padding_mask=pad.flip(0))
        return z


def given(mode: str, module: nn.Module) -> torch.jit.ScriptModule:
    model = example_model(module)
    with torch.no_grad():
        made = (
            torch.jit.script(model)
            if mode == "scripted"
            else torch.jit.trace(model, (X, PAD), check_trace=False)
        )
    assert isinstance(made, torch.jit.ScriptModule)
    return made


@pytest.mark.parametrize("mode", ["scripted", "traced"])
def test_padding_is_masked_and_zero(mode: str) -> None:
    model = given(mode, Twice())
    change = before_and_after("pad_nested", model)
    assert all(change.before.count(kind) == 2 for kind in NESTED)
    assert not any(kind in change.after for kind in NESTED)
    for pad in (PAD, PAD.flip(0), torch.zeros_like(PAD)):
        assert_same_output(change.model, model, X, pad)


class OfTheUser(nn.Module):
    def forward(self, x: Tensor, pad: Tensor) -> Tensor:
        nested = torch._nested_tensor_from_mask(x, pad.logical_not(), mask_check=False)
        y: Tensor = torch.ops.aten.to_padded_tensor(nested, 0.0, x.shape)
        return y


def test_nested_tensors_of_the_user_stay() -> None:
    model = given("traced", OfTheUser())
    change = before_and_after("pad_nested", model)
    assert change.after == change.before
    assert_same_output(change.model, model, X, PAD)


class OptionalMasks(nn.Module):
    """Which masks there are is known when it runs, and the encoder's mask comes out of branches."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor, pad: Tensor | None, mask: Tensor | None) -> Tensor:
        y: Tensor = self.encoder(x, mask=mask, src_key_padding_mask=pad)
        return y


def test_masks_that_are_optional() -> None:
    model = given("scripted", OptionalMasks())
    change = before_and_after("pad_nested", model)
    assert all(change.before.count(kind) == 1 for kind in NESTED)
    assert not any(kind in change.after for kind in NESTED)
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    for pad in (None, PAD, torch.zeros_like(PAD)):
        for mask in (None, causal):
            expected, actual = model(X, pad, mask), change.model(X, pad, mask)
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


class Scaled(nn.TransformerEncoderLayer):
    def forward(self, src: Tensor, *args: Any, **options: Any) -> Tensor:
        return super().forward(src * 2, *args, **options)


class OwnLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(Scaled(8, 2, 12, batch_first=True), 2)

    def forward(self, x: Tensor, pad: Tensor) -> Tensor:
        y: Tensor = self.encoder(x, src_key_padding_mask=pad)
        return y


def test_other_ops_on_the_nested_tensor_keep_it() -> None:
    """What reads their results could not be given the mask."""
    model = given("traced", OwnLayers())
    change = before_and_after("pad_nested", model)
    assert all(kind in change.after for kind in NESTED)
    assert change.after == change.before
    assert_same_output(change.model, model, X, PAD)

"""Attention with masks: linears int8, masks float, and numbers right for other masks too."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jitquant
from tests.test_ops import Mode, sqnr

DIM, HEADS, LENGTH = 32, 4, 6


def causal() -> Tensor:
    """True above the diagonal, where nothing is attended to."""
    return torch.ones(LENGTH, LENGTH).triu(1).bool()


def padding(*lengths: int) -> Tensor:
    """(batch, LENGTH), True behind each length."""
    return torch.arange(LENGTH) >= torch.tensor(lengths).unsqueeze(1)


class Masked(nn.Module):
    """A layer that takes a mask of the pairs, one of the padding, or both; they are named."""

    mask: Tensor

    def __init__(self, attn: bool, pad: bool) -> None:
        super().__init__()
        self.attn, self.pad = attn, pad
        self.register_buffer("mask", causal())


class Attention(Masked):
    def __init__(self, attn: bool, pad: bool, need_weights: bool = False) -> None:
        super().__init__(attn, pad)
        self.first = nn.Linear(DIM, DIM)
        self.attention = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
        self.need_weights = need_weights

    def forward(self, x: Tensor, pad: Tensor) -> Tensor:
        y = self.first(x)
        out: Tensor = self.attention(
            y,
            y,
            y,
            attn_mask=self.mask if self.attn else None,
            key_padding_mask=pad if self.pad else None,
            need_weights=self.need_weights,
        )[0]
        return out


class EncoderLayer(Masked):
    def __init__(self, attn: bool, pad: bool, **options: Any) -> None:
        super().__init__(attn, pad)
        self.layer = nn.TransformerEncoderLayer(DIM, HEADS, 64, batch_first=True, **options)

    def forward(self, x: Tensor, pad: Tensor) -> Tensor:
        out: Tensor = self.layer(
            x,
            src_mask=self.mask if self.attn else None,
            src_key_padding_mask=pad if self.pad else None,
        )
        return out


class Encoder(Masked):
    """With a mask of the padding alone torch makes nested tensors, and gives zeros at the padding."""

    def __init__(self, attn: bool, pad: bool, **options: Any) -> None:
        super().__init__(attn, pad)
        layer = nn.TransformerEncoderLayer(DIM, HEADS, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, **options)
        self.head = nn.Linear(DIM, 8)

    def forward(self, x: Tensor, pad: Tensor) -> Tensor:
        y: Tensor = self.encoder(
            x,
            mask=self.mask if self.attn else None,
            src_key_padding_mask=pad if self.pad else None,
        )
        out: Tensor = self.head(y)
        return out


class SumOfMasks(Masked):
    """By hand: two masks of -inf are added to the scores, one after the other."""

    def __init__(self, attn: bool, pad: bool) -> None:
        super().__init__(attn, pad)
        self.qkv = nn.Linear(DIM, 3 * DIM)
        self.out = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor, pad: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = torch.matmul(q, k.transpose(-2, -1)) * 0.18
        if self.attn:
            scores = scores + torch.zeros(self.mask.shape).masked_fill(self.mask, -math.inf)
        if self.pad:
            scores = scores + torch.zeros(pad.shape).masked_fill(pad, -math.inf).unsqueeze(1)
        out: Tensor = self.out(torch.matmul(scores.softmax(-1), v))
        return out


# name -> (class, its options, its linears)
MODELS: dict[str, tuple[type[Masked], dict[str, Any], int]] = {
    "attention": (Attention, {}, 3),
    "attention with weights": (Attention, {"need_weights": True}, 3),
    "layer": (EncoderLayer, {}, 4),
    "layer, norm first": (EncoderLayer, {"norm_first": True, "activation": "gelu"}, 4),
    "encoder": (Encoder, {}, 9),
    "encoder with a norm": (Encoder, {"norm": nn.LayerNorm(DIM)}, 9),
    "by hand": (SumOfMasks, {}, 2),
}
LENGTHS = ((4, 5, 6), (6, 3, 2))
MASKS = {"attn": (True, False), "pad": (False, True), "both": (True, True)}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("mode", ["scripted", "traced"])
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_linears_are_int8(name: str, masks: str, mode: Mode, grad: bool) -> None:
    torch.manual_seed(0)
    make, options, linears = MODELS[name]
    model = make(*MASKS[masks], **options).eval()
    x = torch.randn(3, LENGTH, DIM)
    with torch.set_grad_enabled(grad):
        given = as_script_module(model, mode, x, padding(*LENGTHS[0]))
        int8 = quantize(given, [(x, padding(*lengths)) for lengths in LENGTHS])
    covered = jitquant.coverage(int8)
    assert [op.op for op in covered.int8].count("aten::linear") == linears
    assert all(op.reason for op in covered.float)
    with torch.no_grad():
        for lengths in LENGTHS:
            assert sqnr(int8(x, padding(*lengths)), given(x, padding(*lengths))) >= 25.0


def as_script_module(model: nn.Module, mode: Mode, *inputs: Tensor) -> Any:
    if mode == "scripted":
        return torch.jit.script(model)
    return torch.jit.trace(model, inputs, check_trace=False)


def quantize(model: Any, batches: list[tuple[Tensor, ...]]) -> Any:
    prepared = jitquant.prepare_jit(model, {"": jitquant.default_qconfig})
    for batch in batches:
        prepared(*batch)
    return jitquant.convert_jit(prepared)


@pytest.mark.parametrize("name", ["attention", "layer"])
@pytest.mark.parametrize("mode", ["scripted", "traced"])
def test_rows_of_which_all_is_masked(name: str, mode: Mode) -> None:
    """The general path of torch.nn, which runs with gradients, attends to nothing there."""
    torch.manual_seed(0)
    model = MODELS[name][0](False, True).eval()
    x, pad = torch.randn(3, LENGTH, DIM), padding(6, 4, 0)
    with torch.no_grad():
        int8 = quantize(as_script_module(model, mode, x, pad), [(x, pad)])
        actual = int8(x, pad)
    assert sqnr(actual, model(x, pad).detach()) >= 25.0


class Weights(Attention):
    def forward(self, x: Tensor, pad: Tensor) -> Tensor:
        y = self.first(x)
        out, weights = self.attention(y, y, y, key_padding_mask=pad)
        assert weights is not None
        both: Tensor = out + weights.sum(-1, keepdim=True) + weights.amax(-1, keepdim=True)
        return both


@pytest.mark.parametrize("mode", ["scripted", "traced"])
def test_weights_of_attention_are_read(mode: Mode) -> None:
    torch.manual_seed(0)
    model = Weights(False, True).eval()
    x = torch.randn(3, LENGTH, DIM)
    with torch.no_grad():
        given = as_script_module(model, mode, x, padding(*LENGTHS[0]))
        int8 = quantize(given, [(x, padding(*lengths)) for lengths in LENGTHS])
        for lengths in LENGTHS:
            pad = padding(*lengths)
            assert sqnr(int8(x, pad), model(x, pad)) >= 25.0
    assert [op.op for op in jitquant.coverage(int8).int8].count("aten::linear") == 3

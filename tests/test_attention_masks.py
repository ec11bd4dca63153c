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
    if mode == "traced" and not grad and name != "by hand":
        pytest.skip("fused kernels")
    torch.manual_seed(0)
    make, options, linears = MODELS[name]
    model = make(*MASKS[masks], **options).eval()
    x, pad = torch.randn(3, LENGTH, DIM), padding(*LENGTHS[0])
    with torch.set_grad_enabled(grad):
        given: Any = (
            torch.jit.script(model)
            if mode == "scripted"
            else torch.jit.trace(model, (x, pad), check_trace=False)
        )
        prepared = jitquant.prepare_jit(given, {"": jitquant.default_qconfig})
        for lengths in LENGTHS:
            prepared(x, padding(*lengths))
        int8 = jitquant.convert_jit(prepared)
    covered = jitquant.coverage(int8)
    assert [op.op for op in covered.int8].count("aten::linear") == linears
    assert all(op.reason for op in covered.float)
    with torch.no_grad():
        for lengths in LENGTHS:
            assert sqnr(int8(x, padding(*lengths)), model(x, padding(*lengths))) >= 25.0

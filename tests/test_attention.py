"""Attention in its spellings: linears int8, the rest float with its reason, and numbers right."""

import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import jitquant
from tests.test_ops import Mode, sqnr

DIM, HEADS = 32, 4


class SelfAttention(nn.Module):
    def __init__(self, need_weights: bool = False, **options: Any) -> None:
        super().__init__()
        self.first = nn.Linear(DIM, DIM)
        self.attention = nn.MultiheadAttention(DIM, HEADS, batch_first=True, **options)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        out: Tensor = self.attention(y, y, y, need_weights=self.need_weights)[0]
        return out


class CrossAttention(nn.Module):
    """Key and value are not the query: in_proj_weight is cut in parts."""

    def __init__(self, need_weights: bool = False, **options: Any) -> None:
        super().__init__()
        self.first = nn.Linear(DIM, DIM)
        self.other = nn.Linear(DIM, options.get("kdim", DIM))
        self.attention = nn.MultiheadAttention(DIM, HEADS, **{"batch_first": True, **options})
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.first(x), self.other(x)
        out: Tensor = self.attention(q, k, k, need_weights=self.need_weights)[0]
        return out


class ThreeInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(DIM, HEADS)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attention(x, x.flip(1), x * 2)[0]
        return out


class Unbatched(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x[0])
        return out


class Causal(nn.Module):
    """A mask of -inf, which only a softmax reads."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(DIM, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.full((x.size(1), x.size(1)), -math.inf).triu(1)
        out: Tensor = self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]
        return out


class ByHand(nn.Module):
    """Products and softmax; the mask of -inf is added to the scores."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(DIM, 3 * DIM)
        self.out = nn.Linear(DIM, DIM)
        self.register_buffer("mask", torch.full((16, 16), -math.inf).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        heads = self.qkv(x).view(batch, length, 3, 4, 8).permute(2, 0, 3, 1, 4)
        q, k, v = heads[0], heads[1], heads[2]
        scores = torch.matmul(q, k.transpose(-2, -1)) * 0.35
        scores = scores + self.mask[:length, :length]
        mixed = torch.matmul(scores.softmax(-1), v).transpose(1, 2)
        out: Tensor = self.out(mixed.reshape(batch, length, 32))
        return out


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(DIM, 3 * DIM)
        self.out = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        heads = self.qkv(x).view(batch, length, 3, 4, 8).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, 32))
        return out


class Encoder(nn.Module):
    def __init__(self, layers: int, **options: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(DIM, HEADS, 2 * DIM, batch_first=True, **options)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(DIM, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(x))
        return out


class Decoder(nn.Module):
    mask: Tensor

    def __init__(self, layers: int, **options: Any) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(DIM, HEADS, 2 * DIM, batch_first=True, **options)
        self.decoder = nn.TransformerDecoder(layer, layers)
        self.register_buffer("mask", torch.full((6, 6), -math.inf).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.decoder(x, x.flip(1) * 0.5, tgt_mask=self.mask)
        return out


class WholeTransformer(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.transformer = nn.Transformer(DIM, HEADS, 1, 1, 2 * DIM, **options)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.transformer(x, x.flip(1) * 0.5)
        return out


# name -> (model, its linears)
MODELS: dict[str, tuple[nn.Module, int]] = {
    "self": (SelfAttention(), 3),
    "self with weights": (SelfAttention(need_weights=True), 3),
    "self, a bias of key and value": (SelfAttention(add_bias_kv=True), 3),
    "cross": (CrossAttention(), 5),
    "cross with weights": (CrossAttention(need_weights=True), 5),
    "cross, sequence first": (CrossAttention(batch_first=False), 5),
    "cross, unbatched": (Unbatched(CrossAttention()), 6),
    "cross, other sizes of key and value": (CrossAttention(kdim=20, vdim=20), 6),
    "cross, a bias of key and value": (CrossAttention(add_bias_kv=True, add_zero_attn=True), 5),
    "cross, three inputs": (ThreeInputs(), 4),
    "decoder": (Decoder(2), 14),
    "decoder, norm first": (Decoder(1, norm_first=True, activation="gelu"), 7),
    "transformer": (WholeTransformer(batch_first=True), 11),
    "transformer, norm first": (WholeTransformer(norm_first=True), 11),
    "causal": (Causal(), 2),
    "by hand": (ByHand(), 2),
    "scaled_dot_product_attention": (Scaled(), 2),
    "encoder": (Encoder(2), 9),
    "encoder, norm first": (Encoder(1, norm_first=True, activation="gelu"), 5),
}


def ops_run_by(model: Any, x: Tensor) -> set[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model(x)
    return {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("mode", ["scripted", "traced"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_linears_are_int8(name: str, mode: Mode, grad: bool) -> None:
    """With gradients and without torch runs different kernels."""
    torch.manual_seed(0)
    model, linears = MODELS[name]
    model = model.eval()
    x = torch.randn(3, 6, DIM)
    with torch.set_grad_enabled(grad):
        given: Any = (
            torch.jit.script(model)
            if mode == "scripted"
            else torch.jit.trace(model, x, check_trace=False)
        )
        prepared = jitquant.prepare_jit(given, {"": jitquant.default_qconfig})
        prepared(x)
        int8 = jitquant.convert_jit(prepared)
    covered = jitquant.coverage(int8)
    if (name, mode) == ("cross, unbatched", "scripted"):
        linears -= 1  # scripts know that key and value are one tensor
    assert [op.op for op in covered.int8].count("aten::linear") == linears
    assert all(op.reason for op in covered.float)
    file = io.BytesIO()
    torch.jit.save(int8, file)
    file.seek(0)
    loaded: Any = torch.jit.load(file)
    with torch.no_grad():
        assert torch.equal(loaded(x), int8(x))
        assert "aten::linear" not in ops_run_by(int8, x)
        assert sqnr(int8(x), model(x)) >= 25.0

"""unfold_attention: fused attention kernels become layers, whose linears can be int8."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.ir import (
    assert_change,
    assert_same_output,
    before_and_after,
    example_model,
    reasons,
    sample,
    scripted,
    trace_prepare,
)

X = sample(2, 5, 8)
FUSED = ("aten::_native_multi_head_attention", "aten::_transformer_encoder_layer_fwd")


class Attention(nn.Module):
    """Both results: values and weights."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        y, weights = self.attention(x, x, x)
        return y, weights


class First(nn.Module):
    """The first result alone."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return y


def layer(norm_first: bool, gelu: bool) -> nn.Module:
    activation = "gelu" if gelu else "relu"
    return nn.TransformerEncoderLayer(
        8, 2, 12, batch_first=True, norm_first=norm_first, activation=activation
    )


def traced(module: nn.Module) -> torch.jit.ScriptModule:
    """Without gradients, which is when torch takes its fused kernels."""
    with torch.no_grad():
        model = torch.jit.trace(module.eval(), X, check_trace=False)
    assert isinstance(model, torch.jit.ScriptModule)
    return model


def test_traced_attention() -> None:
    model = traced(First())
    change = before_and_after("unfold_attention", model)
    assert FUSED[0] in change.before
    assert_change(
        change,
        before=change.before,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::linear(%x, self.attention.in_proj_weight, self.attention.in_proj_bias)
              %1 : Tensor = aten::unflatten(%0, -1, [3, 2, 4])
              %2 : Tensor = aten::permute(%1, [2, 0, 3, 1, 4])
              %3 : Tensor = aten::select(%2, 0, 0)
              %4 : Tensor = aten::select(%2, 0, 1)
              %5 : Tensor = aten::select(%2, 0, 2)
              %6 : Tensor = aten::scaled_dot_product_attention(%3, %4, %5, None, 0.0, False, None, False)
              %7 : Tensor = aten::transpose(%6, 1, 2)
              %8 : Tensor = aten::flatten(%7, 2, 3)
              %9 : Tensor = aten::linear(%8, self.attention.out_proj.weight, self.attention.out_proj.bias)
              return (%9)
        """,
    )
    assert_same_output(change.model, model, X)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("gelu", [False, True])
def test_traced_encoder_layer(norm_first: bool, gelu: bool) -> None:
    torch.manual_seed(0)
    model = traced(layer(norm_first, gelu))
    change = before_and_after("unfold_attention", model)
    assert FUSED[1] in change.before
    assert change.after.count("aten::linear") == 4 and FUSED[1] not in change.after
    assert_same_output(change.model, model, X)


@pytest.mark.parametrize("module", [First(), Attention(), layer(False, False)])
def test_scripted_modules_take_the_general_path(module: nn.Module) -> None:
    model = scripted(module)
    before = str(model.inlined_graph)
    assert any(kind in before for kind in FUSED)
    change = before_and_after("unfold_attention", model)
    assert not any(kind in change.after for kind in FUSED)
    assert_same_output(change.model, model, X)


def test_general_path_serves_other_inputs_than_calibrated() -> None:
    """A batch of one dimension less, which the fused kernel does not take."""
    model = scripted(Attention())
    change = before_and_after("unfold_attention", model)
    assert_same_output(change.model, model, X[0])


def test_traced_attention_whose_weights_are_read() -> None:
    model = traced(Attention())
    change = before_and_after("unfold_attention", model)
    assert FUSED[0] in change.before and FUSED[0] not in change.after
    assert "aten::softmax" in change.after and change.after.count("aten::linear") == 2
    assert_same_output(change.model, model, X)


class Direct(nn.Module):
    """The kernel itself, with a mask of a type, and with its own keys and values."""

    mask: Tensor

    def __init__(self, mask_type: int | None, is_self: bool = True) -> None:
        super().__init__()
        self.mask_type, self.is_self = mask_type, is_self
        self.w = nn.Parameter(torch.zeros(24, 8))
        self.b = nn.Parameter(torch.zeros(24))
        self.v = nn.Parameter(torch.zeros(8, 8))
        self.c = nn.Parameter(torch.zeros(8))
        shapes = {0: (5, 5), 1: (2, 5), 2: (2, 2, 5, 5), None: (2, 2, 5, 5)}
        mask = sample(*shapes[mask_type]) > 0.3
        mask[..., 0] = False
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        key, value = (x, x) if self.is_self else (x.flip(1), x * 2)
        y: Tensor = torch._native_multi_head_attention(
            *(x, key, value, 8, 2, self.w, self.b, self.v, self.c),
            mask=self.mask,
            need_weights=False,
            mask_type=self.mask_type,
        )[0]
        return y


@pytest.mark.parametrize("is_self", [True, False])
@pytest.mark.parametrize("mask_type", [0, 1, 2])
def test_types_of_masks(mask_type: int, is_self: bool) -> None:
    model = traced(example_model(Direct(mask_type, is_self)))
    change = before_and_after("unfold_attention", model)
    assert FUSED[0] in change.before and FUSED[0] not in change.after
    assert change.after.count("aten::linear") == (2 if is_self else 4)
    assert_same_output(change.model, model, X)


def test_mask_without_a_type_stays_with_its_reason() -> None:
    model = traced(example_model(Direct(None)))
    prepared = trace_prepare(model).model
    reason = "it takes nested tensors, or its sizes or type of mask are computed at run time"
    assert (FUSED[0], reason) in reasons(prepared)
    assert_same_output(prepared, model, X)


class OwnBranch(nn.Module):
    """A branch of the user's, in which the other side is another function."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(24, 8))
        self.b = nn.Parameter(torch.zeros(24))

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.sum() > 100):
            y = x
        else:
            w, b = self.w, self.b
            y = torch._native_multi_head_attention(x, x, x, 8, 2, w, b, w[:8], b[:8])[0]
        return y


def test_branch_of_the_user_stays() -> None:
    model = scripted(OwnBranch())
    prepared = trace_prepare(model).model
    assert FUSED[0] in str(prepared.graph) or "aten::linear" in str(prepared.graph)
    assert_same_output(prepared, model, X)
    assert_same_output(prepared, model, X + 10)


MODES: list[Callable[[nn.Module], torch.jit.ScriptModule]] = [scripted, traced]


@pytest.mark.parametrize("mode", MODES)
def test_every_linear_of_an_encoder_layer_is_int8(
    mode: Callable[[nn.Module], torch.jit.ScriptModule],
) -> None:
    prepared = trace_prepare(mode(layer(False, False))).model
    linears = [reason for op, reason in reasons(prepared) if op == "aten::linear"]
    assert linears.count("int8") >= 4  # and those for other queries than keys

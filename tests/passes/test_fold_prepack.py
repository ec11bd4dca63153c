"""fold_prepack: quantizing and packing of constants happens now, not when the model runs."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from jitquant import default_dynamic_qconfig
from tests.ir import (
    assert_change,
    assert_same_output,
    assert_text,
    assert_unchanged,
    before_and_after,
    readable,
    sample,
    scripted,
    trace_convert,
    trace_prepare,
)


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(1, 1))
        self.head = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(x))
        return y


def test_packed_params_are_attributes_named_by_module() -> None:
    model = scripted(Layers())
    for layer, value in ((model.body[0], 0.5), (model.head, 0.25)):
        layer.weight.data.fill_(value)
        layer.bias.data.fill_(value)
    change = before_and_after("fold_prepack", model, sample(1, 1))
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::quantize_per_tensor(self.body.0.weight, 0.03125, 0, 12)
              %2 : __torch__.torch.classes.quantized.LinearPackedParamsBase = quantized::linear_prepack(%1, self.body.0.bias)
              %3 : Tensor = quantized::linear(%0, %2, 0.0625, 128)
              %4 : Tensor = aten::quantize_per_tensor(self.head.weight, 0.03125, 0, 12)
              %5 : __torch__.torch.classes.quantized.LinearPackedParamsBase = quantized::linear_prepack(%4, self.head.bias)
              %6 : Tensor = quantized::linear(%3, %5, 0.0625, 128)
              %7 : Tensor = aten::dequantize(%6)
              return (%7)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = quantized::linear(%0, self.body_0_packed_params, 0.0625, 128)
              %2 : Tensor = quantized::linear(%1, self.head_packed_params, 0.0625, 128)
              %3 : Tensor = aten::dequantize(%2)
              return (%3)
        """,
    )
    assert_same_output(change.model, model, sample(1, 1), atol=0.15)


def test_equal_layers_share_one_packing() -> None:
    model = scripted(Layers())
    for layer in (model.body[0], model.head):
        layer.weight.data.fill_(0.5)
        layer.bias.data.fill_(0.25)
    change = before_and_after("fold_prepack", model, sample(1, 1))
    assert_text(
        change.after,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = quantized::linear(%0, self.body_0_packed_params, 0.0625, 128)
              %2 : Tensor = quantized::linear(%1, self.body_0_packed_params, 0.0625, 128)
              %3 : Tensor = aten::dequantize(%2)
              return (%3)
        """,
    )
    assert_same_output(change.model, model, sample(1, 1), atol=0.15)


class CallsTwice(Layers):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.head(x).relu())
        return y


def test_layer_called_twice_is_packed_once() -> None:
    model = scripted(CallsTwice())
    change = before_and_after("fold_prepack", model, sample(1, 1))
    assert_text(
        change.after,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = quantized::linear_relu(%0, self.head_packed_params, 0.0625, 128)
              %2 : Tensor = quantized::linear(%1, self.head_packed_params, 0.0625, 128)
              %3 : Tensor = aten::dequantize(%2)
              return (%3)
        """,
    )
    assert_same_output(change.model, model, sample(1, 1), atol=0.15)


class Branches(Layers):
    def forward(self, x: Tensor) -> Tensor:
        if bool(x.sum() > 0):  # noqa: SIM108
            y = self.head(x)
        else:
            y = self.head(x + 1).neg()
        z: Tensor = y
        return z


def test_nothing_is_packed_in_a_branch_when_the_model_runs() -> None:
    model = scripted(Branches())
    prepared = trace_prepare(model).model
    for x in (torch.ones(1, 1), -torch.ones(1, 1)):
        prepared(x)
    convert = trace_convert(prepared)
    assert_text(
        readable(convert.text("fold_prepack")),
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::sum(%x, None)
              %2 : Tensor = aten::gt(%1, 0)
              %3 : bool = aten::Bool(%2)
              %4 : Tensor = prim::If(%3)
                block0():
                  %5 : Tensor = quantized::linear(%0, self.head_packed_params, 0.0625, 128)
                  %6 : Tensor = aten::dequantize(%5)
                  -> (%6)
                block1():
                  %7 : Tensor = aten::quantize_per_tensor(tensor({1}), 1.0, 0, 13)
                  %8 : Tensor = quantized::add(%0, %7, 0.0625, 128)
                  %9 : Tensor = quantized::linear(%8, self.head_packed_params, 0.0625, 128)
                  %10 : Tensor = quantized::mul_scalar(%9, -1.0)
                  %11 : Tensor = aten::dequantize(%10)
                  -> (%11)
              %12 : Tensor = aten::contiguous(%4, 0)
              return (%12)
        """,
    )
    for x in (torch.ones(1, 1), -torch.ones(1, 1)):
        assert_same_output(convert.model, model, x, atol=0.15)


def test_graph_that_packs_nothing_stays() -> None:
    class Sigmoid(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return functional.hardsigmoid(x)

    change = before_and_after("fold_prepack", scripted(Sigmoid()), sample(1, 1))
    assert_unchanged(
        change,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::hardsigmoid(%0)
              %2 : Tensor = aten::dequantize(%1)
              %3 : Tensor = aten::contiguous(%2, 0)
              return (%3)
        """,
    )


class TwoMethods(Layers):
    @torch.jit.export
    def body_only(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y


def test_methods_share_packed_params() -> None:
    """Dynamically, so that nothing but the layers is quantized."""
    model = scripted(TwoMethods())
    config = {"": default_dynamic_qconfig}
    prepared = trace_prepare(model, config, "prepare_dynamic_jit").model
    convert = trace_convert(prepared, preserved=["body_only"])
    assert_text(
        readable(convert.text("fold_prepack")),
        """
            graph(self, %x : Tensor):
              %0 : Tensor = quantized::linear_dynamic(%x, self.body_0_packed_params, False)
              %1 : Tensor = quantized::linear_dynamic(%0, self.head_packed_params, False)
              return (%1)
        """,
    )
    assert_text(
        readable(convert.text("fold_prepack", "body_only")),
        """
            graph(self, %x : Tensor):
              %0 : Tensor = quantized::linear_dynamic(%x, self.body_0_packed_params, False)
              return (%0)
        """,
    )

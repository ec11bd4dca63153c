"""fold_conv_bn: BatchNorm in eval mode goes into the convolution or linear before it."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from jitquant import fuse_conv_bn_jit
from tests.ir import (
    assert_change,
    assert_same_output,
    assert_unchanged,
    before_and_after,
    readable,
    sample,
    scripted,
    traced,
    unscoped_text,
)

X = sample(1, 2, 4, 4)


class ConvBn(nn.Module):
    def __init__(self, bias: bool = True, affine: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, bias=bias)
        self.bn = nn.BatchNorm2d(2, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(x))
        return y


def test_conv_and_bn_become_one_conv() -> None:
    model = scripted(ConvBn())
    change = before_and_after("fold_conv_bn", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.conv.weight, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %1 : Tensor = aten::batch_norm(%0, self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var, False, 0.1, 1e-05, True)
              return (%1)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.conv.weight, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              return (%0)
        """,
    )
    assert_same_output(change.model, model, X)


def test_a_new_bias_is_read_from_the_module_that_the_weight_was_read_from() -> None:
    change = before_and_after("fold_conv_bn", scripted(ConvBn(bias=False)), show=unscoped_text)
    assert_change(
        change,
        before="""
            graph(%self : __torch__.tests.passes.test_fold_conv_bn.ConvBn,
                  %x.1 : Tensor):
              %2 : bool = prim::Constant[value=1]()
              %3 : float = prim::Constant[value=0.10000000000000001]()
              %4 : bool = prim::Constant[value=0]()
              %5 : float = prim::Constant[value=1.0000000000000001e-05]()
              %6 : int[] = prim::Constant[value=[0, 0]]()
              %7 : int[] = prim::Constant[value=[1, 1]]()
              %8 : int = prim::Constant[value=1]()
              %9 : NoneType = prim::Constant()
              %conv : __torch__.torch.nn.modules.conv.Conv2d = prim::GetAttr[name="conv"](%self)
              %weight.1 : Tensor = prim::GetAttr[name="weight"](%conv)
              %bn : __torch__.torch.nn.modules.batchnorm.BatchNorm2d = prim::GetAttr[name="bn"](%self)
              %bias : Tensor = prim::GetAttr[name="bias"](%bn)
              %weight : Tensor = prim::GetAttr[name="weight"](%bn)
              %running_var : Tensor = prim::GetAttr[name="running_var"](%bn)
              %running_mean : Tensor = prim::GetAttr[name="running_mean"](%bn)
              %17 : Tensor = aten::conv2d(%x.1, %weight.1, %9, %7, %6, %7, %8)
              %18 : Tensor = aten::batch_norm(%17, %weight, %bias, %running_mean, %running_var, %4, %3, %5, %2)
              return (%18)
        """,
        after="""
            graph(%self : __torch__.tests.passes.test_fold_conv_bn.ConvBn,
                  %x.1 : Tensor):
              %2 : int[] = prim::Constant[value=[0, 0]]()
              %3 : int[] = prim::Constant[value=[1, 1]]()
              %4 : int = prim::Constant[value=1]()
              %conv : __torch__.torch.nn.modules.conv.Conv2d = prim::GetAttr[name="conv"](%self)
              %weight.1 : Tensor = prim::GetAttr[name="weight"](%conv)
              %bias : Tensor = prim::GetAttr[name="bias"](%conv)
              %8 : Tensor = aten::conv2d(%x.1, %weight.1, %bias, %3, %2, %3, %4)
              return (%8)
        """,
    )


def test_folded_weight_and_bias_follow_the_formula() -> None:
    """w' = w g / sqrt(var + eps), b' = (b - mean) g / sqrt(var + eps) + h."""
    module = ConvBn()
    model = scripted(module)
    folded = before_and_after("fold_conv_bn", model).model
    bn = module.bn
    assert bn.running_mean is not None and bn.running_var is not None
    assert module.conv.bias is not None
    factor = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    weight = module.conv.weight * factor.reshape(-1, 1, 1, 1)
    bias = (module.conv.bias - bn.running_mean) * factor + bn.bias
    torch.testing.assert_close(folded.conv.weight, weight)
    torch.testing.assert_close(folded.conv.bias, bias)


def test_original_keeps_its_weights() -> None:
    model = scripted(ConvBn())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before_and_after("fold_conv_bn", model)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())


def test_traced() -> None:
    model = traced(ConvBn(bias=False), X)
    change = before_and_after("fold_conv_bn", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.conv.weight, None, [1, 1], [0, 0], [1, 1], 1)
              %1 : Tensor = aten::batch_norm(%0, self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var, False, 0.1, 1e-05, True)
              return (%1)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.conv.weight, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              return (%0)
        """,
    )
    assert_same_output(change.model, model, X)


def test_conv_without_bias_gets_one() -> None:
    model = scripted(ConvBn(bias=False))
    change = before_and_after("fold_conv_bn", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.conv.weight, None, [1, 1], [0, 0], [1, 1], 1)
              %1 : Tensor = aten::batch_norm(%0, self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var, False, 0.1, 1e-05, True)
              return (%1)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.conv.weight, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              return (%0)
        """,
    )
    assert_same_output(change.model, model, X)


def test_bn_without_weight_and_bias() -> None:
    model = scripted(ConvBn(affine=False))
    change = before_and_after("fold_conv_bn", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.conv.weight, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %1 : Tensor = aten::batch_norm(%0, None, None, self.bn.running_mean, self.bn.running_var, False, 0.1, 1e-05, True)
              return (%1)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.conv.weight, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              return (%0)
        """,
    )
    assert_same_output(change.model, model, X)


class OneDimension(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 3, groups=2)
        self.bn = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(x))
        return y


def without_lines(text: str) -> str:
    return re.sub(r"\.py:\d+", ".py", readable(text))


def test_conv1d_with_groups() -> None:
    model = scripted(OneDimension())
    change = before_and_after("fold_conv_bn", model, show=without_lines)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv1d(%x, self.conv.weight, self.conv.bias, [1], [0], [1], 2)
              %1 : Tensor = aten::batch_norm(%0, self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var, False, 0.1, 1e-05, True)
              return (%1)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : int = aten::dim(%x)
              %1 : bool = aten::ne(%0, 3)
               = prim::If(%1)
                block0():
                   = prim::RaiseException("aten::conv1d in \\'conv\\' (test_fold_conv_bn.py) takes input of rank 3 only, since the BatchNorm behind it was folded into it", None)
                  -> ()
                block1():
                  -> ()
              %2 : Tensor = aten::conv1d(%x, self.conv.weight, self.conv.bias, [1], [0], [1], 2)
              return (%2)
        """,
    )
    assert_same_output(change.model, model, sample(1, 2, 5))


def test_unbatched_input_of_a_folded_conv1d_raises() -> None:
    """(C, L) with L = C, where BatchNorm1d normalizes the columns."""
    model = scripted(OneDimension())
    x = sample(2, 6)
    assert model(x).shape == (4, 4)
    folded = before_and_after("fold_conv_bn", model).model
    with pytest.raises(torch.jit.Error, match="takes input of rank 3 only, since the BatchNorm"):
        folded(x)


class LinearBn(nn.Module):
    def __init__(self, outputs: int = 4) -> None:
        super().__init__()
        self.fc = nn.Linear(3, outputs)
        self.bn = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.fc(x))
        return y


def test_linear() -> None:
    model = traced(LinearBn(), sample(5, 3))
    change = before_and_after("fold_conv_bn", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::linear(%x, self.fc.weight, self.fc.bias)
              %1 : Tensor = aten::batch_norm(%0, self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var, False, 0.1, 1e-05, True)
              return (%1)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : int = aten::dim(%x)
              %1 : bool = aten::ne(%0, 2)
               = prim::If(%1)
                block0():
                   = prim::RaiseException("aten::linear in \\'fc\\' takes input of rank 2 only, since the BatchNorm behind it was folded into it", None)
                  -> ()
                block1():
                  -> ()
              %2 : Tensor = aten::linear(%x, self.fc.weight, self.fc.bias)
              return (%2)
        """,
    )
    assert_same_output(change.model, model, sample(5, 3))


def test_scripted_linear_whose_shape_is_checked() -> None:
    """BatchNorm1d asks for the rank of its input, which is no use of the values."""
    model = scripted(LinearBn())
    change = before_and_after("fold_conv_bn", model)
    assert "aten::batch_norm" in change.before
    assert "aten::batch_norm" not in change.after
    assert_same_output(change.model, model, sample(5, 3))


def test_input_of_three_dimensions_of_a_folded_linear_raises() -> None:
    """(N, L, C) with L = C, where BatchNorm1d normalizes the rows."""
    model = scripted(LinearBn())
    x = sample(2, 4, 3)
    assert model(x).shape == (2, 4, 4)
    folded = before_and_after("fold_conv_bn", model).model
    with pytest.raises(torch.jit.Error, match="takes input of rank 2 only, since the BatchNorm"):
        folded(x)


def test_bn_over_the_rows_of_a_linear_stays() -> None:
    """Input (N, L, C): BatchNorm1d normalizes L."""
    x = sample(2, 4, 3)
    model = traced(LinearBn(outputs=5), x)
    change = before_and_after("fold_conv_bn", model)
    assert_unchanged(
        change,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::linear(%x, self.fc.weight, self.fc.bias)
              %1 : Tensor = aten::batch_norm(%0, self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var, False, 0.1, 1e-05, True)
              return (%1)
        """,
    )
    assert_same_output(change.model, model, x)


class Transposed(nn.Module):
    def __init__(self, rank: int, bias: bool) -> None:
        super().__init__()
        classes: Any = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
        norms: Any = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
        self.conv = classes[rank](4, 6, 2, stride=2, groups=2, bias=bias)
        self.bn = norms[rank](6)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(x))
        return y


def test_conv_transpose_with_groups() -> None:
    x = sample(1, 4, 3, 3)
    model = traced(Transposed(2, bias=False), x)
    change = before_and_after("fold_conv_bn", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv_transpose2d(%x, self.conv.weight, None, [2, 2], [0, 0], [0, 0], 2, [1, 1])
              %1 : Tensor = aten::batch_norm(%0, self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var, False, 0.1, 1e-05, True)
              return (%1)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv_transpose2d(%x, self.conv.weight, self.conv.bias, [2, 2], [0, 0], [0, 0], 2, [1, 1])
              return (%0)
        """,
    )
    assert_same_output(change.model, model, x)


@pytest.mark.parametrize("mode", ["scripted", "traced"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_fuse_conv_bn_jit_folds_conv_transpose(rank: int, bias: bool, mode: str) -> None:
    x = sample(2, 4, *[3] * rank)
    module = Transposed(rank, bias)
    model = scripted(module) if mode == "scripted" else traced(module, x)
    fused = fuse_conv_bn_jit(model)
    assert "aten::batch_norm" not in str(fused.graph)
    assert_same_output(fused, model, x)


class ThreeDimensions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, 2, 2)
        self.bn = nn.BatchNorm3d(2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(x))
        return y


def test_conv3d() -> None:
    model = scripted(ThreeDimensions())
    change = before_and_after("fold_conv_bn", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv3d(%x, self.conv.weight, self.conv.bias, [1, 1, 1], [0, 0, 0], [1, 1, 1], 1)
              %1 : Tensor = aten::batch_norm(%0, self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var, False, 0.1, 1e-05, True)
              return (%1)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv3d(%x, self.conv.weight, self.conv.bias, [1, 1, 1], [0, 0, 0], [1, 1, 1], 1)
              return (%0)
        """,
    )
    assert_same_output(change.model, model, sample(1, 2, 3, 3, 3))


class Convs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(2, 2, 1))
        self.norms = nn.ModuleList([nn.BatchNorm2d(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        for norm in self.norms:
            x = norm(x)
        return x


def test_bn_in_another_container() -> None:
    model = scripted(Convs())
    change = before_and_after("fold_conv_bn", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.features.0.weight, self.features.0.bias, [1, 1], [0, 0], [1, 1], 1)
              %1 : Tensor = aten::batch_norm(%0, self.norms.0.weight, self.norms.0.bias, self.norms.0.running_mean, self.norms.0.running_var, False, 0.1, 1e-05, True)
              return (%1)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.features.0.weight, self.features.0.bias, [1, 1], [0, 0], [1, 1], 1)
              return (%0)
        """,
    )
    assert_same_output(change.model, model, X)


class Standardized(nn.Conv2d):
    """A subclass with a forward of its own, around a weight that is no attribute `weight`."""

    def __init__(self) -> None:
        super().__init__(2, 2, 3)
        self.kernel = nn.Parameter(torch.zeros(2, 2, 1, 1))

    def forward(self, input: Tensor) -> Tensor:
        return functional.conv2d(input, self.kernel, padding=1)


class Subclass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = Standardized()
        self.bn = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(x))
        return y


def test_conv_subclass() -> None:
    """Its own bias, which forward does not use, stays what it is."""
    model = scripted(Subclass())
    change = before_and_after("fold_conv_bn", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.conv.kernel, None, [1, 1], [1, 1], [1, 1], 1)
              %1 : Tensor = aten::batch_norm(%0, self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var, False, 0.1, 1e-05, True)
              return (%1)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.conv.kernel, self.conv.kernel_bias, [1, 1], [1, 1], [1, 1], 1)
              return (%0)
        """,
    )
    assert_same_output(change.model, model, X)
    assert torch.equal(change.model.conv.bias, model.conv.bias)


class CallsBothTwice(ConvBn):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(x))
        z: Tensor = self.bn(self.conv(y + 1))
        return z


def test_conv_and_bn_called_twice() -> None:
    """Both calls share the weight, so it is folded once."""
    module = CallsBothTwice()
    module.conv = nn.Conv2d(2, 2, 1)
    model = scripted(module)
    change = before_and_after("fold_conv_bn", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.conv.weight, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %1 : Tensor = aten::batch_norm(%0, self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var, False, 0.1, 1e-05, True)
              %2 : Tensor = aten::add(%1, 1, 1)
              %3 : Tensor = aten::conv2d(%2, self.conv.weight, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %4 : Tensor = aten::batch_norm(%3, self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var, False, 0.1, 1e-05, True)
              return (%4)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.conv.weight, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %1 : Tensor = aten::add(%0, 1, 1)
              %2 : Tensor = aten::conv2d(%1, self.conv.weight, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              return (%2)
        """,
    )
    assert_same_output(change.model, model, X)


# --- what must stay ---


class SecondUser(ConvBn):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z: Tensor = self.bn(y)
        result: Tensor = z + y
        return result


def test_second_user_of_the_conv_stays() -> None:
    model = scripted(SecondUser())
    change = before_and_after("fold_conv_bn", model)
    assert_unchanged(
        change,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.conv.weight, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %1 : Tensor = aten::batch_norm(%0, self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var, False, 0.1, 1e-05, True)
              %2 : Tensor = aten::add(%1, %0, 1)
              return (%2)
        """,
    )
    assert_same_output(change.model, model, X)


class TwoNorms(ConvBn):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z: Tensor = self.bn(y) + self.other(y)
        return z


def test_conv_before_two_bns_stays() -> None:
    model = scripted(TwoNorms())
    change = before_and_after("fold_conv_bn", model)
    assert_unchanged(
        change,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.conv.weight, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %1 : Tensor = aten::batch_norm(%0, self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var, False, 0.1, 1e-05, True)
              %2 : Tensor = aten::batch_norm(%0, self.other.weight, self.other.bias, self.other.running_mean, self.other.running_var, False, 0.1, 1e-05, True)
              %3 : Tensor = aten::add(%1, %2, 1)
              return (%3)
        """,
    )
    assert_same_output(change.model, model, X)


class OneNormEach(TwoNorms):
    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.bn(self.conv(x)) + self.other(self.conv(x + 1))
        return z


def test_conv_called_twice_before_two_bns_stays() -> None:
    model = scripted(OneNormEach())
    change = before_and_after("fold_conv_bn", model)
    assert_unchanged(
        change,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.conv.weight, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %1 : Tensor = aten::batch_norm(%0, self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var, False, 0.1, 1e-05, True)
              %2 : Tensor = aten::add(%x, 1, 1)
              %3 : Tensor = aten::conv2d(%2, self.conv.weight, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %4 : Tensor = aten::batch_norm(%3, self.other.weight, self.other.bias, self.other.running_mean, self.other.running_var, False, 0.1, 1e-05, True)
              %5 : Tensor = aten::add(%1, %4, 1)
              return (%5)
        """,
    )
    assert_same_output(change.model, model, X)


class WithAndWithout(ConvBn):
    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.bn(self.conv(x)) + self.conv(x + 1)
        return z


def test_conv_called_with_and_without_the_bn_stays() -> None:
    model = scripted(WithAndWithout())
    change = before_and_after("fold_conv_bn", model)
    assert_unchanged(
        change,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.conv.weight, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %1 : Tensor = aten::batch_norm(%0, self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var, False, 0.1, 1e-05, True)
              %2 : Tensor = aten::add(%x, 1, 1)
              %3 : Tensor = aten::conv2d(%2, self.conv.weight, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %4 : Tensor = aten::add(%1, %3, 1)
              return (%4)
        """,
    )
    assert_same_output(change.model, model, X)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = ConvBn()
        self.b = nn.Sequential(self.a.conv)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.a(x) + self.b(x)
        return z


def test_conv_shared_by_two_modules_keeps_its_value_for_the_other() -> None:
    """torch.jit.script makes two modules of it, which share the weight's tensor."""
    model = scripted(Shared())
    change = before_and_after("fold_conv_bn", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.a.conv.weight, self.a.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %1 : Tensor = aten::batch_norm(%0, self.a.bn.weight, self.a.bn.bias, self.a.bn.running_mean, self.a.bn.running_var, False, 0.1, 1e-05, True)
              %2 : Tensor = aten::conv2d(%x, self.b.0.weight, self.b.0.bias, [1, 1], [0, 0], [1, 1], 1)
              %3 : Tensor = aten::add(%1, %2, 1)
              return (%3)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.a.conv.weight, self.a.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %1 : Tensor = aten::conv2d(%x, self.b.0.weight, self.b.0.bias, [1, 1], [0, 0], [1, 1], 1)
              %2 : Tensor = aten::add(%0, %1, 1)
              return (%2)
        """,
    )
    assert_same_output(change.model, model, X)
    assert torch.equal(getattr(change.model.b, "0").weight, getattr(model.b, "0").weight)


class TiedWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = ConvBn()
        self.b = nn.Conv2d(2, 2, 3)
        self.b.weight = self.a.conv.weight

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.a(x) + self.b(x)
        return z


def test_tied_weight_of_the_other_conv_keeps_its_value() -> None:
    """Two attributes hold one tensor: folding gives this conv a new one."""
    model = scripted(TiedWeight())
    change = before_and_after("fold_conv_bn", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.a.conv.weight, self.a.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %1 : Tensor = aten::batch_norm(%0, self.a.bn.weight, self.a.bn.bias, self.a.bn.running_mean, self.a.bn.running_var, False, 0.1, 1e-05, True)
              %2 : Tensor = aten::conv2d(%x, self.b.weight, self.b.bias, [1, 1], [0, 0], [1, 1], 1)
              %3 : Tensor = aten::add(%1, %2, 1)
              return (%3)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.a.conv.weight, self.a.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %1 : Tensor = aten::conv2d(%x, self.b.weight, self.b.bias, [1, 1], [0, 0], [1, 1], 1)
              %2 : Tensor = aten::add(%0, %1, 1)
              return (%2)
        """,
    )
    assert_same_output(change.model, model, X)


class ExportsConv(ConvBn):
    @torch.jit.export
    def features(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


def test_conv_that_an_exported_method_uses_alone_stays() -> None:
    model = scripted(ExportsConv())
    change = before_and_after("fold_conv_bn", model)
    assert_unchanged(
        change,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.conv.weight, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %1 : Tensor = aten::batch_norm(%0, self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var, False, 0.1, 1e-05, True)
              return (%1)
        """,
    )
    assert_same_output(change.model, model, X)
    assert_same_output(change.model.features, model.features, X)


class ReadsWeight(ConvBn):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(x))
        return y + self.conv.weight.sum()


def test_weight_that_is_also_read_directly_stays() -> None:
    """For its norm, say."""
    model = scripted(ReadsWeight())
    change = before_and_after("fold_conv_bn", model)
    assert_same_output(change.model, model, X)
    assert_unchanged(
        change,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.conv.weight, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %1 : Tensor = aten::batch_norm(%0, self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var, False, 0.1, 1e-05, True)
              %2 : Tensor = aten::sum(self.conv.weight, None)
              %3 : Tensor = aten::add(%1, %2, 1)
              return (%3)
        """,
    )


class BiasReader(ConvBn):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(x))
        bias = self.conv.bias
        assert bias is not None
        return y + bias.sum()


def test_bias_that_is_also_read_directly_stays() -> None:
    model = scripted(BiasReader())
    change = before_and_after("fold_conv_bn", model)
    assert_same_output(change.model, model, X)
    assert_unchanged(
        change,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.conv.weight, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %1 : Tensor = aten::batch_norm(%0, self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var, False, 0.1, 1e-05, True)
              %2 : bool = aten::__isnot__(self.conv.bias, None)
               = prim::If(%2)
                block0():
                  -> ()
                block1():
                   = prim::RaiseException("AssertionError: ", None)
                  -> ()
              %3 : Tensor = prim::unchecked_cast(self.conv.bias)
              %4 : Tensor = aten::sum(%3, None)
              %5 : Tensor = aten::add(%1, %4, 1)
              return (%5)
        """,
    )


class WritesMean(ConvBn):
    def forward(self, x: Tensor) -> Tensor:
        mean = self.bn.running_mean
        assert mean is not None
        mean.add_(1)
        y: Tensor = self.bn(self.conv(x))
        return y


def test_statistics_that_the_model_writes_stay() -> None:
    model = scripted(WritesMean())
    change = before_and_after("fold_conv_bn", model)
    for _ in range(2):
        assert_same_output(change.model, model, X)
    assert_unchanged(
        change,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::add_(self.bn.running_mean, 1, 1)
              %1 : Tensor = aten::conv2d(%x, self.conv.weight, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %2 : Tensor = aten::batch_norm(%1, self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var, False, 0.1, 1e-05, True)
              return (%2)
        """,
    )


class SetsMean(ConvBn):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(x))
        return y

    @torch.jit.export
    def set_mean(self, mean: Tensor) -> None:
        self.bn.running_mean = mean


def test_statistics_that_another_method_sets_stay() -> None:
    model = scripted(SetsMean())
    change = before_and_after("fold_conv_bn", model)
    for each in (change.model, model):
        each.set_mean(torch.tensor([3.0, -3.0]))
    assert_same_output(change.model, model, X)


class BatchNormInBranch(ConvBn):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if bool(x.sum() > 0):
            y = self.bn(y)
        result: Tensor = y
        return result


def test_bn_in_a_branch_stays() -> None:
    model = scripted(BatchNormInBranch())
    change = before_and_after("fold_conv_bn", model)
    assert_unchanged(
        change,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.conv.weight, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %1 : Tensor = aten::sum(%x, None)
              %2 : Tensor = aten::gt(%1, 0)
              %3 : bool = aten::Bool(%2)
              %4 : Tensor = prim::If(%3)
                block0():
                  %5 : Tensor = aten::batch_norm(%0, self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var, False, 0.1, 1e-05, True)
                  -> (%5)
                block1():
                  -> (%0)
              return (%4)
        """,
    )
    assert_same_output(change.model, model, X)
    assert_same_output(change.model, model, -X)


# --- fuse_conv_bn_jit ---


@pytest.mark.parametrize("module", [ConvBn(), WithAndWithout(), Shared()])
def test_fuse_conv_bn_jit_keeps_the_output(module: nn.Module) -> None:
    model = scripted(module)
    assert_same_output(fuse_conv_bn_jit(model), model, X)


@pytest.mark.parametrize(("inputs", "outputs"), [(2, 0), (0, 2)])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_weights_without_elements_fold(inputs: int, outputs: int) -> None:
    model = nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs)).eval()
    fused = fuse_conv_bn_jit(scripted(model))
    assert "aten::batch_norm" not in str(fused.inlined_graph)


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(64, 64, 3), nn.ConvTranspose2d(64, 64, 3, groups=2)], ids=["conv", "transp"]
)
def test_weights_that_fold_in_parts(layer: nn.Module) -> None:
    norm = nn.BatchNorm2d(64).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2.0, 64))
    model = scripted(nn.Sequential(layer, norm))
    x = sample(1, 64, 5, 5)
    assert_same_output(fuse_conv_bn_jit(model), model, x, atol=1e-4)  # of values up to 15

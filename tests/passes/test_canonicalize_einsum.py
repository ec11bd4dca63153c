"""canonicalize_einsum: a product with a constant matrix becomes aten::matmul."""

import pytest
import torch
from torch import nn

from tests.ir import (
    assert_change,
    assert_same_output,
    assert_unchanged,
    before_and_after,
    sample,
    scripted,
)

X = sample(2, 3, 4)


def einsum(call: str) -> torch.jit.ScriptModule:
    """A model that returns torch.einsum(`call`) of x and the weights w (4, 5) and u (5, 4)."""

    class Weights(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(4, 5))
            self.u = nn.Parameter(torch.zeros(5, 4))

    model = scripted(Weights())
    model.define(f"""
def forward(self, x):
    w = self.w
    u = self.u
    return torch.einsum({call})
""")
    return model


def test_matrix_as_it_is() -> None:
    model = einsum("'bnd, de -> bne', x, w")
    change = before_and_after("canonicalize_einsum", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor[] = prim::ListConstruct(%x, self.w)
              %1 : Tensor = aten::einsum("bnd, de -> bne", %0, None)
              return (%1)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor[] = prim::ListConstruct(%x, self.w)
              %1 : Tensor = aten::matmul(%x, self.w)
              return (%1)
        """,
    )
    assert_same_output(change.model, model, X)


@pytest.mark.parametrize(
    "call",
    [
        "'...d,de->...e', x, w",
        "'...d,ed->...e', x, u",
        "'ed,bnd->bne', u, x",
        "'abk,mk->abm', x, u",
    ],
)
def test_spellings_of_one_layer(call: str) -> None:
    model = einsum(call)
    change = before_and_after("canonicalize_linear", model)
    assert "aten::linear" in change.after and "aten::einsum" not in change.after
    assert_same_output(change.model, model, X)


@pytest.mark.parametrize(
    "call",
    [
        "'bnd,bnd->bn', x, x",  # no matrix
        "'bnd,bmd->bnm', x, x",  # computed
        "'bnd,de->ben', x, w",  # another order
        "'bnd,de->be', x, w",  # sums over two
        "'bnd,de', x, w",  # an implicit result, in alphabetical order
        "'bnd,nd->bn', x, w[:3, :4]",
        "'bnd->bdn', x",
        "'de,ef->df', w, u",  # constants only
    ],
)
def test_others_stay(call: str) -> None:
    change = before_and_after("canonicalize_einsum", einsum(call))
    assert_unchanged(change, change.before)
    assert "aten::einsum" in change.after
    assert_same_output(change.model, einsum(call), X)

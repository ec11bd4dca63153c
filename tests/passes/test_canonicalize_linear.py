"""canonicalize_linear: every spelling of a fully connected layer becomes aten::linear."""

import pytest
import torch
from torch import Tensor, nn

from tests.ir import (
    assert_change,
    assert_same_output,
    assert_text,
    assert_unchanged,
    before_and_after,
    reasons,
    sample,
    scripted,
    traced,
)


def weights() -> torch.jit.ScriptModule:
    """`w` is (out, in), `u` is (in, out); a new class each time, for `define` to add forward to."""

    class Weights(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(3, 2))
            self.u = nn.Parameter(torch.zeros(2, 3))
            self.b = nn.Parameter(torch.zeros(3))

    return scripted(Weights())


def spelled(expression: str) -> torch.jit.ScriptModule:
    """A model whose forward returns `expression` of x, w, u and b."""
    model = weights()
    model.define(f"""
def forward(self, x):
    w = self.w
    u = self.u
    b = self.b
    return {expression}
""")
    return model


WITH_BIAS = """
    graph(self, %x : Tensor):
      %0 : Tensor = aten::linear(%x, self.w, self.b)
      return (%0)
"""
WITHOUT_BIAS = WITH_BIAS.replace("self.b", "None")


@pytest.mark.parametrize(
    ("expression", "before", "after"),
    [
        (
            "torch.addmm(b, x, w.t())",
            """
                graph(self, %x : Tensor):
                  %0 : Tensor = aten::t(self.w)
                  %1 : Tensor = aten::addmm(self.b, %x, %0, 1, 1)
                  return (%1)
            """,
            WITH_BIAS,
        ),
        (
            "torch.addmm(b, x, u)",
            """
                graph(self, %x : Tensor):
                  %0 : Tensor = aten::addmm(self.b, %x, self.u, 1, 1)
                  return (%0)
            """,
            WITH_BIAS.replace("self.w", "self.u_transposed"),
        ),
        (
            "x @ w.t()",
            """
                graph(self, %x : Tensor):
                  %0 : Tensor = aten::t(self.w)
                  %1 : Tensor = aten::matmul(%x, %0)
                  return (%1)
            """,
            WITHOUT_BIAS,
        ),
        (
            "x @ w.T",
            """
                graph(self, %x : Tensor):
                  %0 : Tensor = aten::numpy_T(self.w)
                  %1 : Tensor = aten::matmul(%x, %0)
                  return (%1)
            """,
            WITHOUT_BIAS,
        ),
        (
            "x @ w.transpose(0, 1)",
            """
                graph(self, %x : Tensor):
                  %0 : Tensor = aten::transpose(self.w, 0, 1)
                  %1 : Tensor = aten::matmul(%x, %0)
                  return (%1)
            """,
            WITHOUT_BIAS,
        ),
        (
            "x @ w.transpose(-1, -2)",
            """
                graph(self, %x : Tensor):
                  %0 : Tensor = aten::transpose(self.w, -1, -2)
                  %1 : Tensor = aten::matmul(%x, %0)
                  return (%1)
            """,
            WITHOUT_BIAS,
        ),
        (
            "x @ w.permute(1, 0)",
            """
                graph(self, %x : Tensor):
                  %0 : Tensor = aten::permute(self.w, [1, 0])
                  %1 : Tensor = aten::matmul(%x, %0)
                  return (%1)
            """,
            WITHOUT_BIAS,
        ),
        (
            "x @ w.permute([-1, -2])",
            """
                graph(self, %x : Tensor):
                  %0 : Tensor = aten::permute(self.w, [-1, -2])
                  %1 : Tensor = aten::matmul(%x, %0)
                  return (%1)
            """,
            WITHOUT_BIAS,
        ),
        (
            "torch.mm(x, w.t())",
            """
                graph(self, %x : Tensor):
                  %0 : Tensor = aten::t(self.w)
                  %1 : Tensor = aten::mm(%x, %0)
                  return (%1)
            """,
            WITHOUT_BIAS,
        ),
        (
            "torch.matmul(x, u)",
            """
                graph(self, %x : Tensor):
                  %0 : Tensor = aten::matmul(%x, self.u)
                  return (%0)
            """,
            WITHOUT_BIAS.replace("self.w", "self.u_transposed"),
        ),
        (
            "x @ w.t() + b",
            """
                graph(self, %x : Tensor):
                  %0 : Tensor = aten::t(self.w)
                  %1 : Tensor = aten::matmul(%x, %0)
                  %2 : Tensor = aten::add(%1, self.b, 1)
                  return (%2)
            """,
            WITH_BIAS,
        ),
        (
            "b + x @ w.t()",
            """
                graph(self, %x : Tensor):
                  %0 : Tensor = aten::t(self.w)
                  %1 : Tensor = aten::matmul(%x, %0)
                  %2 : Tensor = aten::add(self.b, %1, 1)
                  return (%2)
            """,
            WITH_BIAS,
        ),
        (
            "x @ u + b",
            """
                graph(self, %x : Tensor):
                  %0 : Tensor = aten::matmul(%x, self.u)
                  %1 : Tensor = aten::add(%0, self.b, 1)
                  return (%1)
            """,
            WITH_BIAS.replace("self.w", "self.u_transposed"),
        ),
    ],
)
def test_spelling_becomes_linear(expression: str, before: str, after: str) -> None:
    model = spelled(expression)
    change = before_and_after("canonicalize_linear", model)
    assert_change(change, before, after)
    assert_same_output(change.model, model, sample(4, 2))
    assert [op for op in reasons(change.model) if op[0] == "aten::linear"] == [
        ("aten::linear", "int8")
    ]


def test_traced_linear_is_spelled_so_already() -> None:
    model = traced(nn.Sequential(nn.Linear(2, 3)), sample(1, 2))
    assert_unchanged(
        before_and_after("canonicalize_linear", model),
        """
            graph(self, %input : Tensor):
              %0 : Tensor = aten::linear(%input, self.0.weight, self.0.bias)
              return (%0)
        """,
    )


@pytest.mark.parametrize(
    ("expression", "graph"),
    [
        (
            "torch.addmm(b, x, w.t(), beta=2)",
            """
                graph(self, %x : Tensor):
                  %0 : Tensor = aten::t(self.w)
                  %1 : Tensor = aten::addmm(self.b, %x, %0, 2, 1)
                  return (%1)
            """,
        ),
        (
            "torch.addmm(b, x, w.t(), alpha=2)",
            """
                graph(self, %x : Tensor):
                  %0 : Tensor = aten::t(self.w)
                  %1 : Tensor = aten::addmm(self.b, %x, %0, 1, 2)
                  return (%1)
            """,
        ),
        (
            "torch.addmm(x, x, w.t())",
            """
                graph(self, %x : Tensor):
                  %0 : Tensor = aten::t(self.w)
                  %1 : Tensor = aten::addmm(%x, %x, %0, 1, 1)
                  return (%1)
            """,
        ),
        (
            "x @ x.t()",
            """
                graph(self, %x : Tensor):
                  %0 : Tensor = aten::t(%x)
                  %1 : Tensor = aten::matmul(%x, %0)
                  return (%1)
            """,
        ),
        (
            "w @ x",
            """
                graph(self, %x : Tensor):
                  %0 : Tensor = aten::matmul(self.w, %x)
                  return (%0)
            """,
        ),
        (
            "x @ w.transpose(0, 0)",
            """
                graph(self, %x : Tensor):
                  %0 : Tensor = aten::transpose(self.w, 0, 0)
                  %1 : Tensor = aten::matmul(%x, %0)
                  return (%1)
            """,
        ),
    ],
)
def test_other_products_stay(expression: str, graph: str) -> None:
    model = spelled(expression)
    change = before_and_after("canonicalize_linear", model)
    assert_unchanged(change, graph)
    x = sample(2, 2) if "w @ x" in expression or "0, 0" in expression else sample(3, 2)
    if "0, 0" in expression:
        x = sample(4, 3)
    if "addmm(x" in expression:
        return  # the shapes only fit a model of another size
    assert_same_output(change.model, model, x)


@pytest.mark.parametrize(
    ("expression", "after"),
    [
        (
            "x @ w.t() + 1",
            """
                graph(self, %x : Tensor):
                  %0 : Tensor = aten::linear(%x, self.w, None)
                  %1 : Tensor = aten::add(%0, 1, 1)
                  return (%1)
            """,
        ),
        (
            "x @ w.t() + x.sum()",
            """
                graph(self, %x : Tensor):
                  %0 : Tensor = aten::linear(%x, self.w, None)
                  %1 : Tensor = aten::sum(%x, None)
                  %2 : Tensor = aten::add(%0, %1, 1)
                  return (%2)
            """,
        ),
        (
            "torch.add(x @ w.t(), b, alpha=2)",
            """
                graph(self, %x : Tensor):
                  %0 : Tensor = aten::linear(%x, self.w, None)
                  %1 : Tensor = aten::add(%0, self.b, 2)
                  return (%1)
            """,
        ),
    ],
)
def test_sum_that_is_no_bias_stays_behind_the_linear(expression: str, after: str) -> None:
    model = spelled(expression)
    change = before_and_after("canonicalize_linear", model)
    assert_text(change.after, after)
    assert_same_output(change.model, model, sample(4, 2))


def test_product_with_a_second_user_keeps_its_sum() -> None:
    model = weights()
    model.define("""
def forward(self, x):
    y = x @ self.w.t()
    return y + self.b, y
""")
    change = before_and_after("canonicalize_linear", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::t(self.w)
              %1 : Tensor = aten::matmul(%x, %0)
              %2 : Tensor = aten::add(%1, self.b, 1)
              %3 : (Tensor, Tensor) = prim::TupleConstruct(%2, %1)
              return (%3)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::linear(%x, self.w, None)
              %1 : Tensor = aten::add(%0, self.b, 1)
              %2 : (Tensor, Tensor) = prim::TupleConstruct(%1, %0)
              return (%2)
        """,
    )
    assert_same_output(change.model, model, sample(4, 2))


def test_users_attribute_of_the_name_of_the_transposed_weight_survives() -> None:
    class Clash(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.u = nn.Parameter(torch.zeros(2, 3))
            self.u_transposed = nn.Parameter(torch.zeros(3, 2))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.u + x @ self.u_transposed.t()

    model = scripted(Clash())
    change = before_and_after("canonicalize_linear", model)
    assert_same_output(change.model, model, sample(4, 2))


def test_weight_that_changes_between_calls_is_no_constant() -> None:
    class Drifts(nn.Module):
        u: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("u", torch.zeros(2, 3))

        def forward(self, x: Tensor) -> Tensor:
            self.u += 1
            return x @ self.u

    model = scripted(Drifts())
    prepared = before_and_after("canonicalize_linear", model).model
    x = torch.ones(1, 2)
    for _ in range(3):
        assert_same_output(prepared, model, x)

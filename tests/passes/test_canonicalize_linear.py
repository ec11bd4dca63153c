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
    graph(self, %x.1 : Tensor):
      %0 : Tensor = aten::linear(%x.1, self.w, self.b)
      return (%0)
"""
WITHOUT_BIAS = WITH_BIAS.replace("self.b", "None")


@pytest.mark.parametrize(
    ("expression", "before", "after"),
    [
        (
            "torch.addmm(b, x, w.t())",
            """
            graph(self, %x.1 : Tensor):
              %0 : Tensor = aten::t(self.w)
              %1 : Tensor = aten::addmm(self.b, %x.1, %0, 1, 1)
              return (%1)
        """,
            WITH_BIAS,
        ),
        ("torch.addmm(b, x, u)", """@s2""", WITH_BIAS.replace("self.w", "self.u_transposed")),
        ("x @ w.t()", """@s3""", WITHOUT_BIAS),
        ("x @ w.T", """@s4""", WITHOUT_BIAS),
        ("x @ w.transpose(0, 1)", """@s5""", WITHOUT_BIAS),
        ("x @ w.transpose(-1, -2)", """@s6""", WITHOUT_BIAS),
        ("x @ w.permute(1, 0)", """@s7""", WITHOUT_BIAS),
        ("x @ w.permute([-1, -2])", """@s8""", WITHOUT_BIAS),
        ("torch.mm(x, w.t())", """@s9""", WITHOUT_BIAS),
        ("torch.matmul(x, u)", """@s10""", WITHOUT_BIAS.replace("self.w", "self.u_transposed")),
        ("x @ w.t() + b", """@s11""", WITH_BIAS),
        ("b + x @ w.t()", """@s12""", WITH_BIAS),
        ("x @ u + b", """@s13""", WITH_BIAS.replace("self.w", "self.u_transposed")),
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
        graph(self, %input : Float(1, 2, strides=[2, 1], requires_grad=0, device=cpu)):
          %0 : Float(1, 3, strides=[3, 1], requires_grad=1, device=cpu) = aten::linear(%input, self.0.weight, self.0.bias)
          return (%0)
    """,
    )


@pytest.mark.parametrize(
    ("expression", "graph"),
    [
        ("torch.addmm(b, x, w.t(), beta=2)", """@n1"""),
        ("torch.addmm(b, x, w.t(), alpha=2)", """@n2"""),
        ("torch.addmm(x, x, w.t())", """@n3"""),
        ("x @ x.t()", """@n4"""),
        ("w @ x", """@n5"""),
        ("x @ w.transpose(0, 0)", """@n6"""),
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
        ("x @ w.t() + 1", """@p1"""),
        ("x @ w.t() + x.sum()", """@p2"""),
        ("torch.add(x @ w.t(), b, alpha=2)", """@p3"""),
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
    assert_change(change, before="""@u_b""", after="""@u_a""")
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

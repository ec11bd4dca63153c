"""quantize_tables: the table of an embedding is packed and unpacked."""

import pytest
from torch import Tensor, nn

from jitquant import (
    QConfig,
    default_dynamic_qconfig,
    float_qparams_weight_only_qconfig,
    float_qparams_weight_only_qconfig_4bit,
)
from tests.ir import Change, assert_change, assert_unchanged, before_and_after, scripted


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 4)

    def forward(self, i: Tensor) -> Tensor:
        y: Tensor = self.table(i)
        return y


BEFORE = """
    graph(self, %i : Tensor):
      %0 : Tensor = aten::embedding(self.table.weight, %i, -1, False, False)
      return (%0)
"""


def change(qconfig: QConfig | None) -> Change:
    return before_and_after(
        "quantize_tables",
        scripted(Table()),
        qconfig_dict={"": qconfig, "object_type": [("aten::mul", default_dynamic_qconfig)]}
        if qconfig is None
        else {"": qconfig},
        function="prepare_dynamic_jit",
    )


@pytest.mark.parametrize(
    ("qconfig", "width"),
    [
        (float_qparams_weight_only_qconfig, "byte"),
        (float_qparams_weight_only_qconfig_4bit, "4bit"),
    ],
)
def test_the_table_is_packed(qconfig: QConfig, width: str) -> None:
    more = ", False, 200, 0.16" if width == "4bit" else ""
    assert_change(
        change(qconfig),
        BEFORE,
        f"""
            graph(self, %i : Tensor):
              %0 : Tensor = quantized::embedding_bag_{width}_prepack(self.table.weight{more})
              %1 : Tensor = quantized::embedding_bag_{width}_unpack(%0)
              %2 : Tensor = aten::embedding(%1, %i, -1, False, False)
              return (%2)
        """,
    )


def test_other_qconfigs_leave_the_table() -> None:
    """One for layers that are computed with dynamic values, say."""
    assert_unchanged(change(default_dynamic_qconfig), BEFORE)

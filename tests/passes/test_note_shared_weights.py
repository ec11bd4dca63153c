"""note_shared_weights: coverage says where a weight is in the file twice."""

from typing import Any

import torch
from torch import Tensor, nn

import jitquant
from jitquant import QConfig
from tests.ir import FIXED, assert_unchanged, before_and_after, example_model

TWICE = "; its weight is in the file twice, packed for aten::linear in 'head' too"
DYNAMIC = {"": jitquant.per_channel_dynamic_qconfig}
TABLES = {
    **DYNAMIC,
    "object_type": [(nn.Embedding, jitquant.float_qparams_weight_only_qconfig)],
}


GRAPH = """
    graph(self, %i : Tensor):
      %0 : Tensor = aten::embedding(self.table.weight, %i, -1, False, False)
      %1 : Tensor = aten::quantize_per_tensor(self.head.weight, 0.03125, 0, 12)
      %2 : __torch__.torch.classes.quantized.LinearPackedParamsBase = quantized::linear_prepack(%1, self.head.bias)
      %3 : Tensor = quantized::linear_dynamic(%0, %2, False)
      return (%3)
"""


class Tied(nn.Module):
    """The table is the weight of the last layer too."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, i: Tensor) -> Tensor:
        y: Tensor = self.head(self.table(i))
        return y


def reasons(module: nn.Module, config: dict[str, Any]) -> dict[str, str]:
    model = torch.jit.script(example_model(module))
    converted = jitquant.quantize_dynamic_jit(model, config)
    return {op.op: op.reason for op in jitquant.coverage(converted).ops}


def test_the_graph_stays() -> None:
    model = torch.jit.script(example_model(Tied()))
    change = before_and_after(
        "note_shared_weights",
        model,
        qconfig_dict={"": QConfig(jitquant.default_dynamic_qconfig.activation, FIXED.weight)},
        function="prepare_dynamic_jit",
    )
    assert_unchanged(change, GRAPH)


def test_a_float_table_and_a_packed_layer() -> None:
    tied, apart = (reasons(Tied(each), DYNAMIC) for each in (True, False))
    assert tied["aten::embedding"] == apart["aten::embedding"] + TWICE
    assert tied["aten::linear"] == "quantized::linear_dynamic"


def test_float16_weights_are_packed_too() -> None:
    config = {"": jitquant.float16_dynamic_qconfig}
    assert reasons(Tied(), config)["aten::embedding"].endswith(TWICE)


def test_static_layers_too() -> None:
    model = torch.jit.script(example_model(Tied()))
    ids = torch.arange(6)
    result = jitquant.quantize_jit(model, {"": jitquant.default_qconfig}, lambda m: m(ids))
    found = {op.op: op.reason for op in jitquant.coverage(result).ops}
    assert found["aten::embedding"].endswith(TWICE)


def test_both_packed_or_both_float_is_no_matter() -> None:
    assert not any("twice" in reason for reason in reasons(Tied(), TABLES).values())
    config = {**DYNAMIC, "head": None}
    assert not any("twice" in reason for reason in reasons(Tied(), config).values())

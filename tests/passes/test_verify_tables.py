"""verify_tables: embeddings whose packed table gives something else become float again."""

import torch
from torch import Tensor, nn

from jitquant import (
    convert_dynamic_jit,
    float_qparams_weight_only_qconfig,
    prepare_dynamic_jit,
)
from tests.ir import reasons, scripted


class Bags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(6, 4, mode="sum")

    def forward(self, i: Tensor) -> Tensor:
        y: Tensor = self.table(i)
        return y


def converted(value: float) -> torch.jit.ScriptModule:
    model = scripted(Bags())
    model.table.weight.data.fill_(value)
    return convert_dynamic_jit(prepare_dynamic_jit(model, {"": float_qparams_weight_only_qconfig}))


def test_right_ops_stay() -> None:
    assert reasons(converted(3.0))[-1][1] == "quantized::embedding_bag_byte_rowwise_offsets"


def test_another_result_is_found() -> None:
    """Sums beyond float32 are infinite, of which no difference can be said to be small."""
    model = converted(3e38)
    assert reasons(model)[-1] == ("aten::embedding_bag", "its packed form is wrong")
    assert model(torch.tensor([[1]])).tolist() == [[torch.tensor(3e38).item()] * 4]
    assert "quantized::" not in str(model.graph)

"""Files of dynamic models: a weight is in them once, and stock torch runs them, in C++ too."""

import io
import re
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import jitquant
from jitquant import QConfig
from tests.cpp_runtime import run_cpp
from tests.models import sqnr
from tests.test_deployment import RUN_WITHOUT_JITQUANT, python

TABLES = jitquant.float_qparams_weight_only_qconfig
QCONFIGS = [
    (jitquant.per_channel_dynamic_qconfig, TABLES),
    (jitquant.default_dynamic_qconfig, jitquant.float_qparams_weight_only_qconfig_4bit),
    (jitquant.float16_dynamic_qconfig, TABLES),
]
ROWS, WIDTH = 300, 32
INDICES = torch.arange(12).reshape(6, 2)


class Text(nn.Module):
    """Two methods that read the same table, bag, linear layer, LSTM, GRU and cell."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, WIDTH)
        self.bag = nn.EmbeddingBag(ROWS, WIDTH, mode="sum")
        self.hidden = nn.Linear(WIDTH, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH)
        self.gru = nn.GRU(WIDTH, WIDTH)
        self.cell = nn.LSTMCell(WIDTH, WIDTH)

    def forward(self, i: Tensor) -> Tensor:
        x = torch.relu(self.hidden(self.table(i)))
        x = self.gru(self.lstm(x)[0])[0]
        h = self.cell(self.bag(i))[0]
        y: Tensor = x[:, 0] + h
        return y

    @torch.jit.export
    def other(self, i: Tensor) -> Tensor:
        x = self.lstm(self.gru(self.hidden(self.table(i)))[0])[0]
        y: Tensor = x[:, 0] - self.cell(self.bag(i + 1))[0]
        return y


class Tied(nn.Module):
    """A table whose rows are the weights of the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, WIDTH)
        self.head = nn.Linear(WIDTH, ROWS)
        self.head.weight = self.table.weight

    def forward(self, i: Tensor) -> Tensor:
        y: Tensor = self.head(self.table(i))
        return y


def script(make: type[nn.Module]) -> torch.jit.ScriptModule:
    torch.manual_seed(0)
    model: torch.jit.ScriptModule = torch.jit.script(make().eval())
    return model


def quantize(
    make: type[nn.Module], layers: QConfig, tables: QConfig | None, *methods: str
) -> torch.jit.ScriptModule:
    mapping = jitquant.QConfigMapping().set_global(layers)
    if tables is not None:
        mapping = mapping.set_module_name_regex("table|bag", tables)
    return jitquant.quantize_dynamic_jit(script(make), mapping, preserved_attrs=methods)


def tensor_bytes(model: torch.jit.ScriptModule) -> int:
    """Of all tensors in the file: those of attributes, of packed params, and constants."""
    with zipfile.ZipFile(io.BytesIO(model.save_to_buffer())) as archive:
        return sum(
            entry.file_size
            for entry in archive.infolist()
            if entry.filename.split("/")[1] in ("data", "constants")
        )


@pytest.mark.parametrize(("layers", "tables"), QCONFIGS)
def test_two_methods_hold_a_weight_once(layers: QConfig, tables: QConfig) -> None:
    message = (
        "the converted model does not have the methods 'other' of the prepared one. "
        "preserved_attrs=['other'] keeps them."
    )
    with pytest.warns(jitquant.DroppedWarning, match=f"^{re.escape(message)}$"):
        one = quantize(Text, layers, tables)
    two = quantize(Text, layers, tables, "other")
    assert two(INDICES).shape == two.other(INDICES).shape
    assert torch.equal(one(INDICES), two(INDICES))
    assert tensor_bytes(two) == tensor_bytes(one)


@pytest.mark.parametrize("tables", [None, TABLES])
def test_tied_weights(tables: QConfig | None) -> None:
    """Packed for the layer, and for the table float or packed another way, each once."""
    result = quantize(Tied, jitquant.default_dynamic_qconfig, tables)
    weights = ROWS * WIDTH
    table = 4 * weights if tables is None else weights + 8 * ROWS
    bias = 4 * ROWS
    assert tensor_bytes(result) == pytest.approx(weights + bias + table, abs=100)
    reasons = {op.op: op.reason for op in jitquant.coverage(result).ops}
    noted = "; its weight is in the file twice, packed for aten::linear in 'head' too"
    assert reasons["aten::embedding"].endswith(noted) == (tables is None)
    assert sqnr(script(Tied)(INDICES), result(INDICES)) > 30


@pytest.mark.parametrize(("layers", "tables"), QCONFIGS[1:])
def test_stock_torch_runs_them(layers: QConfig, tables: QConfig, tmp_path: Path) -> None:
    """The same bits in a process without jitquant, and in C++."""
    model_path, input_path, output_path = (tmp_path / name for name in ("m.pt", "x.pt", "y.pt"))
    result = quantize(Text, layers, tables, "other")
    torch.jit.save(result, model_path)
    torch.save([INDICES], input_path)
    python(RUN_WITHOUT_JITQUANT, model_path, input_path, output_path)
    with torch.inference_mode():
        expected = result(INDICES)
    assert torch.equal(torch.load(output_path)[0], expected)
    assert torch.equal(run_cpp(model_path, INDICES), expected)

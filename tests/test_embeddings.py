"""Embeddings whose tables are packed: rows of bytes and of 4 bits, looked up and in bags."""

import io
from typing import Any

import pytest
import torch
import torch.ao.quantization as torch_ao
from torch import Tensor, nn
from torch.nn import functional

import jitquant
from jitquant import JitQuantValueError, QConfig
from jitquant._engine import engine_set
from jitquant.observers import PlaceholderObserver
from tests.models import assert_untouched, graph_text, reloaded, sqnr

QCONFIGS = {
    8: jitquant.float_qparams_weight_only_qconfig,
    4: jitquant.float_qparams_weight_only_qconfig_4bit,
}
LOOK_UPS = {
    8: "quantized::embedding_bag_byte_rowwise_offsets",
    4: "quantized::embedding_bag_4bit_rowwise_offsets",
}
ROWS, COLUMNS = 40, 6
BITS = [8, 4]


class Table(nn.Module):
    def __init__(self, columns: int = COLUMNS) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, columns, padding_idx=0)

    def forward(self, i: Tensor) -> Tensor:
        y: Tensor = self.table(i)
        return y


class Bag(nn.Module):
    def __init__(self, mode: str, **options: Any) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(ROWS, COLUMNS, mode=mode, **options)

    def forward(self, i: Tensor, o: Tensor | None) -> Tensor:
        y: Tensor = self.table(i, o)
        return y


class BagWithOffsets(nn.Module):
    """One form of indices only, so that the form of offsets is a constant of the graph."""

    def __init__(self, mode: str, last: bool) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(ROWS, COLUMNS, mode=mode, include_last_offset=last)

    def forward(self, i: Tensor, o: Tensor) -> Tensor:
        y: Tensor = self.table(i, o)
        return y


class WeightedBag(Bag):
    def forward(self, i: Tensor, o: Tensor | None, w: Tensor) -> Tensor:  # type: ignore[override]
        y: Tensor = self.table(i, o, w)
        return y


class MeansOfRows(nn.Module):
    """What the trace of an nn.EmbeddingBag of matrices has."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(ROWS, COLUMNS)

    def forward(self, i: Tensor) -> Tensor:
        y: Tensor = self.table(i)
        return y


def rounded(weight: Tensor, bits: int) -> Tensor:
    """Each row in its own range, by the formulas: 8 bits with float32, 4 bits with float16."""
    weight = weight.detach()
    low, high = weight.aminmax(dim=1, keepdim=True)
    if bits == 4:
        low = low.half().float()
    scale = (high - low) / (2**bits - 1)
    if bits == 4:
        scale = scale.half().float()
    scale = torch.where(scale == 0, 1.0, scale)
    return ((weight - low) / scale).round().clamp(0, 2**bits - 1) * scale + low


def quantize(model: torch.jit.ScriptModule, bits: int) -> torch.jit.ScriptModule:
    with assert_untouched(model):
        return reloaded(jitquant.quantize_dynamic_jit(model, {"": QCONFIGS[bits]}))


def script(module: nn.Module) -> Any:
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.data.normal_()
    return torch.jit.script(module.eval())


def reason(model: torch.jit.ScriptModule) -> str:
    kinds = ("aten::embedding", "aten::embedding_bag")
    (found,) = [op.reason for op in jitquant.coverage(model).ops if op.op in kinds]
    return found


INDICES = torch.randint(0, ROWS, (24,), generator=torch.Generator().manual_seed(0))
OFFSETS = torch.tensor([0, 3, 3, 10])  # the second bag is empty


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(24,), (4, 6), (2, 3, 4), ()])
@pytest.mark.parametrize("how", ["script", "trace"])
def test_rows_are_looked_up(bits: int, shape: tuple[int, ...], how: str) -> None:
    module = Table()
    model = script(module)
    indices = INDICES.reshape(shape) if shape else INDICES[3]
    if how == "trace":
        model = torch.jit.trace(module, (indices,))
    result = quantize(model, bits)
    assert reason(result) == LOOK_UPS[bits]
    assert "prepack" not in graph_text(result) and "aten::embedding(" not in graph_text(result)
    expected = rounded(model.table.weight, bits)
    torch.testing.assert_close(result(indices), expected[indices], rtol=0, atol=1e-5)
    assert torch.equal(result(indices.int()), result(indices))
    assert result(indices.reshape(-1)[:0]).shape == (0, COLUMNS)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("last", [False, True])
def test_bags(bits: int, mode: str, last: bool) -> None:
    """Stock kernels sum whatever the mode is; an empty bag gives zeros."""
    model = script(BagWithOffsets(mode, last) if last else Bag(mode))
    result = quantize(model, bits)
    assert reason(result) == LOOK_UPS[bits]
    table = rounded(model.table.weight, bits)
    offsets = torch.cat([OFFSETS, torch.tensor([len(INDICES)])]) if last else OFFSETS
    expected = functional.embedding_bag(
        INDICES, table, offsets, mode=mode, include_last_offset=last
    )
    assert not expected[1].any()
    output = result(INDICES, offsets)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(result(INDICES.int(), offsets.int()), expected, rtol=0, atol=1e-5)
    if not last:  # torch.nn has none for matrices
        matrix = INDICES.reshape(4, 6)
        expected = functional.embedding_bag(matrix, table, mode=mode)
        torch.testing.assert_close(result(matrix, None), expected, rtol=0, atol=1e-5)


def test_sums_may_choose_the_form_of_offsets_when_they_run() -> None:
    """As torch.nn does for matrices, which have no last offset."""
    model = script(Bag("sum", include_last_offset=True))
    result = quantize(model, 8)
    assert reason(result) == LOOK_UPS[8]
    table = rounded(model.table.weight, 8)
    for indices, offsets in ((INDICES.reshape(4, 6), None), (INDICES, torch.tensor([0, 3, 24]))):
        expected = functional.embedding_bag(
            indices, table, offsets, mode="sum", include_last_offset=offsets is not None
        )
        torch.testing.assert_close(result(indices, offsets), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bits", BITS)
def test_weighted_bags(bits: int) -> None:
    model = script(WeightedBag("sum"))
    result = quantize(model, bits)
    assert reason(result) == LOOK_UPS[bits]
    weights = torch.linspace(0.5, 1.5, len(INDICES))
    table = rounded(model.table.weight, bits)
    expected = functional.embedding_bag(
        INDICES, table, OFFSETS, mode="sum", per_sample_weights=weights
    )
    torch.testing.assert_close(result(INDICES, OFFSETS, weights), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bits", BITS)
def test_traced_bags(bits: int) -> None:
    matrix = INDICES.reshape(4, 6)
    model = torch.jit.trace(MeansOfRows().eval(), (matrix,))
    result = quantize(model, bits)
    assert reason(result) == LOOK_UPS[bits]
    expected = functional.embedding_bag(matrix, rounded(model.table.weight, bits), mode="mean")
    torch.testing.assert_close(result(matrix), expected, rtol=0, atol=1e-5)


# --- what stays float ---


class BagWithSizes(nn.Module):
    """Reads what torch.nn throws away: how many rows each bag has."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(ROWS, COLUMNS))

    def forward(self, i: Tensor, o: Tensor) -> tuple[Tensor, Tensor]:
        y, _, sizes, _ = torch.embedding_bag(self.weight, i, o, False, 1)
        return y, sizes


class BagOfAnyMode(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(ROWS, COLUMNS))

    def forward(self, i: Tensor, o: Tensor) -> Tensor:
        return torch.embedding_bag(self.weight, i, o, False, int(o.shape[0] > 2))[0]


class ComputedTable(BagOfAnyMode):
    def forward(self, i: Tensor, o: Tensor) -> Tensor:
        return functional.embedding(i, self.weight * o.float().mean())


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (Bag("max"), "torch's kernels of packed tables know no max"),
        (
            Bag("sum", padding_idx=3),
            "its padding_idx leaves rows out, and torch's kernels of packed tables do not",
        ),
        (BagWithSizes(), "more than its sums or means is read"),
        (BagOfAnyMode(), "its mode is computed at run time"),
        (
            Bag("mean", include_last_offset=True),
            "its form of offsets is chosen at run time",
        ),
        (ComputedTable(), "its table is computed at run time"),
    ],
)
@pytest.mark.parametrize("bits", BITS)
def test_ops_that_stay_float(module: nn.Module, expected: str, bits: int) -> None:
    model = script(module)
    result = quantize(model, bits)
    assert reason(result) == expected
    torch.testing.assert_close(result(INDICES, OFFSETS), model(INDICES, OFFSETS), rtol=0, atol=0)


SPAN = "its rows span too much or too little for the kernel that packs them"
FLOAT16 = (
    "a scale or lowest value of its rows is out of reach for float16, which rows of 4 bits have "
    "for these"
)


@pytest.mark.parametrize(
    ("bits", "columns", "factor", "shift", "expected"),
    [
        (4, 5, 1.0, 0.0, "rows of 4 bits need an even number of columns"),
        (4, COLUMNS, 1e6, 0.0, FLOAT16),
        (4, COLUMNS, 1e-8, 0.0, FLOAT16),
        (4, COLUMNS, 0.01, 100.0, FLOAT16),
        (8, COLUMNS, 2e38, 0.0, SPAN),
        (8, COLUMNS, 1e-8, 0.0, SPAN),
    ],
)
def test_tables_that_stay_float(
    bits: int, columns: int, factor: float, shift: float, expected: str
) -> None:
    """Stock kernels give NaN, zeros or other rows without a word."""
    model = script(Table(columns))
    weight = model.table.weight.data
    weight.div_(weight.abs().max()).mul_(factor).add_(shift)
    weight[0, 0], weight[0, 1] = shift - factor, shift + factor
    result = quantize(model, bits)
    assert reason(result) == expected
    assert torch.equal(result(INDICES), model(INDICES))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda table: table.mul(100).long(), "its table is Long, not float32"),
        (lambda table: table.index_fill(0, INDICES[:1], torch.nan), "its table holds NaN or "),
        (lambda table: table[:0], "its table is empty"),
    ],
)
@pytest.mark.parametrize("bits", BITS)
def test_odd_tables(change: Any, expected: str, bits: int) -> None:
    module = Table()
    weight = change(module.table.weight.data)
    module.table.weight = nn.Parameter(weight, requires_grad=False)
    result = quantize(torch.jit.script(module.eval()), bits)
    assert reason(result).startswith(expected)


def test_a_table_that_is_written_stays_float() -> None:
    """max_norm scales the rows that are read, in place; scripts lose that, in torch itself."""
    module = Table()
    module.table.max_norm = 0.5
    indices = INDICES.reshape(4, 6)
    model = torch.jit.trace(module.eval(), (indices,), check_trace=False)
    result = quantize(model, 8)
    assert reason(result) == "its table is computed at run time"
    torch.testing.assert_close(result(indices), model(indices), rtol=0, atol=0)


def test_an_index_out_of_range_is_an_error_as_in_float() -> None:
    result = quantize(script(Table()), 8)
    for index in (ROWS, -1):
        with pytest.raises(RuntimeError, match=f"out of bounds: {index}"):
            result(torch.tensor([index]))


# --- configuration ---


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, 64)
        self.hidden = nn.Linear(64, 64)
        self.head = nn.Linear(64, 4)

    def forward(self, i: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.hidden(self.table(i))))
        return y


BY_TYPE: dict[str, Any] = {"object_type": [(nn.Embedding, QCONFIGS[8])]}


def test_tables_beside_dynamic_layers() -> None:
    model = script(Words())
    config = {"": jitquant.per_channel_dynamic_qconfig, **BY_TYPE}
    result = reloaded(jitquant.quantize_dynamic_jit(model, config))
    assert [(op.op, op.int8) for op in jitquant.coverage(result).ops] == [
        ("aten::embedding", True),
        ("aten::linear", True),
        ("aten::relu", True),
        ("aten::linear", True),
    ]
    assert sqnr(model(INDICES), result(INDICES)) > 30
    sizes = []
    for each in (model, result):
        buffer = io.BytesIO()
        torch.jit.save(each, buffer)
        sizes.append(len(buffer.getvalue()))
    weights = ROWS * (64 + 8) + 64 * 64 + 64 * 4
    assert sizes[1] - weights < sizes[0] - 4 * (ROWS * 64 + 64 * 64 + 64 * 4)


def test_tables_beside_static_layers() -> None:
    """Of the values of a table nothing is calibrated."""
    model = script(Words())
    config = {"": jitquant.default_qconfig, **BY_TYPE}
    result = reloaded(jitquant.quantize_jit(model, config, lambda m: m(INDICES)))
    reasons = [op.reason for op in jitquant.coverage(result).int8]
    assert reasons[:2] == [LOOK_UPS[8], "quantized::linear_relu"]
    assert sqnr(model(INDICES), result(INDICES)) > 30


def test_layers_with_the_qconfig_of_tables_stay_float() -> None:
    reasons = {op.op: op.reason for op in jitquant.coverage(quantize(script(Words()), 8)).ops}
    assert reasons["aten::linear"] == "its qconfig is for the tables of embeddings"
    assert reasons["aten::relu"] == "its qconfig is for the tables of embeddings"


@pytest.mark.parametrize(
    ("theirs", "bits"),
    [
        (torch_ao.float_qparams_weight_only_qconfig, 8),
        (torch_ao.float_qparams_weight_only_qconfig_4bit, 4),
    ],
)
def test_qconfigs_of_torch_ao(theirs: object, bits: int) -> None:
    model = script(Table())
    result = jitquant.quantize_dynamic_jit(model, {"": theirs})
    assert torch.equal(result(INDICES), quantize(model, bits)(INDICES))


def test_the_same_numbers_as_torch_ao() -> None:
    """Its packed params have the same rows."""
    module = Table().eval()
    model = torch.jit.script(module)
    theirs = torch_ao.quantize_dynamic(
        module, {nn.Embedding: torch_ao.float_qparams_weight_only_qconfig}
    )
    torch.testing.assert_close(quantize(model, 8)(INDICES), theirs(INDICES), rtol=0, atol=1e-5)


def test_in_files() -> None:
    mapping = jitquant.QConfigMapping.from_dict(
        {
            "": "per_channel_dynamic",
            "object_type": [["aten::embedding", "float_qparams_weight_only"]],
        }
    )
    result = jitquant.quantize_dynamic_jit(script(Words()), mapping)
    assert reason(result) == LOOK_UPS[8]
    again = jitquant.QConfigMapping.from_json(
        jitquant.QConfigMapping().set_global(QCONFIGS[4]).to_json()
    )
    assert reason(jitquant.quantize_dynamic_jit(script(Words()), again)) == LOOK_UPS[4]


@pytest.mark.parametrize("bits", BITS)
def test_debug_computes_the_same_in_float(bits: int) -> None:
    model = script(Table())
    debug = reloaded(jitquant.quantize_dynamic_jit(model, {"": QCONFIGS[bits]}, debug=True))
    assert torch.equal(debug.table.weight, model.table.weight)
    assert "aten::embedding(" in graph_text(debug)
    torch.testing.assert_close(debug(INDICES), quantize(model, bits)(INDICES), rtol=0, atol=1e-6)


@pytest.mark.parametrize("engine", ["x86", "fbgemm", "onednn", "qnnpack"])
@pytest.mark.parametrize("bits", BITS)
def test_every_engine_has_packed_tables(engine: str, bits: int) -> None:
    model = script(Table())
    expected = quantize(model, bits)(INDICES)
    with engine_set(engine):
        assert torch.equal(quantize(model, bits)(INDICES), expected)


def test_what_does_not_go_together() -> None:
    table = PlaceholderObserver.with_args(dtype=torch.quint8)
    dynamic = jitquant.default_dynamic_qconfig
    with pytest.raises(JitQuantValueError, match="needs an observer of qint8 weights"):
        jitquant.qconfig.check_qconfig(QConfig(dynamic.activation, table), "here")
    with pytest.raises(JitQuantValueError, match="here, weight: a PlaceholderObserver keeps no"):
        jitquant.qconfig.check_qconfig(QConfig(jitquant.default_qconfig.activation, table), "here")
    message = "all qconfigs are dynamic, so there is nothing to calibrate"
    with pytest.raises(JitQuantValueError, match=message):
        jitquant.prepare_jit(script(Table()), {"": QCONFIGS[8]})

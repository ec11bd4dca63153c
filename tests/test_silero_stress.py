"""The scripted BERT of silero-stress, on the 300 phrases of `tutorials.phrases`, dynamically."""

import functools
import io

import pytest
import torch
from torch import Tensor, nn

import jitquant
from tests.models import graph_text, reloaded, sqnr
from tutorials.phrases import Bert, load_bert

PER_CHANNEL = jitquant.per_channel_dynamic_qconfig
TABLES = {
    8: jitquant.float_qparams_weight_only_qconfig,
    4: jitquant.float_qparams_weight_only_qconfig_4bit,
}
EMBEDDING = "aten::embedding"


@functools.cache
def bert() -> tuple[Bert, Tensor]:
    loaded = load_bert()
    return loaded, loaded.logits(loaded.model)


@functools.cache
def quantized(table_bits: int = 0) -> torch.jit.ScriptModule:
    config: dict[str, object] = {"": PER_CHANNEL}
    if table_bits:
        config["object_type"] = [(nn.Embedding, TABLES[table_bits])]
    return reloaded(jitquant.quantize_dynamic_jit(bert()[0].model, config))


def megabytes(model: torch.jit.ScriptModule) -> float:
    buffer = io.BytesIO()
    torch.jit.save(model, buffer)
    return len(buffer.getvalue()) / 1e6


def table_megabytes() -> float:
    return sum(
        4 * parameter.numel() / 1e6
        for name, parameter in bert()[0].model.named_parameters()
        if "embeddings.weight" in name
    )


def test_the_phrases_are_what_the_tests_say() -> None:
    loaded, logits = bert()
    assert len(loaded.phrases) == len(logits) == 300
    assert all(of.ids.shape[1] >= 5 and of.start < of.end for of in loaded.phrases)
    # Half of the words want either stress.
    assert 100 < int((logits > 0).sum()) < 200


def test_all_linears_are_int8() -> None:
    ops = jitquant.coverage(quantized()).ops
    assert [of.int8 for of in ops if of.op == "aten::linear"] == [True] * 20
    graph = graph_text(quantized())
    assert graph.count("quantized::linear_dynamic(") == 19
    assert graph.count("quantized::linear_relu_dynamic(") == 1
    assert "prepack" not in graph and "aten::linear" not in graph


@pytest.mark.parametrize(
    ("table_bits", "same", "decibels"), [(0, 297, 27.5), (8, 294, 26.0), (4, 270, 10.0)]
)
def test_the_answers_are_those_of_float(table_bits: int, same: int, decibels: float) -> None:
    """Measured: 298, 297 and 279 of 300 answers, 30.7, 29.3 and 12.9 dB. Some logits are near 0."""
    loaded, expected = bert()
    logits = loaded.logits(quantized(table_bits))
    assert int((logits.sign() == expected.sign()).sum()) >= same
    assert sqnr(expected, logits) > decibels


def test_files_are_small_where_linear_layers_dominate() -> None:
    """91 % of the float file are tables, which stay float unless their qconfig says otherwise."""
    in_float = megabytes(bert()[0].model)
    tables = table_megabytes()
    assert 0.9 < tables / in_float < 0.92
    assert (megabytes(quantized()) - tables) / (in_float - tables) < 0.35
    assert megabytes(quantized(8)) / in_float < 0.27
    assert megabytes(quantized(4)) / in_float < 0.16


@pytest.mark.parametrize("table_bits", [8, 4])
def test_tables_are_packed(table_bits: int) -> None:
    look_up = f"quantized::embedding_bag_{'byte' if table_bits == 8 else '4bit'}_rowwise_offsets"
    ops = jitquant.coverage(quantized(table_bits)).ops
    assert [of.reason for of in ops if of.op == EMBEDDING] == [look_up] * 3


def test_tables_without_a_qconfig_of_their_own_say_what_to_do() -> None:
    reasons = {of.reason for of in jitquant.coverage(quantized()).ops if of.op == EMBEDDING}
    assert reasons == {
        "it copies rows of a table, and gives float: float_qparams_weight_only_qconfig packs the "
        "table"
    }

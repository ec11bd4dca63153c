"""The scripted BERT of silero-stress, on the 300 phrases of `tutorials.phrases`, dynamically."""

import functools
import io

import torch
from torch import Tensor

import jitquant
from tests.models import graph_text, reloaded, sqnr
from tutorials.phrases import Bert, load_bert

PER_CHANNEL = jitquant.per_channel_dynamic_qconfig


@functools.cache
def bert() -> tuple[Bert, Tensor]:
    loaded = load_bert()
    return loaded, loaded.logits(loaded.model)


@functools.cache
def quantized() -> torch.jit.ScriptModule:
    return reloaded(jitquant.quantize_dynamic_jit(bert()[0].model, {"": PER_CHANNEL}))


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


def test_the_answers_are_those_of_float() -> None:
    """At least 99 % of them. Measured: 298 of 300, and 30.7 dB. Some logits are near 0."""
    loaded, expected = bert()
    logits = loaded.logits(quantized())
    assert int((logits.sign() == expected.sign()).sum()) >= 297
    assert sqnr(expected, logits) > 27.5


def test_files_are_small_where_linear_layers_dominate() -> None:
    """91 % of the float file are tables, which stay float."""
    in_float = megabytes(bert()[0].model)
    tables = table_megabytes()
    assert 0.9 < tables / in_float < 0.92
    assert (megabytes(quantized()) - tables) / (in_float - tables) < 0.35

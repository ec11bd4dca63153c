"""numeric_suite: exact errors of models made by hand, every form of a pair, broken layers, memory."""

import gc
import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jitquant
from jitquant import JitQuantValueError
from jitquant.numeric_suite import Comparison, compare_ops, compare_outputs, compare_weights
from tests.ir import sample, scripted, traced
from tests.numeric_suite import (
    PER_TENSOR,
    X,
    key,
    prepared_of,
    quantized_of,
    reloaded,
    rows,
    two_layers,
)


def test_weights() -> None:
    two = two_layers()
    result = compare_weights(two, quantized_of(two, X))
    first, second = result.ops
    assert (first.module, first.op, first.how) == ("first", "aten::linear", "quantized::linear")
    assert first.errors.sqnr == pytest.approx(20 * math.log10(0.26 / 0.01), abs=1e-4)
    assert first.errors.max_abs_error == pytest.approx(0.01, abs=1e-7)
    assert second.errors.sqnr == math.inf
    assert result.batches == 0 and result.unmatched == ()


def test_outputs_add_up() -> None:
    """1.0 instead of 1.04 comes up to the end."""
    two = two_layers()
    result = compare_outputs(two, quantized_of(two, X), X)
    assert rows(result) == [
        ("x", "quantize input"),
        ("first", "aten::linear"),
        ("second", "aten::linear"),
        ("output", "return"),
    ]
    found = [each.errors.max_abs_error for each in result.ops]
    assert found == pytest.approx([0.0, 0.04, 0.04, 0.04], abs=1e-6)
    assert result.batches == 1


def test_ops_get_the_float_values() -> None:
    """The second layer gets 1.04, which is 1.0625 in int8, and gives that."""
    two = two_layers()
    result = compare_ops(two, quantized_of(two, X), X)
    assert rows(result) == [
        ("x", "quantize input"),
        ("first", "aten::linear"),
        ("second", "aten::linear"),
    ]
    found = [each.errors.max_abs_error for each in result.ops]
    assert found == pytest.approx([0.0, 0.04, 0.0225], abs=1e-6)
    assert [each.module for each in result.ranked] == ["first", "second", "x"]


# --- every form of the models ---


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 1)
        self.conv3 = nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv1(x)))
        x = torch.relu(self.conv2(x)) + x
        x = torch.nn.functional.hardtanh(self.conv3(x), -0.5, 0.5)
        return torch.softmax(self.fc(x.mean([2, 3])), -1)


DATA = [sample(2, 3, 6, 6), -sample(2, 3, 6, 6)]
OPS = [
    ("x", "quantize input"),
    ("conv1", "aten::conv2d + aten::relu"),
    ("conv2", "aten::conv2d + aten::relu"),
    ("", "aten::add"),
    ("conv3", "aten::conv2d + aten::hardtanh"),
]


@pytest.mark.parametrize("compare", [compare_outputs, compare_ops])
def test_all_forms_of_a_pair_give_the_same(compare: Callable[..., Comparison]) -> None:
    """The values are of the same graphs in all of them."""
    script, trace = scripted(Net()), traced(Net(), DATA[0])
    prepared = prepared_of(script, DATA, PER_TENSOR)
    int8 = jitquant.convert_jit(prepared)
    expected = compare(script, int8, DATA)
    assert rows(expected)[:5] == OPS
    assert ("fc", "aten::linear") in rows(expected)
    assert expected.unmatched == ()
    loaded = reloaded(int8)
    pairs = [(trace, loaded), (reloaded(script), loaded), (prepared, int8)]
    for float_model, quantized in [*pairs, (reloaded(prepared), prepared)]:
        found = compare(float_model, quantized, DATA)
        assert [each.errors for each in found.ops] == [each.errors for each in expected.ops]
        assert rows(found) == rows(expected)


@pytest.mark.parametrize("debug", [True, "exact"])
def test_debug_models_are_compared_by_the_same_ops(debug: Any) -> None:
    script = scripted(Net())
    prepared = prepared_of(script, DATA, PER_TENSOR)
    expected = compare_ops(script, jitquant.convert_jit(prepared), DATA)
    found = compare_ops(script, reloaded(jitquant.convert_jit(prepared, debug=debug)), DATA)
    # The exact spelling of a mean ends in a branch, so that fc gets what the model itself has.
    known = {
        key(each): each.errors for each in expected.ops if debug is True or "mean" not in each.op
    }
    assert {key(each) for each in found.ops} == set(known)
    if debug == "exact":
        reason = "the debug model computes it in branches; compare the int8 model"
        assert [(each.op, each.reason) for each in found.unmatched] == [("aten::mean", reason)]
    for each in found.ops:
        # One step in some values: debug=True rounds ties of the kernels differently.
        assert each.errors.sqnr == pytest.approx(known[key(each)].sqnr, abs=1.0)
        if debug == "exact" and each.module != "fc":
            assert each.errors == known[key(each)]


def test_weights_in_all_forms() -> None:
    script = scripted(Net())
    prepared = prepared_of(script, DATA, PER_TENSOR)
    expected = compare_weights(script, jitquant.convert_jit(prepared), per_channel=True)
    assert [each.module for each in expected.ops] == ["conv1", "conv2", "conv3", "fc"]
    assert [len(each.errors.channels) for each in expected.ops] == [8, 8, 8, 4]
    debug = jitquant.convert_jit(prepared, debug=True)
    for float_model in (reloaded(script), prepared, traced(Net(), DATA[0])):
        for quantized in (reloaded(debug), prepared):
            found = compare_weights(float_model, quantized, per_channel=True)
            assert [each.errors for each in found.ops] == [each.errors for each in expected.ops]
    with pytest.raises(JitQuantValueError) as caught:
        compare_weights(script, jitquant.convert_jit(prepared, debug="exact"))
    assert str(caught.value) == (
        'compare_weights: there is no weight to compare: debug="exact" spells the layer out; '
        "compare the weights of the int8 model."
    )


def test_the_models_stay_as_they_are() -> None:
    script = scripted(Net())
    prepared = prepared_of(script, DATA, PER_TENSOR)
    int8 = jitquant.convert_jit(prepared)
    models = (script, prepared, int8)
    before = [(str(each.graph), len(list(each.named_modules()))) for each in models]
    calls = [each.calls for each in prepared.children() if hasattr(each, "calls")]
    compare_ops(script, int8, DATA)
    compare_ops(prepared, prepared, DATA)
    assert [(str(each.graph), len(list(each.named_modules()))) for each in models] == before
    assert [each.calls for each in prepared.children() if hasattr(each, "calls")] == calls


# --- broken layers ---


@pytest.mark.parametrize("layer", ["conv1", "conv2", "conv3", "fc"])
def test_a_layer_with_one_channel_a_thousand_times_as_large_comes_first(layer: str) -> None:
    """Per tensor, the other channels of its weight and of its output lose all their bits."""
    script = scripted(Net())
    weight = getattr(script, layer).weight
    weight.data[1] *= 1000
    int8 = reloaded(quantized_of(script, DATA, PER_TENSOR))
    assert compare_weights(script, int8).ranked[0].module == layer
    ranked = [each for each in compare_ops(script, int8, DATA).ranked if each.int8]
    assert ranked[0].module == layer


# --- memory ---


def test_memory_does_not_grow_with_batches() -> None:
    """The next batch is asked for when the one before is gone, with all its values."""
    script = scripted(Net())
    int8 = quantized_of(script, DATA, PER_TENSOR)
    alive: list[int] = []
    counts: list[int] = []

    def batches() -> Iterator[Tensor]:
        seen: list[weakref.ref[Tensor]] = []
        for _ in range(6):
            gc.collect()
            alive.append(sum(each() is not None for each in seen))
            counts.append(sum(isinstance(each, Tensor) for each in gc.get_objects()))
            batch = sample(2, 3, 6, 6)
            seen.append(weakref.ref(batch))
            yield batch
            del batch

    compare_ops(script, int8, batches())
    assert max(alive) <= 1
    assert counts[2] == counts[-1]

"""numeric_suite: exact errors of models made by hand, broken layers found, users' mistakes."""

import gc
import io
import json
import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jitquant
from jitquant import JitQuantError, JitQuantTypeError, JitQuantValueError, QConfig
from jitquant.numeric_suite import (
    Comparison,
    OpError,
    compare_ops,
    compare_outputs,
    compare_weights,
    sqnr,
)
from jitquant.numeric_suite.errors import ErrorSum
from jitquant.observers import MinMaxObserver
from jitquant.quantize import _convert
from tests.ir import FIXED, sample, scripted, traced

PER_TENSOR = QConfig(
    activation=MinMaxObserver.with_args(dtype=torch.quint8, reduce_range=True),
    weight=MinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric),
)


def _quantized(
    model: torch.jit.ScriptModule, data: list[Any], qconfig: QConfig = FIXED, **options: Any
) -> torch.jit.ScriptModule:
    return jitquant.convert_jit(_prepared(model, data, qconfig), **options)


def _prepared(
    model: torch.jit.ScriptModule, data: list[Any], qconfig: QConfig = FIXED
) -> torch.jit.ScriptModule:
    prepared = jitquant.prepare_jit(model, {"": qconfig})
    jitquant.calibrate(prepared, data, progress=False)
    return prepared


def _reloaded(model: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    buffer = io.BytesIO()
    torch.jit.save(model, buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    assert isinstance(loaded, torch.jit.ScriptModule)
    return loaded


def _key(each: OpError) -> tuple[str, str, int]:
    return each.module, each.op, each.index


def _rows(result: Comparison) -> list[tuple[str, str]]:
    return [(each.module, each.op) for each in result.ops]


# --- sums ---


def test_sums_over_batches() -> None:
    """Signal 9 + 16, error 0.25; one batch would give the same."""
    errors = ErrorSum(axis=None)
    errors.add(torch.tensor([3.0]), torch.tensor([3.0]))
    errors.add(torch.tensor([4.0]), torch.tensor([4.5]))
    result = errors.errors()
    assert result.count == 2
    assert result.sqnr == pytest.approx(20.0)
    assert result.channel_sqnr == result.sqnr
    assert result.max_abs_error == 0.5
    assert result.mean_abs_error == 0.25
    assert result.cosine == pytest.approx(27 / 5 / math.sqrt(29.25))
    assert sqnr(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])) == pytest.approx(20.0)


def test_a_loud_channel_hides_nothing_in_the_mean_over_channels() -> None:
    """Channel 0 has 40 dB, channel 1 lost all of its signal, channel 2 is silent in both."""
    errors = ErrorSum(axis=1)
    errors.add(torch.tensor([[1000.0, 1.0, 0.0]]), torch.tensor([[1010.0, 0.0, 0.0]]))
    result = errors.errors(per_channel=True)
    assert result.sqnr == pytest.approx(40.0, abs=0.1)
    assert result.channel_sqnr == pytest.approx(20.0)
    assert result.damage == -result.channel_sqnr
    assert [each.sqnr for each in result.channels] == [pytest.approx(40.0), 0.0, math.inf]
    assert [each.largest for each in result.channels] == [1000.0, 1.0, 0.0]
    assert errors.errors().channels == ()


def test_equal_values_and_silent_ones() -> None:
    equal = ErrorSum(axis=None)
    equal.add(torch.ones(2), torch.ones(2))
    assert equal.errors().sqnr == math.inf
    assert equal.errors().cosine == pytest.approx(1.0)
    silent = ErrorSum(axis=None)
    silent.add(torch.zeros(2), torch.ones(2))
    assert (silent.errors().sqnr, silent.errors().cosine) == (-math.inf, 0.0)
    wrong = ErrorSum(axis=None)
    wrong.add(torch.ones(1), torch.tensor([math.nan]))
    assert math.isnan(wrong.errors().sqnr) and wrong.errors().damage == math.inf


def test_infinite_float_values_are_left_out_and_counted() -> None:
    errors = ErrorSum(axis=None)
    errors.add(torch.tensor([-math.inf, 2.0]), torch.tensor([-8.0, 1.0]))
    result = errors.errors()
    assert (result.count, result.not_finite, result.max_abs_error) == (1, 1, 1.0)


def test_another_number_of_channels_makes_it_one_value() -> None:
    errors = ErrorSum(axis=1)
    errors.add(torch.ones(1, 2), torch.zeros(1, 2))
    errors.add(torch.ones(1, 3), torch.zeros(1, 3))
    assert errors.errors(per_channel=True).channels == ()
    assert (errors.errors().count, errors.errors().sqnr) == (5, 0.0)


# --- exact values ---


class Two(nn.Module):
    """Two layers of one weight: 0.26, which is 0.25 in int8, and 1."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(1, 1, bias=False)
        self.second = nn.Linear(1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


@pytest.fixture
def two() -> torch.jit.ScriptModule:
    model = scripted(Two())
    model.first.weight.data.fill_(0.26)
    model.second.weight.data.fill_(1.0)
    return model


X = [
    torch.tensor([[4.0]])
]  # 4 * 0.26 = 1.04 and 4 * 0.25 = 1.0; steps are 1/16, and 1.04 is 1.0625


def test_weights(two: torch.jit.ScriptModule) -> None:
    result = compare_weights(two, _quantized(two, X))
    first, second = result.ops
    assert (first.module, first.op, first.how) == ("first", "aten::linear", "quantized::linear")
    assert first.errors.sqnr == pytest.approx(20 * math.log10(0.26 / 0.01), abs=1e-4)
    assert first.errors.max_abs_error == pytest.approx(0.01, abs=1e-7)
    assert second.errors.sqnr == math.inf
    assert result.batches == 0 and result.unmatched == ()


def test_outputs_add_up(two: torch.jit.ScriptModule) -> None:
    """1.0 instead of 1.04 comes up to the end."""
    result = compare_outputs(two, _quantized(two, X), X)
    assert _rows(result) == [
        ("x", "quantize input"),
        ("first", "aten::linear"),
        ("second", "aten::linear"),
        ("output", "return"),
    ]
    found = [each.errors.max_abs_error for each in result.ops]
    assert found == pytest.approx([0.0, 0.04, 0.04, 0.04], abs=1e-6)
    assert result.batches == 1


def test_ops_get_the_float_values(two: torch.jit.ScriptModule) -> None:
    """The second layer gets 1.04, which is 1.0625 in int8, and gives that."""
    result = compare_ops(two, _quantized(two, X), X)
    assert _rows(result) == [
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
    prepared = _prepared(script, DATA, PER_TENSOR)
    int8 = jitquant.convert_jit(prepared)
    expected = compare(script, int8, DATA)
    assert _rows(expected)[:5] == OPS
    assert ("fc", "aten::linear") in _rows(expected)
    assert expected.unmatched == ()
    loaded = _reloaded(int8)
    pairs = [(trace, loaded), (_reloaded(script), loaded), (prepared, int8)]
    for float_model, quantized in [*pairs, (_reloaded(prepared), prepared)]:
        found = compare(float_model, quantized, DATA)
        assert [each.errors for each in found.ops] == [each.errors for each in expected.ops]
        assert _rows(found) == _rows(expected)


@pytest.mark.parametrize("debug", [True, "exact"])
def test_debug_models_are_compared_by_the_same_ops(debug: Any) -> None:
    script = scripted(Net())
    prepared = _prepared(script, DATA, PER_TENSOR)
    expected = compare_ops(script, jitquant.convert_jit(prepared), DATA)
    found = compare_ops(script, _reloaded(jitquant.convert_jit(prepared, debug=debug)), DATA)
    # The exact spelling of a mean ends in a branch, so that fc gets what the model itself has.
    known = {
        _key(each): each.errors for each in expected.ops if debug is True or "mean" not in each.op
    }
    assert {_key(each) for each in found.ops} == set(known)
    for each in found.ops:
        # One step in some values: debug=True rounds ties of the kernels differently.
        assert each.errors.sqnr == pytest.approx(known[_key(each)].sqnr, abs=1.0)
        if debug == "exact" and each.module != "fc":
            assert each.errors == known[_key(each)]


def test_weights_in_all_forms() -> None:
    script = scripted(Net())
    prepared = _prepared(script, DATA, PER_TENSOR)
    expected = compare_weights(script, jitquant.convert_jit(prepared), per_channel=True)
    assert [each.module for each in expected.ops] == ["conv1", "conv2", "conv3", "fc"]
    assert [len(each.errors.channels) for each in expected.ops] == [8, 8, 8, 4]
    debug = jitquant.convert_jit(prepared, debug=True)
    for float_model in (_reloaded(script), prepared, traced(Net(), DATA[0])):
        for quantized in (_reloaded(debug), prepared):
            found = compare_weights(float_model, quantized, per_channel=True)
            assert [each.errors for each in found.ops] == [each.errors for each in expected.ops]
    exact = compare_weights(script, jitquant.convert_jit(prepared, debug="exact"))
    assert exact.ops == () and len(exact.unmatched) == 4
    assert exact.unmatched[0].reason == (
        'debug="exact" spells the layer out; compare the weights of the int8 model'
    )


def test_the_models_stay_as_they_are() -> None:
    script = scripted(Net())
    prepared = _prepared(script, DATA, PER_TENSOR)
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
    int8 = _reloaded(_quantized(script, DATA, PER_TENSOR))
    assert compare_weights(script, int8).ranked[0].module == layer
    ranked = [each for each in compare_ops(script, int8, DATA).ranked if each.int8]
    assert ranked[0].module == layer


# --- graphs of all sorts ---


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(2, 2)
        self.other = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x) if bool(x.sum() > 0) else self.other(x)
        return y.exp()


def test_branches_that_ran_are_compared_and_others_named() -> None:
    script = scripted(Branches())
    positive, negative = sample(2, 2).abs(), -sample(2, 2).abs()
    int8 = _quantized(script, [positive, negative])
    both = compare_ops(script, int8, [positive, negative])
    assert {each.module for each in both.ops} >= {"one", "other"}
    one = compare_ops(script, int8, [positive])
    assert "other" not in {each.module for each in one.ops}
    assert ("other", "it did not run on the data") in [
        (each.module, each.reason) for each in one.unmatched
    ]


class Rounds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor, n: int) -> Tensor:
        for _ in range(n):
            x = torch.tanh(self.linear(x))
        for _ in range(2):
            x = self.linear(x)
        return x


def test_each_round_of_a_loop_counts() -> None:
    """Freezing unrolls the second loop."""
    script = scripted(Rounds())
    x = sample(4, 2)
    int8 = _reloaded(_quantized(script, [(x, 3)]))
    result = compare_outputs(script, int8, [(x, 3)])
    counts = [each.errors.count for each in result.ops if each.module == "linear"]
    assert counts == [3 * 8, 2 * 8]


class Stateful(nn.Module):
    h: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("h", torch.zeros(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        self.h = 0.5 * self.h + self.linear(x)
        return self.h


def test_state_goes_on_from_batch_to_batch_and_starts_as_in_the_file() -> None:
    script = scripted(Stateful())
    script.h = torch.zeros(1, 2)
    data = [sample(1, 2)] * 3
    prepared = _prepared(script, data)
    int8 = jitquant.convert_jit(prepared)
    step = 1 / 16
    for float_model in (script, prepared):
        result = compare_outputs(float_model, int8, data)
        assert result.ops[-1].errors.max_abs_error < 4 * step  # a step for each sum
    assert torch.equal(script.h, torch.zeros(1, 2))


class Writes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.exp()
        z = y.view(-1)
        y[0] = 0.0
        x.mul_(0.5)
        return y + z.sum() * 0.0


def test_values_are_those_before_a_later_write() -> None:
    script = scripted(Writes())
    x = torch.ones(2, 2)
    int8 = _quantized(script, [x.clone()])
    batch = x.clone()
    result = compare_outputs(script, int8, [batch])
    assert torch.equal(batch, x)
    exp = next(each for each in result.ops if each.op == "aten::exp")
    assert exp.errors.sqnr == math.inf


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        y = self.linear(x)
        order = y.argsort(-1)
        parts = y.chunk(2, -1)
        return y.masked_fill(y > 0, -float("inf")), {"order": order, "part": parts[0]}


def test_infinite_and_integer_values_and_lists() -> None:
    script = scripted(Masked())
    x = sample(8, 2)
    int8 = _quantized(script, [x])
    result = compare_outputs(script, int8, [x])
    masked = next(each for each in result.ops if each.op == "aten::masked_fill")
    assert masked.errors.not_finite > 0 and math.isfinite(masked.errors.sqnr)
    reasons = {each.op: each.reason for each in result.unmatched}
    assert reasons["aten::argsort"] == "its values are int64"
    assert reasons["aten::gt"] == "its values are bool"
    returned = [each.module for each in result.ops if each.op == "return"]
    assert returned == ["output.0", "output.1.part"]


def test_dynamic_models() -> None:
    script = scripted(Two())
    int8 = jitquant.quantize_dynamic_jit(script, {"": jitquant.default_dynamic_qconfig})
    data = [sample(4, 1)]
    assert [each.module for each in compare_weights(script, int8).ops] == ["first", "second"]
    result = compare_ops(script, int8, data)
    assert _rows(result) == [("first", "aten::linear"), ("second", "aten::linear")]
    assert result.ops[0].how == "quantized::linear_dynamic"
    assert 30 < result.ops[0].errors.sqnr < math.inf


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.left = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(self.linear(self.linear(x)))


def test_two_calls_of_a_module_are_two_ops_and_float_ones_are_listed() -> None:
    script = scripted(Shared())
    prepared = jitquant.prepare_jit(script, {"": FIXED, "left": None})
    prepared(sample(2, 2))
    int8 = jitquant.convert_jit(prepared)
    found = [(each.module, each.index, each.int8) for each in compare_ops(script, int8, DATA_2).ops]
    assert found == [("x", 0, True), ("linear", 0, True), ("linear", 1, True), ("left", 0, False)]
    weights = compare_weights(script, int8)
    assert weights.ops[-1].errors.sqnr == math.inf


DATA_2 = [sample(2, 2)]


class Left(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)
        self.bn = nn.BatchNorm2d(2)
        self.conv2 = nn.Conv2d(2, 2, 1)
        self.bn2 = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.bn(self.conv(x))))


def test_what_is_left_float_is_folded_in_neither_model() -> None:
    script = scripted(Left())
    data = [sample(1, 2, 3, 3)]
    prepared = jitquant.prepare_jit(script, {"": FIXED, "conv": None})
    prepared(data[0])
    result = compare_outputs(script, jitquant.convert_jit(prepared), data)
    assert ("conv", "aten::conv2d") in _rows(result)
    assert next(each for each in result.ops if each.module == "conv").errors.sqnr == math.inf
    assert result.unmatched == ()
    assert "bn" in [each.module for each in result.ops]
    assert "bn2" not in [each.module for each in result.ops]


def test_what_is_left_float_after_folding_is_folded_in_both() -> None:
    """As by auto_mapping: the prepared model has conv with its BatchNorm in it."""
    script = scripted(Left())
    data = [sample(1, 2, 3, 3)]
    int8 = _convert(_prepared(script, data), False, None, None, left_float={0})
    assert [op.int8 for op in jitquant.coverage(int8).ops] == [False, True]
    result = compare_outputs(script, int8, data)
    assert result.unmatched == ()
    conv = next(each for each in result.ops if each.module == "conv")
    assert conv.errors.max_abs_error < 1e-6  # BatchNorm is folded in float32 in both


class Grouped(nn.Module):
    """fbgemm is fast with a multiple of 8 groups, and gets two of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(4, 6, 1)
        self.grouped = nn.Conv2d(6, 6, 3, 1, 1, groups=6)
        self.project = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.grouped(torch.relu(self.expand(x))))


def test_channels_that_convert_added_are_left_out() -> None:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        script = scripted(Grouped())
        data = [sample(1, 4, 5, 5)]
        int8 = _reloaded(_quantized(script, data))
        weights = compare_weights(script, int8, per_channel=True)
        assert [len(each.errors.channels) for each in weights.ops] == [6, 6, 3]
        both: list[Callable[..., Comparison]] = [compare_outputs, compare_ops]
        for compare in both:
            result = compare(script, int8, data, per_channel=True)
            assert result.unmatched == ()
            assert [len(each.errors.channels) for each in result.ops][1:4] == [6, 6, 3]
            assert all(each.errors.max_abs_error < 0.2 for each in result.ops)  # 3 steps of 1/16
    finally:
        torch.backends.quantized.engine = before


# --- memory ---


def test_memory_does_not_grow_with_batches() -> None:
    """The next batch is asked for when the one before is gone, with all its values."""
    script = scripted(Net())
    int8 = _quantized(script, DATA, PER_TENSOR)
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


# --- what users get wrong ---


def _errors() -> list[Any]:
    return [
        pytest.param(
            lambda f, q, d: (q, q, d),
            JitQuantValueError,
            "compare_ops: the first model is converted already. The first one is the float model, "
            "the second one the quantized.",
            id="converted as float",
        ),
        pytest.param(
            lambda f, q, d: (f, f, d),
            JitQuantValueError,
            "compare_ops: the second model is not quantized: neither prepare_jit nor convert_jit "
            "made it. The first one is the float model, the second one the quantized.",
            id="float as quantized",
        ),
        pytest.param(
            lambda f, q, d: (Net(), q, d),
            JitQuantTypeError,
            "compare_ops takes a ScriptModule, got the nn.Module Net.",
            id="nn.Module",
        ),
        pytest.param(
            lambda f, q, d: (f, jitquant.prepare_jit(f, {"": FIXED}), d),
            JitQuantError,
            "the prepared model was not calibrated: no observer saw any data.",
            id="not calibrated",
        ),
        pytest.param(
            lambda f, q, d: (scripted(Branches()), q, d),
            JitQuantValueError,
            "compare_ops: the models do not match: the float model has aten::sum in '', "
            "aten::gt in '' and 3 more ops, the quantized one aten::linear in 'first', "
            "aten::linear in 'second'. Give the float model that the quantized one was made from.",
            id="another model",
        ),
        pytest.param(
            lambda f, q, d: (f, q, []),
            JitQuantValueError,
            "compare_ops: data gave no batch. A generator runs only once.",
            id="no data",
        ),
        pytest.param(
            lambda f, q, d: (f, q, d[0]),
            JitQuantTypeError,
            "compare_ops: data must be a DataLoader, list or generator of batches, got Tensor.",
            id="one tensor",
        ),
        pytest.param(
            lambda f, q, d: (f, q, [*d, (d[0], d[0])]),
            JitQuantValueError,
            "compare_ops: batch 1 has 2 elements, and forward takes x: Tensor.",
            id="a batch that does not fit",
        ),
    ]


@pytest.mark.parametrize(("arguments", "kind", "message"), _errors())
def test_errors(
    two: torch.jit.ScriptModule, arguments: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as caught:
        compare_ops(*arguments(two, _quantized(two, X), X))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "value_nodes",
            [7],
            "the model's graph was changed after convert_jit: it has no quantized::linear for the "
            "aten::linear in 'first'. Convert the prepared model again.",
        ),
        (
            "value_kind",
            "",
            "compare_ops: the quantized model does not say which of its nodes compute its ops: it "
            "was converted before jitquant noted that, or has no ops. Convert it again.",
        ),
    ],
)
def test_files_of_which_the_graph_does_not_fit_the_record(
    two: torch.jit.ScriptModule, field: str, value: Any, message: str
) -> None:
    int8 = _quantized(two, X)
    state = json.loads(int8._c.getattr("jitquant_state"))
    for op in state["ops"]:
        op[field] = value
    int8._c.setattr("jitquant_state", json.dumps(state))
    with pytest.raises(JitQuantError) as caught:
        compare_ops(two, int8, X)
    assert str(caught.value) == message

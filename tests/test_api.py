"""The four functions and coverage: what they give, keep and promise."""

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.ao.quantization as torch_ao
from torch import Tensor, nn
from torch.ao.quantization import observer as torch_ao_observer

import jitquant
from jitquant.observers import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    PerChannelMinMaxObserver,
)
from tests.models import (
    Block,
    PlainNet,
    ResidualNet,
    TwoMethodNet,
    assert_untouched,
    calibrate,
    code_text,
    graph_text,
    images,
    scripted,
    sqnr,
    traced,
)

QCONFIG = {"": jitquant.default_qconfig}
WEIGHT = jitquant.default_qconfig.weight


def make(kind: str, module: nn.Module) -> torch.jit.ScriptModule:
    return scripted(module) if kind == "scripted" else traced(module, images())


def convert(
    model: torch.jit.ScriptModule, qconfig_dict: dict[str, Any] = QCONFIG, debug: bool = False
) -> torch.jit.ScriptModule:
    return jitquant.quantize_jit(model, qconfig_dict, calibrate, [images()], debug=debug)


def run(model: torch.jit.ScriptModule, x: Tensor) -> Tensor:
    with torch.inference_mode():
        y = model(x)
    assert isinstance(y, Tensor)
    return y


def assert_same_model(a: torch.jit.ScriptModule, b: torch.jit.ScriptModule) -> None:
    """Equal code, equal coverage, and equal bits on data that calibration did not see."""
    assert code_text(a) == code_text(b)
    assert jitquant.coverage(a) == jitquant.coverage(b)
    x = images(4, 3, 10, 12, seed=1)
    assert torch.equal(run(a, x), run(b, x))


# One call and three calls


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("kind", ["scripted", "traced"])
def test_quantize_is_prepare_run_convert(kind: str, debug: bool) -> None:
    model = make(kind, ResidualNet())
    with assert_untouched(model):
        at_once = convert(model, debug=debug)
        prepared = jitquant.prepare_jit(model, QCONFIG)
        with assert_untouched(model):
            calibrate(prepared, images())
        with assert_untouched(prepared):
            in_steps = jitquant.convert_jit(prepared, debug=debug)
    assert_same_model(at_once, in_steps)
    assert sqnr(run(model, images()), run(at_once, images())) > 25


def test_run_args_are_passed_on() -> None:
    seen: list[object] = []
    model = scripted(PlainNet())

    def run_fn(prepared: torch.jit.ScriptModule, x: Tensor, note: str) -> None:
        seen.append(note)
        prepared(x)

    quantized = jitquant.quantize_jit(model, QCONFIG, run_fn, (images(), "a note"))
    assert seen == ["a note"]
    assert_same_model(quantized, convert(model))


def test_a_prepared_model_can_be_converted_more_than_once() -> None:
    prepared = jitquant.prepare_jit(scripted(ResidualNet()), QCONFIG)
    calibrate(prepared, images())
    first = jitquant.convert_jit(prepared)
    jitquant.convert_jit(prepared, debug=True)
    assert_same_model(jitquant.convert_jit(prepared), first)


def test_modes_set_on_the_prepared_model_change_nothing() -> None:
    prepared = jitquant.prepare_jit(scripted(ResidualNet()), QCONFIG)
    calibrate(prepared.train(), images())
    assert_same_model(jitquant.convert_jit(prepared), convert(scripted(ResidualNet())))


# inplace


def test_inplace_gives_the_same_object_at_each_step() -> None:
    expected = convert(scripted(ResidualNet()))
    model = scripted(ResidualNet())
    assert jitquant.prepare_jit(model, QCONFIG, inplace=True) is model
    assert jitquant.coverage(model).stage == "prepared"
    calibrate(model, images())
    assert jitquant.convert_jit(model, inplace=True) is model
    assert jitquant.coverage(model).stage == "converted"
    assert not hasattr(model, "stem") and not list(model.children())
    assert_same_model(model, expected)


def test_inplace_quantize_gives_the_same_object(tmp_path: Path) -> None:
    expected = convert(scripted(ResidualNet()))
    model = scripted(ResidualNet())
    result = jitquant.quantize_jit(model, QCONFIG, calibrate, [images()], inplace=True)
    assert result is model
    assert_same_model(model, expected)
    torch.jit.save(model, tmp_path / "model.pt")
    assert_same_model(torch.jit.load(tmp_path / "model.pt"), expected)


def test_inplace_fuse_gives_the_same_object() -> None:
    expected = jitquant.fuse_conv_bn_jit(scripted(Block()))
    model = scripted(Block())
    assert jitquant.fuse_conv_bn_jit(model, inplace=True) is model
    assert graph_text(model) == graph_text(expected)
    assert torch.equal(run(model, images()), run(expected, images()))


def test_inplace_keeps_preserved_methods_callable() -> None:
    model = scripted(TwoMethodNet())
    jitquant.prepare_jit(model, QCONFIG, inplace=True)
    model(images())
    expected = model.embed(images())
    jitquant.convert_jit(model, inplace=True, preserved_attrs=["embed"])
    assert "quantized::linear" in graph_text(model, "embed")
    assert sqnr(expected, model.embed(images())) > 25


def test_inplace_with_a_late_error_leaves_the_model_untouched() -> None:
    """The calibration data turns out unusable after everything else went well."""
    model = scripted(ResidualNet())
    x = images() * float("nan")
    with assert_untouched(model), pytest.raises(jitquant.JitQuantError, match="saw NaN"):
        jitquant.quantize_jit(model, QCONFIG, calibrate, [x], inplace=True)
    prepared = jitquant.prepare_jit(model, QCONFIG)
    calibrate(prepared, x)
    with assert_untouched(prepared), pytest.raises(jitquant.JitQuantError, match="saw NaN"):
        jitquant.convert_jit(prepared, inplace=True)
    assert_same_model(convert(model), convert(scripted(ResidualNet())))


# qconfig_dict


def int8_ops(model: torch.jit.ScriptModule) -> list[tuple[str, str]]:
    return [(op.module, op.op) for op in jitquant.coverage(model).int8]


def test_the_longest_key_decides() -> None:
    model = scripted(ResidualNet())
    whole = convert(model)
    assert jitquant.coverage(whole).float == ()

    without_stem = convert(model, {**QCONFIG, "stem": None})
    left = {op.module: op.reason for op in jitquant.coverage(without_stem).float}
    assert left["stem.conv1"] == "its qconfig is None"
    assert ("conv2", "aten::conv2d") in int8_ops(without_stem)

    only_its_conv = convert(model, {**QCONFIG, "stem": None, "stem.conv1": QCONFIG[""]})
    left = {op.module: op.reason for op in jitquant.coverage(only_its_conv).float}
    assert left == dict.fromkeys(["stem.bn1", "stem.relu"], "its qconfig is None")
    assert ("stem.conv1", "aten::conv2d") in int8_ops(only_its_conv)


def test_none_for_the_whole_and_a_qconfig_for_one_part() -> None:
    for rest in ({"": None}, {}):
        model = convert(scripted(ResidualNet()), {**rest, "fc": jitquant.default_qconfig})
        assert int8_ops(model) == [("fc", "aten::linear")]


class Ten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 1)
        self.conv10 = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv10(self.conv1(x))
        return y


def test_a_key_covers_no_module_whose_name_it_only_begins() -> None:
    model = convert(scripted(Ten()), {**QCONFIG, "conv1": None})
    assert [op.module for op in jitquant.coverage(model).float] == ["conv1"]
    assert [op.module for op in jitquant.coverage(model).int8] == ["conv10"]


def test_each_part_is_quantized_as_its_own_qconfig_says() -> None:
    per_tensor = jitquant.QConfig(
        jitquant.default_qconfig.activation,
        MinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric),
    )
    debug = convert(scripted(Ten()), {"": per_tensor, "conv10": QCONFIG[""]}, debug=True)
    text = graph_text(debug)
    assert text.count("aten::quantize_per_channel(") == 1
    assert text.count("aten::quantize_per_tensor(") == 4  # 3 activations, 1 weight


def torch_ao_weight() -> Any:
    return torch_ao_observer.PerChannelMinMaxObserver.with_args(
        dtype=torch.qint8, qscheme=torch.per_channel_symmetric, quant_min=-64, quant_max=63
    )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (MinMaxObserver, torch_ao_observer.MinMaxObserver),
        (
            MovingAverageMinMaxObserver.with_args(averaging_constant=0.1),
            torch_ao_observer.MovingAverageMinMaxObserver.with_args(averaging_constant=0.1),
        ),
        (
            HistogramObserver.with_args(bins=512),
            torch_ao_observer.HistogramObserver.with_args(bins=512),
        ),
    ],
    ids=["min-max", "moving average", "histogram"],
)
def test_torch_ao_qconfig_gives_the_same_model(ours: Any, theirs: Any) -> None:
    weight = PerChannelMinMaxObserver.with_args(
        dtype=torch.qint8, qscheme=torch.per_channel_symmetric, quant_min=-64, quant_max=63
    )
    model = scripted(ResidualNet())
    a = convert(model, {"": jitquant.QConfig(ours, weight)})
    b = convert(model, {"": torch_ao.QConfig(activation=theirs, weight=torch_ao_weight())})
    assert_same_model(a, b)


# fuse_conv_bn_jit


@pytest.mark.parametrize("kind", ["scripted", "traced"])
def test_fuse_conv_bn(kind: str) -> None:
    model = make(kind, ResidualNet())
    assert "aten::batch_norm" in str(model.inlined_graph)
    with assert_untouched(model):
        fused = jitquant.fuse_conv_bn_jit(model)
    assert "batch_norm" not in graph_text(fused)
    assert "quantize" not in graph_text(fused)
    torch.testing.assert_close(run(fused, images()), run(model, images()), rtol=0, atol=1e-5)
    again = jitquant.fuse_conv_bn_jit(fused)
    assert aten_ops(again) == aten_ops(fused)
    assert torch.equal(run(again, images()), run(fused, images()))


def aten_ops(model: torch.jit.ScriptModule) -> list[str]:
    return [node.kind() for node in model.graph.nodes() if node.kind().startswith("aten::")]


def test_fuse_conv_bn_keeps_all_methods() -> None:
    model = scripted(TwoMethodNet())
    fused = jitquant.fuse_conv_bn_jit(model)
    assert torch.equal(fused.embed(images()), model.embed(images()))
    assert fused.labels == ["cat", "dog"]


# debug


def only_output_scale(model: torch.jit.ScriptModule, op: str) -> float:
    (node,) = [node for node in model.graph.nodes() if node.kind() == op]
    scale = list(node.inputs())[-2].toIValue()
    assert isinstance(scale, float)
    return scale


@pytest.mark.parametrize("kind", ["scripted", "traced"])
def test_debug_emulates_int8_in_float(kind: str) -> None:
    model = make(kind, Block())
    debug, int8 = convert(model, debug=True), convert(model)
    text = graph_text(debug)
    assert "quantized::" not in text
    assert text.count("aten::quantize_per_tensor(") == 2
    assert text.count("aten::quantize_per_channel(") == 1
    step = only_output_scale(int8, "quantized::conv2d_relu")
    x = images(4, 3, 10, 12, seed=1)
    assert float((run(debug, x) - run(int8, x)).abs().max()) <= step * 1.001
    assert jitquant.coverage(debug).stage == "debug"


def test_debug_keeps_float_weights_by_name_with_batch_norm_folded_in() -> None:
    model = scripted(Block())
    debug = convert(model, debug=True)
    scale = model.bn1.weight / torch.sqrt(model.bn1.running_var + model.bn1.eps)
    expected = model.conv1.weight * scale.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(debug.conv1.weight, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(
        debug.conv1.bias, model.bn1.bias - model.bn1.running_mean * scale, rtol=1e-6, atol=1e-6
    )
    before = run(debug, images())
    with torch.no_grad():
        debug.conv1.weight.zero_()
    assert not torch.equal(run(debug, images()), before), "the graph reads the attribute"
    assert not torch.equal(model.conv1.weight, torch.zeros_like(model.conv1.weight))


# The prepared model


@pytest.mark.parametrize("kind", ["scripted", "traced"])
def test_prepared_model_computes_what_the_float_model_does(kind: str) -> None:
    plain, net = make(kind, PlainNet()), make(kind, ResidualNet())
    prepared = jitquant.prepare_jit(plain, QCONFIG)
    assert torch.equal(run(prepared, images()), run(plain, images()))
    prepared = jitquant.prepare_jit(net, QCONFIG)
    torch.testing.assert_close(run(prepared, images()), run(net, images()), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "qconfig",
    [jitquant.default_qconfig, jitquant.get_default_qconfig()],
    ids=["min-max", "default"],
)
@pytest.mark.parametrize("kind", ["scripted", "traced"])
@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_prepared_model_survives_a_file(
    kind: str, when: str, qconfig: jitquant.QConfig, tmp_path: Path
) -> None:
    """It may be saved before, between or after calibration batches."""
    model = make(kind, ResidualNet())
    batches = [images(), images(seed=2)]
    expected = jitquant.quantize_jit(model, {"": qconfig}, calibrate, batches)

    prepared = jitquant.prepare_jit(model, {"": qconfig})
    done = {"before": 0, "during": 1, "after": 2}[when]
    calibrate(prepared, *batches[:done])
    torch.jit.save(prepared, tmp_path / "prepared.pt")
    del prepared
    loaded = torch.jit.load(tmp_path / "prepared.pt")
    calibrate(loaded, *batches[done:])
    assert_same_model(jitquant.convert_jit(loaded), expected)


# preserved_attrs


def test_preserved_attrs_keep_a_method_and_an_attribute(tmp_path: Path) -> None:
    model = scripted(TwoMethodNet())
    prepared = jitquant.prepare_jit(model, QCONFIG)
    prepared(images())
    prepared.embed(images())
    quantized = jitquant.convert_jit(prepared, preserved_attrs=["embed", "labels"])
    torch.jit.save(quantized, tmp_path / "model.pt")
    for result in (quantized, torch.jit.load(tmp_path / "model.pt")):
        assert result.labels == ["cat", "dog"]
        assert "quantized::linear" in graph_text(result, "embed")
        assert "aten::linear" not in graph_text(result, "embed")
        assert sqnr(model.embed(images()), result.embed(images())) > 25
        assert sqnr(run(model, images()), run(result, images())) > 25
        methods = {op.method for op in jitquant.coverage(result).ops}
        assert methods == {"forward", "embed"}


def test_what_is_not_preserved_goes() -> None:
    prepared = jitquant.prepare_jit(scripted(TwoMethodNet()), QCONFIG)
    prepared(images())
    quantized = jitquant.convert_jit(prepared)
    assert not hasattr(quantized, "embed") and not hasattr(quantized, "labels")
    assert quantized._c._method_names() == ["forward"]
    assert {op.method for op in jitquant.coverage(quantized).ops} == {"forward"}
    assert not list(quantized.parameters()) and not list(quantized.children())


def test_quantize_jit_preserves_too() -> None:
    def run_both(prepared: torch.jit.ScriptModule) -> None:
        prepared(images())
        prepared.embed(images())

    quantized = jitquant.quantize_jit(
        scripted(TwoMethodNet()), QCONFIG, run_both, preserved_attrs=["embed", "labels"]
    )
    assert quantized.labels == ["cat", "dog"]
    assert "quantized::linear" in graph_text(quantized, "embed")


# coverage

COVERED = [
    ("forward", "stem.conv1", "aten::conv2d", "int8", "quantized::conv2d_relu"),
    ("forward", "stem.relu", "aten::relu", "int8", "absorbed by aten::conv2d"),
    ("forward", "conv2", "aten::conv2d", "int8", "quantized::conv2d"),
    ("forward", "", "aten::add", "int8", "quantized::add_relu"),
    ("forward", "relu", "aten::relu", "int8", "absorbed by aten::add"),
]


def test_coverage_lists_every_op(tmp_path: Path) -> None:
    quantized = convert(scripted(ResidualNet()))
    torch.jit.save(quantized, tmp_path / "model.pt")
    for model in (quantized, torch.jit.load(tmp_path / "model.pt")):
        found = jitquant.coverage(model)
        assert found.stage == "converted"
        rows = [
            (op.method, op.module, op.op, "int8" if op.int8 else "float", op.reason)
            for op in found.ops
        ]
        assert rows[: len(COVERED)] == COVERED
        assert [row[2] for row in rows[len(COVERED) :]] == [
            "aten::adaptive_avg_pool2d",
            "aten::flatten",
            "aten::linear",
        ]
        assert found.int8 == found.ops and found.float == ()
        add = found.ops[3]
        assert add.source.startswith("models.py:")


def test_coverage_prints_a_table(tmp_path: Path) -> None:
    quantized = convert(scripted(ResidualNet()), {**QCONFIG, "fc": None})
    torch.jit.save(quantized, tmp_path / "model.pt")
    text = str(jitquant.coverage(quantized))
    assert text == str(jitquant.coverage(torch.jit.load(tmp_path / "model.pt")))
    lines = text.splitlines()
    assert lines[0].split() == [
        *("method", "module", "op", "runs", "in", "how", "or", "why", "source")
    ]
    assert lines[2].split()[:5] == list(COVERED[0])
    assert lines[9].split()[:4] == ["forward", "fc", "aten::linear", "float"]
    assert "its qconfig is None" in lines[9]
    assert lines[-3:] == [
        "",
        "7 of 8 ops int8",
        "  float, 1 x aten::linear: its qconfig is None",
    ]


def test_coverage_of_a_prepared_model_is_the_plan() -> None:
    prepared = jitquant.prepare_jit(scripted(ResidualNet()), {**QCONFIG, "fc": None})
    plan = jitquant.coverage(prepared)
    assert plan.stage == "prepared"
    calibrate(prepared, images())
    outcome = jitquant.coverage(jitquant.convert_jit(prepared))
    assert [(op.module, op.op, op.int8) for op in plan.ops] == [
        (op.module, op.op, op.int8) for op in outcome.ops
    ]


# The same face as upstream


@pytest.mark.parametrize(
    "function",
    [
        jitquant.quantize_jit,
        jitquant.prepare_jit,
        jitquant.convert_jit,
        jitquant.fuse_conv_bn_jit,
        jitquant.script_qconfig,
    ],
)
def test_signature_is_upstream_s(function: Callable[..., Any]) -> None:
    importlib.import_module("torch.ao.quantization.quantize_jit")
    # A function of this name hides the module.
    upstream = getattr(sys.modules["torch.ao.quantization.quantize_jit"], function.__name__)

    def face(of: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
        parameters = inspect.signature(of).parameters.values()
        # run_args may be left out here, where upstream wants an empty list.
        return [
            (parameter.name, parameter.name == "run_args" or parameter.default, parameter.kind)
            for parameter in parameters
        ]

    ours, theirs = face(function), face(upstream)
    assert ours[: len(theirs)] == theirs
    own = ["preserved_attrs"] if function is jitquant.quantize_jit else []
    assert [name for name, _, _ in ours[len(theirs) :]] == own
    assert all(default is None for _, default, _ in ours[len(theirs) :])

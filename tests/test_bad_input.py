"""What a user can get wrong: each error says what was found, where, and what to do, and the model
stays as it was."""

import copy
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jitquant
from jitquant.errors import JitQuantError, JitQuantTypeError, JitQuantValueError
from tests.models import (
    Around,
    Block,
    PlainNet,
    ResidualNet,
    TwoMethodNet,
    assert_untouched,
    calibrate,
    images,
    scripted,
    settle,
)

QCONFIG: dict[str, Any] = {"": jitquant.default_qconfig}
UNTYPED: Any = jitquant  # the same functions, for calls that a type checker would refuse

FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "quantize_jit": lambda model: jitquant.quantize_jit(model, QCONFIG, calibrate, [images()]),
    "prepare_jit": lambda model: jitquant.prepare_jit(model, QCONFIG),
    "convert_jit": jitquant.convert_jit,
    "fuse_conv_bn_jit": jitquant.fuse_conv_bn_jit,
    "equalize_jit": jitquant.equalize_jit,
    "coverage": jitquant.coverage,
}
FROM_FLOAT = ("quantize_jit", "prepare_jit", "fuse_conv_bn_jit", "equalize_jit")


@contextmanager
def refused(
    model: torch.jit.ScriptModule | None,
    text: str,
    kind: type[JitQuantError] = JitQuantValueError,
) -> Iterator[None]:
    """Checks that the inside raises `kind` with `text` in its message, and leaves `model` alone."""
    if model is None:
        with pytest.raises(JitQuantError, match=re.escape(text)) as caught:
            yield
    else:
        with assert_untouched(model), pytest.raises(JitQuantError, match=re.escape(text)) as caught:
            yield
    assert type(caught.value) is kind
    assert "Please report it" not in str(caught.value), "a user's mistake, not a defect"


def calibrated(model: torch.jit.ScriptModule, *batches: Tensor) -> torch.jit.ScriptModule:
    prepared = jitquant.prepare_jit(model, QCONFIG)
    calibrate(prepared, *(batches or (images(),)))
    return prepared


@torch.jit.script
def double_it(x: Tensor) -> Tensor:
    return x + x


def test_errors_are_of_one_family_and_of_the_builtin_kinds() -> None:
    assert issubclass(JitQuantTypeError, JitQuantError)
    assert issubclass(JitQuantTypeError, TypeError)
    assert issubclass(JitQuantValueError, JitQuantError)
    assert issubclass(JitQuantValueError, ValueError)
    assert jitquant.JitQuantError is JitQuantError


# What is not a ScriptModule


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("model", "text"),
    [
        (
            PlainNet(),
            "takes a ScriptModule, got the nn.Module PlainNet. Script or trace it first: "
            "torch.jit.script(model.eval()), or torch.jit.trace(model.eval(), example_inputs).",
        ),
        (
            double_it,
            "takes a ScriptModule, got a ScriptFunction. Call it from the forward of an nn.Module, "
            "and script that.",
        ),
        (
            "nets/a.pt",
            "takes a loaded model, got the path 'nets/a.pt'. Load it first: "
            "torch.jit.load('nets/a.pt').",
        ),
        (
            Path("nets/a.pt"),
            "takes a loaded model, got the path 'nets/a.pt'. Load it first: "
            "torch.jit.load('nets/a.pt').",
        ),
        (None, "takes a ScriptModule, got NoneType."),
        ({"weight": 1}, "takes a ScriptModule, got dict."),
        (PlainNet, "takes a ScriptModule, got type."),
    ],
    ids=["nn.Module", "ScriptFunction", "str", "Path", "None", "dict", "class"],
)
def test_not_a_script_module(function: str, model: object, text: str) -> None:
    with refused(None, f"{function} {text}", JitQuantTypeError):
        FUNCTIONS[function](model)


def test_module_without_forward() -> None:
    class NoForward(nn.Module):
        @torch.jit.export
        def run(self, x: Tensor) -> Tensor:
            return x + 1

    model = torch.jit.script(NoForward().eval())
    with refused(model, "prepare_jit: the model has no method 'forward'."):
        jitquant.prepare_jit(model, QCONFIG)


# Training mode


@pytest.mark.parametrize("function", FROM_FLOAT)
def test_whole_model_in_training_mode(function: str) -> None:
    model = scripted(ResidualNet()).train()
    text = (
        f"{function}: the model is in training mode ('the top module', 'stem', 'stem.conv1' and 8 "
        "more). Call model.eval() first; a traced model must be traced after eval()."
    )
    with refused(model, text):
        FUNCTIONS[function](model)


@pytest.mark.parametrize("function", FROM_FLOAT)
def test_one_submodule_in_training_mode(function: str) -> None:
    model = scripted(ResidualNet())
    model.stem.bn1.train()
    with refused(model, f"{function}: the model is in training mode ('stem.bn1'). Call model.eval"):
        FUNCTIONS[function](model)


class Dropped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.drop(self.fc(x))
        return y


@pytest.mark.parametrize(
    ("module", "text"),
    [(Block(), "aten::batch_norm in 'bn1'"), (Dropped(), "aten::dropout in 'drop'")],
    ids=["BatchNorm", "Dropout"],
)
@pytest.mark.parametrize("function", FROM_FLOAT)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traced_in_training_mode(function: str, module: nn.Module, text: str) -> None:
    """eval() on the trace sets the flags, but the recorded ops still train."""
    module = settle(copy.deepcopy(module)).train()
    model: torch.jit.ScriptModule = torch.jit.trace(module, images(2, 3, 8, 8), check_trace=False)
    with refused(model, "the model is in training mode ('the top module'"):
        FUNCTIONS[function](model)
    model.eval()
    with refused(model, text, JitQuantError):
        FUNCTIONS[function](model)
    with refused(model, "runs in training mode. Call model.eval() before", JitQuantError):
        FUNCTIONS[function](model)


# The configuration


@pytest.mark.parametrize(
    ("qconfig_dict", "text", "kind"),
    [
        (
            {"stem.conv": jitquant.default_qconfig},
            "qconfig_dict: the rule module_name 'stem.conv' matches nothing: the model has no "
            "submodule 'stem.conv'. The nearest names are: "
            "'stem.conv1'",
            JitQuantValueError,
        ),
        (
            {"fc.weight": jitquant.default_qconfig},
            "qconfig_dict: the rule module_name 'fc.weight' matches nothing: the model has no "
            "submodule 'fc.weight'. The nearest names are: ",
            JitQuantValueError,
        ),
        (
            {7: jitquant.default_qconfig},
            "qconfig_dict: keys are submodule names, got 7 of type int.",
            JitQuantTypeError,
        ),
        (
            [("", jitquant.default_qconfig)],
            "qconfig_dict must be a dict of submodule names to qconfigs, such as "
            "{'': get_default_qconfig()}, a QConfigMapping or a predicate, got list.",
            JitQuantTypeError,
        ),
        (
            jitquant.default_qconfig,
            "qconfig_dict must be a dict of submodule names to qconfigs, such as "
            "{'': get_default_qconfig()}, a QConfigMapping or a predicate, got QConfig.",
            JitQuantTypeError,
        ),
        (None, "a QConfigMapping or a predicate, got NoneType.", JitQuantTypeError),
        (
            {"": "x86"},
            "qconfig_dict['']: expected a jitquant.QConfig or torch.ao.quantization.QConfig, got "
            "'x86' of type str",
            JitQuantTypeError,
        ),
        (
            {"": jitquant.default_qconfig, "fc": jitquant.default_qconfig.weight},
            "qconfig_dict['fc']: expected a jitquant.QConfig",
            JitQuantTypeError,
        ),
        (
            {"": jitquant.QConfig(nn.Identity, jitquant.default_qconfig.weight)},
            "qconfig_dict[''], activation: expected a jitquant observer",
            JitQuantTypeError,
        ),
        (
            {"": None, "fc": None},
            "qconfig_dict gives no qconfig, so nothing would be quantized. Use "
            "{'': get_default_qconfig()} for the whole model.",
            JitQuantValueError,
        ),
        ({}, "qconfig_dict gives no qconfig, so nothing would be", JitQuantValueError),
    ],
)
def test_configuration(qconfig_dict: Any, text: str, kind: type[JitQuantError]) -> None:
    model = scripted(ResidualNet())
    for inplace in (False, True):
        with refused(model, text, kind):
            jitquant.prepare_jit(model, qconfig_dict, inplace=inplace)
        with refused(model, text, kind):
            jitquant.quantize_jit(model, qconfig_dict, calibrate, [images()], inplace=inplace)


def test_unknown_engine_name() -> None:
    with refused(None, "unknown backend 'tensorrt', known are: x86, fbgemm, onednn, qnnpack"):
        jitquant.get_default_qconfig("tensorrt")


def test_engine_that_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch itself refuses to set "none", so this stands for a torch built without engines."""
    model = scripted(PlainNet())
    prepared = calibrated(model)
    text = (
        "the quantized engine is 'none', and this torch has: qnnpack, x86. Set "
        "torch.backends.quantized.engine to one of them."
    )
    build = SimpleNamespace(engine="none", supported_engines=["qnnpack", "none", "x86"])
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends, "quantized", build)
        with refused(model, text):
            jitquant.prepare_jit(model, QCONFIG)
        with refused(prepared, text):
            jitquant.convert_jit(prepared)
        with refused(None, "this torch has no engine 'fbgemm', it has: qnnpack, none, x86"):
            jitquant.get_default_qconfig("fbgemm")


# Calibration


@pytest.mark.parametrize("debug", [False, True])
def test_no_calibration(debug: bool) -> None:
    prepared = jitquant.prepare_jit(scripted(ResidualNet()), QCONFIG)
    text = (
        "the prepared model was not calibrated: no observer saw any data. Run the model that "
        "prepare_jit returned on sample inputs that are not empty before convert_jit."
    )
    for inplace in (False, True):
        with refused(prepared, text, JitQuantError):
            jitquant.convert_jit(prepared, inplace=inplace, debug=debug)


def test_calibrating_the_float_model_instead() -> None:
    model = scripted(ResidualNet())
    with refused(model, "the prepared model was not calibrated", JitQuantError):
        jitquant.quantize_jit(model, QCONFIG, lambda prepared: model(images()), [], inplace=True)


def test_only_empty_inputs() -> None:
    prepared = calibrated(scripted(ResidualNet()), images(0, 3, 8, 8))
    with refused(prepared, "was not calibrated: no observer saw any data", JitQuantError):
        jitquant.convert_jit(prepared)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 4)
        self.second = nn.Linear(8, 4)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x), self.second(y)


def test_one_input_was_always_empty() -> None:
    prepared = jitquant.prepare_jit(scripted(TwoInputs()), QCONFIG)
    prepared(images(2, 8), images(0, 8))
    text = (
        "the observer of the input 'y' of forward saw no data. Calibration must run every part of "
        "the model that is converted, with inputs that are not empty."
    )
    with refused(prepared, text, JitQuantError):
        jitquant.convert_jit(prepared)


def test_a_preserved_method_was_not_calibrated() -> None:
    prepared = calibrated(scripted(TwoMethodNet()))
    with refused(prepared, "the observer of the input 'x' of embed saw no data", JitQuantError):
        jitquant.convert_jit(prepared, preserved_attrs=["embed"])
    jitquant.convert_jit(prepared)


@pytest.mark.parametrize(
    ("value", "name"), [(float("nan"), "NaN"), (float("inf"), "an infinite value")]
)
def test_input_with_a_value_that_is_not_finite(value: float, name: str) -> None:
    x = images()
    x[1, 2, 3, 4] = value
    model = scripted(ResidualNet())
    prepared = calibrated(model, images(), x)
    text = (
        f"calibration saw {name} in the input 'x' of forward. Look at the calibration data and at "
        "the float model's output there, or set the qconfig of that module to None."
    )
    with refused(prepared, text, JitQuantError):
        jitquant.convert_jit(prepared, inplace=True)
    with refused(model, text, JitQuantError):
        jitquant.quantize_jit(model, QCONFIG, calibrate, [images(), x], inplace=True)


class Divided(nn.Module):
    def __init__(self, numerator: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 1)
        self.conv2 = nn.Conv2d(4, 4, 1)
        self.numerator = numerator

    def forward(self, x: Tensor) -> Tensor:
        zero = torch.zeros_like(x[:, :1])
        y: Tensor = self.conv2(self.conv1(x) * 0 + torch.full_like(zero, self.numerator) / zero)
        return y


@pytest.mark.parametrize(("numerator", "name"), [(0.0, "NaN"), (1.0, "an infinite value")])
def test_value_inside_that_is_not_finite(numerator: float, name: str) -> None:
    model = scripted(Divided(numerator))
    prepared = calibrated(model)
    pattern = rf"calibration saw {name} in the output of aten::\w+ in .*\(test_bad_input\.py:\d+\)"
    with assert_untouched(prepared), pytest.raises(JitQuantError, match=pattern):
        jitquant.convert_jit(prepared)


def test_weight_that_is_nan() -> None:
    module = settle(PlainNet())
    assert isinstance(module, PlainNet)
    with torch.no_grad():
        module.fc.weight[2, 3] = float("nan")
    model = torch.jit.script(module)
    pattern = (
        r"^the weight of aten::linear in 'fc' \(models\.py:\d+\) holds NaN or infinite values\. "
        r"Mend the float model, or set the qconfig of that module to None\.$"
    )
    with assert_untouched(model), pytest.raises(JitQuantError, match=pattern):
        jitquant.prepare_jit(model, QCONFIG, inplace=True)
    with assert_untouched(model), pytest.raises(JitQuantError, match=pattern):
        jitquant.quantize_jit(model, QCONFIG, calibrate, [images()], inplace=True)
    prepared = jitquant.prepare_jit(model, {**QCONFIG, "fc": None})
    prepared(images())
    jitquant.convert_jit(prepared)


@pytest.mark.parametrize("debug", [False, True])
def test_weight_that_is_infinite_where_no_activation_shows_it(debug: bool) -> None:
    """-inf times positive inputs becomes 0 in the ReLU, so only the weight itself can tell."""
    module = settle(PlainNet())
    assert isinstance(module, PlainNet)
    with torch.no_grad():
        module.conv1.weight[0, :, 1, 1] = float("-inf")
    model = torch.jit.script(module)
    run_args = [images().abs() + 0.1]
    text = "the weight of aten::conv2d in 'conv1' (models.py:"
    with refused(model, text, JitQuantError):
        jitquant.prepare_jit(model, QCONFIG)
    with refused(model, text, JitQuantError):
        jitquant.quantize_jit(model, QCONFIG, calibrate, run_args, inplace=True, debug=debug)


@pytest.mark.parametrize("debug", [False, True])
def test_weight_that_becomes_nan_between_prepare_and_convert(debug: bool) -> None:
    prepared = calibrated(scripted(PlainNet()))
    prepared.fc.weight.data[2, 3] = float("nan")
    text = "the weight of aten::linear in 'fc' (models.py:"
    with refused(prepared, text, JitQuantError):
        jitquant.convert_jit(prepared, debug=debug)


def test_run_fn_that_raises() -> None:
    class Stop(Exception):
        pass

    def run(prepared: torch.jit.ScriptModule) -> None:
        prepared(images())
        raise Stop("out of pictures")

    model = scripted(ResidualNet())
    with assert_untouched(model), pytest.raises(Stop, match="out of pictures"):
        jitquant.quantize_jit(model, QCONFIG, run, [], inplace=True)


def test_run_fn_that_is_no_function() -> None:
    model = scripted(PlainNet())
    text = "run_fn must be a function that runs the prepared model on sample inputs, got NoneType."
    with refused(model, text, JitQuantTypeError):
        UNTYPED.quantize_jit(model, QCONFIG, None, [])


@pytest.mark.parametrize("run_args", [3, None, images(), "photos"], ids=lambda x: type(x).__name__)
def test_run_args_that_are_no_list(run_args: Any) -> None:
    """A tensor would be taken apart along its first dimension."""
    model = scripted(PlainNet())
    text = f"behind the model, got {type(run_args).__name__}. For a single argument give [argument]"
    with refused(model, text, JitQuantTypeError):
        UNTYPED.quantize_jit(model, QCONFIG, calibrate, run_args)


# Types and devices


@pytest.mark.parametrize("function", FROM_FLOAT)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_parameters_of_another_type(function: str, dtype: torch.dtype) -> None:
    model = torch.jit.script(settle(PlainNet()).to(dtype))
    text = (
        f"{function}: the parameter 'conv1.weight' is {dtype}, and only float32 models can be "
        "quantized. Call model.float() first."
    )
    with refused(model, text):
        FUNCTIONS[function](model)


def test_one_parameter_of_another_type() -> None:
    module = settle(PlainNet())
    assert isinstance(module, PlainNet)
    module.fc.double()
    model = torch.jit.script(module)
    with refused(model, "prepare_jit: the parameter 'fc.weight' is torch.float64"):
        jitquant.prepare_jit(model, QCONFIG)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("function", ("quantize_jit", "prepare_jit"))
def test_frozen_model_of_another_type(function: str, dtype: torch.dtype) -> None:
    """Freezing made the weights constants, which are no parameters."""
    model = torch.jit.freeze(torch.jit.script(settle(PlainNet()).to(dtype)))
    assert list(model.parameters()) == []
    name = {torch.float64: "Double", torch.bfloat16: "BFloat16"}[dtype]
    pattern = (
        rf"^the weight of aten::conv2d in the top module \(\w+\.py:\d+\) is {name}, and only float32 "
        r"models can be quantized\. Call model\.float\(\) on the model before it is scripted or frozen\.$"
    )
    with assert_untouched(model), pytest.raises(JitQuantError, match=pattern):
        FUNCTIONS[function](model)


@pytest.mark.parametrize("function", FROM_FLOAT)
def test_parameters_on_another_device(function: str) -> None:
    """The device "meta" stands for "cuda:0"."""
    model = torch.jit.script(settle(ResidualNet()).to("meta"))
    text = (
        f"{function}: the parameter 'stem.conv1.weight' is on meta; int8 models run on the CPU. "
        "Call model.cpu() first."
    )
    with refused(model, text):
        FUNCTIONS[function](model)


def test_buffer_on_another_device() -> None:
    module = settle(Block())
    assert isinstance(module, Block) and module.bn1.running_mean is not None
    module.bn1.running_mean = module.bn1.running_mean.to("meta")
    model = torch.jit.script(module)
    with refused(model, "prepare_jit: the buffer 'bn1.running_mean' is on meta"):
        jitquant.prepare_jit(model, QCONFIG)


@pytest.mark.parametrize("change", [torch.float64, torch.float16, "meta"])
def test_prepared_model_moved_before_convert(change: torch.dtype | str) -> None:
    model = scripted(PlainNet())
    prepared = calibrated(model)
    with assert_untouched(model):
        move(prepared, change)
    shown = "on meta" if change == "meta" else str(change)
    with refused(prepared, f"convert_jit: the parameter 'conv1.weight' is {shown}"):
        jitquant.convert_jit(prepared)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def move(model: torch.jit.ScriptModule, change: torch.dtype | str) -> None:
    """`model.to(change)`; torch's own refuses "meta" unless all parameters are nn.Parameters."""
    if change != "meta":
        model.to(change)
        return
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, parameter.to("meta"))


# The wrong stage


def at_stage(stage: str) -> torch.jit.ScriptModule:
    model = scripted(ResidualNet())
    if stage == "float":
        return model
    prepared = calibrated(model)
    return (
        prepared if stage == "prepared" else jitquant.convert_jit(prepared, debug=stage == "debug")
    )


@pytest.mark.parametrize("function", FROM_FLOAT)
@pytest.mark.parametrize(
    ("stage", "hint"),
    [
        ("prepared", "Calibrate it and call convert_jit."),
        ("converted", "It needs no second conversion."),
        ("debug", "Quantize the float model that it was made from."),
    ],
)
def test_made_by_jitquant_already(function: str, stage: str, hint: str) -> None:
    model = at_stage(stage)
    with refused(model, f"{function}: the model is already {stage}. {hint}"):
        FUNCTIONS[function](model)


@pytest.mark.parametrize("stage", ["converted", "debug"])
def test_converting_twice(stage: str) -> None:
    model = at_stage(stage)
    with refused(model, f"convert_jit: the model is already {stage}."):
        jitquant.convert_jit(model, inplace=True)


@pytest.mark.parametrize(
    "qconfig", [jitquant.default_qconfig, jitquant.get_default_qconfig()], ids=["min", "histogram"]
)
@pytest.mark.parametrize("wrap", [False, True])
def test_prepared_and_then_frozen(wrap: bool, qconfig: jitquant.QConfig) -> None:
    """The observers are inlined, and the record is gone."""
    prepared = jitquant.prepare_jit(scripted(PlainNet()), {"": qconfig})
    frozen = torch.jit.freeze(scripted(Around(prepared)) if wrap else prepared)
    with refused(frozen, "so it was prepared by prepare_jit and then frozen, which inlines obs"):
        jitquant.prepare_jit(frozen, {"": qconfig})


def test_converting_what_was_not_prepared() -> None:
    model = at_stage("float")
    text = (
        "convert_jit: the model was not prepared. Call prepare_jit, run the result on sample "
        "inputs, and convert that."
    )
    with refused(model, text):
        jitquant.convert_jit(model, inplace=True)


def test_coverage_of_a_model_that_jitquant_did_not_make() -> None:
    model = at_stage("float")
    text = "coverage: the model has no coverage record, so prepare_jit or convert_jit did not make"
    with refused(model, text):
        jitquant.coverage(model)


# preserved_attrs


@pytest.mark.parametrize(
    ("names", "text", "kind"),
    [
        (
            ["embedd"],
            "preserved_attrs: the model has no method or attribute 'embedd'. The nearest names "
            "are: 'embed'",
            JitQuantValueError,
        ),
        (
            "embed",
            "preserved_attrs must be a list of names, got the string 'embed'.",
            JitQuantTypeError,
        ),
        (
            [3],
            "preserved_attrs must be a list of names, and holds 3 of type int.",
            JitQuantTypeError,
        ),
        (3, "preserved_attrs must be a list of names, got int.", JitQuantTypeError),
        (
            ["_forward_impl"],
            "preserved_attrs: the model has no method or attribute '_forward_impl'. prepare_jit "
            "keeps no method whose name begins with an underscore and that another method calls: "
            "it is inlined there. ",
            JitQuantValueError,
        ),
    ],
)
def test_preserved_attrs(names: Any, text: str, kind: type[JitQuantError]) -> None:
    prepared = calibrated(scripted(TwoMethodNet()))
    with refused(prepared, text, kind):
        jitquant.convert_jit(prepared, preserved_attrs=names, inplace=True)


class HasBuffer(nn.Module):
    means: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("means", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


def test_hint_for_preserved_attrs_names_what_is_the_users() -> None:
    prepared = calibrated(scripted(HasBuffer()))
    with pytest.raises(JitQuantValueError) as caught:
        jitquant.convert_jit(prepared, preserved_attrs=["zzz"])
    assert str(caught.value).endswith(
        "the model has no method or attribute 'zzz'. It has 'forward', 'conv', 'means'."
    )


# A prepared model that was edited


def test_op_removed_from_the_prepared_graph() -> None:
    prepared = calibrated(scripted(PlainNet()))
    relu = next(node for node in prepared.graph.nodes() if node.kind() == "aten::relu")
    relu.output().replaceAllUsesWith(relu.inputsAt(0))
    relu.destroy()
    text = "the prepared model's graph was changed after prepare_jit: it now has aten::mean in "
    with refused(prepared, text, JitQuantError):
        jitquant.convert_jit(prepared)


def test_method_added_to_the_prepared_model() -> None:
    prepared = calibrated(scripted(PlainNet()))
    prepared.define("def extra(self, x):\n    return x + 1\n")
    text = "the prepared model's graph was changed after prepare_jit: it now has aten::add in "
    with refused(prepared, text, JitQuantError):
        jitquant.convert_jit(prepared, preserved_attrs=["extra"])


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 1, "ops": []}', '{"format": 99}'])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_state_that_jitquant_did_not_write(function: str, text: str) -> None:
    prepared = calibrated(scripted(PlainNet()))
    prepared.jitquant_state = text
    message = "the model's attribute 'jitquant_state' is not what jitquant wrote"
    with refused(prepared, message, JitQuantError):
        FUNCTIONS[function](prepared)


def test_state_of_a_later_jitquant() -> None:
    prepared = calibrated(scripted(PlainNet()))
    prepared.jitquant_state = '{"format": 99, "jitquant_version": "9.1"}'
    text = (
        "the model was made by jitquant 9.1 with state format 99, this jitquant reads format 2: "
        "install that version."
    )
    with refused(prepared, text, JitQuantError):
        jitquant.convert_jit(prepared)


def test_assert_untouched_notices_changes() -> None:
    """The check that all tests here rest on can fail."""

    def tamper(edit: Callable[[torch.jit.ScriptModule], object]) -> None:
        model = scripted(TwoMethodNet())
        with pytest.raises(AssertionError), assert_untouched(model):
            edit(model)

    tamper(lambda model: model.train())
    tamper(lambda model: setattr(model, "labels", ["dog", "cat"]))
    tamper(lambda model: model.conv1.weight.data.view(-1)[0].neg_())
    tamper(lambda model: setattr(model.fc, "bias", nn.Parameter(model.fc.bias.detach().clone())))
    tamper(lambda model: model.fc.bias.requires_grad_(False))

    class OwnType(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu()

    model = scripted(OwnType())
    with pytest.raises(AssertionError), assert_untouched(model):
        model.graph.addInput("extra")

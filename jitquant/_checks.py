"""Checks of what the user passes in. Each raises an error that says what to do instead."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from jitquant import _state
from jitquant._nearest import nearest, some
from jitquant._observed import (
    activation_observers,
    dynamic_templates,
    is_observer_name,
    needs_data,
    weight_observers,
)
from jitquant.backend import get_backend
from jitquant.errors import JitQuantTypeError, JitQuantValueError

_TORCH: Any = torch  # whose stubs lack what is not public


def check_script_module(model: object, function: str) -> torch.jit.ScriptModule:
    """Return `model` if it is a ScriptModule with a forward."""
    if isinstance(model, torch.jit.ScriptModule):
        if not model._c._has_method("forward"):
            raise JitQuantValueError(f"{function}: the model has no method 'forward'.")
        return model
    if isinstance(model, (str, os.PathLike)):
        raise JitQuantTypeError(
            f"{function} takes a loaded model, got the path {os.fspath(model)!r}. "
            f"Load it first: torch.jit.load({os.fspath(model)!r})."
        )
    if isinstance(model, torch.nn.Module):
        raise JitQuantTypeError(
            f"{function} takes a ScriptModule, got the nn.Module {type(model).__name__}. "
            "Script or trace it first: torch.jit.script(model.eval()), or "
            "torch.jit.trace(model.eval(), example_inputs)."
        )
    if isinstance(model, torch.jit.ScriptFunction):
        raise JitQuantTypeError(
            f"{function} takes a ScriptModule, got a ScriptFunction. Call it from the forward of "
            "an nn.Module, and script that."
        )
    raise JitQuantTypeError(f"{function} takes a ScriptModule, got {type(model).__name__}.")


def check_float_model(model: torch.jit.ScriptModule, function: str) -> None:
    """Raise unless `model` is an unquantized float32 CPU model in eval mode."""
    state = _state.read(model)
    if state is not None:
        hint = {
            "prepared": "Calibrate it and call convert_jit.",
            "converted": "It needs no second conversion.",
            "debug": "Quantize the float model that it was made from.",
        }[state.stage]
        raise JitQuantValueError(f"{function}: the model is already {state.stage}. {hint}")
    _check_parts(model, function)
    training = [name or "the top module" for name, m in model.named_modules() if _is_training(m)]
    if training:
        raise JitQuantValueError(
            f"{function}: the model is in training mode ({some(training, 3)}). Call model.eval() "
            "first; a traced model must be traced after eval()."
        )
    check_tensors(model, function)


def _check_parts(model: torch.jit.ScriptModule, function: str) -> None:
    """Raise if a submodule was prepared, by jitquant or torch.ao, and not converted."""
    for path, module in model.named_modules():
        owner, _, name = path.rpartition(".")
        if is_observer_name(name):
            raise JitQuantValueError(
                f"{function}: the submodule {owner!r} was prepared by prepare_jit. Convert it "
                "first, or put the float model there."
            )
        class_name = module._c._type().qualified_name()
        if ".quantization.observer." in class_name or ".quantization.fake_quantize." in class_name:
            raise JitQuantValueError(
                f"{function}: the submodule {path!r} is a {class_name.rpartition('.')[2]} of "
                "torch.ao, so the model was prepared by it and not converted. Quantize the float "
                "model that it was made from; load_state_dict(strict=False) of that takes over "
                "trained weights."
            )


def check_tensors(model: torch.jit.ScriptModule, function: str) -> None:
    """Raise unless parameters and buffers are on the CPU, and floating-point parameters float32."""
    for kind, tensors in (
        ("parameter", model.named_parameters()),
        ("buffer", model.named_buffers()),
    ):
        for name, tensor in tensors:
            if tensor.device.type != "cpu":
                raise JitQuantValueError(
                    f"{function}: the {kind} {name!r} is on {tensor.device}; int8 models run on "
                    "the CPU. Call model.cpu() first."
                )
    for name, parameter in model.named_parameters():
        if parameter.dtype.is_floating_point and parameter.dtype != torch.float32:
            raise JitQuantValueError(
                f"{function}: the parameter {name!r} is {parameter.dtype}, and only float32 models "
                "can be quantized. Call model.float() first."
            )


def check_run_fn(run_fn: object, run_args: object) -> None:
    """Raise unless `run_fn` can be called, and `run_args` are its further arguments."""
    if not callable(run_fn):
        raise JitQuantTypeError(
            "quantize_jit: run_fn must be a function that runs the prepared model on sample "
            f"inputs, got {type(run_fn).__name__}."
        )
    if not isinstance(run_args, Sequence) or isinstance(run_args, str):
        raise JitQuantTypeError(
            "quantize_jit: run_args must be a list or tuple of the arguments of run_fn behind the "
            f"model, got {type(run_args).__name__}. For a single argument give [argument]."
        )


def check_engine() -> str:
    """Return the quantized engine that is set, which convert runs the int8 ops on."""
    engine = str(torch.backends.quantized.engine)
    supported = [name for name in torch.backends.quantized.supported_engines if name != "none"]
    if engine not in supported:
        raise JitQuantValueError(
            f"the quantized engine is {engine!r}, and this torch has: {', '.join(supported)}. "
            "Set torch.backends.quantized.engine to one of them."
        )
    return engine


def check_prepared(model: torch.jit.ScriptModule, function: str = "convert_jit") -> _state.State:
    """Return the state of a model that prepare_jit made."""
    state = _state.read(model)
    if state is None:
        raise JitQuantValueError(
            f"{function}: the model was not prepared. Call prepare_jit, run the result on sample "
            "inputs, and convert that."
        )
    if state.stage != "prepared":
        raise JitQuantValueError(f"{function}: the model is already {state.stage}.")
    check_tensors(model, function)
    return state


def needs_calibration(prepared: torch.jit.ScriptModule) -> bool:
    return any(needs_data(observer) for observer in activation_observers(prepared))


def check_own_biases(state: _state.State, function: str) -> None:
    """Raise if correct_bias changed a prepared model that is to say what is right."""
    if state.bias_corrected:
        raise JitQuantValueError(
            f"{function}: correct_bias changed the biases of the prepared model, so what it gives "
            "in float is not what the float model gives. Give the float model, or the prepared one "
            "from before correct_bias."
        )


def check_prepared_by(model: torch.jit.ScriptModule, prepare: str, function: str) -> None:
    """Raise if the other one of prepare_jit and prepare_dynamic_jit prepared `model`."""
    if _state.read(model) is None:
        hint = "" if "dynamic" in prepare else ", run the result on sample inputs"
        raise JitQuantValueError(
            f"{function}: the model was not prepared. Call {prepare}{hint}, and convert that."
        )
    is_dynamic = not needs_calibration(model) and bool(dynamic_templates(model))
    if is_dynamic and prepare == "prepare_jit":
        raise JitQuantValueError(
            f"{function}: prepare_dynamic_jit prepared the model, which needs no calibration. Call "
            "convert_dynamic_jit."
        )
    if not is_dynamic and prepare == "prepare_dynamic_jit":
        raise JitQuantValueError(
            f"{function}: the model has static qconfigs, so prepare_jit prepared it. Calibrate it "
            "and call convert_jit."
        )


def check_preserved_attrs(
    model: torch.jit.ScriptModule, preserved_attrs: Iterable[str] | None
) -> tuple[list[str], list[str]]:
    """Split names into methods to convert with forward, and attributes to keep."""
    if isinstance(preserved_attrs, str):
        raise JitQuantTypeError(
            f"preserved_attrs must be a list of names, got the string {preserved_attrs!r}."
        )
    if not isinstance(preserved_attrs, Iterable | None):
        raise JitQuantTypeError(
            f"preserved_attrs must be a list of names, got {type(preserved_attrs).__name__}."
        )
    methods = ["forward"]
    attributes = []
    for name in preserved_attrs or ():
        if not isinstance(name, str):
            raise JitQuantTypeError(
                f"preserved_attrs must be a list of names, and holds {name!r} of type "
                f"{type(name).__name__}."
            )
        if model._c._has_method(name):
            if name not in methods:
                methods.append(name)
        elif model._c.hasattr(name):
            attributes.append(name)
        else:
            raise JitQuantValueError(
                f"preserved_attrs: the model has no method or attribute {name!r}. "
                f"{_hint_for_attribute(name, model)}"
            )
    return methods, attributes


def _hint_for_attribute(name: str, model: torch.jit.ScriptModule) -> str:
    """Why a prepared model may lack `name`, and what it has of the user's."""
    known = [each for each in model._c._method_names() if not each.startswith("__")]
    known += [each for each, _ in model.named_children()]
    known += [each for each, _ in model.named_buffers(recurse=False)]
    known += [each for each, _ in model.named_parameters(recurse=False)]
    hint = nearest(name, [each for each in known if not each.startswith("jitquant_")])
    if not name.startswith("_"):
        return hint
    return (
        "prepare_jit keeps no method whose name begins with an underscore and that another method "
        f"calls: it is inlined there. {hint}"
    )


def check_weight_observers(model: torch.jit.ScriptModule, engine: str) -> None:
    """Raise unless `engine`, which may be another than at prepare, can run a prepared model."""
    for observer in weight_observers(model):
        get_backend(engine).check_weight_observer(observer, "convert_jit")


def method_names(model: torch.jit.ScriptModule) -> list[str]:
    """The methods that a user calls, forward first.

    Not those that serialization calls, and none whose name begins with an underscore and which
    another method calls: that one has it inlined.
    """
    names = [name for name in model._c._method_names() if not name.startswith("__")]
    called = {name for caller in names for name in _own_calls(model, caller) if name != caller}
    others = sorted(name for name in names if name not in called or not name.startswith("_"))
    return ["forward", *(name for name in others if name != "forward")]


def _own_calls(model: torch.jit.ScriptModule, caller: str) -> list[str]:
    """Which methods of the same module a method calls."""
    graph = model._c._get_method(caller).graph
    itself = next(iter(graph.inputs())).debugName()
    calls = graph.findAllNodes("prim::CallMethod", recurse=True)
    return [call.s("name") for call in calls if call.inputsAt(0).debugName() == itself]


def as_model(module: torch._C.ScriptModule) -> torch.jit.ScriptModule:
    """A C++ module as Python sees it.

    As torch.jit._recursive.wrap_cpp_module, which describes the types of all submodules anew
    for each module that they are in.
    """
    concrete_type = _TORCH._C.ConcreteModuleType.from_jit_type(module._type())
    wrapped: torch.jit.ScriptModule = _wrapped(module, concrete_type)
    return wrapped


def _wrapped(module: Any, concrete_type: Any) -> Any:
    types = dict(concrete_type.get_modules())

    def fill(wrapper: Any) -> None:
        for name, child in _TORCH._C.ModuleDict(module).items():
            setattr(wrapper, name, _wrapped(child, types[name]))
        wrapper._concrete_type = concrete_type
        wrapper._forward_pre_hooks.update(enumerate(module._get_forward_pre_hooks()))
        wrapper._forward_hooks.update(enumerate(module._get_forward_hooks()))

    return _TORCH.jit.RecursiveScriptModule._construct(module, fill)


def _is_training(module: torch.nn.Module) -> bool:
    return bool(getattr(module, "training", False))

"""Post-training quantization of TorchScript models: static, or static and dynamic in one model."""

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch

from jitquant import _C, _checks, _state, _trial_run
from jitquant._configure import decide, shape_recorder
from jitquant._garbage import uncollected
from jitquant._libraries import libraries_of
from jitquant._resolve import Decision, check_any_qconfig
from jitquant._torch_ao import TorchAoMapping
from jitquant._version import __version__
from jitquant.backend import activation_bits_of, get_backend
from jitquant.errors import DroppedWarning, FloatWarning, JitQuantValueError
from jitquant.machine import cpu_features
from jitquant.mapping import Predicate, QConfigMapping, as_mapping
from jitquant.qconfig import QConfig, is_dynamic, script_qconfig

__all__ = ["convert_jit", "fuse_conv_bn_jit", "prepare_jit", "quantize_jit"]

Config = Mapping[str, Any] | QConfigMapping | TorchAoMapping | Predicate

Debug = bool | Literal["exact"]

Trace = Callable[[str, str, str], None]
"""Called after each pass with its name, the method's name and the graph's canonical text."""


def quantize_jit(
    model: torch.jit.ScriptModule,
    qconfig_dict: Config,
    run_fn: Callable[..., Any],
    run_args: Sequence[Any] = (),
    inplace: bool = False,
    debug: Debug = False,
    preserved_attrs: Iterable[str] | None = None,
) -> torch.jit.ScriptModule:
    """Prepare, calibrate and convert in one call.

    Args:
        model: a scripted, traced or loaded float32 model in eval mode, on the CPU.
        qconfig_dict: see `prepare_jit`.
        run_fn: calibrates; called as `run_fn(prepared_model, *run_args)`.
        run_args: list or tuple of further arguments of run_fn.
        inplace: also put the result into `model`, as the last step.
        debug, preserved_attrs: see `convert_jit`.

    Returns:
        The quantized model. `model` is unchanged unless inplace.

    Raises:
        JitQuantError: see `prepare_jit` and `convert_jit`.
    """
    checked = _checks.check_script_module(model, "quantize_jit")
    _checks.check_run_fn(run_fn, run_args)
    prepared = _prepare(checked, qconfig_dict, None, "quantize_jit")
    run_fn(prepared, *run_args)
    return _finish(_convert(prepared, debug, preserved_attrs, None), checked, inplace)


def prepare_jit(
    model: torch.jit.ScriptModule, qconfig_dict: Config, inplace: bool = False
) -> torch.jit.ScriptModule:
    """Copy the model, fold BatchNorm into convolutions, and insert observers.

    The result computes what the model computes, in float, and records what it sees. Run it on
    sample inputs, then call `convert_jit`. It can be saved and loaded in between.

    Args:
        model: a scripted, traced or loaded float32 model in eval mode, on the CPU.
        qconfig_dict: submodule path to `QConfig` (ours or torch.ao's), or None to leave the
            submodule float. "" is the whole model; a key covers the children of its module that no
            longer key covers. Or a `QConfigMapping` (ours or torch.ao's), its dictionary form, or a
            predicate. Some may be dynamic; `prepare_dynamic_jit` is for models in which all are.
        inplace: also put the result into `model`, as the last step.

    Returns:
        The prepared model. It shares parameters with `model`, and nothing that a run writes.

    Raises:
        JitQuantTypeError: model or qconfig_dict is of a wrong type.
        JitQuantValueError: training mode, parameters that are not float32 or not on the CPU, a
            model that jitquant made, a rule that matches nothing, a qconfig that no engine can run,
            only dynamic qconfigs.
        JitQuantError: the graph cannot be flattened, or runs an op in training mode.
    """
    checked = _checks.check_script_module(model, "prepare_jit")
    return _finish(_prepare(checked, qconfig_dict, None), checked, inplace)


def convert_jit(
    model: torch.jit.ScriptModule,
    inplace: bool = False,
    debug: Debug = False,
    preserved_attrs: Iterable[str] | None = None,
) -> torch.jit.ScriptModule:
    """Turn a calibrated model into an int8 model that needs only torch to run.

    Args:
        model: what `prepare_jit` returned, after it ran on sample inputs.
        inplace: also put the result into `model`, as the last step.
        debug: True gives a model that emulates int8 in float: `aten::quantize_per_tensor` and
            `aten::dequantize` around float ops, weights still float and reachable by name.
            "exact" gives the int8 model's arithmetic in stock float and integer ops, with each
            kernel's order of rounding; weights are reachable by name as they are, and as
            integers with scales: `weight_int8`, int8, `weight_scale`, float32 and
            `weight_zero_point`, int64, both (out_channels,), or () if quantized per tensor.
        preserved_attrs: methods (converted as well) and attributes that the result keeps besides
            forward. A DroppedWarning names what else the user may miss.

    Returns:
        The converted model, frozen, with packed weights. `model` is unchanged unless inplace.

    Raises:
        JitQuantTypeError: model is not a ScriptModule.
        JitQuantValueError: model was not prepared, or not by prepare_jit, or is converted already;
            preserved_attrs names nothing; debug is something else; the quantized engine is not
            available.
        JitQuantError: no calibration ran, an observer saw no data, or NaN or infinite values.
    """
    checked = _checks.check_script_module(model, "convert_jit")
    _checks.check_prepared_by(checked, "prepare_jit", "convert_jit")
    return _finish(_convert(checked, debug, preserved_attrs, None), checked, inplace)


def fuse_conv_bn_jit(
    model: torch.jit.ScriptModule, inplace: bool = False
) -> torch.jit.ScriptModule:
    """Fold BatchNorm in eval mode into the convolution before it, and do nothing else.

    Args:
        model: a scripted, traced or loaded float32 model in eval mode, on the CPU.
        inplace: also put the result into `model`, as the last step.

    Returns:
        The folded float model, with the calls of submodules inlined.

    Raises:
        JitQuantError: see `prepare_jit`.
    """
    checked = _checks.check_script_module(model, "fuse_conv_bn_jit")
    _checks.check_float_model(checked, "fuse_conv_bn_jit")
    result = _C.fuse_conv_bn(checked._c, _checks.method_names(checked), None)
    return _finish(_checks.as_model(result.module), checked, inplace)


@uncollected()
def _prepare(
    model: torch.jit.ScriptModule,
    qconfig_dict: Config,
    trace: Trace | None,
    function: str = "prepare_jit",
    spares: bool = False,
) -> torch.jit.ScriptModule:
    _checks.check_float_model(model, function)
    example = "default_dynamic_qconfig" if "dynamic" in function else "get_default_qconfig()"
    mapping = as_mapping(qconfig_dict, example=example)
    engine = _checks.check_engine()
    preparation = _C.Preparation(model._c, _checks.method_names(model), trace)
    decisions = decide(model, mapping, preparation)
    _check_modes(decisions, function)
    check_any_qconfig(mapping, decisions, example)
    distinct = list(dict.fromkeys(each.qconfig for each in decisions if each.qconfig is not None))
    bits = _check_backend(engine, decisions)
    result = preparation.finish(
        [_index(decision, distinct) for decision in decisions],
        [_observers(qconfig) for qconfig in distinct],
        shape_recorder(),
        spares,
    )
    state = _new_state("prepared", result, engine, bits)
    if not any(op.int8 or op.reason == _C.FLOAT16_WEIGHT for op in state.ops):
        _warn_of_float(f"{function}: none of {len(state.ops)} ops will be int8", state.ops, 5)
    _state.write(result.module, state)
    return _checks.as_model(result.module)


@uncollected()
def _convert(
    model: torch.jit.ScriptModule,
    debug: Debug,
    preserved_attrs: Iterable[str] | None,
    trace: Trace | None,
    left_float: Collection[int] = (),
) -> torch.jit.ScriptModule:
    state = _checks.check_prepared(model)
    form = _form(debug)
    methods, attributes = _checks.check_preserved_attrs(model, preserved_attrs)
    engine = _checks.check_engine()
    _checks.check_weight_observers(model, engine)
    records = [record for record in state.records(left_float) if record.method in methods]
    with warnings.catch_warnings():
        # The user meets it when the int8 model runs; here it would only be noise.
        warnings.filterwarnings("ignore", message=r"torch\.quantize_per_tensor, .* are deprecated")
        result = _C.convert(model._c, methods, records, form, attributes, trace)
        stage: _state.Stage = "converted" if form == _C.Form.INT8 else "debug"
        new_state = _new_state(stage, result, engine, state.activation_bits, cpu_features())
        _state.write(result.module, new_state)
        converted = _checks.as_model(result.module)
        _trial_run.check(converted, model, result.inputs)
    left = [name for name in _checks.method_names(model) if name not in methods]
    _warn_of_dropped(left, result.dropped, _checks.needs_calibration(model))
    if not left_float:
        _warn_of_lost(state.ops, new_state.ops)
    return converted


def converted_quietly(prepared: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """What convert_jit makes of a prepared model, to look into: nobody misses what it dropped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DroppedWarning)
        return _convert(prepared, False, None, None)


def _form(debug: object) -> _C.Form:
    if debug == "exact":
        return _C.Form.REFERENCE
    if not isinstance(debug, bool):
        raise JitQuantValueError(f"debug must be True, False or 'exact', got {debug!r}.")
    return _C.Form.FLOAT if debug else _C.Form.INT8


def _warn_of_dropped(methods: list[str], attributes: list[str], is_static: bool) -> None:
    kinds = (("the methods", methods), ("the attributes", attributes))
    dropped = [f"{kind} {', '.join(map(repr, names))}" for kind, names in kinds if names]
    if dropped:
        calibrate = "; a method must be calibrated as well" if methods and is_static else ""
        warnings.warn(
            f"the converted model does not have {' and '.join(dropped)} of the prepared one. "
            f"preserved_attrs={methods + attributes} keeps them{calibrate}.",
            DroppedWarning,
            stacklevel=5,
        )


def _warn_of_lost(planned: Sequence[_state.OpState], converted: Sequence[_state.OpState]) -> None:
    """Warn if most of the ops that were to be int8 are not."""
    methods = {op.method for op in converted}
    before = [op for op in planned if op.method in methods]
    lost = [now for then, now in zip(before, converted, strict=True) if then.int8 and not now.int8]
    count = sum(op.int8 for op in before)
    if 2 * len(lost) > count:
        _warn_of_float(f"{len(lost)} of the {count} ops planned in int8 stay float", lost, 6)


def _warn_of_float(what: str, ops: Sequence[_state.OpState], level: int) -> None:
    reasons = Counter(f"{op.kind}: {op.reason}" for op in ops if not op.int8)
    shown = "".join(f"\n  {count} x {reason}" for reason, count in reasons.most_common(3))
    warnings.warn(
        f"{what}; jitquant.coverage lists them all. Most often:{shown}" if ops else f"{what}.",
        FloatWarning,
        stacklevel=level,
    )


def _index(decision: Decision, qconfigs: Sequence[QConfig]) -> int:
    if decision.qconfig is not None:
        return qconfigs.index(decision.qconfig)
    if decision.is_fused:
        return _C.FUSED_FLOAT
    return _C.LEFT_FLOAT if decision.rule else _C.NO_RULE


def _check_modes(decisions: Iterable[Decision], function: str) -> None:
    """Raise unless a function is given the qconfigs that it is for: static, mixed or dynamic ones.

    Raises:
        JitQuantValueError: a static qconfig for `*_dynamic_jit`; only dynamic ones for the others.
    """
    modes = {each.rule: is_dynamic(each.qconfig) for each in decisions if each.qconfig is not None}
    static = next((rule for rule, dynamic in modes.items() if not dynamic), None)
    verb = function.split("_")[0]
    if function.endswith("_dynamic_jit") and static is not None:
        raise JitQuantValueError(
            f"{function}: the qconfig of {static} is static, so it needs calibration. Use "
            f"{verb}_jit, which takes static and dynamic qconfigs in one mapping, or a dynamic "
            "qconfig such as default_dynamic_qconfig."
        )
    if not function.endswith("_dynamic_jit") and modes and static is None:
        raise JitQuantValueError(
            f"{function}: all qconfigs are dynamic, so there is nothing to calibrate. Use "
            f"{verb}_dynamic_jit, or a static qconfig such as get_default_qconfig()."
        )


def _check_backend(engine: str, decisions: Iterable[Decision]) -> tuple[int, ...]:
    """The bits of all int8 activations, ascending; raises if the engine cannot run a qconfig."""
    rules = {each.qconfig: each.rule for each in decisions if each.qconfig is not None}
    bits = set()
    for qconfig, rule in rules.items():
        activation: Any = qconfig.activation()
        weight: Any = qconfig.weight()
        get_backend(engine).check_observers(activation, weight, f"the qconfig of {rule}")
        if activation.dtype in get_backend(engine).activation_dtypes:
            bits.add(activation_bits_of(activation))
    return tuple(sorted(bits))


def _observers(qconfig: QConfig) -> tuple[torch._C.ScriptModule, torch._C.ScriptModule]:
    scripted: Any = script_qconfig(qconfig)
    return scripted.activation._c, scripted.weight._c


def _new_state(
    stage: _state.Stage,
    result: _C.Result,
    engine: str,
    activation_bits: tuple[int, ...],
    cpu: str = "",
) -> _state.State:
    return _state.State(
        stage=stage,
        ops=_state.ops_of(result.records),
        jitquant_version=__version__,
        torch_version=str(torch.__version__),
        engine=engine,
        cpu=cpu,
        activation_bits=activation_bits,
        libraries=libraries_of(result.module),
    )


def _finish(
    result: torch.jit.ScriptModule, model: torch.jit.ScriptModule, inplace: bool
) -> torch.jit.ScriptModule:
    """The one place where a user's model changes: all at once, after everything succeeded."""
    if not inplace:
        return result
    model._reconstruct(result._c)
    return model

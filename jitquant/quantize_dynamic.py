"""Dynamic quantization of TorchScript models: nothing is calibrated."""

from collections.abc import Iterable

import torch

from jitquant import _checks
from jitquant.quantize import Config, _convert, _finish, _prepare

__all__ = ["convert_dynamic_jit", "prepare_dynamic_jit", "quantize_dynamic_jit"]


def quantize_dynamic_jit(
    model: torch.jit.ScriptModule,
    qconfig_dict: Config,
    inplace: bool = False,
    debug: bool = False,
    preserved_attrs: Iterable[str] | None = None,
) -> torch.jit.ScriptModule:
    """Prepare and convert in one call.

    Weights become int8 or float16. Before an int8 layer multiplies, it quantizes the float32 values
    that it reads, to 8 bits, with one scale and zero point for the whole tensor.

    Args:
        model: a scripted, traced or loaded float32 model in eval mode, on the CPU.
        qconfig_dict: see `prepare_dynamic_jit`.
        inplace: also put the result into `model`, as the last step.
        debug, preserved_attrs: see `convert_dynamic_jit`.

    Returns:
        The quantized model, which reads and gives float32. `model` is unchanged unless inplace.

    Raises:
        JitQuantError: see `prepare_dynamic_jit` and `convert_dynamic_jit`.
    """
    checked = _checks.check_script_module(model, "quantize_dynamic_jit")
    prepared = _prepare(checked, qconfig_dict, None, "quantize_dynamic_jit")
    return _finish(_convert(prepared, debug, preserved_attrs, None), checked, inplace)


def prepare_dynamic_jit(
    model: torch.jit.ScriptModule, qconfig_dict: Config, inplace: bool = False
) -> torch.jit.ScriptModule:
    """Copy the model, bring its ops to one spelling, and note which layers become dynamic.

    The result computes what the model computes. It needs no calibration; where it does run before
    `convert_dynamic_jit`, the layers are verified with the shapes that they had in that run.

    Args:
        model: a scripted, traced or loaded float32 model in eval mode, on the CPU.
        qconfig_dict: as for `prepare_jit`, with dynamic qconfigs only, such as
            `default_dynamic_qconfig`, `per_channel_dynamic_qconfig`, `float16_dynamic_qconfig`, for
            embeddings `float_qparams_weight_only_qconfig`, or those of torch.ao.
        inplace: also put the result into `model`, as the last step.

    Returns:
        The prepared model. It shares parameters with `model`, and nothing that a run writes.

    Raises:
        JitQuantValueError: a static qconfig; float16 on an engine that does not have it; and see
            `prepare_jit`.
        JitQuantTypeError, JitQuantError: see `prepare_jit`.
    """
    checked = _checks.check_script_module(model, "prepare_dynamic_jit")
    return _finish(_prepare(checked, qconfig_dict, None, "prepare_dynamic_jit"), checked, inplace)


def convert_dynamic_jit(
    model: torch.jit.ScriptModule,
    inplace: bool = False,
    debug: bool = False,
    preserved_attrs: Iterable[str] | None = None,
) -> torch.jit.ScriptModule:
    """Turn a model that `prepare_dynamic_jit` made into one that needs only torch to run.

    Args:
        model: what `prepare_dynamic_jit` returned.
        inplace: also put the result into `model`, as the last step.
        debug: True gives a model that does to its values in float what the layers do, with weights
            still float and reachable by name.
        preserved_attrs: see `convert_jit`.

    Returns:
        The converted model, frozen, with packed weights. `model` is unchanged unless inplace.

    Raises:
        JitQuantValueError: `prepare_jit` made the model; and see `convert_jit`.
        JitQuantTypeError, JitQuantError: see `convert_jit`.
    """
    checked = _checks.check_script_module(model, "convert_dynamic_jit")
    _checks.check_prepared_by(checked, "prepare_dynamic_jit", "convert_dynamic_jit")
    return _finish(_convert(checked, debug, preserved_attrs, None), checked, inplace)

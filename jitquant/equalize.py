"""Cross-layer equalization: a float model that loses less when it is quantized."""

import torch

from jitquant import _C, _checks
from jitquant.errors import JitQuantTypeError, JitQuantValueError
from jitquant.quantize import _finish

__all__ = ["equalize_jit"]


def equalize_jit(
    model: torch.jit.ScriptModule, inplace: bool = False, relu6_as_relu: bool = False
) -> torch.jit.ScriptModule:
    """Fold BatchNorm, and let the weights of two layers in a row use their ranges alike.

    Channel i between two layers is divided by sqrt(max|w_i| / max|v_i|), where w_i are the weights
    that give it and v_i those that take it: what Nagel et al. 2019 (arXiv 1906.04721) call
    cross-layer equalization. No bias grows beyond the layer's largest one by it (times the median
    factor, where all grow), so that a channel with tiny weights and a bias does not take the
    activation's range from the others. It helps where a weight has one scale and channels of very
    different ranges, as depthwise convolutions in models for qnnpack; measure it, since it moves
    the ranges of activations too. Between the layers (convolutions, transposed ones, linear) may
    be relu, leaky_relu, prelu, pooling, zero padding, and the global pooling in front of a linear
    layer. No other op may read the values between them, and nothing else their weights.

    Args:
        model: a scripted, traced or loaded float32 model in eval mode, on the CPU.
        inplace: also put the result into `model`, as the last step.
        relu6_as_relu: let relu6, and others that clip at 0 and at a positive number, become relu
            where they stand between two such layers. That changes what the model computes where
            values exceed the bound, in exchange for more pairs of layers.

    Returns:
        The float model, with the calls of submodules inlined. It computes what `model` computes,
        up to the rounding of float32, unless relu6_as_relu. Give it to `prepare_jit`.

    Raises:
        JitQuantTypeError: relu6_as_relu is not a bool; see `prepare_jit`.
        JitQuantValueError: the model has no such layers; see `prepare_jit`.
        JitQuantError: see `prepare_jit`.
    """
    checked = _checks.check_script_module(model, "equalize_jit")
    if not isinstance(relu6_as_relu, bool):
        raise JitQuantTypeError(f"relu6_as_relu must be a bool, got {relu6_as_relu!r}.")
    _checks.check_float_model(checked, "equalize_jit")
    methods = _checks.method_names(checked)
    result, pairs, bounded = _C.equalize(checked._c, methods, relu6_as_relu, None)
    if pairs == 0:
        raise JitQuantValueError(
            "equalize_jit: the model has no two convolutions or linear layers with only relu, "
            "leaky_relu, prelu, pooling or zero padding between them, of which nothing else reads "
            f"the weights or the values between.{_bounded(bounded)} Quantize the model as it is."
        )
    return _finish(_checks.as_model(result), checked, inplace)


def _bounded(pairs: int) -> str:
    if pairs == 0:
        return ""
    return (
        f" There are {pairs} with an activation that clips at another value than 0: "
        "relu6_as_relu=True lets relu6 become relu."
    )

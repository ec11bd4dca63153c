"""compare_weights: what quantizing the weights costs."""

import torch
from torch import Tensor

from jitquant.errors import JitQuantValueError
from jitquant.numeric_suite._sites import Models, Site, Unmatched
from jitquant.numeric_suite.comparison import Comparison, OpError
from jitquant.numeric_suite.errors import ErrorSum

__all__ = ["compare_weights", "weight_errors", "weight_pairs"]


def compare_weights(
    float_model: torch.jit.ScriptModule,
    quantized_model: torch.jit.ScriptModule,
    *,
    per_channel: bool = False,
) -> Comparison:
    """Compare the weight of each convolution and linear layer with its quantized one.

    The float weight is the one that is quantized: with BatchNorm folded in, say. Channels are
    output channels.

    Args:
        float_model: scripted, traced or loaded, or what `prepare_jit` returned.
        quantized_model: what `convert_jit` or `convert_dynamic_jit` returned, also from a file and
            with debug=True; or a prepared and calibrated model, which is converted for this.
        per_channel: give `Errors.channels`.

    Raises:
        JitQuantTypeError: either is no ScriptModule.
        JitQuantValueError: float_model is converted; quantized_model is not quantized; the two have
            no op in common, or no weight that can be compared.
        JitQuantError: quantized_model is prepared and not calibrated.
    """
    result = weight_errors(Models(float_model, quantized_model, "compare_weights"), per_channel)
    if not result.ops:
        reasons = "; ".join(dict.fromkeys(each.reason for each in result.unmatched))
        why = reasons or "no convolution or linear layer is in both models"
        raise JitQuantValueError(f"compare_weights: there is no weight to compare: {why}.")
    return result


def weight_errors(models: Models, per_channel: bool = False) -> Comparison:
    """Of each weight of both models; there may be none."""
    pairs, unmatched = weight_pairs(models)
    ops = []
    for site, expected, actual in pairs:
        errors = ErrorSum(axis=0)
        errors.add(expected, actual)
        ops.append(OpError.of(site, errors.errors(per_channel)))
    return Comparison("weights", tuple(ops), tuple(unmatched), 0)


def weight_pairs(models: Models) -> tuple[list[tuple[Site, Tensor, Tensor]], list[Unmatched]]:
    """Each layer's float weight and the one that the quantized model runs with, of equal shape."""
    floats = models.inspect_float().weights()
    quantized = models.inspect_quantized().weights()
    pairs, unmatched = [], list(models.unmatched)
    for site in models.sites():
        expected = floats[models.pairs[site.quantized_index]]
        if expected is None:
            continue
        actual = quantized[site.quantized_index]
        reason = ""
        if actual is None and models.state.stage == "debug":
            reason = 'debug="exact" spells the layer out; compare the weights of the int8 model'
        elif actual is None:
            reason = "its weight is no constant in the quantized model"
        else:
            actual = _cropped(actual, expected)
            if actual.shape != expected.shape:
                reason = (
                    f"its weight is {tuple(expected.shape)} in the float model, and "
                    f"{tuple(actual.shape)} in the quantized"
                )
        if actual is None or reason:
            unmatched.append(Unmatched(site.module, site.op, reason))
        else:
            pairs.append((site, expected, actual))
    return pairs, unmatched


def _cropped(quantized: Tensor, expected: Tensor) -> Tensor:
    """Without the groups of zeros that convert adds, and conv1d's packed second dimension."""
    values = quantized.dequantize() if quantized.is_quantized else quantized
    if values.dim() == expected.dim() + 1:
        values = values.squeeze(2)
    if values.dim() != expected.dim():
        return values
    for dim in (0, 1):
        added = values.size(dim) - expected.size(dim)
        if added > 0 and not values.narrow(dim, expected.size(dim), added).any():
            values = values.narrow(dim, 0, expected.size(dim))
    return values

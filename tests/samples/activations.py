"""Activations, absorbed or of their own, and curves."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.samples.base import (
    CONV,
    CONV_INPUTS,
    CONVS,
    IMAGES,
    ROWS,
    Inputs,
    OpSample,
    Part,
    after_conv,
    alone,
    composed,
    conv_of,
    random,
    unary,
)

# name -> (row, function, parts, op that follows unless it is absorbed). nn.ReLU6 is an nn.Hardtanh.
# The lower bound of the last does not quantize to 0, so saturation cannot stand for it.
_ACTIVATIONS: dict[str, tuple[str, Callable[[Any, Tensor], Tensor], dict[str, Part], str]] = {
    "relu_functional": ("aten::relu", lambda m, y: F.relu(y), {}, ""),
    "relu_functional_in_place": ("aten::relu", lambda m, y: F.relu(y, inplace=True), {}, ""),
    "relu_torch": ("aten::relu", lambda m, y: torch.relu(y), {}, ""),
    "relu_method_in_place": ("aten::relu", lambda m, y: y.relu_(), {}, ""),
    "relu_module": ("aten::relu", lambda m, y: m.act(y), {"act": nn.ReLU}, ""),
    "relu_module_in_place": (
        "aten::relu",
        lambda m, y: m.act(y),
        {"act": lambda: nn.ReLU(inplace=True)},
        "",
    ),
    "relu6_functional": ("aten::relu6", lambda m, y: F.relu6(y), {}, ""),
    "relu6_functional_in_place": ("aten::relu6", lambda m, y: F.relu6(y, inplace=True), {}, ""),
    "relu6_module": ("aten::hardtanh", lambda m, y: m.act(y), {"act": nn.ReLU6}, ""),
    "relu6_module_in_place": (
        "aten::hardtanh",
        lambda m, y: m.act(y),
        {"act": lambda: nn.ReLU6(inplace=True)},
        "",
    ),
    "hardtanh_functional": ("aten::hardtanh", lambda m, y: F.hardtanh(y), {}, ""),
    "hardtanh_functional_in_place": (
        "aten::hardtanh",
        lambda m, y: F.hardtanh(y, inplace=True),
        {},
        "",
    ),
    "hardtanh_module": (
        "aten::hardtanh",
        lambda m, y: m.act(y),
        {"act": lambda: nn.Hardtanh(-0.25, 0.5)},
        "",
    ),
    "hardtanh_module_in_place": (
        "aten::hardtanh",
        lambda m, y: m.act(y),
        {"act": lambda: nn.Hardtanh(inplace=True)},
        "",
    ),
    "clamp_method": ("aten::clamp", lambda m, y: y.clamp(0, 0.5), {}, ""),
    "clamp_torch": ("aten::clamp", lambda m, y: torch.clamp(y, -0.5, 0.5), {}, ""),
    "clamp_method_in_place": ("aten::clamp", lambda m, y: y.clamp_(0.0, 0.5), {}, ""),
    "clamp_below_only": ("aten::clamp", lambda m, y: y.clamp(min=-0.25), {}, ""),
    "clamp_above_only": ("aten::clamp", lambda m, y: torch.clamp(y, max=0.5), {}, ""),
    "clamp_min": ("aten::clamp_min", lambda m, y: y.clamp_min(-0.25), {}, ""),
    "clamp_min_above_zero": ("aten::clamp_min", lambda m, y: y.clamp_min(0.25), {}, "aten::clamp"),
    "clamp_max": ("aten::clamp_max", lambda m, y: torch.clamp_max(y, 0.5), {}, ""),
    "clamp_max_below_zero": ("aten::clamp_max", lambda m, y: y.clamp_max(-0.1), {}, "aten::clamp"),
    "relu_by_clamp": ("aten::relu", lambda m, y: y.clamp(min=0), {}, ""),
    "relu_by_clamp_min": ("aten::relu", lambda m, y: y.clamp_min(0), {}, ""),
    "relu_by_threshold": ("aten::relu", lambda m, y: F.threshold(y, 0.0, 0.0), {}, ""),
    "clamp_from_above_zero": ("aten::clamp", lambda m, y: y.clamp(0.25, 0.75), {}, "aten::clamp"),
}


def _activations() -> Iterator[OpSample]:
    hosts: list[tuple[str, Part, Inputs]] = [
        (f"conv{rank}d", conv_of(conv, {"kernel_size": 3}), CONV_INPUTS[rank])
        for rank, conv in CONVS.items()
    ]
    hosts.append(("linear", lambda: nn.Linear(16, 8), ROWS))
    for host, part, inputs in hosts:
        for name, (row, function, parts, follows) in _ACTIVATIONS.items():
            fused = f"quantized::{host}_relu" if row == "aten::relu" else f"quantized::{host}"
            yield OpSample(
                row,
                f"{host}_{name}",
                unary(composed(function), host=part, **parts),
                inputs,
                (fused, follows) if follows else (fused,),
                resizes=(0, -1) if host != "linear" else (0,),
            )
    # After an op that cannot absorb it a relu moves values; the others stay float.
    for name, (row, function, parts, _) in _ACTIVATIONS.items():
        if row == "aten::relu":
            yield OpSample(
                row,
                f"max_pool2d_{name}",
                unary(
                    _after_max_pool(function), conv=conv_of(nn.Conv2d, {"kernel_size": 3}), **parts
                ),
                IMAGES,
                (*CONV, "aten::max_pool2d", row),
                resizes=(0, -1),
            )


def _after_max_pool(function: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    return lambda m, x: function(m, F.max_pool2d(m.conv(x), 2))


def _curves() -> Iterator[OpSample]:
    functions: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
        "hardsigmoid": (F.hardsigmoid, "aten::hardsigmoid"),
        "tanh": (torch.tanh, "aten::tanh"),
        "hardswish": (F.hardswish, "quantized::hardswish"),
        "leaky_relu": (lambda y: F.leaky_relu(y, 0.2), "quantized::leaky_relu"),
    }
    modules: dict[str, Part] = {
        "hardsigmoid": nn.Hardsigmoid,
        "tanh": nn.Tanh,
        "hardswish": nn.Hardswish,
        "leaky_relu": nn.LeakyReLU,
    }
    for name, (function, int8) in functions.items():
        row = f"aten::{name}"
        yield OpSample(row, name, unary(alone(function)), IMAGES, (int8,), resizes=(0, -1))
        yield OpSample(
            row, f"{name}_after_conv", after_conv(function), IMAGES, (*CONV, int8), resizes=(0, -1)
        )
        yield OpSample(
            row,
            f"{name}_module",
            unary(lambda m, x: m.act(x), act=modules[name]),
            random((3, 7)),
            (int8,),
        )


def _elus() -> Iterator[OpSample]:
    parts: dict[str, Part] = {
        "elu": lambda: nn.ELU(0.75),
        "elu_in_place": lambda: nn.ELU(inplace=True),
        "celu": lambda: nn.CELU(0.5),
        "selu": nn.SELU,
    }
    for name, part in parts.items():
        yield OpSample(
            "aten::elu",
            f"{name}_after_linear",
            unary(composed(lambda m, y: m.act(y)), host=lambda: nn.Linear(16, 8), act=part),
            ROWS,
            ("quantized::linear", "quantized::elu"),
        )


SAMPLES: list[OpSample] = [*_activations(), *_curves(), *_elus()]

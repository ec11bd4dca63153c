"""Multiply-accumulates of convolutions and linear layers, float and int8, counted while they run.

Gradients must be on or off as `torch.no_grad` turns them off: in inference mode some calls are not
seen op by op.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

INT8_LAYER = re.compile(r"quantized::(conv(_transpose)?\dd|linear)")


@dataclass(frozen=True)
class Call:
    """One call of an op.

    Attributes:
        op: such as "quantized::conv2d_relu".
        input, output: shapes of the first tensor on either side; None without one.
        weight: its shape, of layers only: (out, in / groups, kernel...), for linear (out, in), for
            transposed convolutions (in, out / groups, kernel...).
        groups: of convolutions, otherwise 1.
        macs: multiply-accumulates, 0 for what is no layer.
        module: path of the Python module that it runs in, where the recorder knows it.
    """

    op: str
    input: tuple[int, ...] | None
    output: tuple[int, ...] | None
    weight: tuple[int, ...] | None
    groups: int
    macs: int
    module: str


class CallRecorder(TorchDispatchMode):
    """Records the calls that get to a kernel, in the order that they run, while it is entered.

    Attributes:
        calls: one entry for each.
        paths: of the modules that are running, the outermost first.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self.paths = [""]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        self.calls.append(_call(func, args, output, self.paths[-1]))
        return output


def macs_by_module(model: nn.Module, sample: Any) -> dict[str, list[int]]:
    """Multiply-accumulates of each convolution and linear layer that runs, by module path."""
    recorder = CallRecorder()
    handles = []
    for path, module in model.named_modules():
        enter = functools.partial(_enter, recorder.paths, path)
        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(lambda *_: recorder.paths.pop() and None))
    with recorder, torch.no_grad():
        model(sample)
    for handle in handles:
        handle.remove()
    counted: dict[str, list[int]] = {}
    for call in recorder.calls:
        if call.weight is not None:
            counted.setdefault(call.module, []).append(call.macs)
    return counted


def _enter(paths: list[str], path: str, *_: Any) -> None:
    paths.append(path)


def _call(func: Any, args: tuple[Any, ...], output: Any, module: str) -> Call:
    op = func._schema.name
    x, y = _first_tensor(args), _first_tensor([output])
    weight = _weight(func, op, args)
    if func is torch.ops.aten.addmm.default:
        x = args[1]
    macs, groups = 0, 1
    if weight is not None and x is not None and y is not None:
        transposed = "conv_transpose" in op or (op == "aten::convolution" and args[6])
        macs = (x if transposed else y).numel() * weight[0].numel()
        if weight.dim() > 2:
            groups = (y if transposed else x).shape[1] // weight.shape[1]
    return Call(op, _shape(x), _shape(y), _shape(weight), groups, macs, module)


def _weight(func: Any, op: str, args: tuple[Any, ...]) -> Tensor | None:
    """The weight of a layer, with output channels first; of transposed ones, input channels."""
    weight: Tensor
    if func is torch.ops.aten.convolution.default:
        weight = args[1]
    elif func is torch.ops.aten.addmm.default:
        weight = args[2].t()
    elif func is torch.ops.aten.mm.default:
        weight = args[1].t()
    elif INT8_LAYER.match(op):
        packed: Any
        (packed,) = [of for of in args if isinstance(of, torch.ScriptObject)]
        weight = packed.unpack()[0]
    else:
        return None
    return weight


def _first_tensor(values: Sequence[Any]) -> Tensor | None:
    flat = [of for value in values for of in (value if isinstance(value, list) else [value])]
    return next((value for value in flat if isinstance(value, Tensor)), None)


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)

"""Random small models, as source text: what hypothesis draws, and what a failing test prints.

A model works on images of (2, 4, 8, 8) float32. Each step of it is one row of `STEPS`: lines of
Python in which `{a}` and `{b}` are images that exist already and `{out}` is a new one. Modules are
drawn by name, so that steps share them. Gains are near 1, so that rounding errors do not explode.
"""

import linecache
import random
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

SHAPE = (2, 4, 8, 8)


def _conv(**options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(4, 4, **options)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "conv1": _conv(kernel_size=3, padding=1),
    "conv2": _conv(kernel_size=1, bias=False),
    "grouped": _conv(kernel_size=3, padding="same", groups=2),
    "wide": lambda: nn.Conv2d(8, 4, 1),
    "up": lambda: nn.ConvTranspose2d(4, 4, 3, padding=1),
    "bn1": lambda: nn.BatchNorm2d(4),
    "bn2": lambda: nn.BatchNorm2d(4),
    "fc": lambda: nn.Linear(8, 8),
    "drop": lambda: nn.Dropout(0.5),
    "norm": lambda: nn.GroupNorm(2, 4),
}

CONVS = ("conv1", "conv2", "grouped", "up")

# name -> lines; "{conv}" is one of CONVS, "{bn}" one of two BatchNorms
STEPS: dict[str, str] = {
    "conv": "{out} = self.{conv}({a})",
    "conv_relu": "{out} = torch.relu(self.{conv}({a}))",
    "conv_bn": "{out} = self.{bn}(self.{conv}({a}))",
    "conv_bn_relu6": "{out} = functional.relu6(self.{bn}(self.{conv}({a})))",
    "conv_twice_used": "{out}_c = self.{conv}({a})\n{out} = torch.relu({out}_c) + {out}_c",
    "conv_functional": "{out} = functional.conv2d({a}, self.conv2.weight)",
    "bn": "{out} = self.{bn}({a})",
    "linear": "{out} = self.fc({a})",
    "tied": "{out} = functional.linear({a}, self.fc.weight.t())",
    "norm": "{out} = self.norm({a})",
    "relu": "{out} = torch.relu({a})",
    "clamp": "{out} = {a}.clamp(-1.0, 1.5)",
    "hardswish": "{out} = functional.hardswish({a})",
    "sigmoid": "{out} = torch.sigmoid({a})",
    "tanh": "{out} = torch.tanh({a})",
    "leaky": "{out} = functional.leaky_relu({a}, 0.1)",
    "softmax": "{out} = torch.softmax({a}, 1)",
    "gate": "{out} = {a} * functional.hardsigmoid({b})",
    "add": "{out} = {a} + {b}",
    "add_relu": "{out} = torch.relu({a} + {b})",
    "add_clamp": "{out} = ({a} + {b}).clamp(0.0, 2.0)",
    "add_number": "{out} = {a} + 0.5",
    "times_number": "{out} = {a} * -0.75",
    "channel_means": "{out} = {a} + {a}.mean([2, 3], keepdim=True)",
    "max_pool": "{out} = functional.max_pool2d({a}, 3, 1, 1)",
    "avg_pool": "{out} = functional.avg_pool2d({a}, 3, 1, 1)",
    "resize": "{out} = functional.interpolate(functional.max_pool2d({a}, 2), scale_factor=2.0)",
    "cat": "{out} = self.wide(torch.cat([{a}, {b}], 1))",
    "cat_of_three": "{out} = torch.cat([{a}[:, :1], {b}[:, 1:2], {a}[:, 2:]], 1)",
    "stack": "{out} = torch.stack([{a}, {b}]).mean(0)",
    "stack_and_take": "{out} = torch.stack([{a}, {b}], 2)[:, :, 1]",
    "chunk": "{out}_l, {out}_r = {a}.chunk(2, 1)\n{out} = torch.cat([{out}_r, {out}_l], 1)",
    "flatten": "{out} = {a}.flatten(1).view(-1, 4, 8, 8)",
    "permute": "{out} = self.fc({a}.permute(0, 2, 3, 1).transpose(1, 3)).permute(0, 1, 3, 2)",
    "pad": "{out} = functional.pad({a}, [1, 0, 0, 1])[:, :, 1:, :8]",
    "roll": "{out} = torch.roll({a}, 1, 2)",
    "dropout": "{out} = self.drop({a})",
    "clone": "{out} = {a}.clone()",
    "alias": "{out} = {a}",
    "detach": "{out} = {a}.detach()",
    "unused": "{out}_u = self.{conv}({a})\n{out} = torch.relu({a})",
    "in_place_add": "{out} = {a}\n{out} += {b}",
    "in_place_relu": "{out} = torch.relu_({a})",
    "in_place_on_fresh": "{out} = self.{conv}({a})\n{out}.mul_(0.5)\n{out} += {b}",
    "in_place_on_slice": "{out} = self.{conv}({a})\n{out}[:, :2] += {b}[:, 2:]",
    "in_place_on_view": "{out} = torch.relu(self.{conv}({a}))\n{out}.view(-1).add_(0.25)",
    "in_place_copy": "{out} = torch.zeros_like({a})\n{out}[:, 1:3].copy_({b}[:, :2])",
    "tuple": "{out}_t = ({a}, self.{conv}({b}))\n{out} = {out}_t[0] + {out}_t[1]",
    "list": "{out}_l = [{a}]\n{out}_l.append(self.{conv}({b}))\n{out} = {out}_l[1] + {out}_l[0]",
    "list_in_place": "{out}_l = [{a}, {b}]\n{out}_l[0].mul_(0.5)\n{out} = {a} + {out}_l[1]",
    "dict": "{out}_d = {{'k': {a}}}\n{out}_d['j'] = torch.relu({b})\n{out} = {out}_d['k'] + {out}_d['j']",
    "branch": "if flag:\n    {out} = self.{conv}({a})\nelse:\n    {out} = torch.relu({b}) * 2.0",
    "branch_weights": (
        "if flag:\n    {out} = self.conv1({a})\nelse:\n    {out} = torch.relu(self.conv2({b}))"
    ),
    "branch_passes": "{out} = self.{conv}({a})\nif flag:\n    {out} = torch.relu({out}) + {b}",
    "branch_in_place": "{out} = self.{conv}({a})\nif flag:\n    {out} += {b}",
    "branch_on_shape": (
        "if {a}.size(0) > 1:\n    {out} = self.{conv}({a})\nelse:\n    {out} = {a}.tanh()"
    ),
    "branch_on_rank": "{out} = {a}\nif {a}.dim() == 4:\n    {out} = self.{conv}({a})",
    "loop": "{out} = {a}\nfor _ in range(steps):\n    {out} = torch.relu(self.{conv}({out}))",
    "loop_residual": "{out} = {a}\nfor _ in range(steps):\n    {out} = self.{conv}({out}) * 0.5 + {b}",
    "loop_list": (
        "{out}_l = [{a}]\nfor _ in range(steps):\n    {out}_l.append(self.{conv}({out}_l[-1]))\n"
        "{out} = {out}_l[-1] + {out}_l[0]"
    ),
    "early_return": "if not flag:\n    return self.pack({a}, {b})\n{out} = self.{conv}({a})",
}

# name -> (type, value); what `pack` makes of two images
RETURNS: dict[str, tuple[str, str]] = {
    "one": ("Tensor", "a"),
    "pair": ("tuple[Tensor, Tensor]", "(a, b)"),
    "twice": ("tuple[Tensor, Tensor]", "(a, a)"),
    "list": ("list[Tensor]", "[a, torch.relu(b)]"),
    "dict": ("dict[str, Tensor]", "{'x': a, 'y': b}"),
    "nested": ("tuple[Tensor, tuple[Tensor, Tensor]]", "(a, (b, torch.relu(a)))"),
    "constant": ("tuple[Tensor, Tensor]", "(a, torch.ones(2))"),
}


@dataclass(frozen=True)
class RandomModel:
    """A drawn model; its repr is all that is needed to make it again.

    Attributes:
        steps: (row of STEPS, index of the first image, of the second, convolution, BatchNorm).
            An index counts back from the newest image.
        returns: row of RETURNS.
        seed: of weights and inputs.
        flag, loops: the arguments `flag` and `steps` of forward.
        traced: traced with flag and steps as they are, or scripted.
        both_flags: whether calibration also runs the model with the other flag.
    """

    steps: tuple[tuple[str, int, int, str, str], ...]
    returns: str
    seed: int
    flag: bool
    loops: int
    traced: bool
    both_flags: bool

    @property
    def source(self) -> str:
        images = ["x", "y"]
        lines = []
        for number, (step, first, second, conv, bn) in enumerate(self.steps):
            a, b = images[-1 - first % len(images)], images[-1 - second % len(images)]
            lines.append(STEPS[step].format(out=f"v{number}", a=a, b=b, conv=conv, bn=bn))
            images.append(f"v{number}")
        kind, value = RETURNS[self.returns]
        body = textwrap.indent("\n".join(lines), "    ")
        return (
            f"def pack(self, a: Tensor, b: Tensor) -> {kind}:\n    return {value}\n\n\n"
            f"def forward(self, x: Tensor, y: Tensor, flag: bool, steps: int) -> {kind}:\n"
            f"{body}\n    return self.pack({images[-1]}, {images[-2]})\n"
        )

    def module(self) -> nn.Module:
        """The float model in eval mode."""
        torch.manual_seed(self.seed)
        name = f"<random graph {next(_NUMBERS)}>"
        # torch.jit.script reads the source of a function through linecache.
        lines = self.source.splitlines(keepends=True)
        linecache.cache[name] = (len(self.source), None, lines, name)
        scope: dict[str, Any] = {"torch": torch, "Tensor": Tensor, "functional": functional}
        exec(compile(self.source, name, "exec"), scope)
        methods = {"pack": scope["pack"], "forward": scope["forward"]}
        model: nn.Module = type("Net", (nn.Module,), methods)()
        for key, make in MODULES.items():
            model.add_module(key, make())
        with torch.no_grad():
            for key, tensor in model.state_dict().items():
                if "running_var" in key or (key.startswith(("bn", "norm")) and "weight" in key):
                    tensor.uniform_(0.7, 1.4)
                elif key.endswith("weight"):
                    tensor.mul_(1.5)
                elif tensor.is_floating_point():
                    tensor.uniform_(-0.3, 0.3)
        return model.eval()

    def script(self) -> torch.jit.ScriptModule:
        """The model, scripted or traced."""
        if not self.traced:
            scripted: torch.jit.ScriptModule = torch.jit.script(self.module())
            return scripted
        net = Fixed(self.module(), self.flag, self.loops).eval()
        traced: torch.jit.ScriptModule = torch.jit.trace(
            net, self.batches()[0], check_trace=False, strict=False
        )
        return traced

    def batches(self) -> list[tuple[Any, ...]]:
        """What to calibrate with: new tensors each time, since a model may write its inputs."""
        torch.manual_seed(self.seed)
        images = (torch.randn(SHAPE), torch.randn(SHAPE) * 2)
        if self.traced:
            return [images]
        batches: list[tuple[Any, ...]] = [(*images, self.flag, self.loops)]
        if self.both_flags:
            clones = [image.clone() for image in images]
            batches.append((*clones, not self.flag, self.loops))
        return batches


class Fixed(nn.Module):
    """`net` with constants for flag and steps, as tracing takes tensors only."""

    def __init__(self, net: nn.Module, flag: bool, steps: int) -> None:
        super().__init__()
        self.net = net
        self.flag = flag
        self.steps = steps

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.net(x, y, self.flag, self.steps)


_NUMBERS = count()

_STEP = st.tuples(
    st.sampled_from(sorted(STEPS)),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from(CONVS),
    st.sampled_from(("bn1", "bn2")),
)

random_models: st.SearchStrategy[RandomModel] = st.builds(
    RandomModel,
    steps=st.lists(_STEP, min_size=1, max_size=6).map(tuple),
    returns=st.sampled_from(sorted(RETURNS)),
    seed=st.integers(0, 99),
    flag=st.booleans(),
    loops=st.integers(0, 3),
    traced=st.booleans(),
    both_flags=st.booleans(),
)
"""Shrinks well, but draws many models that differ in little."""


def model_of(seed: int) -> RandomModel:
    """A model of 3 to 6 steps, all of which are drawn anew for each seed."""
    draw = random.Random(seed)
    steps = tuple(
        (
            draw.choice(sorted(STEPS)),
            draw.randint(0, 3),
            draw.randint(0, 3),
            draw.choice(CONVS),
            draw.choice(("bn1", "bn2")),
        )
        for _ in range(draw.randint(3, 6))
    )
    flags = [draw.random() < 0.5 for _ in range(3)]
    return RandomModel(
        steps, draw.choice(sorted(RETURNS)), seed, flags[0], draw.randint(0, 3), *flags[1:]
    )


diverse_models: st.SearchStrategy[RandomModel] = st.integers(0, 2**31).map(model_of)

"""Runs a small model through the pipeline and shows the graph before and after one pass.

Two texts of a graph:

- plain, from `readable`: constants and attribute reads stand where they are used, so that
  `aten::conv2d(%x, self.conv.weight, None, [1, 1], [0, 0], [1, 1], 1)` is one line, and values
  other than the inputs are numbered from 0. Marks, module paths and source places are left out.
- raw, from `raw_text`: the canonical text with every node; only source places are left out.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from textwrap import dedent
from typing import Any

import torch
from torch import Tensor, nn

from jitquant import QConfig, coverage
from jitquant.observers import FixedQParamsObserver
from jitquant.quantize import Debug, _convert, _prepare

PREPARE_PASSES = [
    "flatten",
    "note_origins",
    "undo_mkldnn",
    "fold_attributes",
    "resolve_asserts",
    "resolve_identities",
    "pad_nested",
    "unfold_attention",
    "name_weights",
    "own_state",
    "functionalize",
    "fold_weights",
    "canonicalize",
    "canonicalize_einsum",
    "canonicalize_linear",
    "split_bias",
    "canonicalize_arithmetic",
    "split_lists",
    "canonicalize_stack",
    "canonicalize_shuffle",
    "simplify",
    "configure",
    "unfold_cells",
    "fold_conv_bn",
    "rewrite_conv_transpose",
    "rewrite_pixel_shuffle",
    "fold_pad",
    "plan",
    "keep_state",
    "insert_observers",
    "record_arguments",
]

ACTIVATION_SCALE = 1 / 16  # exact in float32, so that goldens hold on every machine
WEIGHT_SCALE = 1 / 32

FIXED = QConfig(
    activation=FixedQParamsObserver.with_args(scale=ACTIVATION_SCALE, zero_point=128),
    weight=FixedQParamsObserver.with_args(
        scale=WEIGHT_SCALE,
        zero_point=0,
        dtype=torch.qint8,
        qscheme=torch.per_tensor_symmetric,
    ),
)
"""qparams that do not depend on data: activations span -8 to 7.94, weights -4 to 3.97."""


@dataclass(frozen=True)
class Change:
    """One method's graph before and after one pass, and the model at the end of its pipeline.

    Attributes:
        before: graph text before the pass; for flatten, the user's own graph.
        after: graph text after the pass.
        model: the prepared model for a pass of prepare, the converted one for a pass of convert.
    """

    before: str
    after: str
    model: torch.jit.ScriptModule


@dataclass(frozen=True)
class Traced:
    """All that a pipeline traced: (pass, method, canonical text), and its result."""

    steps: list[tuple[str, str, str]]
    model: torch.jit.ScriptModule

    def passes(self, method: str = "forward") -> list[str]:
        """The passes that ran, in order."""
        return [name for name, of, _ in self.steps if of == method]

    def text(self, pass_name: str, method: str = "forward") -> str:
        """The canonical text after a pass."""
        return next(text for name, of, text in self.steps if (name, of) == (pass_name, method))


def trace_prepare(
    model: torch.jit.ScriptModule,
    qconfig_dict: Mapping[str, Any] | None = None,
    function: str = "prepare_jit",
) -> Traced:
    """Prepare with a trace; by default all ops with FIXED. `function` is the public one."""
    steps: list[tuple[str, str, str]] = []
    config = qconfig_dict or {"": FIXED}
    prepared = _prepare(model, config, lambda *step: steps.append(step), function)
    return Traced(steps, prepared)


def trace_convert(
    prepared: torch.jit.ScriptModule, debug: Debug = False, preserved: list[str] | None = None
) -> Traced:
    """Convert a calibrated model with a trace."""
    steps: list[tuple[str, str, str]] = []
    converted = _convert(prepared, debug, preserved, lambda *step: steps.append(step))
    return Traced(steps, converted)


def before_and_after(
    pass_name: str,
    model: torch.jit.ScriptModule,
    *inputs: Any,
    method: str = "forward",
    qconfig_dict: Mapping[str, Any] | None = None,
    debug: Debug = False,
    preserved: list[str] | None = None,
    show: Callable[[str], str] | None = None,
    function: str = "prepare_jit",
) -> Change:
    """Run a pipeline, and return the graph around `pass_name`.

    Args:
        pass_name: a pass of prepare, or one that only convert has. Convert's own plan is
            "convert.plan", and so on for the other passes that both have.
        model: the float model, scripted or traced.
        inputs: one sample to calibrate with, needed for a pass of convert.
        method: whose graph.
        qconfig_dict: by default all ops with FIXED.
        debug: convert with debug=True.
        preserved: convert's preserved_attrs.
        show: makes the text from the canonical one; by default `readable`.
        function: the public one that prepares; with "prepare_dynamic_jit" nothing is calibrated
            unless there are inputs.
    """
    show = show or readable
    traced = trace_prepare(model, qconfig_dict, function)
    stage, _, name = pass_name.rpartition(".")
    if stage != "convert" and name in PREPARE_PASSES:
        original = getattr(model, method).graph if method != "forward" else model.graph
        canonical = torch._C._jit_pass_canonicalize(original.copy())
        start = canonical.str(False)
    else:
        if inputs or function == "prepare_jit":
            traced.model(*inputs)
        start = traced.text("insert_observers", method)
        traced = trace_convert(traced.model, debug, preserved)
    names = traced.passes(method)
    index = names.index(name)
    before = start if index == 0 else traced.text(names[index - 1], method)
    return Change(show(before), show(traced.text(name, method)), traced.model)


def assert_change(change: Change, before: str, after: str) -> None:
    """Compare both graphs with golden texts, as a whole."""
    assert change.after != change.before, "the pass does nothing; use assert_unchanged"
    assert_text(change.before, before)
    assert_text(change.after, after)


def assert_unchanged(change: Change, text: str) -> None:
    """The pass left the graph as it was; `text` shows which graph that is."""
    assert_text(change.before, text)
    assert change.after == change.before


def assert_text(actual: str, golden: str) -> None:
    """Compare whole texts. The message holds the actual text, to paste over the golden one."""
    if actual != dedent(golden).strip("\n"):
        raise AssertionError(f"the graph is now:\n\n{actual}\n\nand the test has:\n{golden}")


def assert_same_output(
    actual: Callable[..., Any], expected: Callable[..., Any], *inputs: Tensor, atol: float = 1e-5
) -> None:
    """Both give the same for copies of `inputs`."""
    with torch.no_grad():
        results = [f(*(value.clone() for value in inputs)) for f in (actual, expected)]
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=atol)


def steps_apart(int8: Any, debug: Any, *inputs: Tensor) -> float:
    """The largest difference in quantization steps of the output, which debug's last one has."""
    *_, last = debug.graph.findAllNodes("aten::quantize_per_tensor")
    scale = list(last.inputs())[1].toIValue()
    return float((int8(*inputs) - debug(*inputs)).abs().max() / scale)


def reasons(model: torch.jit.ScriptModule, method: str = "forward") -> list[tuple[str, str]]:
    """(op, how it is int8 or why it stays float) for each op in graph order."""
    ops = coverage(model).ops
    return [(op.op, op.reason) for op in ops if op.method == method]


def example_model(module: nn.Module) -> nn.Module:
    """The module in eval mode, with weights from a fixed seed and no two equal BatchNorms."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if not tensor.is_floating_point():
            continue
        values = torch.rand(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            values = values + 0.5
        tensor.data.copy_(values if name.endswith("running_var") else values * 2 - 1)
    return module.eval()


def scripted(module: nn.Module) -> torch.jit.ScriptModule:
    """`example_model`, scripted."""
    return _as_script_module(torch.jit.script(example_model(module)))


def traced(module: nn.Module, *inputs: Tensor) -> torch.jit.ScriptModule:
    """`example_model`, traced on `inputs`."""
    return _as_script_module(torch.jit.trace(example_model(module), inputs))


def _as_script_module(model: object) -> torch.jit.ScriptModule:
    assert isinstance(model, torch.jit.ScriptModule)
    return model


def sample(*shape: int) -> Tensor:
    """Values in [-1, 1), the same on every call."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


# --- text ---

_SOURCE = re.compile(r" # \S+:\d+:\d+$", re.MULTILINE)
_SCOPE = re.compile(r", scope: \S*$", re.MULTILINE)
_WRITTEN = re.compile(r"(, scope: [^/\s]*)/\w+$", re.MULTILINE)  # what note_origins notes
_MARK = re.compile(r"\[jitquant_\w+=-?\d+(, jitquant_\w+=-?\d+)*\]|, jitquant_mutable=1")
_CONSTANT = re.compile(r"^ *%([\w.]+) : (.+?) = prim::Constant(?:\[value=(.*)\])?\(\)$")
_READ = re.compile(r'^ *%([\w.]+) : .+ = prim::GetAttr\[name="(\w+)"\]\(%([\w.]+)\)$')
_MANGLE = re.compile(r"___torch_mangle_\d+")
_NAME = re.compile(r"%[\w.]+")


def raw_text(text: str) -> str:
    """The canonical text without places in source files and origins.

    torch counts mangled names process-wide; here they are counted from 0.
    """
    counts: dict[str, str] = {}
    text = _MANGLE.sub(lambda match: counts.setdefault(match[0], f"mangle_{len(counts)}"), text)
    return _WRITTEN.sub(r"\1", _SOURCE.sub("", text)).replace(", scope: \n", "\n").strip("\n")


def unscoped_text(text: str) -> str:
    """`raw_text` without module paths and marks."""
    return _MARK.sub("", _SCOPE.sub("", raw_text(text)))


def readable(text: str) -> str:
    """The plain text, see above."""
    text = re.sub(r",\n +", ", ", unscoped_text(text))
    text = re.sub(r"\bmangle_\d+\.", "", text)
    header, *body = text.split("\n")
    match = re.match(r"graph\((%[\w.]+) : __torch__\.[\w.]+(.*)\):$", header)
    assert match, f"not the graph of a method: {header}"
    known = {match[1]: "self"}
    for old in _NAME.findall(match[2]):  # inputs keep the user's names
        known[old] = re.sub(r"\.\d+$", "", old)
    lines = [f"graph({match[1]}{match[2]}):"]
    for line in body:
        if constant := _CONSTANT.match(line):
            known[f"%{constant[1]}"] = _constant_text(constant[2], constant[3])
        elif (read := _READ.match(line)) and "prim::SetAttr" not in text:
            known[f"%{read[1]}"] = f"{known[f'%{read[3]}']}.{read[2]}"
        else:
            lines.append(line)
    numbers: dict[str, str] = {}

    def name(match: re.Match[str]) -> str:
        old = match[0]
        return known.get(old) or numbers.setdefault(old, f"%{len(numbers)}")

    return "\n".join(_NAME.sub(name, line) for line in lines)


def _constant_text(kind: str, value: str | None) -> str:
    if value is None:
        return "None"
    if kind == "bool":
        return str(value == "1")
    if kind == "float":
        return repr(float(value))
    if kind in ("int", "str") or kind.endswith("[]"):
        return value
    return f"tensor({' '.join(value.split())})"

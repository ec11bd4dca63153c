"""The pipelines: which passes run, in which order, and for which methods."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from jitquant import (
    _C,
    JitQuantError,
    QConfigMapping,
    convert_jit,
    get_default_qconfig,
    prepare_jit,
)
from tests.ir import Traced, sample, scripted, trace_convert, trace_prepare

NORMAL_FORM = [
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
]
PREPARE = [
    *NORMAL_FORM,
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
DEBUG = [
    "flatten",
    "restore_state",
    "fold_attributes",
    "collect_observers",
    "own_state",
    "plan",
    "insert_qdq",
    "insert_dynamic_qdq",
    "quantize_tables",
    "quantize_joins",
    "note_values",
    "strip_origins",
]
CONVERT = [
    *DEBUG[: DEBUG.index("insert_qdq")],
    "pad_groups",
    *DEBUG[DEBUG.index("insert_qdq") : -2],
    "propagate_dequantize",
    "lower",
    "verify",
    "lower_dynamic",
    "verify_dynamic",
    "lower_tables",
    "verify_tables",
    "note_shared_weights",
    "fuse",
    "chain_cats",
    "fuse_sum",
    "fuse_activation",
    "restore_layout",
    "expand_operands",
    "reuse_memory",
    "note_values",
    "fold_prepack",
    "freeze",
    "strip_origins",
]

# A pass, and those that must have run before it: the `Needs:` line of its file.
NEEDS = {
    "note_origins": ["flatten"],
    "undo_mkldnn": ["flatten", "note_origins"],
    "configure": ["note_origins", "simplify"],
    "restore_state": ["flatten"],
    "fold_attributes": ["flatten"],
    "own_state": ["fold_attributes"],
    "unfold_cells": ["configure"],
    "functionalize": ["own_state"],
    "canonicalize": ["fold_attributes"],
    "resolve_asserts": ["fold_attributes"],
    "pad_nested": ["resolve_asserts"],
    "unfold_attention": ["pad_nested"],
    "name_weights": ["fold_attributes"],
    "fold_weights": ["functionalize", "own_state"],
    "canonicalize_einsum": ["fold_attributes"],
    "canonicalize_linear": ["fold_attributes", "functionalize"],
    "split_bias": ["fold_weights", "canonicalize_linear"],
    "canonicalize_arithmetic": ["functionalize"],
    "split_lists": ["functionalize"],
    "canonicalize_stack": ["split_lists"],
    "canonicalize_shuffle": ["functionalize"],
    "simplify": ["canonicalize", "functionalize"],
    "fold_conv_bn": ["canonicalize", "simplify"],
    "rewrite_conv_transpose": ["configure"],
    "rewrite_pixel_shuffle": ["configure", "fold_conv_bn"],
    "fold_pad": ["configure", "canonicalize", "fold_conv_bn"],
    "plan": ["own_state"],
    "keep_state": ["plan"],
    "insert_observers": ["plan"],
    "record_arguments": ["insert_observers"],
    "collect_observers": ["fold_attributes"],
    "pad_groups": ["plan"],
    "insert_qdq": ["plan"],
    "insert_dynamic_qdq": ["plan"],
    "quantize_joins": ["insert_qdq"],
    "propagate_dequantize": ["quantize_joins"],
    "lower": ["propagate_dequantize"],
    "verify": ["lower"],
    "lower_dynamic": ["insert_dynamic_qdq", "verify"],
    "verify_dynamic": ["lower_dynamic"],
    "fuse": ["verify"],
    "chain_cats": ["fuse"],
    "fuse_sum": ["fuse", "chain_cats"],
    "fuse_activation": ["fuse"],
    "restore_layout": ["fuse", "fuse_sum"],
    "expand_operands": ["lower"],
    "reuse_memory": ["restore_layout"],
    "note_values": ["reuse_memory"],
    "fold_prepack": ["note_values"],
    "freeze": ["fold_prepack"],
}


class TwoMethods(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y

    @torch.jit.export
    def halve(self, x: Tensor) -> Tensor:
        return self.forward(x * 0.5)


def prepared() -> Traced:
    traced = trace_prepare(scripted(TwoMethods()))
    traced.model(sample(1, 2))
    traced.model.halve(sample(1, 2))
    return traced


def test_passes_of_prepare() -> None:
    traced = prepared()
    assert traced.passes() == PREPARE
    assert traced.passes("halve") == PREPARE


def test_passes_of_convert() -> None:
    assert trace_convert(prepared().model).passes() == CONVERT


def test_passes_of_convert_for_debugging() -> None:
    assert trace_convert(prepared().model, debug=True).passes() == DEBUG


def test_passes_of_fuse_conv_bn() -> None:
    names: list[str] = []
    model = scripted(nn.Sequential(nn.ReLU()))
    _C.fuse_conv_bn(model._c, ["forward"], lambda name, method, text: names.append(name))
    assert names == [*NORMAL_FORM, "fold_conv_bn", "strip_origins"]


def test_each_pass_finds_what_it_needs() -> None:
    for order in (PREPARE, CONVERT):
        for index, name in enumerate(order):
            missing = [need for need in NEEDS.get(name, []) if need not in order[:index]]
            assert not missing, f"{name} runs before {missing}"
    assert set(NEEDS) <= {*PREPARE, *CONVERT}


def test_convert_treats_forward_and_preserved_methods_only() -> None:
    model = prepared().model
    assert trace_convert(model).passes("halve") == []
    assert trace_convert(model, preserved=["halve"]).passes("halve") == CONVERT


def test_steps_of_one_pass_come_method_by_method_with_forward_first() -> None:
    steps = [(name, method) for name, method, _ in prepared().steps]
    assert steps == [(name, method) for name in PREPARE for method in ("forward", "halve")]


def test_same_model_gives_the_same_graphs_twice() -> None:
    first, second = prepared(), prepared()
    assert first.steps == second.steps
    assert trace_convert(first.model).steps[:-1] == trace_convert(second.model).steps[:-1]


def scaled() -> torch.jit.ScriptModule:
    """A model with a graph of its own: instances of one class share theirs."""

    class Scaled(TwoMethods):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.linear(x) * 0.5
            return y

    return scripted(Scaled())


def break_graph(model: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """Give a constant an input, which no graph has; the passes carry it on."""
    forward = model._c._get_method("forward").graph
    constant = next(n for n in forward.findAllNodes("prim::Constant") if n.hasAttribute("value"))
    constant.addInput(list(forward.inputs())[1])
    return model


@pytest.mark.parametrize(
    ("each_pass", "blamed"), [("1", "flatten"), ("0", "record_arguments or one before it")]
)
def test_error_of_prepare_names_the_pass(
    each_pass: str, blamed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JITQUANT_CHECK_EACH_PASS", each_pass)
    with pytest.raises(JitQuantError, match=f"^pass {blamed} failed: (.|\n)*Please report it"):
        prepare_jit(break_graph(scaled()), {"": get_default_qconfig()})


@pytest.mark.parametrize(
    ("each_pass", "blamed"), [("1", "flatten"), ("0", "strip_origins or one before it")]
)
def test_error_of_convert_names_the_pass(
    each_pass: str, blamed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trace_prepare(scaled()).model
    model(sample(1, 2))
    monkeypatch.setenv("JITQUANT_CHECK_EACH_PASS", each_pass)
    with pytest.raises(JitQuantError, match=f"^pass {blamed} failed: "):
        convert_jit(break_graph(model), debug=True)


def test_trace_checks_each_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JITQUANT_CHECK_EACH_PASS")
    with pytest.raises(JitQuantError, match=r"^pass flatten failed: "):
        trace_prepare(break_graph(scaled()))


def test_graphs_that_are_run_to_see_shapes_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JITQUANT_CHECK_EACH_PASS")
    mapping = QConfigMapping().set_predicate(lambda op: get_default_qconfig(), sample(1, 2))
    with pytest.raises(JitQuantError, match=r"^pass watch_shapes or one before it failed: "):
        prepare_jit(break_graph(scaled()), mapping)


@pytest.mark.parametrize("name", [*PREPARE, *CONVERT])
def test_each_pass_has_a_test_file(name: str) -> None:
    folder = Path(__file__).parent / "passes"
    assert (folder / f"test_{name}.py").is_file()

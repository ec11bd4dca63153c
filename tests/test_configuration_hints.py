"""Errors of configurations say what the user may have meant."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.ao.quantization as torch_ao
from torch import Tensor, nn

import jitquant
from jitquant import QConfigMapping
from jitquant._nearest import nearest, nearest_to_regex
from jitquant.errors import JitQuantError, JitQuantTypeError, JitQuantValueError
from jitquant.observers import MinMaxObserver
from tests.models import PlainNet, ResidualNet, scripted, traced

A = jitquant.default_qconfig
EITHER = "expected a jitquant.QConfig or torch.ao.quantization.QConfig, "
WHOLE = "qconfig_dict must be a dict of submodule names to qconfigs, such as "
OTHER_KEY = (
    "and the keys for lists of rules are 'object_type', 'module_name_regex', 'module_name', "
    "'module_name_object_type_order'. Any other key is the path of a submodule, with one qconfig or "
    "None."
)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("x86", "got str. For the whole model give {'': jitquant.get_default_qconfig('x86')}."),
        ("default", "got str. For the whole model give {'': jitquant.default_qconfig}."),
        ("a.toml", "got str. Is it a file? Read it: QConfigMapping.from_file('a.toml')."),
        (Path("a.json"), "Is it a file? Read it: QConfigMapping.from_file('a.json')."),
        (
            A,
            "a QConfigMapping or a predicate, got QConfig. For the whole model give {'': qconfig}.",
        ),
        (torch_ao.get_default_qconfig(), "got QConfig. For the whole model give {'': qconfig}."),
        (MinMaxObserver, "a QConfigMapping or a predicate, got type."),
        (None, "a QConfigMapping or a predicate, got NoneType."),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_configuration(config: Any, message: str) -> None:
    with pytest.raises(JitQuantTypeError, match=f"^{WHOLE}.*{re.escape(message)}$"):
        jitquant.prepare_jit(scripted(PlainNet()), config)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "x86",
            "got 'x86' of type str. Names are read from files and by QConfigMapping.from_dict "
            "only; give jitquant.get_default_qconfig('x86')",
        ),
        ("float", "QConfigMapping.from_dict only; give None"),
        ("x87", "got 'x87' of type str. Give a qconfig, such as jitquant.get_default_qconfig()"),
        (
            {"activation": {"observer": "MinMaxObserver"}},
            "of type dict. Plain data is read by QConfigMapping.from_dict only",
        ),
        (
            MinMaxObserver.with_args(),
            "of type ObserverFactory. A qconfig has two observers: QConfig(activation=..., "
            "weight=...)",
        ),
        (1, "got 1 of type int"),
    ],
    ids=str,
)
def test_what_is_no_qconfig(value: Any, message: str) -> None:
    pattern = f"{re.escape(EITHER)}.*{re.escape(message)}$"
    model = scripted(PlainNet())
    for config in ({"": value}, {"object_type": [(nn.Linear, value)]}, lambda op: value):
        with pytest.raises(JitQuantTypeError, match=pattern):
            jitquant.prepare_jit(model, config)
    with pytest.raises(JitQuantTypeError, match=f"^set_global: {pattern}"):
        QConfigMapping().set_global(value)


def test_a_key_for_rules_with_a_typo() -> None:
    for value in ([(nn.Linear, A)], {nn.Linear: A}):
        message = f"['object_types']: got a {type(value).__name__}, {OTHER_KEY}"
        with pytest.raises(JitQuantTypeError, match=f"^qconfig_dict{re.escape(message)}$"):
            jitquant.prepare_jit(scripted(PlainNet()), {"object_types": value})
    for plain in ([["torch.nn.Linear", "default"]], {"torch.nn.Linear": "default"}):
        with pytest.raises(JitQuantTypeError, match=re.escape(OTHER_KEY)):
            QConfigMapping.from_dict({"object_types": plain})


def test_rules_of_one_key_may_be_a_dict() -> None:
    mapping = QConfigMapping().set_object_type(nn.Linear, A).set_module_name_regex("a", None)
    given: dict[str, Any] = {"object_type": {nn.Linear: A}, "module_name_regex": {"a": None}}
    assert QConfigMapping.from_dict(given) == mapping
    text = '[object_type]\n"torch.nn.Linear" = "default"\n[module_name_regex]\na = "float"'
    assert QConfigMapping.from_toml(text) == mapping
    with pytest.raises(JitQuantTypeError, match=r"expected \(module name, type, index, qconfig\)"):
        QConfigMapping.from_dict({"module_name_object_type_order": {"a": A}})


NO_MODULES = (
    "matches nothing: the model has no submodules (torch.jit.freeze inlines them): use set_global, "
    "set_object_type with ops, or a predicate."
)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (QConfigMapping().set_module_name("fc", A), NO_MODULES),
        (QConfigMapping().set_module_name_regex("fc", A), NO_MODULES),
        (QConfigMapping().set_module_name_object_type_order("fc", "add", 0, A), NO_MODULES),
        (
            QConfigMapping().set_object_type(nn.Linear, A),
            f"{NO_MODULES} The nearest names are: 'aten::linear'.",
        ),
        (
            QConfigMapping().set_object_type("aten::liner", A),
            "matches nothing: the model has no op of that type. The nearest names are: "
            "'aten::linear'.",
        ),
    ],
    ids=lambda value: str(value.rules[-1]) if hasattr(value, "rules") else "",
)
def test_names_in_a_frozen_model(mapping: QConfigMapping, message: str) -> None:
    frozen = torch.jit.freeze(scripted(PlainNet()))
    with pytest.raises(JitQuantValueError, match=f"{re.escape(message)}$"):
        jitquant.prepare_jit(frozen, mapping)


NAMES = ["", "stem", "stem.conv1", "stem.bn1", "head.fc"]
TYPES = ["aten::conv2d", "aten::relu", "torch.nn.Conv2d", "mine.BasicBlock"]


@pytest.mark.parametrize(
    ("name", "candidates", "expected"),
    [
        ("stem.conv", NAMES, "The nearest names are: 'stem.conv1', 'stem.bn1', 'stem'."),
        ("BasicBlok", TYPES, "The nearest names are: 'mine.BasicBlock'."),
        ("aten::convx", TYPES[:2], "The nearest names are: 'aten::conv2d'."),
        ("head.fc.weight", [*NAMES, "other"], "The nearest names are: 'head.fc'."),
        ("fc.weight", ["fc", "other"], "The nearest names are: 'fc'."),
        ("encoder", NAMES, "It has 'stem', 'stem.conv1', 'stem.bn1', 'head.fc'."),
        ("zzz", [f"l{i}.{j}" for i in range(3) for j in "ab"] + ["l"], "It has 'l', 'l0.a', "),
        ("zzz", [str(i) for i in range(11)], "'7' and 3 more."),
        ("zzz", [""], "It has none."),
    ],
)
def test_nearest(name: str, candidates: list[str], expected: str) -> None:
    assert expected in nearest(name, candidates)


@pytest.mark.parametrize(
    ("regex", "expected"),
    [
        (
            r"conv\d",
            "It is matched at the start of a path, and would match inside of "
            "'stem.conv1': begin it with '.*'.",
        ),
        (r"stem\.[^b].*2", r"Its beginning 'stem\\.[^b].*' matches 'stem.conv1'."),
        (
            r"(stem|head)\.x",
            r"Its beginning '(stem|head)\\.' matches 'stem.conv1', 'stem.bn1', "
            "'head.fc'.",
        ),
        (".*zz", "Its beginning '.*' matches 'stem', 'stem.conv1', 'stem.bn1' and 1 more."),
        ("^zz", "It has 'stem', 'stem.conv1', 'stem.bn1', 'head.fc'."),
    ],
)
def test_nearest_to_a_regex(regex: str, expected: str) -> None:
    assert nearest_to_regex(regex, NAMES) == expected


def test_a_model_with_names() -> None:
    with pytest.raises(JitQuantError, match=r"It has 'stem', 'conv2', 'bn2', 'relu', 'pool'"):
        jitquant.prepare_jit(scripted(ResidualNet()), {"encoder": A})


def test_the_key_of_the_whole_model() -> None:
    message = "qconfig_dict['global']: the key for the whole model is ''."
    with pytest.raises(JitQuantValueError, match=f"^{re.escape(message)}$"):
        jitquant.prepare_jit(scripted(PlainNet()), {"global": A})


def test_a_predicate_that_reads_shapes_without_example_inputs() -> None:
    def wide(op: jitquant.OpInfo) -> Any:
        return A if op.shapes[0][-1] > 8 else None  # type: ignore[index]

    mapping = QConfigMapping().set_predicate(wide)
    message = "is not subscriptable (op.shapes is None without example_inputs)"
    with pytest.raises(JitQuantError, match=f"{re.escape(message)}$"):
        mapping.explain(scripted(PlainNet()))


def test_keys_that_are_types_or_patterns() -> None:
    model = scripted(ResidualNet())
    with pytest.raises(JitQuantTypeError, match=r"For a type give \{'object_type': \[\(type, qc"):
        jitquant.prepare_jit(model, {nn.Linear: A})  # type: ignore[dict-item]
    message = (
        "For regular expressions use module_name_regex; a name covers all inside of its module."
    )
    with pytest.raises(JitQuantValueError, match=f" {re.escape(message)}$"):
        jitquant.prepare_jit(model, {"stem.*": A})


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.a(x) + x
        return y


def test_a_frozen_trace_has_the_paths_of_its_ops() -> None:
    frozen = torch.jit.freeze(traced(Nested(), torch.ones(2, 4)))
    prepared = jitquant.prepare_jit(frozen, {"": A, "a.1": None})
    assert [(op.module, op.op) for op in jitquant.coverage(prepared).float] == [
        ("a.1.0", "aten::linear")
    ]
    with pytest.raises(JitQuantValueError, match=r"The nearest names are: 'a\.1\.0', 'a\.1'\.$"):
        jitquant.prepare_jit(frozen, {"a.1.1": A})
    with pytest.raises(JitQuantValueError, match=f"{re.escape(NO_MODULES)} The nearest names are:"):
        jitquant.prepare_jit(frozen, {"object_type": {nn.Linear: A}})

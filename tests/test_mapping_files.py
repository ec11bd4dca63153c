"""A QConfigMapping as plain data: what is written is read again, and mistakes are told."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import jitquant
from jitquant import QConfig, QConfigMapping
from jitquant.errors import JitQuantError, JitQuantTypeError, JitQuantValueError
from jitquant.observers import (
    FixedQParamsObserver,
    HistogramObserver,
    MinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
)

FIXED = QConfig(
    FixedQParamsObserver.with_args(scale=1 / 256, zero_point=0),
    MovingAveragePerChannelMinMaxObserver.with_args(
        dtype=torch.qint8, qscheme=torch.per_channel_symmetric, averaging_constant=0.5
    ),
)
PLAIN_CLASS = QConfig(HistogramObserver, jitquant.default_qconfig.weight)

MAPPINGS = {
    "empty": QConfigMapping(),
    "global": QConfigMapping().set_global(jitquant.get_default_qconfig("qnnpack")),
    "a class": QConfigMapping().set_global(PLAIN_CLASS),
    "float": QConfigMapping().set_global(None),
    "fused float": QConfigMapping().set_global(FIXED).set_module_name("fc", "fused float"),
    "all kinds": QConfigMapping()
    .set_global(jitquant.get_default_qconfig())
    .set_object_type(nn.Conv2d, jitquant.default_qconfig)
    .set_object_type("aten::add", None)
    .set_module_name_regex(r"layer\d", FIXED)
    .set_module_name_regex("layer", None)
    .set_module_name("layer4.1", FIXED)
    .set_module_name("object_type", None)
    .set_module_name_object_type_order("layer4.1", torch.add, 3, FIXED),
}


@pytest.mark.parametrize("mapping", MAPPINGS.values(), ids=MAPPINGS)
def test_round_trips(mapping: QConfigMapping) -> None:
    assert QConfigMapping.from_dict(mapping.to_dict()) == mapping
    assert QConfigMapping.from_json(mapping.to_json()) == mapping
    assert json.loads(mapping.to_json()) == mapping.to_dict()


def test_what_is_written() -> None:
    mapping = QConfigMapping().set_global(FIXED).set_object_type(nn.Conv2d, None)
    assert mapping.to_dict() == {
        "": {
            "activation": {
                "observer": "FixedQParamsObserver",
                "scale": 0.00390625,
                "zero_point": 0,
            },
            "weight": {
                "observer": "MovingAveragePerChannelMinMaxObserver",
                "averaging_constant": 0.5,
                "dtype": "qint8",
                "qscheme": "per_channel_symmetric",
            },
        },
        "object_type": [["torch.nn.modules.conv.Conv2d", None]],
    }


TOML = """
"" = "x86"
"layer1" = "float"
object_type = [["torch.nn.Linear", "default"], ["add", "qnnpack"]]

["layer4.0"]
activation = {observer = "HistogramObserver", bins = 512}
weight = {observer = "MinMaxObserver", dtype = "qint8", qscheme = "per_tensor_symmetric"}
"""


def test_toml_and_names_of_qconfigs(tmp_path: Path) -> None:
    expected = (
        QConfigMapping()
        .set_global(jitquant.get_default_qconfig("x86"))
        .set_module_name("layer1", None)
        .set_object_type(nn.Linear, jitquant.default_qconfig)
        .set_object_type("aten::add", jitquant.get_default_qconfig("qnnpack"))
        .set_module_name(
            "layer4.0",
            QConfig(
                HistogramObserver.with_args(bins=512),
                MinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric),
            ),
        )
    )
    assert QConfigMapping.from_toml(TOML) == expected
    (tmp_path / "a.toml").write_text(TOML, encoding="utf-8")
    (tmp_path / "b.json").write_text(expected.to_json(), encoding="utf-8")
    assert QConfigMapping.from_file(tmp_path / "a.toml") == expected
    assert QConfigMapping.from_file(str(tmp_path / "b.json")) == expected


def test_a_dictionary_with_qconfigs_is_read_too() -> None:
    given: dict[str, Any] = {"": FIXED, "object_type": [(nn.Conv2d, None)], "fc": "default"}
    expected = (
        QConfigMapping()
        .set_global(FIXED)
        .set_object_type(nn.Conv2d, None)
        .set_module_name("fc", jitquant.default_qconfig)
    )
    assert QConfigMapping.from_dict(given) == expected


def test_short_spellings_of_a_qconfig() -> None:
    weight = {"observer": "MinMaxObserver", "dtype": "torch.qint8"}
    weight["qscheme"] = "torch.per_tensor_symmetric"
    (rule,) = QConfigMapping.from_dict(
        {"": {"activation": "HistogramObserver", "weight": weight}}
    ).rules
    assert rule.qconfig == jitquant.get_default_qconfig("qnnpack")


class OwnObserver(MinMaxObserver):
    pass


WEIGHT = jitquant.default_qconfig.weight


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (
            QConfigMapping().set_predicate(repr),
            "the predicate <built-in function repr> is code, which cannot be written. Keep the "
            "code that makes it: the mapping has no other rules.",
        ),
        (
            QConfigMapping().set_global(None).set_predicate(repr),
            "the predicate <built-in function repr> is code, which cannot be written. Write the "
            "other rules, and set the predicate again after reading them.",
        ),
        (
            QConfigMapping().set_module_name("fc", QConfig(lambda: MinMaxObserver(), WEIGHT)),
            "module_name 'fc', activation: <function <lambda> at ",
        ),
        (
            QConfigMapping().set_global(QConfig(OwnObserver, WEIGHT)),
            "global, activation: OwnObserver.with_args() is code, which cannot be written. Use an "
            "observer of jitquant.observers and its with_args(...).",
        ),
    ],
)
def test_what_cannot_be_written(mapping: QConfigMapping, message: str) -> None:
    for write in (mapping.to_dict, mapping.to_json):
        with pytest.raises(JitQuantValueError, match=re.escape(message)):
            write()


MIN_MAX = {"observer": "MinMaxObserver"}


def of_activation(plain: object) -> Callable[[], QConfigMapping]:
    qconfig = {"activation": plain, "weight": {**MIN_MAX, "dtype": "qint8"}}
    return lambda: QConfigMapping.from_dict({"": qconfig})


@pytest.mark.parametrize(
    ("read", "error", "message"),
    [
        (
            lambda: QConfigMapping.from_dict([]),  # type: ignore[arg-type]
            JitQuantTypeError,
            "from_dict: expected a dict, got list.",
        ),
        (
            lambda: QConfigMapping.from_json("{"),
            JitQuantValueError,
            "from_json: no JSON text: Expecting property name",
        ),
        (
            lambda: QConfigMapping.from_json("[]"),
            JitQuantTypeError,
            "from_json: expected a dict, got list.",
        ),
        (
            lambda: QConfigMapping.from_toml("x"),
            JitQuantValueError,
            "from_toml: no TOML text: Expected '=' after a key",
        ),
        (
            lambda: QConfigMapping({"": None}),  # type: ignore[arg-type]
            JitQuantTypeError,
            "QConfigMapping: rules must be a tuple of Rule, got dict. Begin with QConfigMapping() "
            "and its setters, or with QConfigMapping.from_dict.",
        ),
        (
            lambda: QConfigMapping.from_json(3),  # type: ignore[arg-type]
            JitQuantTypeError,
            "from_json: expected a text, got int.",
        ),
        (
            lambda: QConfigMapping.from_toml(b"x = 1"),  # type: ignore[arg-type]
            JitQuantTypeError,
            "from_toml: expected a text, got bytes.",
        ),
        (
            lambda: QConfigMapping.from_file(3),  # type: ignore[arg-type]
            JitQuantTypeError,
            "from_file: expected a path, got int.",
        ),
        (
            lambda: QConfigMapping.from_file("mapping.yaml"),
            JitQuantValueError,
            "mapping.yaml: expected a name that ends in .json or .toml.",
        ),
        (
            lambda: QConfigMapping.from_toml('fc = "x68"'),
            JitQuantValueError,
            "from_toml['fc']: 'x68' is none of 'float', 'default', 'default_dynamic', "
            "'per_channel_dynamic', 'float16_dynamic', 'float_qparams_weight_only', "
            "'float_qparams_weight_only_4bit', and no engine: unknown "
            "backend 'x68', known are: x86, fbgemm, onednn, qnnpack",
        ),
        (
            lambda: QConfigMapping.from_dict({"fc": {"activation": MIN_MAX}}),
            JitQuantValueError,
            "from_dict['fc']: a qconfig has the keys 'activation' and 'weight', got "
            "['activation'].",
        ),
        (
            lambda: QConfigMapping.from_dict({"object_type": [[]]}),
            JitQuantTypeError,
            "from_dict['object_type']: expected (object type, qconfig), got [].",
        ),
        (
            of_activation(3),
            JitQuantTypeError,
            "from_dict[''], activation: expected the name of an observer, or a dict with the key "
            "'observer', such as {'observer': 'MinMaxObserver'}, got 3.",
        ),
        (
            of_activation({"observer": "MinMax"}),
            JitQuantValueError,
            "from_dict[''], activation: there is no observer 'MinMax'. The nearest names are: 'MinMaxObserver'",
        ),
        (
            of_activation({**MIN_MAX, "dtype": "int9"}),
            JitQuantValueError,
            "from_dict[''], activation: torch has no dtype 'int9'.",
        ),
        (
            of_activation({**MIN_MAX, "qscheme": "quint8"}),
            JitQuantValueError,
            "from_dict[''], activation: torch has no qscheme 'quint8'.",
        ),
        (
            of_activation({**MIN_MAX, "bins": 3}),
            JitQuantTypeError,
            "from_dict[''], activation: MinMaxObserver has no argument 'bins'",
        ),
        (
            lambda: QConfigMapping.from_toml('object_type = "torch.nn.Linear"'),
            JitQuantValueError,
            "onednn, qnnpack. Rules of this kind are a list of [key, qconfig].",
        ),
        (
            lambda: QConfigMapping.from_toml('object_type = [["torch.nn.Linear"]]'),
            JitQuantTypeError,
            "from_toml['object_type']: expected (object type, qconfig), got ['torch.nn.Linear'].",
        ),
        (
            lambda: QConfigMapping.from_json('{"": "x86", "": "float"}'),
            JitQuantValueError,
            "from_json: no JSON text: the key '' comes twice.",
        ),
    ],
)
def test_mistakes(
    read: Callable[[], QConfigMapping], error: type[JitQuantError], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        read()

"""The search for a mapping finds the ops that hurt, and says what it tried."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jitquant
from tests.models import PlainNet, ResidualNet
from tests.test_sensitivity import Doubles, Faulty, _data, _sqnr


def _script(model: nn.Module) -> torch.jit.ScriptModule:
    scripted: torch.jit.ScriptModule = torch.jit.script(model.eval())
    return scripted


def test_only_the_ops_of_the_faulty_value_are_left_float() -> None:
    torch.manual_seed(0)
    model, data = _script(Faulty(broken=1)), _data(2, 4, 12, 12)
    evaluate = _sqnr(model, data)
    found = jitquant.auto_mapping(
        model, data, evaluate, max_drop=100 - 30, qconfig_dict={"": jitquant.default_qconfig},
        progress=False,
    )  # fmt: skip
    assert {op.module for op in found.left_float} == {"convs.1", "convs.2"}
    assert found.float_score == pytest.approx(100)
    assert found.score >= 30 and evaluate(found.model) == found.score
    first = found.trials[0]
    assert (first.left_float, first.passed) == ((), False) and first.score < 30
    assert set(found.latency_ms) == {"float", "all int8", "chosen"}
    assert min(found.latency_ms.values()) > 0
    floats = [op.module for op in jitquant.coverage(found.model).float if op.op == "aten::conv2d"]
    assert floats == ["convs.1", "convs.2"]
    assert "convs.1" in str(found) and "score: float 100" in str(found)


def test_the_mapping_makes_the_same_model() -> None:
    torch.manual_seed(0)
    model, data = _script(Faulty(broken=1)), _data(2, 4, 12, 12)
    found = jitquant.auto_mapping(model, data, _sqnr(model, data), max_drop=70, progress=False)
    first, *others = found.mapping.rules
    assert (first.kind, first.key) == ("", ())
    assert {(rule.kind, rule.key, rule.qconfig) for rule in others} == {
        ("module_name_object_type_order", ("convs.1", "aten::conv2d", 0), None),
        ("module_name_object_type_order", ("convs.2", "aten::conv2d", 0), None),
        # Their activations, which would be int8 on their own.
        ("module_name_object_type_order", ("", "aten::relu", 1), None),
        ("module_name_object_type_order", ("", "aten::relu", 2), None),
    }
    prepared = jitquant.prepare_jit(
        model, jitquant.QConfigMapping.from_json(found.mapping.to_json())
    )
    jitquant.calibrate(prepared, data, progress=False)
    assert torch.equal(jitquant.convert_jit(prepared)(data[0]), found.model(data[0]))


def test_a_model_that_is_good_enough_stays_int8() -> None:
    torch.manual_seed(0)
    model, data = _script(PlainNet()), _data(2, 3, 8, 8)
    scored = []

    def evaluate(candidate: torch.jit.ScriptModule) -> int:
        scored.append(candidate)
        return 1

    found = jitquant.auto_mapping(model, data, evaluate, max_drop=0, progress=False)
    assert found.left_float == () and len(found.trials) == 1 and len(scored) == 2
    assert found.mapping == jitquant.QConfigMapping().set_global(jitquant.get_default_qconfig())
    assert not jitquant.coverage(found.model).float


def test_if_nothing_else_is_good_enough_all_ops_are_float() -> None:
    torch.manual_seed(0)
    model, data = _script(ResidualNet()), _data(2, 3, 8, 8)
    found = jitquant.auto_mapping(model, data, _sqnr(model, data), max_drop=0.5, progress=False)
    assert not [op for op in jitquant.coverage(found.model).int8 if op.op == "aten::conv2d"]
    assert found.score == pytest.approx(100, abs=0.5)


def test_ops_that_bisection_took_along_are_int8_again() -> None:
    """Two ops are needed, the first and third of the ranking: the second is given back."""
    torch.manual_seed(0)
    model, data = _script(Faulty(broken=1)), _data(2, 4, 12, 12)
    ranking = jitquant.auto_mapping(
        model, data, _sqnr(model, data), max_drop=0.5, progress=False
    ).left_float
    needed = {ranking[0].module, ranking[2].module}

    def evaluate(candidate: torch.jit.ScriptModule) -> float:
        if candidate is model:
            return 1.0
        floats = {op.module for op in jitquant.coverage(candidate).float}
        return 1.0 if needed <= floats else 0.0

    found = jitquant.auto_mapping(model, data, evaluate, max_drop=0, progress=False)
    assert {op.module for op in found.left_float} == needed


def test_a_predicate_is_asked_about_the_other_ops() -> None:
    torch.manual_seed(0)
    model, data = _script(Faulty(broken=1)), _data(2, 4, 12, 12)

    def predicate(op: jitquant.OpInfo) -> object:
        return None if op.module == "convs.3" else jitquant.get_default_qconfig()

    found = jitquant.auto_mapping(
        model, data, _sqnr(model, data), max_drop=70, qconfig_dict=predicate, progress=False
    )
    assert {op.module for op in found.left_float} == {"convs.1", "convs.2"}
    decided = found.mapping.explain(model).decisions
    floats = {
        each.op.module for each in decided if each.op.kind == "aten::conv2d" and not each.qconfig
    }
    assert floats == {"convs.1", "convs.2", "convs.3"}


def test_an_op_that_prepare_rewrites_is_named_by_its_line() -> None:
    class Upsample(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.up(self.conv(x))
            return y

    torch.manual_seed(0)
    model, data = _script(Upsample()), _data(2, 3, 8, 8)
    found = jitquant.auto_mapping(model, data, _sqnr(model, data), max_drop=0.5, progress=False)
    floats = {each.op.module for each in found.mapping.explain(model).decisions if not each.qconfig}
    assert floats == {"conv", "up"}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"evaluate": 3}, jitquant.JitQuantTypeError, "evaluate must be a function"),
        ({"evaluate": lambda _: "good"}, jitquant.JitQuantTypeError, "return a number, got str"),
        ({"max_drop": "1"}, jitquant.JitQuantTypeError, "max_drop must be a number, got '1'"),
        ({"max_drop": -1}, jitquant.JitQuantValueError, "max_drop must be 0 or more, got -1"),
        ({"data": torch.ones(1)}, jitquant.JitQuantTypeError, "data must be a DataLoader"),
    ],
)
def test_bad_arguments(changes: Any, error: type[Exception], message: str) -> None:
    model, data = _script(PlainNet()), _data(2, 3, 8, 8)
    arguments = {"data": data, "evaluate": lambda _: 1.0, "max_drop": 0.0, **changes}
    with pytest.raises(error, match=message):
        jitquant.auto_mapping(model, progress=False, **arguments)


def test_a_score_that_cannot_be_reached_is_an_error() -> None:
    model, data = _script(PlainNet()), _data(2, 3, 8, 8)
    scores = iter(range(100, 0, -1))
    with pytest.raises(jitquant.JitQuantError, match="even with all ops float"):
        jitquant.auto_mapping(model, data, lambda _: next(scores), max_drop=0, progress=False)


def test_batches_stay_as_they_are() -> None:
    torch.manual_seed(0)
    data = _data(2, 4)
    jitquant.auto_mapping(_script(Doubles()), data, lambda _: 1.0, max_drop=0, progress=False)
    assert all(torch.equal(x, y) for x, y in zip(data, _data(2, 4), strict=True))

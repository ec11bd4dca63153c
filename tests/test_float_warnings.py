"""Who quantizes nothing, or next to nothing, is told."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jitquant
from tests.models import PlainNet

QCONFIG = jitquant.default_qconfig


class Pools(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pool(self.conv(x))
        return y


class Logs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.conv2 = nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(torch.log(self.conv1(x)))
        return y


def _script(model: nn.Module) -> torch.jit.ScriptModule:
    torch.manual_seed(0)
    scripted: torch.jit.ScriptModule = torch.jit.script(model.eval())
    return scripted


@pytest.mark.parametrize("config", [{"pool": QCONFIG}, {"": QCONFIG, "conv": None}])
def test_a_configuration_that_reaches_no_op_that_computes(config: Any) -> None:
    message = r"(?s)none of 2 ops will be int8.*1 x aten::conv2d: "
    with pytest.warns(jitquant.FloatWarning, match=message):
        jitquant.prepare_jit(_script(Pools()), config)


@pytest.mark.parametrize("rule", [".*", "conv|pool"])
def test_a_rule_that_leaves_all_float(rule: str) -> None:
    mapping = jitquant.QConfigMapping().set_global(QCONFIG).set_module_name_regex(rule, None)
    with pytest.warns(jitquant.FloatWarning, match="(?s)none of 2 ops.*: its qconfig is None"):
        jitquant.prepare_jit(_script(Pools()), mapping)


def test_setters_whose_result_was_dropped() -> None:
    mapping = jitquant.QConfigMapping()
    mapping.set_global(QCONFIG)
    with pytest.raises(jitquant.JitQuantValueError, match="return a new one: mapping = "):
        jitquant.prepare_jit(_script(Pools()), mapping)


def test_values_that_are_all_zero() -> None:
    prepared = jitquant.prepare_jit(_script(Pools()), {"": QCONFIG})
    prepared(torch.zeros(2, 3, 8, 8))
    with pytest.warns(
        jitquant.FloatWarning, match="(?s)planned in int8 stay float.* x aten::conv2d"
    ):
        jitquant.convert_jit(prepared)


def test_no_warning_where_int8_ops_are_left() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", jitquant.FloatWarning)
        half = jitquant.prepare_jit(_script(PlainNet()), {"": QCONFIG, "fc": None})
        half(torch.ones(2, 3, 8, 8))
        jitquant.convert_jit(half)
        jitquant.prepare_dynamic_jit(_script(PlainNet()), {"": jitquant.float16_dynamic_qconfig})


def test_a_batch_that_gives_nan_is_named_and_nothing_of_the_call_counts() -> None:
    prepared = jitquant.prepare_jit(_script(Logs()), {"": QCONFIG})
    x = torch.ones(1, 3, 8, 8)
    with torch.no_grad():
        for name, parameter in prepared.named_parameters():
            if name.startswith("conv1"):
                parameter.fill_(0.1)  # positive for ones, negative for their opposites
    message = r"batch 1 gives NaN in the output of aten::log \(test_float_warnings.py:\d+\)"
    with pytest.raises(jitquant.JitQuantValueError, match=message):
        jitquant.calibrate(prepared, [x, -x], progress=False)
    with pytest.raises(jitquant.JitQuantError, match="not calibrated"):
        jitquant.convert_jit(prepared)
    jitquant.calibrate(prepared, [x, 2 * x], progress=False)
    jitquant.convert_jit(prepared)


def test_an_infinite_input_is_named() -> None:
    prepared = jitquant.prepare_jit(_script(PlainNet()), {"": QCONFIG})
    with pytest.raises(jitquant.JitQuantValueError, match="batch 0 gives an infinite value in the"):
        jitquant.calibrate(prepared, [torch.full((1, 3, 8, 8), torch.inf)], progress=False)


def test_what_was_seen_before_is_not_this_batch() -> None:
    prepared = jitquant.prepare_jit(_script(PlainNet()), {"": QCONFIG})
    prepared(torch.full((1, 3, 8, 8), torch.nan))
    assert jitquant.calibrate(prepared, [torch.ones(1, 3, 8, 8)], progress=False).batches == 1

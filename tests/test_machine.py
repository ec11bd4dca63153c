"""jitquant.check: whether a file fits the machine that is to run it."""

import io
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import jitquant
from jitquant import _C, machine
from jitquant._engine import engine_set
from jitquant.errors import JitQuantError, JitQuantTypeError, JitQuantValueError
from tests.models import PlainNet, calibrate, images, reloaded, scripted

library = torch.library.Library("jitquant_test_machine", "DEF")
library.define("twice(Tensor x) -> Tensor")
library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")


@pytest.fixture(autouse=True)
def keeps_the_engine() -> Iterator[None]:
    with engine_set(torch.backends.quantized.engine):
        yield


def converted(bits: dict[str, int] | None = None, debug: bool = False) -> torch.jit.ScriptModule:
    """Each module of PlainNet with activations of so many bits; 8 for all by default."""
    engine = str(torch.backends.quantized.engine)
    config = {
        name: jitquant.get_default_qconfig(engine, activation_bits=of)
        for name, of in (bits or {"": 8}).items()
    }
    model = scripted(PlainNet())
    return reloaded(jitquant.quantize_jit(model, config, calibrate, [images()], debug=debug))


def rows(check: jitquant.Check) -> dict[str, machine.Requirement]:
    return {each.what: each for each in check.requirements}


def changed(model: torch.jit.ScriptModule, **fields: Any) -> torch.jit.ScriptModule:
    """The model with another record, as if it had been made elsewhere."""
    state = json.loads(model.jitquant_state)
    assert set(fields) <= set(state)
    model._c.setattr("jitquant_state", json.dumps({**state, **fields}))
    return model


def test_a_model_that_was_made_here_fits() -> None:
    found = rows(jitquant.check(converted()))
    assert not any(each.problem for each in found.values())
    assert found["torch"].needs == found["torch"].has == torch.__version__.partition("+")[0]
    assert found["engine"].needs == found["engine"].has == torch.backends.quantized.engine
    assert found["activation bits"].needs == "8"
    assert found["CPU"].has == machine.cpu_features()
    assert found["CPU"].needs == (
        "nothing: also without VNNI its weights keep 16-bit sums from overflowing; verified with "
        + machine.cpu_features()
    )


@pytest.mark.parametrize(
    ("bits", "recorded"), [({"": 7}, "7"), ({"": 8}, "8"), ({"conv1": 8, "fc": 7}, "7 and 8")]
)
def test_activation_bits_are_in_the_file(bits: dict[str, int], recorded: str) -> None:
    assert rows(jitquant.check(converted(bits)))["activation bits"].needs == recorded


def test_a_qnnpack_model_needs_nothing_of_the_cpu() -> None:
    torch.backends.quantized.engine = "qnnpack"
    needs = rows(jitquant.check(converted()))["CPU"].needs
    assert needs == f"nothing; verified with {machine.cpu_features()}"


def test_another_engine_is_set() -> None:
    model = converted()
    torch.backends.quantized.engine = "qnnpack"
    message = (
        "the model does not fit this machine: It needs the engine x86, and qnnpack is set: set "
        "torch.backends.quantized.engine = 'x86', and then load the model."
    )
    with pytest.raises(JitQuantError, match=f"^{re.escape(message)}$"):
        jitquant.check(model)


@pytest.mark.parametrize(("engine", "kernels"), [("qnnpack", "qnnpack"), ("fbgemm", "fbgemm")])
def test_another_engine_was_set_when_it_was_loaded(engine: str, kernels: str) -> None:
    with engine_set("onednn"):
        file = io.BytesIO()
        torch.jit.save(converted(), file)
    file.seek(0)
    with engine_set(engine):
        model = torch.jit.load(file)
    torch.backends.quantized.engine = "onednn"
    message = (
        f"Its weights are packed for {kernels}, since another engine was set when it was loaded: "
        "load it again now that onednn is set."
    )
    with pytest.raises(JitQuantError, match=re.escape(message)):
        jitquant.check(model)
    file.seek(0)
    assert not jitquant.check(torch.jit.load(file)).problems


def test_dynamic_models_are_packed_for_the_engine_too() -> None:
    for qconfig in (jitquant.default_dynamic_qconfig, jitquant.float16_dynamic_qconfig):
        model = jitquant.quantize_dynamic_jit(scripted(PlainNet()), {"": qconfig})
        assert not jitquant.check(model).problems


def test_an_engine_that_this_torch_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = converted()

    class Quantized:
        supported_engines = ("onednn",)
        engine = "onednn"

    monkeypatch.setattr(torch.backends, "quantized", Quantized)
    with pytest.raises(JitQuantError, match="It needs the engine x86, which this torch does not"):
        jitquant.check(model)


def test_another_torch() -> None:
    model = changed(converted(), torch_version="2.13.0+cu126")
    with pytest.raises(JitQuantError, match=r"It was made with torch 2\.13\.0, and its int8 ops"):
        jitquant.check(model)


def test_all_problems_are_told_at_once_or_returned() -> None:
    model = changed(converted(), torch_version="2.13.0")
    torch.backends.quantized.engine = "qnnpack"
    with pytest.raises(JitQuantError, match=r"made with torch 2\.13\.0.* needs the engine x86"):
        jitquant.check(model)
    result = jitquant.check(model, strict=False)
    assert len(result.problems) == 2
    text = str(result)
    assert all(problem in text for problem in result.problems)
    assert re.search(r"^activation bits +8 +any +ok$", text, re.MULTILINE)


def test_models_without_int8_ops_need_no_engine() -> None:
    prepared = jitquant.prepare_jit(scripted(PlainNet()), {"": jitquant.default_qconfig})
    for model in (prepared, converted(debug=True)):
        assert list(rows(jitquant.check(model))) == ["torch", "libraries", "activation bits"]


def test_models_without_a_record() -> None:
    with pytest.raises(
        JitQuantValueError, match=r"^check: the model has no record of what it need"
    ):
        jitquant.check(scripted(PlainNet()))
    with pytest.raises(JitQuantTypeError, match=r"^check takes a ScriptModule, got the nn"):
        jitquant.check(nn.ReLU())  # type: ignore[arg-type]


class UsesALibrary(nn.Module):
    """An op of another library in a branch, behind a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(x)
        if x.size(0) > 0:
            y = torch.ops.jitquant_test_machine.twice(y)
        return y


@pytest.mark.parametrize("debug", [False, True])
def test_libraries_of_custom_ops_are_in_the_file(debug: bool) -> None:
    config = {"": jitquant.default_qconfig}
    model = jitquant.quantize_jit(
        scripted(UsesALibrary()), config, calibrate, [images()], debug=debug
    )
    assert rows(jitquant.check(reloaded(model)))["libraries"].needs == "jitquant_test_machine"


def test_a_file_of_torch_ops_says_that_it_needs_no_library() -> None:
    assert rows(jitquant.check(converted()))["libraries"].needs == "only torch"


def test_classes_have_namespaces_too() -> None:
    """No op of an LSTM is of "rnn", but its packed weights are."""
    lstm: Any = torch.jit.trace(nn.LSTM(4, 4).eval(), torch.rand(3, 2, 4))
    dynamic = jitquant.quantize_dynamic_jit(lstm, {"": jitquant.default_dynamic_qconfig})
    assert "rnn" in _C.namespaces_of(dynamic._c)
    assert rows(jitquant.check(dynamic))["libraries"].needs == "only torch"


def test_a_file_made_before_libraries_were_recorded_can_be_read() -> None:
    model = converted()
    state = json.loads(model.jitquant_state)
    del state["libraries"]
    model._c.setattr("jitquant_state", json.dumps(state))
    assert rows(jitquant.check(model))["libraries"].needs == "only torch"

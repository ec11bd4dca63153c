"""numeric_suite: what users get wrong."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jitquant
from jitquant import JitQuantError, JitQuantTypeError, JitQuantValueError
from jitquant.numeric_suite import (
    compare_ops,
    compare_outputs,
    compare_weights,
    histograms,
    sqnr,
    write_report,
)
from tests.ir import FIXED, scripted
from tests.models import Remembers
from tests.numeric_suite import (
    Two,
    X,
    prepared_of,
    quantized_of,
    two_layers,
)
from tests.test_sensitivity import Doubles


class Other(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(self.one(x).sum(-1))


def _errors() -> list[Any]:
    return [
        pytest.param(
            lambda f, q, d: (q, q, d),
            JitQuantValueError,
            "compare_ops: the first model is converted already. The first one is the float model, "
            "the second one the quantized.",
            id="converted as float",
        ),
        pytest.param(
            lambda f, q, d: (quantized_of(f, d, debug=True), q, d),
            JitQuantValueError,
            "compare_ops: the first model is a debug model already.",
            id="debug as float",
        ),
        pytest.param(
            lambda f, q, d: (f, f, d),
            JitQuantValueError,
            "compare_ops: the second model is not quantized: neither prepare_jit nor convert_jit "
            "made it. The first one is the float model, the second one the quantized.",
            id="float as quantized",
        ),
        pytest.param(
            lambda f, q, d: (Two(), q, d),
            JitQuantTypeError,
            "compare_ops takes a ScriptModule, got the nn.Module Two.",
            id="nn.Module",
        ),
        pytest.param(
            lambda f, q, d: (f, jitquant.prepare_jit(f, {"": FIXED}), d),
            JitQuantError,
            "the prepared model was not calibrated: no observer saw any data.",
            id="not calibrated",
        ),
        pytest.param(
            lambda f, q, d: (scripted(Other()), q, d),
            JitQuantValueError,
            "compare_ops: the models do not match: the float model has aten::linear in 'one', "
            "aten::sum in '' and 1 more ops, the quantized one aten::linear in 'first', "
            "aten::linear in 'second'. Give the float model that the quantized one was made from.",
            id="another model",
        ),
        pytest.param(
            lambda f, q, d: (f, q, []),
            JitQuantValueError,
            "compare_ops: data gave no batch. A generator runs only once.",
            id="no data",
        ),
        pytest.param(
            lambda f, q, d: (f, q, d[0]),
            JitQuantTypeError,
            "compare_ops: data must be a DataLoader, list or generator of batches, got Tensor.",
            id="one tensor",
        ),
        pytest.param(
            lambda f, q, d: (f, q, [*d, (d[0], d[0])]),
            JitQuantValueError,
            "compare_ops: batch 1 has 2 elements, and forward takes x: Tensor.",
            id="a batch that does not fit",
        ),
    ]


@pytest.mark.parametrize(("arguments", "kind", "message"), _errors())
def test_errors(arguments: Any, kind: type[Exception], message: str) -> None:
    two = two_layers()
    with pytest.raises(kind) as caught:
        compare_ops(*arguments(two, quantized_of(two, X), X))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "value_nodes",
            [7],
            "the model's graph was changed after convert_jit: it has no quantized::linear for the "
            "aten::linear in 'first'. Convert the prepared model again.",
        ),
        (
            "value_kind",
            "",
            "compare_ops: the quantized model does not say which of its nodes compute its ops: it "
            "was converted before jitquant noted that, or has no ops. Convert it again.",
        ),
    ],
)
def test_files_of_which_the_graph_does_not_fit_the_record(
    field: str, value: Any, message: str
) -> None:
    two = two_layers()
    int8 = quantized_of(two, X)
    state = json.loads(int8._c.getattr("jitquant_state"))
    for op in state["ops"]:
        op[field] = value
    int8._c.setattr("jitquant_state", json.dumps(state))
    with pytest.raises(JitQuantError) as caught:
        compare_ops(two, int8, X)
    assert str(caught.value) == message


def test_a_prepared_model_with_corrected_biases_says_nothing_of_what_is_right() -> None:
    model, data = (
        scripted(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))),
        [torch.rand(8, 4)],
    )
    corrected = jitquant.correct_bias(prepared_of(model, data), data)
    int8 = jitquant.convert_jit(corrected)
    message = "correct_bias changed the biases of the prepared model.*Give the float model"
    with pytest.raises(JitQuantValueError, match=f"compare_outputs: {message}"):
        compare_outputs(corrected, int8, data)
    with pytest.raises(JitQuantValueError, match=f"sensitivity: {message}"):
        jitquant.sensitivity(corrected, data, progress=False)
    assert compare_outputs(model, int8, data).ops


def test_a_model_may_write_into_its_input() -> None:
    model, data = scripted(Doubles()), [torch.rand(4, 4) for _ in range(2)]
    given = [x.clone() for x in data]
    int8 = jitquant.convert_jit(prepared_of(model, data))
    compared = compare_outputs(model, int8, data)
    # Those up to the first int8 op got the same numbers.
    assert [each.errors.sqnr for each in compared.ops[:2]] == [math.inf, math.inf]
    assert all(torch.equal(x, before) for x, before in zip(data, given, strict=True))


def test_the_state_of_both_models_stays() -> None:
    model, data = scripted(Remembers()), [torch.rand(4, 4) for _ in range(2)]
    int8 = jitquant.convert_jit(prepared_of(model, data), preserved_attrs=["seen"])
    before = model.seen.clone()
    first, second = (compare_outputs(model, int8, data) for _ in range(2))
    assert first == second
    assert torch.equal(model.seen, before) and torch.equal(int8.seen, before)


def test_a_table_says_how_many_values_were_left_out() -> None:
    model, data = scripted(nn.Linear(2, 2)), [torch.rand(2, 2)]
    int8 = quantized_of(model, data)
    result = compare_outputs(model, int8, [torch.full((2, 2), torch.nan)])
    text = "nothing was compared: none of 12 values is finite in the float model"
    assert text in str(result).splitlines()
    assert "inf" not in str(result)


def test_a_report_on_data_that_is_not_finite_says_so(tmp_path: Path) -> None:
    model, data = scripted(nn.Linear(2, 2)), [torch.rand(2, 2)]
    int8, path = quantized_of(model, data), tmp_path / "report.html"
    write_report(path, model, int8, data)
    assert "finite" not in path.read_text()
    nothing = torch.full((2, 2), torch.nan)
    write_report(path, model, int8, [nothing])
    text = "Nothing was compared: none of 12 values is finite in the float model."
    assert f'<p class="bad">{text}</p>' in path.read_text()
    write_report(path, model, int8, [*data, nothing])
    assert "Left out: 12 values that are not finite in the float model.</p>" in path.read_text()


def test_what_forward_returns_has_the_channels_of_dimension_1() -> None:
    model, data = scripted(nn.Linear(4, 3)), [torch.rand(8, 4)]
    int8 = quantized_of(model, data)
    [returned] = [op for op in compare_outputs(model, int8, data, per_channel=True).ops[-1:]]
    expected, actual = model(data[0]), int8(data[0])
    each = [sqnr(expected[:, i], actual[:, i]) for i in range(3)]
    assert returned.op == "return"
    assert [one.sqnr for one in returned.errors.channels] == pytest.approx(each)
    assert returned.errors.channel_sqnr == pytest.approx(sum(each) / 3)


@pytest.mark.parametrize("function", [compare_outputs, compare_ops, histograms, write_report])
def test_a_batch_that_fails_is_named(function: Callable[..., Any], tmp_path: Path) -> None:
    model, data = scripted(nn.Linear(2, 2)), [torch.rand(2, 2)]
    int8, name = quantized_of(model, data), function.__name__
    first = (tmp_path / "report.html",) if function is write_report else ()
    with pytest.raises(RuntimeError) as caught:
        function(*first, model, int8, [*data, torch.rand(2, 3)])
    note = f"{name}: batch 1 is a float32 tensor (2, 3); forward takes "
    assert caught.value.__notes__[0].startswith(note)

    def broken() -> Any:
        yield from data
        raise OSError("no such photo")

    with pytest.raises(OSError, match="no such photo") as raised:
        function(*first, model, int8, broken())
    assert raised.value.__notes__ == [f"{name}: data raised this and gave no batch 1."]


class Sum(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def test_models_without_weights_have_a_report_and_no_comparison_of_weights(tmp_path: Path) -> None:
    model, data = scripted(Sum()), [(torch.rand(2, 2), torch.rand(2, 2))]
    int8 = quantized_of(model, data)
    with pytest.raises(JitQuantValueError) as caught:
        compare_weights(model, int8)
    assert str(caught.value) == (
        "compare_weights: there is no weight to compare: no convolution or linear layer is in "
        "both models."
    )
    assert write_report(tmp_path / "report.html", model, int8, data).weights.ops == ()


def test_a_report_takes_a_path_and_a_title() -> None:
    model, data = scripted(nn.Linear(2, 2)), [torch.rand(2, 2)]
    int8, wrong = quantized_of(model, data), 5
    for arguments, options, message in (
        ((wrong, model, int8, data), {}, "write_report: path must be a path, got int."),
        (("a", model, int8, data), {"title": 5}, "write_report: title must be a string, got int."),
    ):
        function: Any = write_report
        with pytest.raises(JitQuantTypeError) as caught:
            function(*arguments, **options)
        assert str(caught.value) == message

"""Sensitivity of ops, and the search for a mapping: what they find in models with a planted fault."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jitquant
from jitquant.sensitivity import noise_to_signal
from tests.ir import FIXED
from tests.models import PlainNet, ResidualNet


class Faulty(nn.Module):
    """Four convolutions; one gives a channel that is 3000 times the others, which nothing needs.

    It costs those on both sides of the value: the one that gives it and the one that reads it.
    """

    def __init__(self, broken: int = 2) -> None:
        super().__init__()
        convs = [nn.Conv2d(4, 4, 3, padding=1) for _ in range(4)]
        with torch.no_grad():
            convs[broken].weight[0] *= 3000
            convs[broken + 1].weight[:, 0] /= 3e6
        self.convs = nn.ModuleList(convs)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = torch.relu(conv(x))
        return x


class Squeeze(nn.Module):
    """A hardsigmoid between int8 ops, whose qparams are fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        y: Tensor = x * nn.functional.hardsigmoid(self.conv2(x))
        return y


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, tuple[Tensor, Tensor]]:
        return {"both": (self.fc1(x) * scale, self.fc2(x))}


def _data(*shape: int, batches: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(batches)]


def _prepared(model: nn.Module, data: list[Tensor]) -> torch.jit.ScriptModule:
    return _calibrated(torch.jit.script(model.eval()), {"": jitquant.default_qconfig}, data)


def _calibrated(
    scripted: torch.jit.ScriptModule, mapping: Any, data: list[Tensor]
) -> torch.jit.ScriptModule:
    prepared = jitquant.prepare_jit(scripted, mapping)
    jitquant.calibrate(prepared, data, progress=False)
    return prepared


def _sqnr(model: torch.jit.ScriptModule, data: list[Tensor]) -> Callable[[Any], float]:
    """The score of other models: dB over `model`, at most 100."""
    references = [model(x) for x in data]

    def evaluate(other: torch.jit.ScriptModule) -> float:
        losses = [noise_to_signal(y, other(x)) for x, y in zip(data, references, strict=True)]
        return float(-10 * torch.tensor(sum(losses) / len(losses) + 1e-10).log10())

    return evaluate


@pytest.mark.parametrize("way", ["script", "trace"])
def test_the_faulty_value_is_found(way: str) -> None:
    torch.manual_seed(0)
    model, data = Faulty(broken=2).eval(), _data(2, 4, 12, 12)
    scripted = torch.jit.script(model) if way == "script" else torch.jit.trace(model, data[0])
    prepared = jitquant.prepare_jit(scripted, {"": jitquant.default_qconfig})
    jitquant.calibrate(prepared, data, progress=False)
    found = jitquant.sensitivity(prepared, data, progress=False)
    first, second, *others = found.ops
    assert {first.module, second.module} == {"convs.2", "convs.3"} and len(others) == 2
    assert second.alone_int8 > 10 * max(op.alone_int8 for op in others)
    assert found.all_int8 >= first.alone_int8 / 2
    assert str(found).splitlines()[2].startswith(first.module)
    assert f"loss, all int8: {found.all_int8:.3g}" in str(found)


def test_alone_in_int8_is_what_a_mapping_without_the_others_gives() -> None:
    torch.manual_seed(0)
    model, data = PlainNet(), _data(2, 3, 8, 8)
    scripted = torch.jit.script(model.eval())
    found = jitquant.sensitivity(_prepared(model, data), data, progress=False)
    for op in found.ops:
        others = ("fc",) if op.module == "conv1" else ("conv1", "relu")
        mapping = {"": jitquant.default_qconfig, **dict.fromkeys(others)}
        only = jitquant.prepare_jit(scripted, mapping)
        jitquant.calibrate(only, data, progress=False)
        emulated = jitquant.convert_jit(only, debug=True)
        losses = [noise_to_signal(scripted(x), emulated(x)) for x in data]
        # Not quite equal: the float model's last bits are others.
        assert op.alone_int8 == pytest.approx(sum(losses) / 2, rel=1e-3)


class Gated(nn.Module):
    """The product reads what tanh gives, whose range no observer saw, and a sum a scaled value."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        gated = self.fc1(x) * torch.tanh(3 * self.fc2(x))
        y: Tensor = gated * 0.5 + x
        return y


def test_each_loss_is_what_the_mapping_gives() -> None:
    torch.manual_seed(0)
    data = _data(16, 8)
    scripted = torch.jit.script(Gated().eval())
    default = jitquant.QConfigMapping().set_global(jitquant.default_qconfig)
    found = jitquant.sensitivity(_calibrated(scripted, default, data), data, progress=False)
    assert sorted(op.op for op in found.ops) == [
        "aten::add", "aten::linear", "aten::linear", "aten::mul", "aten::tanh",
    ]  # fmt: skip

    def loss(mapping: jitquant.QConfigMapping) -> float:
        emulated = jitquant.convert_jit(_calibrated(scripted, mapping, data), debug=True)
        return sum(noise_to_signal(scripted(x), emulated(x)) for x in data) / len(data)

    no_op = jitquant.QConfigMapping().set_global(None)
    for op in found.ops:
        index = 1 if op.op == "aten::mul" else 0  # the first product scales by 3
        key = (op.module, op.op, index)
        alone = no_op.set_module_name_object_type_order(*key, jitquant.default_qconfig)
        without = default.set_module_name_object_type_order(*key, None)
        # A mapping observes what a float tanh gives; in the prepared model it has the qparams of an
        # int8 one, whose steps are a little wider, so that other values are rounded up.
        reads_tanh = op.op in ("aten::mul", "aten::tanh")
        closeness = 0.25 if reads_tanh else 1e-3
        assert op.alone_int8 == pytest.approx(loss(alone), rel=closeness)
        assert op.alone_float == pytest.approx(loss(without), rel=closeness)


def test_nothing_of_the_prepared_model_changes_and_it_is_not_calibrated_again() -> None:
    torch.manual_seed(0)
    data = _data(2, 3, 8, 8)
    prepared = _prepared(ResidualNet(), data)
    before = jitquant.convert_jit(prepared)
    other = [10 * x for x in data]
    jitquant.sensitivity(prepared, other, progress=False)
    after = jitquant.convert_jit(prepared)
    assert torch.equal(before(data[0]), after(data[0]))
    assert str(before.inlined_graph) == str(after.inlined_graph)


def test_an_op_with_fixed_qparams_is_measured_and_its_reader_with_it() -> None:
    torch.manual_seed(0)
    data = _data(2, 3, 8, 8)
    found = jitquant.sensitivity(_prepared(Squeeze(), data), data, progress=False)
    kinds = sorted(op.op for op in found.ops)
    assert kinds == ["aten::conv2d", "aten::conv2d", "aten::hardsigmoid", "aten::mul"]
    # A loss of 0 would say that the op was not in int8.
    assert min(op.alone_int8 for op in found.ops) > 0


def test_the_metric_gets_the_outputs_of_each_batch() -> None:
    torch.manual_seed(0)
    data = _data(2, 4, batches=3)
    prepared = _prepared(TwoOutputs(), data)
    seen = []

    def metric(reference: Any, output: Any) -> float:
        seen.append((reference["both"][1].shape, output["both"][1].shape))
        return float((output["both"][1] - reference["both"][1]).abs().max())

    found = jitquant.sensitivity(prepared, data, metric, progress=False)
    # fc1 cannot change the second output.
    assert {op.module: op.alone_int8 == 0 for op in found.ops if op.op == "aten::linear"} == {
        "fc1": True,
        "fc2": False,
    }
    assert set(seen) == {((2, 2), (2, 2))} and len(seen) % 3 == 0


def test_noise_to_signal_counts_all_tensors() -> None:
    reference = {"a": (torch.tensor([3.0, 4.0]), 7), "b": [torch.tensor([1, 2])]}
    output = {"a": (torch.tensor([3.0, 4.5]), 7), "b": [torch.tensor([1, 3])]}
    assert noise_to_signal(reference, output) == pytest.approx(0.25 / 25)
    assert noise_to_signal(torch.zeros(2), torch.ones(2)) == 2
    assert noise_to_signal(torch.ones(2), torch.ones(2)) == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([],), jitquant.JitQuantValueError, "sensitivity: data gave no batch"),
        ((torch.ones(1),), jitquant.JitQuantTypeError, "sensitivity: data must be a DataLoader"),
        (([torch.ones(2, 3, 8, 8)], 3), jitquant.JitQuantTypeError, "got int"),
        (
            ([torch.ones(2, 3, 8, 8)], lambda _, y: y),
            jitquant.JitQuantTypeError,
            r"metric must return a number, got a float32 tensor \(2, 5\)",
        ),
        (
            ([torch.ones(2, 3, 8, 8)], lambda _, y: "0.1"),
            jitquant.JitQuantTypeError,
            "metric must return a number, got the string '0.1'",
        ),
        (
            ([torch.full((2, 3, 8, 8), torch.nan)],),
            jitquant.JitQuantValueError,
            "sensitivity: the loss of batch 0 is nan",
        ),
        (
            ([torch.ones(2, 3, 8, 8), torch.ones(0, 3, 8, 8)],),
            jitquant.JitQuantValueError,
            r"for batch 1 forward gives no floating-point values, but a float32 tensor \(0, 5\)",
        ),
    ],
)
def test_bad_arguments(arguments: Any, error: type[Exception], message: str) -> None:
    prepared = _prepared(PlainNet(), _data(2, 3, 8, 8))
    with pytest.raises(error, match=message):
        jitquant.sensitivity(prepared, *arguments, progress=False)


def test_integers_need_a_metric() -> None:
    class Chooses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(x)
            return y.argmax(-1)

    data = _data(2, 4)
    prepared = _prepared(Chooses(), data)
    with pytest.raises(jitquant.JitQuantValueError, match="Give a metric for such outputs"):
        jitquant.sensitivity(prepared, data, progress=False)
    other = jitquant.sensitivity(
        prepared, data, lambda a, b: float((a != b).float().mean()), progress=False
    )
    assert len(other.ops) == 1


def test_a_model_that_was_not_prepared_is_refused() -> None:
    with pytest.raises(
        jitquant.JitQuantValueError, match="sensitivity: the model was not prepared"
    ):
        jitquant.sensitivity(torch.jit.script(PlainNet().eval()), _data(2, 3, 8, 8))


def test_a_model_without_int8_ops_is_refused() -> None:
    class OnlySoftmax(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax(x, -1)

    data = _data(2, 3)
    prepared = jitquant.prepare_jit(
        torch.jit.script(OnlySoftmax().eval()), {"": jitquant.default_qconfig}
    )
    prepared(data[0])
    with pytest.raises(jitquant.JitQuantValueError, match="no op of forward is int8"):
        jitquant.sensitivity(prepared, data)


class Doubles(nn.Module):
    """Writes into its input, so that the first layer is float."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        y: Tensor = self.fc2(torch.relu(self.fc1(x)))
        return y


def test_batches_stay_as_they_are() -> None:
    torch.manual_seed(0)
    data = _data(2, 4)
    prepared = _prepared(Doubles(), [x.clone() for x in data])
    jitquant.sensitivity(prepared, data, progress=False)
    assert all(torch.equal(x, y) for x, y in zip(data, _data(2, 4), strict=True))


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x) + 100 * torch.rand_like(x)
        return y


def test_random_ops_give_the_same_in_all_runs() -> None:
    data = _data(8, 4)
    prepared = _prepared(Noisy(), data)
    before = torch.get_rng_state()
    first = jitquant.sensitivity(prepared, data, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.all_int8 < 1e-4  # 40 dB, where noise that differs leaves 3


def test_a_metric_may_draw_random_numbers() -> None:
    def metric(reference: Tensor, output: Tensor) -> float:
        return noise_to_signal(reference, output) + 0 * torch.rand(1).item()

    data = _data(8, 4)
    result = jitquant.sensitivity(_prepared(Noisy(), data), data, metric, progress=False)
    assert max(result.all_int8, result.ops[0].alone_int8) < 1e-4


class Selects(nn.Module):
    """The weight is 0.26, which is 0.25 in int8, so that 4 times it is above 1.02 or is not."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(1, 1, bias=False)
        self.fc.weight.data.fill_(0.26)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x)
        return y[y > 1.02]


def test_shapes_that_depend_on_values_need_a_metric() -> None:
    model, data = torch.jit.script(Selects().eval()), [torch.tensor([[4.0], [6.0]])]
    prepared = _calibrated(model, {"": FIXED}, data)
    with pytest.raises(jitquant.JitQuantValueError) as caught:
        jitquant.sensitivity(prepared, data, progress=False)
    assert str(caught.value) == (
        "noise_to_signal: the reference is a float32 tensor (2,), and the output a float32 tensor "
        "(1,). Give a metric for outputs whose shapes depend on values."
    )
    assert caught.value.__notes__ == ["sensitivity: the metric raised this for batch 0."]
    counts = jitquant.sensitivity(
        prepared, data, lambda a, b: abs(a.numel() - b.numel()), progress=False
    )
    assert counts.all_int8 == 1


def test_a_batch_that_fails_is_named() -> None:
    prepared = _prepared(Noisy(), _data(8, 4))
    with pytest.raises(RuntimeError) as caught:
        jitquant.sensitivity(prepared, [*_data(8, 4), torch.ones(8, 5)], progress=False)
    note = "sensitivity: batch 2 is a float32 tensor (8, 5); forward takes x: Tensor."
    assert caught.value.__notes__ == [note]
    with pytest.raises(jitquant.JitQuantValueError, match=r"^sensitivity: batch 0 has 2 elements"):
        jitquant.sensitivity(prepared, [(torch.ones(8, 4), 1)], progress=False)

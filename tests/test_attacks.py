"""Models and uses that nobody thinks of first: each is right, or a clear error."""

import copy
import io
import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import jitquant
from tests.graph_shapes import check, script
from tests.models import reloaded, sqnr

QCONFIG = {"": jitquant.default_qconfig}
CONV, LINEAR = "aten::conv2d", "aten::linear"


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape or (2, 3, 8, 8), generator=torch.Generator().manual_seed(seed))


class Convs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.point = nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4, 4)


class Plain(Convs):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.point(torch.relu(self.conv(x))).mean([2, 3]))
        return y


class Image(Convs):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.point(torch.relu(self.conv(x)))
        return y


def traced(net: nn.Module, *inputs: Any) -> torch.jit.ScriptModule:
    model: torch.jit.ScriptModule = torch.jit.trace(net.eval(), inputs)
    return model


def quantized(model: torch.jit.ScriptModule, *inputs: Any) -> torch.jit.ScriptModule:
    return jitquant.quantize_jit(model, QCONFIG, lambda prepared: prepared(*inputs))


# --- sizes ---


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (5, 3, 8, 8), (1, 3, 16, 20), (1, 3, 5, 3)])
@pytest.mark.parametrize("is_traced", [False, True])
def test_other_batch_and_image_sizes_than_in_calibration(
    shape: tuple[int, ...], is_traced: bool
) -> None:
    model = traced(Plain(), images()) if is_traced else script(Plain())
    check(model, [(images(),)], others=[(images(*shape, seed=1),)])


@pytest.mark.parametrize("net", [Plain, Image])
def test_batch_of_no_images(net: type[nn.Module]) -> None:
    """The means of nothing are of shape (0, 4)."""
    model = script(net())
    empty = images(0, 3, 8, 8)
    assert quantized(model, images())(empty).shape == model(empty).shape


def test_calibration_with_empty_batches_only() -> None:
    with pytest.raises(jitquant.JitQuantError, match="not calibrated: no observer saw any data"):
        quantized(script(Image()), images(0, 3, 8, 8))


def test_calibration_with_an_empty_batch_among_others() -> None:
    model = script(Image())
    prepared = jitquant.prepare_jit(model, QCONFIG)
    prepared(images(0, 3, 8, 8))
    prepared(images())
    assert sqnr(model(images()), jitquant.convert_jit(prepared)(images())) >= 25.0


class ComputesShapes(Convs):
    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        y = self.conv(x).view(b, 2, 2, h * w).transpose(1, 2)
        y = y.reshape(b * 2, -1, h, w // 2).reshape(b, -1)
        z: Tensor = y[:, : h * w // 2].view(-1, h * w // 2)
        return z


def test_arithmetic_on_shapes_in_views() -> None:
    check(script(ComputesShapes()), [(images(),)], others=[(images(3, 3, 4, 6),)])


class Deep(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y


def test_two_hundred_nested_modules() -> None:
    net: nn.Module = Plain()
    for _ in range(200):
        net = Deep(net)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)  # torch.jit.script itself recurses
    try:
        converted = check(
            script(net), [(images(),)], int8=[CONV, "aten::relu", CONV, "aten::mean", LINEAR]
        )
    finally:
        sys.setrecursionlimit(limit)
    assert jitquant.coverage(converted).ops[0].module.count("inner") == 200


class Long(Convs):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        for _ in range(1000):
            x = torch.relu(x) + 0.01
        y: Tensor = self.point(x)
        return y


def test_a_chain_of_two_thousand_ops() -> None:
    """0.01 is less than a step, so emulation is far from float, and int8 must be as far."""
    x = images(1, 3, 4, 4)
    converted = check(traced(Long(), x), [(x,)], least=float("-inf"))
    assert len(jitquant.coverage(converted).int8) == 2002


def test_lists_and_sequences_of_no_modules() -> None:
    class Empty(Convs):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([])
            self.sequence = nn.Sequential()

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            for block in self.blocks:
                x = block(x)
            y: Tensor = self.sequence(x)
            return y

    check(script(Empty()), [(images(),)], int8=[CONV])


# --- dtypes ---


class Tokens(Convs):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        y = self.fc(self.embedding(tokens))
        z = y[mask]
        return self.fc(y.masked_fill(mask.unsqueeze(-1), 0.0)), z + tokens.sum()


def test_integers_and_masks() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 10, (3, 5), generator=generator)
    mask = torch.rand(3, 5, generator=generator) > 0.5
    check(
        script(Tokens()), [(tokens, mask)], int8=[LINEAR, "aten::index", LINEAR], float_reasons=None
    )


class Integers(Convs):
    def forward(self, x: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(x) * n + n // 2, n * 2 + n


def test_arithmetic_of_integers_is_exact() -> None:
    model = script(Integers())
    n = torch.tensor(3)
    converted = check(model, [(images(), n)], int8=[CONV], float_reasons=None)
    assert torch.equal(converted(images(), n)[1], torch.tensor(9))


class OtherBuffers(Convs):
    factor16: Tensor
    factor64: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor16", torch.full((4, 1, 1), 1.5).half())
        self.register_buffer("factor64", torch.full((4, 1, 1), 0.5).double())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.conv(x)
        return y * self.factor16, y * self.factor64, y.double() + 1


def test_half_and_double_buffers_keep_the_dtypes_of_results() -> None:
    model = script(OtherBuffers())
    converted = check(model, [(images(),)], int8=[CONV], float_reasons=None)
    expected, actual = model(images()), converted(images())
    assert [y.dtype for y in actual] == [y.dtype for y in expected]


# --- weights ---


class SharedWeights(nn.Module):
    """One weight as linear and 1x1 convolution, another for all channels and for one group."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(4, 4, bias=False)
        self.grouped = nn.Conv2d(4, 8, 3, padding=1, groups=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.linear(x, self.fc.weight)
        y = y + functional.conv2d(x, self.fc.weight.view(4, 4, 1, 1))
        z: Tensor = self.grouped(y) + functional.conv2d(y[:, 2:], self.grouped.weight, padding=1)
        return z


@pytest.mark.parametrize("is_traced", [False, True])
def test_a_weight_that_ops_of_several_kinds_share(is_traced: bool) -> None:
    x = images(2, 4, 4, 4)
    model = traced(SharedWeights(), x) if is_traced else script(SharedWeights())
    converted = check(model, [(x,)], float_reasons=None)
    kinds = [op.op for op in jitquant.coverage(converted).int8]
    assert (kinds.count(LINEAR), kinds.count(CONV)) == (1, 3)


class TiedEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(10, 4)
        self.fc = nn.Linear(4, 10, bias=False)
        self.fc.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.fc(self.embedding(tokens) + 1)
        return y


def test_a_weight_tied_to_an_embedding() -> None:
    tokens = torch.randint(0, 10, (3, 5), generator=torch.Generator().manual_seed(0))
    check(script(TiedEmbedding()), [(tokens,)], int8=["aten::add", LINEAR], float_reasons=None)


def strided() -> nn.Module:
    net = Plain()
    net.conv.weight = nn.Parameter(net.conv.weight.data.to(memory_format=torch.channels_last))
    net.point.weight = nn.Parameter(
        torch.tensor([0.5, -1, 2, 1]).view(1, 4, 1, 1).expand(4, 4, 1, 1)
    )
    net.fc.weight = nn.Parameter(net.fc.weight.data.t())
    return net


def frozen_parameters() -> nn.Module:
    net = Plain()
    net.conv.weight.requires_grad_(False)
    return net


def zeros() -> nn.Module:
    net = Plain()
    nn.init.zeros_(net.point.weight)
    return net


@pytest.mark.parametrize("make", [strided, frozen_parameters, zeros])
def test_weights_of_odd_strides_without_gradients_and_of_zeros(
    make: Callable[[], nn.Module],
) -> None:
    check(script(make()), [(images(),)], int8=[CONV, "aten::relu", CONV, "aten::mean", LINEAR])


# --- the language ---


class Indexes(Convs):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[-1](x)
        for i, block in enumerate(self.blocks):
            x = block(x) * (i + 1)
        y: Tensor = self.blocks[0](x)
        return y


def test_modules_by_index() -> None:
    check(script(Indexes()), [(images(),)], int8=[CONV, CONV, CONV, "aten::mul", CONV])


class Speaks(Convs):
    """Asserts, raises, formats, prints, and has a method that is not compiled."""

    @torch.jit.unused
    def never(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor, n: int) -> Tensor:
        assert x.dim() == 4, f"rank {x.dim()}"
        if n > 5:
            raise ValueError(f"n is {n}")
        if n < 0:
            return self.never(x)
        print(f"n={n}")
        y: Tensor = self.conv(x)
        return y


def test_python_in_the_model(capfd: pytest.CaptureFixture[str]) -> None:
    converted = check(script(Speaks()), [(images(), 2)], int8=[CONV])
    capfd.readouterr()
    converted(images(), 3)
    assert capfd.readouterr().out == "n=3\n"
    with pytest.raises(torch.jit.Error, match="n is 6"):
        converted(images(), 6)
    with pytest.raises(torch.jit.Error, match="rank 3"):
        converted(images()[0], 1)


class Random(Convs):
    def forward(self, x: Tensor) -> Tensor:
        y = self.point(self.conv(x) + torch.rand(2, 4, 8, 8))
        z: Tensor = functional.dropout(y, 0.5, self.training) + torch.rand_like(y)
        return z


def test_random_numbers_are_drawn_as_in_float() -> None:
    model = script(Random())
    converted = quantized(model, images())
    results = []
    for run in (model, converted, converted):
        torch.manual_seed(1)
        results.append(run(images()))
    assert sqnr(results[0], results[1]) >= 25.0
    assert torch.equal(results[1], results[2])
    assert not torch.equal(converted(images()), results[2])


class ByValue(Convs):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        if x.sum() > 0:
            y = self.point(y)
        elif bool((x < 0).any()):
            y = self.point(torch.relu(y)) * 2
        return y


def test_control_flow_on_values() -> None:
    model = script(ByValue())
    check(model, [(images().abs(),), (-images().abs(),)], float_reasons=None)
    never_ran = check(model, [(images().abs(),)], others=[(-images().abs(),)], float_reasons=None)
    reasons = [op.reason for op in jitquant.coverage(never_ran).float]
    assert "its branch never ran in calibration, or on empty tensors only" in reasons


# --- arguments that come back ---


class ReturnsInput(Convs):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.conv(x)
        return x, y, y


def test_the_input_itself_is_returned() -> None:
    x = images()
    first, second, third = check(script(ReturnsInput()), [(x,)], int8=[CONV])(x)
    assert first.data_ptr() == x.data_ptr()
    assert torch.equal(second, third)


class WritesInput(Convs):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = x[:, 0]
        x.add_(1.0)
        return first, self.conv(x)


def test_a_view_of_the_input_that_is_written_afterwards() -> None:
    model = script(WritesInput())
    converted = quantized(model, images())
    x, other = images(), images()
    view, y = converted(x)
    expected_view, expected = model(other)
    assert torch.equal(x, other)
    assert torch.equal(view, expected_view)
    assert view.data_ptr() == x.data_ptr()
    assert sqnr(expected, y) >= 25.0


# --- ways to use it ---


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_all_steps_in_every_mode_of_autograd(mode: Callable[[], Any]) -> None:
    model = script(Plain())
    with mode():
        prepared = jitquant.prepare_jit(model, QCONFIG)
        prepared(images())
        converted = jitquant.convert_jit(prepared)
    for other in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with other():
            assert sqnr(model(images()).detach(), converted(images()).detach()) >= 25.0


def test_threads_calibrate_copies_that_are_merged() -> None:
    model = script(Plain())
    prepared = jitquant.prepare_jit(model, QCONFIG)
    copies = [copy.deepcopy(prepared) for _ in range(4)]

    def run(model: torch.jit.ScriptModule, first: int) -> None:
        with torch.no_grad():
            for seed in range(first, first + 5):
                model(images(seed=seed))

    threads = [threading.Thread(target=run, args=(each, 5 * i)) for i, each in enumerate(copies)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run(prepared, 0)
    for i in range(1, 4):
        run(prepared, 5 * i)
    merged = jitquant.convert_jit(jitquant.merge_calibration(copies))
    assert torch.equal(merged(images()), jitquant.convert_jit(prepared)(images()))


def test_converting_in_threads_gives_the_same_model() -> None:
    model = script(Plain())
    results: list[Tensor] = []
    threads = [
        threading.Thread(target=lambda: results.append(quantized(model, images())(images())))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    assert all(torch.equal(result, results[0]) for result in results)


def test_an_archive_with_extra_files() -> None:
    file = io.BytesIO()
    torch.jit.save(script(Plain()), file, _extra_files={"labels.txt": b"a"})
    file.seek(0)
    extra: dict[str, Any] = {"labels.txt": ""}
    loaded = torch.jit.load(file, _extra_files=extra)
    check(loaded, [(images(),)])
    assert extra["labels.txt"] == b"a"


def test_copies_of_prepared_and_converted_models_are_their_own() -> None:
    model = script(Plain())
    prepared = jitquant.prepare_jit(model, QCONFIG)
    twin = copy.deepcopy(prepared)
    twin(images())
    with pytest.raises(jitquant.JitQuantError, match="not calibrated"):
        jitquant.convert_jit(prepared)
    converted = jitquant.convert_jit(twin)
    assert torch.equal(copy.deepcopy(converted)(images()), converted(images()))
    assert torch.equal(reloaded(copy.deepcopy(converted))(images()), converted(images()))


def test_pickle_fails_as_for_every_torchscript_model() -> None:
    for model in (script(Plain()), quantized(script(Plain()), images())):
        with pytest.raises(RuntimeError, match="__getstate__"):
            pickle.dumps(model)

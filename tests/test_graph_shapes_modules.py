"""How modules hang together: containers, sharing, interfaces, state, several methods."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jitquant
from tests.graph_shapes import check, script
from tests.models import images, reloaded, sqnr

CONV = "aten::conv2d"


def conv(outputs: int = 3) -> nn.Conv2d:
    return nn.Conv2d(3, outputs, 3, padding=1)


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([conv() for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x) if i != 1 else torch.relu(block(x))
        return self.blocks[0](x)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({"left": conv(), "right": conv()})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = {}
        for name, block in self.blocks.items():
            outputs[name] = block(x)
        return outputs


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(conv(), nn.BatchNorm2d(3), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(self.block(x) * 20)
        return y


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused, self.other = conv(), conv(), nn.LSTM(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.used(x)
        return y


class SharedUnderTwoNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = conv()
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.relu(self.first(x)))
        return y


def same_name() -> nn.Module:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv()

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.conv(x))

    first = Block

    class Block(nn.Module):  # type: ignore[no-redef]
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv()

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + x

    return nn.Sequential(first(), Block())


@pytest.mark.parametrize(
    ("make", "ops"),
    [
        (Listed, [CONV, CONV, "aten::relu", CONV, CONV]),
        (Named, [CONV, CONV]),
        (Twice, [CONV, "aten::relu", "aten::mul", CONV, "aten::relu"]),
        (Unused, [CONV]),
        (SharedUnderTwoNames, [CONV, "aten::relu", CONV]),
        (same_name, [CONV, "aten::relu", CONV, "aten::add"]),
    ],
)
def test_modules(make: Any, ops: list[str]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    check(script(model), [(images(),)], int8=ops)
    if make is not Named:
        traced: Any = torch.jit.trace(model, images())
        check(traced, [(images(),)], int8=ops)


# interfaces


@torch.jit.interface
class Step(nn.Module):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[empty-body]
        pass


class Convolves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


class Doubles(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class Holds(nn.Module):
    step: Step

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.step = step  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.step.forward(x)


class HoldsBoth(nn.Module):
    """Two modules of one class, whose interfaces hold modules of different classes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Holds(Convolves()), Holds(Doubles())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x))
        return y


@pytest.mark.parametrize("load", [False, True])
def test_interfaces(load: bool) -> None:
    torch.manual_seed(0)
    model = script(HoldsBoth())
    model = reloaded(model) if load else model
    converted = check(model, [(images(),)], int8=[CONV, "aten::mul"])
    modules = [op.module for op in jitquant.coverage(converted).ops]
    assert modules == ["first.step.conv", "second.step"]


class Swaps(nn.Module):
    step: Step
    other: Step

    def __init__(self) -> None:
        super().__init__()
        self.step = Convolves()  # type: ignore[assignment]
        self.other = Convolves()  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        self.step = self.other
        return self.step.forward(x)


class Picks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList([Convolves(), Convolves()])

    def forward(self, x: Tensor, i: int) -> Tensor:
        step: Step = self.steps[i]  # type: ignore[assignment]
        return step.forward(x)


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (Swaps(), "the model replaces its submodule 'step' while it runs"),
        (Picks(), "cannot be inlined, since which code it runs is only known at run time"),
    ],
)
def test_interface_whose_module_is_known_at_run_time_only(module: nn.Module, text: str) -> None:
    with pytest.raises(jitquant.JitQuantError, match=text):
        jitquant.prepare_jit(script(module), {"": jitquant.default_qconfig})


# state


class Remembers(nn.Module):
    """State that is set, written in place, appended to, and hidden behind a view."""

    last: Tensor
    total: Tensor
    part: Tensor
    seen: list[Tensor]
    count: int

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()
        self.register_buffer("total", torch.zeros(2, 3, 8, 8))
        self.register_buffer("part", self.total[:1])
        self.last = torch.zeros(2, 3, 8, 8)
        self.seen = []
        self.count = 0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, int]:
        y = self.conv(x)
        self.total.add_(y)
        self.last = self.last * 0.5 + y
        self.seen.append(y)
        self.count += 1
        return self.last, self.part + 0, self.count + len(self.seen)

    @torch.jit.export
    def reset_states(self) -> None:
        self.last = torch.zeros(2, 3, 8, 8)
        self.total.zero_()
        self.seen.clear()
        self.count = 0


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("load", [False, True])
@pytest.mark.parametrize("reset", [False, True])
def test_converted_model_starts_from_the_state_of_the_original(
    debug: bool, load: bool, reset: bool
) -> None:
    torch.manual_seed(0)
    model = script(Remembers())
    prepared = jitquant.prepare_jit(model, {"": jitquant.default_qconfig})
    for _ in range(3):
        prepared(images())
        if reset:
            prepared.reset_states()
    prepared = reloaded(prepared) if load else prepared
    count = prepared.count
    preserved = ["reset_states"]
    converted = jitquant.convert_jit(prepared, debug=debug, preserved_attrs=preserved)
    assert prepared.count == count == (0 if reset else 3)
    converted = reloaded(converted) if load else converted
    for turn in range(2):
        for number in range(1, 4):
            expected, actual = model(images()), converted(images())
            assert actual[2] == expected[2] == 2 * number, turn
            assert sqnr(expected[0], actual[0]) >= 25
            assert sqnr(expected[1], actual[1]) >= 25
        model.reset_states()
        converted.reset_states()


class Collects(nn.Module):
    """Its reset puts another list in the place of the one that forward appends to."""

    seen: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()
        self.seen = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(self.conv(x))
        return torch.cat(self.seen)

    @torch.jit.export
    def reset(self) -> None:
        self.seen = []


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("load", [False, True])
def test_a_method_that_replaces_a_list(debug: bool, load: bool) -> None:
    model = script(Collects())
    prepared: Any = jitquant.prepare_jit(model, {"": jitquant.default_qconfig})
    prepared(images())
    prepared.reset()
    prepared(images())
    prepared = reloaded(prepared) if load else prepared
    converted: Any = jitquant.convert_jit(prepared, debug=debug, preserved_attrs=["reset"])
    converted(images())
    converted.reset()
    converted(images())
    for each in (converted, reloaded(converted)):  # what ran holds no list of its own either
        each.reset()
        assert len(each(images())) >= 2
    fresh = reloaded(converted)
    fresh.reset()
    assert sqnr(reloaded(model)(images()), fresh(images())) >= 25


# several methods


class Methods(nn.Module):
    labels: list[str]

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = conv(), conv()
        self.labels = ["cat"]
        self.size = 3

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self._shared(x))
        return y

    def _shared(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x))

    @torch.jit.export
    def encode(self, x: Tensor) -> Tensor:
        return self._shared(x) + x

    @torch.jit.export
    def count_of(self, x: Tensor) -> int:
        return x.shape[0]


def test_methods_are_quantized_and_compared() -> None:
    torch.manual_seed(0)
    ops = [CONV, "aten::relu", CONV, CONV, "aten::relu", "aten::add"]
    check(script(Methods()), [(images(),)], int8=ops, methods=["forward", "encode", "count_of"])


def convert(debug: bool = False, preserved: list[str] | None = None) -> list[str]:
    """The warnings of a conversion of Methods."""
    prepared = jitquant.prepare_jit(script(Methods()), {"": jitquant.default_qconfig})
    prepared(images())
    prepared.encode(images())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", jitquant.DroppedWarning)
        jitquant.convert_jit(prepared, debug=debug, preserved_attrs=preserved)
    assert all(warning.filename == __file__ for warning in caught)
    return [str(warning.message) for warning in caught]


def test_what_is_dropped_is_told_in_one_warning() -> None:
    assert convert() == [
        "the converted model does not have the methods 'count_of', 'encode' and the attributes "
        "'labels' of the prepared one. preserved_attrs=['count_of', 'encode', 'labels'] keeps "
        "them; a method must be calibrated as well."
    ]
    assert convert(preserved=["encode", "count_of"]) == [
        "the converted model does not have the attributes 'labels' of the prepared one. "
        "preserved_attrs=['labels'] keeps them."
    ]
    assert convert(preserved=["encode", "count_of", "labels"]) == []
    assert convert(debug=True, preserved=["encode", "count_of"]) == []


def test_nothing_is_told_where_nothing_is_dropped() -> None:
    for module in (Twice(), Listed(), Remembers()):
        script_module = script(module)
        prepared = jitquant.prepare_jit(script_module, {"": jitquant.default_qconfig})
        prepared(images())
        methods = [name for name in ("reset_states",) if hasattr(module, name)]
        with warnings.catch_warnings():
            warnings.simplefilter("error", jitquant.DroppedWarning)
            jitquant.convert_jit(prepared, preserved_attrs=methods)


class PlainMethods(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = conv(), conv()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.conv(x)))
        return y

    def encode(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x)) + x


def test_traced_module_with_several_methods() -> None:
    torch.manual_seed(0)
    inputs = {"forward": images(), "encode": images()}
    model: Any = torch.jit.trace_module(PlainMethods().eval(), inputs)
    ops = [CONV, "aten::relu", CONV, CONV, "aten::relu", "aten::add"]
    check(model, [(images(),)], int8=ops, methods=["forward", "encode"])

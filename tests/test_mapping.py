"""QConfigMapping: which rule decides on an op, in whatever form the configuration is given."""

import operator
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import jitquant
from jitquant import QConfigMapping
from jitquant.errors import JitQuantError, JitQuantTypeError, JitQuantValueError
from jitquant.mapping import as_mapping
from tests.models import assert_untouched, images, reloaded, scripted, traced

A = jitquant.default_qconfig
B = jitquant.get_default_qconfig("qnnpack")
C = jitquant.get_default_qconfig("x86")


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(8, 8)
        self.fc2 = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.fc1(x)) + x
        y: Tensor = torch.relu(self.fc2(x)) + x
        return y


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.head = nn.Linear(8, 8)
        self.weight = nn.Parameter(torch.zeros(8, 8))
        self.bias = nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        x = self.head(x)
        return torch.addmm(self.bias, x, self.weight.t())


X = images(2, 8)
MODELS: dict[str, Callable[[], torch.jit.ScriptModule]] = {
    "scripted": lambda: scripted(Net()),
    "traced": lambda: traced(Net(), X),
    "loaded": lambda: reloaded(scripted(Net())),
    "loaded trace": lambda: reloaded(traced(Net(), X)),
}
LINEARS = ["layers.0.fc1", "layers.0.fc2", "layers.1.fc1", "layers.1.fc2", "head", ""]


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> torch.jit.ScriptModule:
    return MODELS[request.param]()


def decided(
    mapping: QConfigMapping, model: torch.jit.ScriptModule, kind: str = "aten::linear"
) -> dict[str, Any]:
    """The qconfig of the op of this kind in each module."""
    decisions = mapping.explain(model).decisions
    return {each.op.module: each.qconfig for each in decisions if each.op.kind == kind}


def with_b(modules: list[str]) -> dict[str, Any]:
    return {path: B if path in modules else A for path in LINEARS}


GLOBAL = QConfigMapping().set_global(A)


@pytest.mark.parametrize(
    ("mapping", "modules"),
    [
        (GLOBAL, []),
        (GLOBAL.set_object_type(nn.Linear, B), LINEARS[:5]),
        (GLOBAL.set_object_type(Layer, B), LINEARS[:4]),
        (GLOBAL.set_object_type(functional.linear, B), LINEARS),
        (GLOBAL.set_object_type("aten::linear", B), LINEARS),
        (GLOBAL.set_object_type(torch.addmm, B), [""]),
        (GLOBAL.set_object_type(Net, B), LINEARS),
        (GLOBAL.set_module_name_regex(r"layers\.\d\.fc1", B), ["layers.0.fc1", "layers.1.fc1"]),
        (GLOBAL.set_module_name_regex(r"layers\.1", B), ["layers.1.fc1", "layers.1.fc2"]),
        (GLOBAL.set_module_name("layers.1", B), ["layers.1.fc1", "layers.1.fc2"]),
        (GLOBAL.set_module_name("head", B), ["head"]),
        (
            GLOBAL.set_module_name_object_type_order("layers.1", nn.Linear, 1, B),
            ["layers.1.fc2"],
        ),
        (GLOBAL.set_module_name_object_type_order("", "aten::addmm", 0, B), [""]),
        (GLOBAL.set_module_name_object_type_order("", nn.Linear, 0, B), ["head"]),
        (GLOBAL.set_module_name_object_type_order("layers", Layer, 1, B), LINEARS[2:4]),
    ],
    ids=lambda value: ", ".join(map(str, value.rules)) if hasattr(value, "rules") else "",
)
def test_what_each_kind_of_rule_covers(
    mapping: QConfigMapping, modules: list[str], model: torch.jit.ScriptModule
) -> None:
    assert decided(mapping, model) == with_b(modules)


# From the weakest to the strongest; each covers layers.1.fc2.
RULES: list[Callable[[QConfigMapping, Any], QConfigMapping]] = [
    lambda mapping, qconfig: mapping.set_global(qconfig),
    lambda mapping, qconfig: mapping.set_object_type(nn.Linear, qconfig),
    lambda mapping, qconfig: mapping.set_module_name_regex("layers", qconfig),
    lambda mapping, qconfig: mapping.set_module_name("layers", qconfig),
    lambda mapping, qconfig: mapping.set_module_name_object_type_order(
        "layers.1", nn.Linear, 1, qconfig
    ),
    lambda mapping, qconfig: mapping.set_predicate(lambda op: qconfig),
]


@pytest.mark.parametrize("strongest", range(1, 6))
@pytest.mark.parametrize("winner", [B, None], ids=["a qconfig", "None"])
def test_the_stronger_rule_decides_in_whatever_order_they_were_set(
    strongest: int, winner: Any
) -> None:
    chosen = [winner if index == strongest else A for index in range(strongest + 1)]
    rules = list(zip(RULES[: strongest + 1], chosen, strict=True))
    for order in (rules, rules[::-1]):
        mapping = QConfigMapping()
        for rule, qconfig in order:
            mapping = rule(mapping, qconfig)
        assert decided(mapping, scripted(Net()))["layers.1.fc2"] == winner


def test_of_several_regexes_the_first_decides() -> None:
    first = GLOBAL.set_module_name_regex(r".*fc1", B).set_module_name_regex("layers", C)
    found = decided(first, scripted(Net()))
    assert found["layers.0.fc1"] == B and found["layers.0.fc2"] == C


def test_of_several_names_the_longest_decides() -> None:
    mapping = GLOBAL.set_module_name("layers.0.fc1", B).set_module_name("layers", C)
    found = decided(mapping, scripted(Net()))
    assert found["layers.0.fc1"] == B and found["layers.0.fc2"] == C


def test_of_several_types_the_nearest_decides() -> None:
    """A torch.nn class, the op as written, jitquant's spelling, and classes outwards."""
    mapping = (
        QConfigMapping()
        .set_object_type(Net, A)
        .set_object_type(Layer, C)
        .set_object_type("aten::linear", None)
    )
    found = decided(mapping, scripted(Net()))
    assert set(found.values()) == {None}
    assert decided(mapping, scripted(Net()), "aten::relu")["layers.0"] == C
    mapping = mapping.set_object_type(nn.Linear, B).set_object_type("aten::addmm", A)
    found = decided(mapping, scripted(Net()))
    assert found == {**dict.fromkeys(LINEARS, B), "": A}


def without_address(value: object) -> str:
    """As the id of a test, which has to be the same in all processes that run tests."""
    return re.sub(r" at 0x\w+", "", str(value))


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        (nn.Conv2d, "torch.nn.modules.conv.Conv2d"),
        ("torch.nn.Conv2d", "torch.nn.modules.conv.Conv2d"),
        ("torch.nn.modules.conv.Conv2d", "torch.nn.modules.conv.Conv2d"),
        ("torchvision.models.resnet.BasicBlock", "torchvision.models.resnet.BasicBlock"),
        (functional.linear, "aten::linear"),
        ("torch.nn.functional.linear", "aten::linear"),
        (functional.relu, "aten::relu"),
        (functional.max_pool2d, "aten::max_pool2d"),
        (functional.interpolate, "torch.nn.functional.interpolate"),
        ("torch.nn.functional.interpolate", "torch.nn.functional.interpolate"),
        (torch.add, "aten::add"),
        (Tensor.add, "aten::add"),
        (operator.add, "aten::add"),
        (operator.truediv, "aten::div"),
        (torch.ops.aten.add, "aten::add"),
        (torch.ops.aten.add.Tensor, "aten::add"),
        ("aten::add", "aten::add"),
        ("torchvision::nms", "torchvision::nms"),
        ("add", "aten::add"),
        ("torch.add", "aten::add"),
        ("Net", "Net"),
    ],
    ids=without_address,
)
def test_spellings_of_a_type(spelling: Any, name: str) -> None:
    (rule,) = QConfigMapping().set_object_type(spelling, A).rules
    assert rule.key == (name,)


class Spelled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.stack([x, x - 1.0])
        return functional.relu_(x + 1.0)


@pytest.mark.parametrize(
    ("spelling", "kinds"),
    [
        (torch.stack, ["aten::unsqueeze", "aten::unsqueeze", "aten::cat"]),
        (torch.cat, ["aten::cat"]),
        (torch.sub, ["aten::add"]),
        (torch.add, ["aten::add", "aten::add"]),
        ("aten::relu_", ["aten::relu"]),
        (functional.relu, ["aten::relu"]),
    ],
    ids=without_address,
)
def test_an_op_has_the_type_that_was_written_and_the_one_it_became(
    spelling: Any, kinds: list[str]
) -> None:
    mapping = QConfigMapping().set_object_type(spelling, A)
    decisions = mapping.explain(scripted(Spelled())).decisions
    assert [each.op.kind for each in decisions if each.qconfig == A] == kinds


def test_interpolate_is_whatever_op_it_runs() -> None:
    class Resize(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return functional.interpolate(torch.relu(x), scale_factor=2.0)

    mapping = QConfigMapping().set_object_type(functional.interpolate, A)
    for model in (scripted(Resize()), traced(Resize(), images(1, 2, 4, 4))):
        decisions = mapping.explain(model).decisions
        found = {each.op.kind for each in decisions if each.qconfig == A}
        assert "aten::upsample_nearest2d" in found and "aten::relu" not in found


def test_index_counts_what_was_written() -> None:
    """The two unsqueezes of a stack are one op of the user's."""
    mapping = QConfigMapping().set_module_name_object_type_order("", torch.stack, 0, A)
    decisions = mapping.explain(scripted(Spelled())).decisions
    assert sum(each.qconfig == A for each in decisions) == 3


def test_each_form_means_the_same() -> None:
    model = scripted(Net())
    mapping = (
        QConfigMapping()
        .set_global(A)
        .set_object_type(nn.Linear, C)
        .set_module_name_regex("layers", B)
        .set_module_name("layers.1", A)
        .set_module_name_object_type_order("layers.1", nn.Linear, 1, None)
    )
    forms: list[dict[str, Any]] = [
        {
            "": A,
            "object_type": [(nn.Linear, C)],
            "module_name_regex": [("layers", B)],
            "module_name": [("layers.1", A)],
            "module_name_object_type_order": [("layers.1", nn.Linear, 1, None)],
        },
        {
            "module_name_object_type_order": [["layers.1", "torch.nn.Linear", 1, None]],
            "module_name_regex": [["layers", B]],
            "object_type": [["torch.nn.Linear", C]],
            "layers.1": A,
            "": A,
        },
    ]
    expected = mapping.explain(model)
    for form in forms:
        assert as_mapping(form).explain(model) == expected
        prepared = jitquant.prepare_jit(model, form)
        assert str(prepared.graph) == str(jitquant.prepare_jit(model, mapping).graph)


def test_a_module_named_as_a_key_is_a_module() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.object_type = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.object_type(x)
            return y

    prepared = jitquant.prepare_jit(scripted(Named()), {"object_type": A})
    assert jitquant.coverage(prepared).float == ()


def test_setting_returns_a_new_mapping_and_replaces_an_equal_rule() -> None:
    changed = GLOBAL.set_global(B)
    assert [rule.qconfig for rule in GLOBAL.rules] == [A]
    assert [rule.qconfig for rule in changed.rules] == [B]
    with pytest.raises(AttributeError):
        GLOBAL.rules = ()  # type: ignore[misc]


# Rules that match nothing


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (
            GLOBAL.set_module_name("layer.0", B),
            "module_name 'layer.0' matches nothing: the model has no submodule 'layer.0'. "
            "The nearest names are: 'layers.0'",
        ),
        (
            GLOBAL.set_module_name_regex(r"layer\.\d", B),
            r"module_name_regex 'layer\\.\\d' matches nothing: no submodule's path matches. Its "
            "beginning 'layer' matches 'layers', 'layers.0', 'layers.0.fc1' and 4 more.",
        ),
        (
            GLOBAL.set_object_type(nn.Conv2d, B),
            "object_type 'torch.nn.modules.conv.Conv2d' matches nothing: the model has no module "
            "of that class. The nearest names are: 'torch.nn.modules.",
        ),
        (
            GLOBAL.set_object_type("aten::adm", B),
            "object_type 'aten::adm' matches nothing: the model has no op of that type. "
            "The nearest names are: 'aten::addmm', 'aten::add'",
        ),
        (
            GLOBAL.set_module_name_object_type_order("layer", "aten::add", 0, B),
            "module_name_object_type_order 'layer', 'aten::add', 0 matches nothing: the model has "
            "no submodule 'layer'. The nearest names are: 'layers'",
        ),
        (
            GLOBAL.set_module_name_object_type_order("layers.0", "aten::add", 2, B),
            "matches nothing: that module has 2 of this type, so the highest index is 1.",
        ),
        (
            GLOBAL.set_module_name_object_type_order("head", "aten::add", 0, B),
            "matches nothing: nothing of this type is in that module itself. It has 'aten::linear'",
        ),
    ],
    ids=lambda value: str(value.rules[-1]) if hasattr(value, "rules") else "",
)
def test_a_rule_that_matches_nothing(mapping: QConfigMapping, message: str) -> None:
    model = scripted(Net())
    for run in (mapping.explain, lambda model: jitquant.prepare_jit(model, mapping)):
        with pytest.raises(JitQuantValueError, match=re.escape(message)) as caught:
            run(model)
        assert str(caught.value).startswith("qconfig_dict: the rule module_name") or "type" in str(
            caught.value
        )


def test_a_rule_that_matches_only_what_a_stronger_rule_takes_is_no_error() -> None:
    mapping = GLOBAL.set_object_type(nn.Linear, C).set_module_name_regex("", B)
    assert set(decided(mapping, scripted(Net())).values()) == {B}


# Mistakes in setting


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: GLOBAL.set_object_type(3, A),
            JitQuantTypeError,
            "set_object_type(3): a type is a class of modules, a function of torch, or an op such "
            "as 'aten::add', got 3 of type int.",
        ),
        (
            lambda: GLOBAL.set_object_type(Tensor, A),
            JitQuantTypeError,
            "set_object_type(Tensor): the class Tensor is no torch.nn.Module",
        ),
        (
            lambda: GLOBAL.set_object_type(functional.multi_head_attention_forward, A),
            JitQuantValueError,
            "set_object_type(multi_head_attention_forward): multi_head_attention_forward is not "
            "one op of torch",
        ),
        (
            lambda: GLOBAL.set_module_name("", A),
            JitQuantValueError,
            "set_module_name(''): for the whole model use set_global.",
        ),
        (
            lambda: GLOBAL.set_module_name(nn.Linear, A),  # type: ignore[arg-type]
            JitQuantTypeError,
            "expected a submodule's path, got type.",
        ),
        (
            lambda: GLOBAL.set_module_name_regex("(", A),
            JitQuantValueError,
            "set_module_name_regex('('): no regular expression: ",
        ),
        (
            lambda: GLOBAL.set_module_name_object_type_order("", "add", "0", A),  # type: ignore[arg-type]
            JitQuantTypeError,
            "set_module_name_object_type_order('', 'add', '0'): the index must be an int.",
        ),
        (
            lambda: GLOBAL.set_module_name_object_type_order("", "add", -1, A),
            JitQuantValueError,
            "the index must be 0 or more.",
        ),
        (
            lambda: GLOBAL.set_global("x86"),
            JitQuantTypeError,
            "set_global: expected a jitquant.QConfig or torch.ao.quantization.QConfig, got 'x86'",
        ),
        (
            lambda: GLOBAL.set_predicate("conv"),  # type: ignore[arg-type]
            JitQuantTypeError,
            "set_predicate: expected a function of an OpInfo, got 'conv' of type str.",
        ),
        (
            lambda: GLOBAL.set_predicate(lambda op: A, "X"),
            JitQuantTypeError,
            "set_predicate: example_inputs must be a tensor, a tuple or list of the arguments of "
            "forward, or a dict of keyword arguments, got str.",
        ),
        (
            lambda: as_mapping({"object_type": [(nn.Linear,)]}),
            JitQuantTypeError,
            "qconfig_dict['object_type']: expected (object type, qconfig), got (<class",
        ),
        (
            lambda: as_mapping({"module_name_object_type_order": [("", "add", A)]}),
            JitQuantTypeError,
            "expected (module name, type, index, qconfig), got ('', 'add', ",
        ),
    ],
)
def test_mistakes(make: Callable[[], Any], error: type[JitQuantError], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make()


# Predicates


def test_every_other_linear() -> None:
    def every_other(op: jitquant.OpInfo) -> Any:
        return None if op.kind == "aten::linear" and op.ordinal % 2 else A

    found = decided(QConfigMapping().set_predicate(every_other), scripted(Net()))
    assert found == {path: None if index % 2 else A for index, path in enumerate(LINEARS)}


def test_not_implemented_leaves_it_to_the_rules() -> None:
    def only_head(op: jitquant.OpInfo) -> Any:
        return B if op.module == "head" else NotImplemented

    explanation = GLOBAL.set_predicate(only_head).explain(scripted(Net()))
    rules = {each.op.module: each.rule for each in explanation.decisions}
    assert rules == {**dict.fromkeys(rules, "global"), "head": "predicate"}


class Ranks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x.unsqueeze(0))
        z: Tensor = self.fc(x) + y
        if x.dim() == 5:
            z = (z * 2.0).sigmoid()
        return z


def test_only_three_dimensional_inputs() -> None:
    def three(op: jitquant.OpInfo) -> Any:
        return A if op.shapes and len(op.shapes[0]) == 3 else None

    mapping = QConfigMapping().set_predicate(three, images(4, 8))
    explained = mapping.explain(scripted(Ranks())).decisions
    linears = [each for each in explained if each.op.kind == "aten::linear"]
    assert [each.op.shapes for each in linears] == [((1, 4, 8),), ((4, 8),)]
    assert [each.qconfig for each in linears] == [A, None]
    by_kind = {each.op.kind: each.op.shapes for each in explained}
    assert by_kind["aten::add"] == ((4, 8), (1, 4, 8))
    assert by_kind["aten::sigmoid"] is None  # the example does not reach it


def test_shapes_are_none_without_example_inputs() -> None:
    decisions = GLOBAL.explain(scripted(Net())).decisions
    assert {each.op.shapes for each in decisions} == {None}


def test_a_predicate_is_a_configuration_by_itself() -> None:
    def only_head(op: jitquant.OpInfo) -> Any:
        return A if op.module == "head" else None

    prepared = jitquant.prepare_jit(scripted(Net()), only_head)
    assert [op.module for op in jitquant.coverage(prepared).int8] == ["head"]


def test_what_an_op_says_of_itself() -> None:
    seen = [each.op for each in GLOBAL.explain(traced(Net(), X)).decisions]
    op = seen[-1]
    assert (op.kind, op.written, op.module, op.method) == (
        "aten::linear",
        "aten::addmm",
        "",
        "forward",
    )
    assert (op.index, op.ordinal) == (0, 5)
    assert op.module_type.endswith("Net")
    assert re.fullmatch(r"aten::linear in the top module \(test_mapping\.py:\d+\)", str(op))
    assert seen[0].module_type == "torch.nn.modules.linear.Linear"


def raises(op: jitquant.OpInfo) -> Any:
    raise KeyError(op.kind)


@pytest.mark.parametrize(
    ("predicate", "error", "message"),
    [
        (
            lambda op: "x86",
            JitQuantTypeError,
            "what the predicate gave for aten::linear in 'layers.0.fc1' (test_mapping.py:",
        ),
        (
            raises,
            JitQuantError,
            "the predicate raised KeyError for aten::linear in 'layers.0.fc1' (test_mapping.py:",
        ),
        (lambda op: None, JitQuantValueError, "the predicate gave no qconfig for any of 14 ops"),
    ],
)
def test_mistakes_of_predicates(predicate: Any, error: type[JitQuantError], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        jitquant.prepare_jit(scripted(Net()), predicate)


@pytest.mark.parametrize("example_inputs", [X, (X,), [X], {"x": X}], ids=lambda x: type(x).__name__)
def test_example_inputs_are_a_batch(example_inputs: Any) -> None:
    mapping = QConfigMapping().set_predicate(lambda op: A, example_inputs)
    assert mapping.explain(scripted(Net())).decisions[0].op.shapes == ((2, 8),)


def test_example_inputs_of_other_arguments() -> None:
    mapping = QConfigMapping().set_predicate(lambda op: A, {"y": X})
    message = "example_inputs has the keys 'y', and forward takes x: Tensor."
    with pytest.raises(JitQuantValueError, match=f"^{re.escape(message)}"):
        mapping.explain(scripted(Net()))


def test_example_inputs_that_the_model_cannot_take() -> None:
    mapping = QConfigMapping().set_predicate(lambda op: A, images(2, 7))
    with pytest.raises(JitQuantError, match=r"^the model cannot run on example_inputs: .*mat1"):
        mapping.explain(scripted(Net()))


# The explanation


def test_an_op_without_a_rule_says_so_in_coverage() -> None:
    prepared = jitquant.prepare_jit(scripted(Net()), {"head": A, "layers.0": None})
    reasons = {op.module: op.reason for op in jitquant.coverage(prepared).float}
    assert reasons["layers.0.fc1"] == "its qconfig is None"
    assert reasons["layers.1.fc1"] == reasons[""] == "no rule of its configuration matches it"


class Counting(nn.Module):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1.0
        y: Tensor = self.fc(x)
        return y


def test_the_run_on_example_inputs_leaves_no_trace() -> None:
    model = scripted(Counting())
    with assert_untouched(model):
        prepared = jitquant.prepare_jit(
            model, QConfigMapping().set_predicate(lambda op: A, images(2, 8))
        )
    plain = jitquant.prepare_jit(model, {"": A})
    assert str(prepared.graph) == str(plain.graph)
    assert [name for name, _ in prepared.named_children()] == [
        name for name, _ in plain.named_children()
    ]
    assert torch.equal(prepared.calls, model.calls)


def test_explanation_is_a_table() -> None:
    mapping = QConfigMapping().set_module_name("head", A)
    text = str(mapping.explain(traced(Net(), X)))
    lines = [re.split(r"\s{2,}", line.rstrip()) for line in text.splitlines()]
    assert lines[0] == ["method", "module", "op", "index", "qconfig", "decided by", "source"]
    assert ["forward", "head", "aten::linear", "0", "#1", "module_name 'head'"] in lines
    assert "aten::addmm as aten::linear" in text
    assert "no rule matches" in text
    assert text.splitlines()[-1].startswith("#1: activation MinMaxObserver")


class PaddedNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(functional.pad(x, (0, 1, 0, 1))))
        return y


@pytest.mark.parametrize(
    ("qconfig", "name", "left"),
    [
        ("fused float", "fused float", ["aten::conv2d"]),
        (None, "float", ["aten::pad", "aten::conv2d", "aten::batch_norm"]),
    ],
)
@pytest.mark.filterwarnings("ignore::jitquant.FloatWarning")
def test_what_is_left_float_can_be_folded(qconfig: object, name: str, left: list[str]) -> None:
    model = scripted(PaddedNorm())
    mapping = QConfigMapping().set_global(A).set_module_name("conv", qconfig)
    lines = [re.split(r"\s{2,}", line) for line in str(mapping.explain(model)).splitlines()]
    assert ["forward", "conv", "aten::conv2d", "0", name] in [line[:5] for line in lines]
    prepared = jitquant.prepare_jit(model, mapping)
    ops = jitquant.coverage(prepared).ops
    assert [op.op for op in ops] == left
    assert not any(op.int8 for op in ops)
    assert next(op for op in ops if op.op == "aten::conv2d").reason == "its qconfig is None"
    x = images(2, 3, 8, 8)
    torch.testing.assert_close(prepared(x), model(x))


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.head(x.unsqueeze(0) * 2.0))

    def head(self, x: Tensor) -> Tensor:
        return self._part(x) + self._part(x)

    def _part(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x)
        return y

    @torch.jit.export
    def _alone(self, x: Tensor) -> Tensor:
        return torch.relu(x)


def test_a_part_of_a_method_is_no_method_of_its_own() -> None:
    """It has an underscore, and another method has it inlined."""
    model = scripted(Parts())
    prepared = jitquant.prepare_jit(model, GLOBAL)
    assert sorted(prepared._c._method_names()) == ["_alone", "forward", "head"]
    linears = [op.method for op in jitquant.coverage(prepared).ops if op.op == "aten::linear"]
    assert linears == ["forward", "forward", "head", "head"]
    explained = GLOBAL.explain(model).decisions
    assert {each.op.method for each in explained} == {"_alone", "forward", "head"}
    fused = jitquant.fuse_conv_bn_jit(model)
    assert sorted(fused._c._method_names()) == ["_alone", "forward", "head"]
    prepared(X)
    with pytest.warns(jitquant.DroppedWarning, match="the methods '_alone', 'head' of the"):
        jitquant.convert_jit(prepared)


def test_an_op_has_the_shapes_that_it_has_in_forward() -> None:
    """Also in a method that forward calls; but not in one that it does not call."""
    explained = GLOBAL.set_predicate(lambda op: A, X).explain(scripted(Parts())).decisions
    shapes = {(op.method, op.kind): op.shapes for op in (each.op for each in explained)}
    assert shapes == {
        ("forward", "aten::unsqueeze"): ((2, 8),),
        ("forward", "aten::mul"): ((1, 2, 8),),
        ("forward", "aten::linear"): ((1, 2, 8),),
        ("forward", "aten::add"): ((1, 2, 8), (1, 2, 8)),
        ("forward", "aten::relu"): ((1, 2, 8),),
        ("head", "aten::linear"): ((1, 2, 8),),
        ("head", "aten::add"): ((1, 2, 8), (1, 2, 8)),
        ("_alone", "aten::relu"): None,
    }


@pytest.mark.parametrize(
    ("mapping", "rule"),
    [
        (QConfigMapping(), "no rule matches"),
        (QConfigMapping().set_global(None), "global"),
        (QConfigMapping().set_predicate(lambda op: None), "predicate"),
    ],
    ids=["no rules", "global None", "predicate None"],
)
def test_what_quantizes_nothing_is_explained(mapping: QConfigMapping, rule: str) -> None:
    model = scripted(Net())
    lines = str(mapping.explain(model)).splitlines()
    linear = next(line for line in lines if "aten::linear" in line)
    assert re.split(r"\s{2,}", linear)[4:6] == ["float", rule]
    with pytest.raises(JitQuantValueError, match="so nothing would be quantized"):
        jitquant.prepare_jit(model, mapping)


def test_explain_takes_what_prepare_takes() -> None:
    with pytest.raises(
        JitQuantTypeError, match=r"^explain takes a ScriptModule, got the nn\.Module"
    ):
        GLOBAL.explain(Net())  # type: ignore[arg-type]
    prepared = jitquant.prepare_jit(scripted(Net()), GLOBAL)
    with pytest.raises(JitQuantValueError, match=r"^explain: the model is already prepared"):
        GLOBAL.explain(prepared)


def test_explain_names_rules_that_stronger_ones_leave_nothing_to() -> None:
    mapping = GLOBAL.set_module_name_regex(".*", None).set_module_name_regex("head", None)
    explanation = mapping.explain(scripted(Net()))
    assert explanation.idle == ("global", "module_name_regex 'head'")
    assert str(explanation).endswith(
        "decides on no op: global\ndecides on no op: module_name_regex 'head'"
    )
    assert GLOBAL.explain(scripted(Net())).idle == ()

"""torch.ao qconfigs become jitquant's, with the same arguments and the same qparams."""

import re
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
import torch.ao.quantization as torch_ao
from torch.ao.quantization import observer as torch_ao_observer

import jitquant
from jitquant import observers
from jitquant.errors import JitQuantError, JitQuantTypeError, JitQuantValueError
from jitquant.mapping import as_mapping
from jitquant.observers import PlaceholderObserver
from jitquant.qconfig import QConfig, check_qconfig, default_qconfig
from tests.models import PlainNet, scripted

OUR_WEIGHT: Any = default_qconfig.weight
WEIGHT = torch_ao.default_per_channel_weight_observer


def quiet(factory: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return factory()


def attributes(observer: Any) -> dict[str, Any]:
    names = (
        "dtype",
        "qscheme",
        "quant_min",
        "quant_max",
        "averaging_constant",
        "bins",
        "scale",
        "zero_point",
    )
    found = {name: getattr(observer, name) for name in names if hasattr(observer, name)}
    if hasattr(observer, "eps") and not isinstance(observer, observers.FixedQParamsObserver):
        found["eps"] = float(observer.eps)
    return found


ACTIVATIONS: list[Any] = [
    torch_ao_observer.HistogramObserver,
    torch_ao_observer.HistogramObserver.with_args(bins=512, reduce_range=True),
    torch_ao_observer.MinMaxObserver.with_args(eps=2**-12),
    torch_ao_observer.MinMaxObserver.with_args(quant_min=0, quant_max=127),
    torch_ao_observer.MinMaxObserver.with_args(quant_min=0, quant_max=254, reduce_range=True),
    torch_ao_observer.MinMaxObserver.with_args(qscheme=torch.per_tensor_symmetric),
    torch_ao_observer.MovingAverageMinMaxObserver.with_args(averaging_constant=0.5),
    torch_ao_observer.default_fixed_qparams_range_neg1to1_observer,
]
WEIGHTS: list[Any] = [
    torch_ao.default_weight_observer,
    torch_ao_observer.weight_observer_range_neg_127_to_127,
    torch_ao_observer.PerChannelMinMaxObserver.with_args(
        dtype=torch.qint8, qscheme=torch.per_channel_symmetric, ch_axis=1, eps=2**-12
    ),
    torch_ao_observer.MovingAveragePerChannelMinMaxObserver.with_args(
        dtype=torch.qint8, averaging_constant=0.5
    ),
]


@pytest.mark.parametrize("factory", ACTIVATIONS + WEIGHTS, ids=lambda f: str(f)[-70:])
def test_observer_keeps_its_arguments(factory: Any) -> None:
    is_weight = factory in WEIGHTS
    given = (
        torch_ao.QConfig(torch_ao_observer.MinMaxObserver, factory)
        if is_weight
        else torch_ao.QConfig(factory, WEIGHT)
    )
    qconfig = quiet(lambda: check_qconfig(given, "here"))
    assert type(qconfig) is QConfig
    ours: Any = (qconfig.weight if is_weight else qconfig.activation)()
    theirs = quiet(factory)
    assert type(ours) is getattr(observers, type(theirs).__name__)
    assert attributes(ours) == attributes(theirs)
    assert ours.ch_axis == getattr(theirs, "ch_axis", -1)


@pytest.mark.parametrize("backend", ["x86", "fbgemm", "onednn", "qnnpack"])
def test_defaults_of_torch_ao_are_taken(backend: str) -> None:
    given = torch_ao.get_default_qconfig(backend)
    qconfig: Any = check_qconfig(given, "here")
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    ours, theirs = qconfig.weight(), given.weight()
    ours(x), theirs(x)
    torch.testing.assert_close(ours.calculate_qparams()[0], theirs.calculate_qparams()[0])
    assert ours.quant_min == -128
    assert qconfig.activation().quant_max == (127 if backend in ("x86", "fbgemm") else 255)


def test_torch_ao_observers_inside_our_qconfig_are_taken() -> None:
    qconfig = check_qconfig(QConfig(torch_ao_observer.HistogramObserver, OUR_WEIGHT), "here")
    assert type(qconfig.activation()) is observers.HistogramObserver
    assert qconfig.weight == OUR_WEIGHT


def test_warnings_of_torch_ao_do_not_reach_the_user() -> None:
    given = torch_ao.get_default_qconfig("x86")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_qconfig(given, "here")


class OwnObserver(torch_ao_observer.MinMaxObserver):
    pass


REFUSED: list[tuple[Any, type[JitQuantError], str]] = [
    (
        torch_ao.QConfig(torch_ao_observer.NoopObserver, WEIGHT),
        JitQuantTypeError,
        "here, activation: torch.ao's NoopObserver is not supported, only FixedQParamsObserver, "
        "HistogramObserver, MinMaxObserver, MovingAverageMinMaxObserver, "
        "MovingAveragePerChannelMinMaxObserver, PerChannelMinMaxObserver. To leave ops float use None "
        "as the qconfig",
    ),
    (
        torch_ao.qconfig.default_reuse_input_qconfig,
        JitQuantValueError,
        "here, activation: torch.ao's ReuseInputObserver says that an output has the qparams of "
        "the input, which jitquant's op table knows; leave such rules out. In place of the dict "
        "of a torch.ao QConfigMapping give the mapping itself",
    ),
    (
        torch_ao.default_weight_only_qconfig,
        JitQuantTypeError,
        "here, activation: expected a jitquant observer or one of torch.ao's "
        "FixedQParamsObserver, HistogramObserver, MinMaxObserver, MovingAverageMinMaxObserver, "
        "MovingAveragePerChannelMinMaxObserver, PerChannelMinMaxObserver, got Identity. To leave "
        "ops float use None as the qconfig",
    ),
    (
        torch_ao.QConfig(OwnObserver, WEIGHT),
        JitQuantTypeError,
        "here, activation: expected a jitquant observer or one of torch.ao's "
        "FixedQParamsObserver, HistogramObserver, MinMaxObserver, MovingAverageMinMaxObserver, "
        "MovingAveragePerChannelMinMaxObserver, PerChannelMinMaxObserver, got OwnObserver. To "
        "leave ops float use None as the qconfig",
    ),
    (
        torch_ao.qconfig.float16_static_qconfig,
        JitQuantValueError,
        "here, activation: a PlaceholderObserver keeps no statistics, so no qparams. Dynamic "
        "quantization has PlaceholderObserver.with_args(dtype=torch.quint8, is_dynamic=True) as "
        "activation. To leave ops float use None as the qconfig",
    ),
    (
        torch_ao.QConfig(
            torch_ao_observer.PlaceholderObserver.with_args(dtype=torch.qint8, is_dynamic=True),
            WEIGHT,
        ),
        JitQuantValueError,
        "here, activation: PlaceholderObserver: dtype must be one of torch.float32, torch.float16, "
        "torch.quint8, torch.quint4x2, got torch.qint8",
    ),
    (
        torch_ao.default_qat_qconfig,
        JitQuantValueError,
        "here, activation: FakeQuantize is for quantization-aware training, "
        "which jitquant does not do; pass an observer",
    ),
    (
        torch_ao.default_qat_qconfig_v2,
        JitQuantValueError,
        "here, activation: FusedMovingAvgObsFakeQuantize is for quantization-aware training, "
        "which jitquant does not do; pass an observer",
    ),
    (
        torch_ao.QConfigMapping(),
        JitQuantTypeError,
        "here: expected a QConfig, got torch.ao's QConfigMapping",
    ),
    (
        torch_ao.QConfig(torch_ao_observer.MinMaxObserver.with_args(dtype=torch.qint32), WEIGHT),
        JitQuantValueError,
        "here, activation: MinMaxObserver: dtype must be torch.quint8 or torch.qint8, "
        "got torch.qint32",
    ),
    (
        torch_ao.qconfig.default_symmetric_qnnpack_qconfig,
        JitQuantValueError,
        "here: the activation observer gives qint8, and no engine runs them; use quint8",
    ),
    (
        torch_ao.qconfig.default_quint8_weight_qconfig,
        JitQuantValueError,
        "here: the weight observer gives quint8, but engines take qint8 weights only",
    ),
]


DYNAMIC: list[Any] = [
    torch_ao.default_dynamic_qconfig,
    quiet(lambda: torch_ao.QConfigDynamic(weight=WEIGHT)),
    torch_ao.QConfig(
        torch_ao_observer.MovingAverageMinMaxObserver.with_args(
            averaging_constant=1, is_dynamic=True
        ),
        WEIGHT,
    ),
]


@pytest.mark.parametrize("qconfig", DYNAMIC, ids=lambda v: str(v)[:60])
def test_whatever_asks_for_dynamic_activations(qconfig: Any) -> None:
    activation: Any = check_qconfig(qconfig, "here").activation()
    assert isinstance(activation, PlaceholderObserver)
    assert (activation.is_dynamic, activation.dtype) == (True, torch.quint8)
    assert not activation.reduce_range


@pytest.mark.parametrize(("qconfig", "error", "message"), REFUSED, ids=lambda v: str(v)[:60])
def test_refused(qconfig: Any, error: type[JitQuantError], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        check_qconfig(qconfig, "here")


def test_torch_ao_is_not_imported_by_jitquant() -> None:
    """torch itself may import parts of torch.ao: jitquant adds none."""
    program = (
        "import sys, torch\n"
        "before = {n for n in sys.modules if n.startswith('torch.ao')}\n"
        "from jitquant.qconfig import check_qconfig, default_qconfig\n"
        "check_qconfig(default_qconfig, 'here')\n"
        "after = {n for n in sys.modules if n.startswith('torch.ao')}\n"
        "assert after == before, sorted(after - before)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_mapping_means_the_same_as_ours() -> None:
    theirs = (
        torch_ao.QConfigMapping()
        .set_global(torch_ao.QConfig(torch_ao_observer.MinMaxObserver, WEIGHT))
        .set_object_type(torch.nn.Linear, None)
        .set_module_name_object_type_order("a", torch.add, 0, None)
    )
    rules = as_mapping(theirs).rules
    assert [str(rule) for rule in rules] == [
        "global",
        "object_type 'torch.nn.modules.linear.Linear'",
        "module_name_object_type_order 'a', 'aten::add', 0",
    ]
    assert rules[0].qconfig == as_mapping({"": theirs.global_qconfig}).rules[0].qconfig
    assert rules[1].qconfig is rules[2].qconfig is None


TYPES_OF_DEFAULTS = [
    "torch.nn.modules.conv.ConvTranspose2d",
    "aten::hardsigmoid",
    "torch.nn.modules.normalization.LayerNorm",
    "torch.nn.modules.activation.PReLU",
]


@pytest.mark.parametrize("backend", ["x86", "fbgemm", "onednn", "qnnpack"])
def test_the_default_mapping_is_taken(backend: str) -> None:
    """Also for a model without its types. Observers that say what our op table knows go."""
    theirs = torch_ao.get_default_qconfig_mapping(backend)
    rules = {rule.key[-1] if rule.key else "": rule for rule in as_mapping(theirs).rules}
    everywhere = as_mapping({"": theirs.global_qconfig}).rules[0].qconfig
    assert everywhere is not None
    assert rules[""].qconfig == everywhere and rules[""].required
    assert "aten::reshape" not in rules
    conv, sigmoid, norm, prelu = (rules[name].qconfig for name in TYPES_OF_DEFAULTS)
    of_conv = dict(theirs.object_type_qconfigs)[torch.nn.ConvTranspose2d]
    assert conv == as_mapping({"": of_conv}).rules[0].qconfig
    assert sigmoid is not None and sigmoid.activation == everywhere.activation
    assert norm == everywhere
    assert prelu is not None and prelu.weight == everywhere.weight

    model = scripted(PlainNet())
    prepared = jitquant.prepare_jit(model, theirs)
    same = jitquant.prepare_jit(model, {"": theirs.global_qconfig})
    assert str(prepared.graph) == str(same.graph)


def test_rules_that_were_added_to_the_default_mapping_must_match() -> None:
    theirs = torch_ao.get_default_qconfig_mapping().set_object_type(torch.nn.LSTM, None)
    with pytest.raises(JitQuantValueError, match="LSTM' matches nothing"):
        jitquant.prepare_jit(scripted(PlainNet()), theirs)


def test_the_default_mapping_without_a_global_qconfig() -> None:
    theirs = torch_ao.get_default_qconfig_mapping().set_global(None)
    rules = {rule.key[-1] if rule.key else "": rule for rule in as_mapping(theirs).rules}
    assert "" not in rules
    hardsigmoid = rules["aten::hardsigmoid"].qconfig
    assert hardsigmoid is not None and hardsigmoid.activation == default_qconfig.activation


def test_a_wrong_value_in_a_mapping_is_told() -> None:
    for kind in ("", torch.nn.PReLU):
        form = {"": "x86"} if kind == "" else {"object_type": [(kind, "x86")]}
        theirs = torch_ao.QConfigMapping.from_dict(form)
        with pytest.raises(JitQuantTypeError, match=r"expected a jitquant\.QConfig or torch\.ao"):
            as_mapping(theirs)

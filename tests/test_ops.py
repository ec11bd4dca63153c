"""Every row of the op table, in scripted and traced models: right numbers, in int8, after loading."""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

import jitquant
from jitquant import _C
from jitquant._engine import engine_set
from tests.samples import SAMPLES, OpSample

pytestmark = pytest.mark.filterwarnings(
    "ignore:The TorchScript type system doesn't support instance-level annotations:UserWarning",
    "ignore:Using padding='same' with even kernel lengths:UserWarning",
    "ignore:Converting a tensor to a Python boolean:torch.jit.TracerWarning",
)

Mode = Literal["scripted", "traced"]

METADATA = ("aten::size", "aten::dim", "aten::len", "aten::numel")


def by_mode(samples: list[OpSample]) -> pytest.MarkDecorator:
    cases = [(sample, "scripted") for sample in samples if sample.scriptable]
    cases += [(sample, "traced") for sample in samples if sample.traceable]
    names = [f"{sample.name}-{mode}" for sample, mode in cases]
    return pytest.mark.parametrize(("sample", "mode"), cases, ids=names)


each_sample = by_mode(SAMPLES)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- quantizing, and looking at the result ---


@dataclass(frozen=True)
class Quantized:
    """One model in its three forms, and the inputs that it was calibrated on."""

    float_model: nn.Module
    debug: torch.jit.ScriptModule
    int8: torch.jit.ScriptModule
    inputs: tuple[Tensor, ...]


def quantize(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    mode: Mode = "scripted",
    qconfig: jitquant.QConfig = jitquant.default_qconfig,
) -> Quantized:
    given: Any = (
        torch.jit.script(model)
        if mode == "scripted"
        else torch.jit.trace(model, clones(inputs), check_trace=False)
    )
    prepared = jitquant.prepare_jit(given, {"": qconfig})
    prepared(*clones(inputs))
    return Quantized(
        model, jitquant.convert_jit(prepared, debug=True), jitquant.convert_jit(prepared), inputs
    )


@cache
def quantized_sample(name: str, mode: Mode) -> Quantized:
    (sample,) = (sample for sample in SAMPLES if sample.name == name)
    torch.manual_seed(0)
    return quantize(sample.module_factory(), sample.inputs_factory(), mode)


def clones(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Copies, since some samples work in place."""
    return tuple(tensor.clone() for tensor in tensors)


def run(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad():
        output = model(*clones(inputs))
    assert isinstance(output, Tensor)
    return output


def output_scale(model: torch.jit.ScriptModule, inputs: tuple[Tensor, ...]) -> float:
    """The scale of the quantized tensor that the model's last dequantize reads."""
    graph = model.graph.copy()
    (output,) = graph.outputs()
    if output.node().kind() == "aten::contiguous":  # what restore_layout adds
        output = output.node().inputsAt(0)
    assert output.node().kind() == "aten::dequantize"
    graph.eraseOutput(0)
    graph.registerOutput(output.node().inputsAt(0))
    interpret: Any = torch._C.__dict__["_jit_interpret_graph"]
    return float(interpret(graph, (model._c, *clones(inputs))).q_scale())


def steps_apart(actual: Tensor, expected: Tensor, scale: float) -> int:
    assert actual.shape == expected.shape
    return round(((actual - expected).abs().max() / scale).item())


def sqnr(actual: Tensor, expected: Tensor) -> float:
    """Signal to quantization noise ratio, in dB."""
    noise = (actual - expected).norm().item()
    return math.inf if noise == 0.0 else 20 * math.log10(expected.norm().item() / noise)


def node_kinds(model: torch.jit.ScriptModule) -> list[str]:
    return [str(node.kind()) for node in model.inlined_graph.nodes()]


def int8_ops(model: torch.jit.ScriptModule) -> tuple[str, ...]:
    """The ops that compute on quantized tensors, in graph order, without dequantize."""
    quantized: set[str] = set()
    ops: list[str] = []
    for node in model.inlined_graph.nodes():
        kind = str(node.kind())
        reads = any(value.debugName() in quantized for value in node.inputs())
        tensors = [value for value in node.outputs() if "Tensor" in value.type().annotation_str]
        if kind == "aten::dequantize" or not tensors:
            continue
        if reads or kind == "aten::quantize_per_tensor":
            quantized.update(value.debugName() for value in tensors)
        if reads and kind not in ("prim::ListConstruct", "prim::ListUnpack", "aten::__getitem__"):
            ops.append(kind)
    return tuple(ops)


# --- the samples ---


def test_samples_cover_exactly_the_rows_of_the_table() -> None:
    rows = {row.op for row in _C.supported_ops() if row.role != "recurrent"}  # those are dynamic
    assert {sample.row for sample in SAMPLES} == rows


def test_names_are_unique() -> None:
    names = [sample.name for sample in SAMPLES]
    assert sorted(set(names)) == sorted(names)


@each_sample
def test_equals_the_debug_model(sample: OpSample, mode: Mode) -> None:
    model = quantized_sample(sample.name, mode)
    scale = output_scale(model.int8, model.inputs)
    actual = run(model.int8, model.inputs)
    assert steps_apart(actual, run(model.debug, model.inputs), scale) <= sample.tolerance_steps


@each_sample
def test_is_close_to_the_float_model(sample: OpSample, mode: Mode) -> None:
    model = quantized_sample(sample.name, mode)
    actual = run(model.int8, model.inputs)
    assert sqnr(actual, run(model.float_model, model.inputs)) >= sample.sqnr


@each_sample
def test_is_int8(sample: OpSample, mode: Mode) -> None:
    model = quantized_sample(sample.name, mode)
    covered = jitquant.coverage(model.int8)
    assert covered.float == ()
    assert sample.row in METADATA or sample.row.split(".")[0] in {op.op for op in covered.int8}
    assert int8_ops(model.int8) == sample.int8_ops
    kinds = node_kinds(model.int8)
    assert kinds.count("aten::quantize_per_tensor") == len(model.inputs)
    assert kinds.count("aten::dequantize") == 1
    assert not [kind for kind in kinds if "prepack" in kind or "per_channel" in kind]
    assert sample.row not in METADATA or sample.row in kinds
    for node in model.int8.inlined_graph.nodes():
        if node.kind() in METADATA:
            assert node.inputsAt(0).node().kind() != "aten::dequantize"


@each_sample
def test_loaded_model_gives_equal_bits(sample: OpSample, mode: Mode) -> None:
    model = quantized_sample(sample.name, mode)
    buffer = io.BytesIO()
    torch.jit.save(model.int8, buffer)
    buffer.seek(0)
    loaded: Any = torch.jit.load(buffer)
    assert torch.equal(run(loaded, model.inputs), run(model.int8, model.inputs))
    assert jitquant.coverage(loaded) == jitquant.coverage(model.int8)


@by_mode([sample for sample in SAMPLES if sample.resizes])
def test_other_sizes_than_calibrated(sample: OpSample, mode: Mode) -> None:
    model = quantized_sample(sample.name, mode)
    inputs = model.inputs
    for dim in sample.resizes:
        inputs = tuple(torch.cat([tensor, tensor.flip(dim)], dim) for tensor in inputs)
    actual = run(model.int8, inputs)
    assert actual.shape == run(model.float_model, inputs).shape
    scale = output_scale(model.int8, inputs)
    assert steps_apart(actual, run(model.debug, inputs), scale) <= sample.tolerance_steps


# --- engines ---

ENGINES = [name for name in torch.backends.quantized.supported_engines if name != "none"]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each quantized engine of this torch, set during the test."""
    with engine_set(request.param) as name:
        yield name


class SmallNet(nn.Module):
    """Convolutions with and without groups, a sum, a pool and a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pointwise = nn.Conv2d(8, 8, 1, bias=False)
        self.down = nn.Conv2d(8, 16, 3, stride=2, groups=2)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + self.pointwise(torch.relu(self.depthwise(x)))
        x = torch.relu(self.down(x))
        x = torch.nn.functional.max_pool2d(x, 2)
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


@pytest.mark.parametrize("mode", ["scripted", "traced"])
def test_engines(engine: str, mode: Mode) -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(4, 3, 17, 17),)
    qconfig = jitquant.get_default_qconfig(engine)
    model = quantize(SmallNet().eval(), inputs, mode, qconfig)
    takes_sums = engine == "onednn"
    assert int8_ops(model.int8) == (
        "quantized::conv2d_relu",
        "quantized::conv2d_relu",
        *(("quantized::conv2d_add",) if takes_sums else ("quantized::conv2d", "quantized::add")),
        "quantized::conv2d_relu",
        "aten::max_pool2d",
        "aten::mean",
        "quantized::linear",
    )
    assert jitquant.coverage(model.int8).float == ()
    actual = run(model.int8, inputs)
    scale = output_scale(model.int8, inputs)
    assert steps_apart(actual, run(model.debug, inputs), scale) <= 1
    assert sqnr(actual, run(model.float_model, inputs)) >= 25.0


@pytest.mark.skipif("qnnpack" not in ENGINES, reason="this torch has no qnnpack")
@pytest.mark.parametrize("engine", ["qnnpack"], indirect=True)
def test_op_that_the_engine_refuses_stays_float(engine: str) -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(2, 4, 6, 6, 6),)
    net = nn.Sequential(nn.Linear(6, 6), nn.MaxPool3d(2)).eval()
    qconfig = jitquant.get_default_qconfig(engine)
    model = quantize(net, inputs, qconfig=qconfig)
    (pool,) = jitquant.coverage(model.int8).float
    assert pool.op == "aten::max_pool3d"
    assert pool.reason.startswith("its int8 form raises: ")
    net[1] = nn.Identity().eval()
    scale = output_scale(quantize(net, inputs, qconfig=qconfig).int8, inputs)
    assert steps_apart(run(model.int8, inputs), run(model.debug, inputs), scale) <= 1


# --- padding of one side, as in EfficientNet ---


class Strided(nn.Module):
    """TensorFlow's "same" padding, then a depthwise convolution of stride 2 and ReLU6."""

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        left = (kernel_size - 3) // 2
        self.pad = nn.ZeroPad2d((left, left + 1, left, left + 1))
        self.expand = nn.Conv2d(8, 128, 1)
        self.depthwise = nn.Conv2d(128, 128, kernel_size, stride=2, groups=128)
        self.project = nn.Conv2d(128, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.nn.functional.relu6(self.expand(x))
        x = torch.nn.functional.relu6(self.depthwise(self.pad(x)))
        y: Tensor = self.project(x)
        return y


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("mode", ["scripted", "traced"])
def test_padded_depthwise_block(mode: Mode, kernel_size: int) -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(2, 8, 16, 16),)
    model = quantize(Strided(kernel_size).eval(), inputs, mode)
    kinds = int8_ops(model.int8)
    assert [kind for kind in kinds if kind.startswith("quantized::")] == ["quantized::conv2d"] * 3
    assert set(kinds) - {"quantized::conv2d"} <= {"aten::size", "aten::slice"}
    assert jitquant.coverage(model.int8).float == ()
    for height, width in ((16, 16), (15, 17), (16, 15), (7, 6)):
        x = (torch.randn(2, 8, height, width),)
        actual, expected = run(model.int8, x), run(model.float_model, x)
        assert actual.shape == expected.shape
        assert sqnr(actual, expected) >= 25.0
        assert steps_apart(actual, run(model.debug, x), output_scale(model.int8, x)) <= 1


# --- exact reference ---


@dataclass(frozen=True)
class IntegerOp:
    """The only int8 op of a model, as integers and qparams.

    Attributes:
        weight: int64, zero point 0.
        scales: float32, (out_channels,) or (1,).
        bias: float32, (out_channels,).
        x: scale and zero point of the input; y: of the output.
    """

    weight: Tensor
    scales: Tensor
    bias: Tensor
    x: tuple[float, int]
    y: tuple[float, int]

    def requantize(self, acc: Tensor, engine: str) -> Tensor:
        """Sums of products, float64 with the channels last, to the integers of the output."""
        sums = acc.float()
        steps = torch.tensor(self.x[0]) * self.scales
        bias = self.bias / steps
        if engine == "qnnpack":  # it adds the bias as an int32
            bias = bias.round()
        scaled = (sums + bias) * (steps / torch.tensor(self.y[0]))
        return (scaled.round() + self.y[1]).clamp(0, 255).to(torch.uint8)


def integer_op(model: torch.jit.ScriptModule, kind: str) -> IntegerOp:
    (op,) = [node for node in model.graph.nodes() if node.kind() == f"quantized::{kind}"]
    quantize_x, packed, *y = (value.node() for value in op.inputs())
    assert quantize_x.kind() == "aten::quantize_per_tensor"
    unpack: Any = getattr(torch.ops.quantized, f"{kind}_unpack")
    weight, bias = unpack(getattr(model, packed.s("name")))
    if weight.qscheme() == torch.per_tensor_affine:
        scales, zero_points = torch.tensor([weight.q_scale()]), [weight.q_zero_point()]
    else:
        scales = weight.q_per_channel_scales().float()
        zero_points = weight.q_per_channel_zero_points().tolist()
    assert not any(zero_points)
    x: Any = tuple(value.toIValue() for value in list(quantize_x.inputs())[1:3])
    return IntegerOp(
        weight.int_repr().long(),
        scales,
        bias,
        x,
        (y[0].f("value"), y[1].i("value")),
    )


def check_exact(actual: Tensor, expected: Tensor, engine: str) -> None:
    """Equal on fbgemm. The others round differently: one step, in at most one of a thousand."""
    difference = (actual.int() - expected.int()).abs()
    assert actual.unique().numel() > 100
    assert int(difference.max()) <= (0 if engine == "fbgemm" else 1)
    assert difference.count_nonzero().item() <= difference.numel() / 1000


def int8_output(model: torch.jit.ScriptModule, x: Tensor, y: tuple[float, int]) -> Tensor:
    """The integers of the output, (N, ..., C) uint8."""
    return (run(model, (x,)) / y[0] + y[1]).round().to(torch.uint8)


@pytest.mark.parametrize(
    ("seed", "options"),
    [
        (0, {"out_channels": 24, "kernel_size": 3}),
        (1, {"out_channels": 24, "kernel_size": 3, "padding": 2, "stride": 2}),
        (2, {"out_channels": 16, "kernel_size": 2, "groups": 4, "dilation": 2}),
        (3, {"out_channels": 8, "kernel_size": 3, "groups": 8, "padding": 1}),
        (4, {"out_channels": 24, "kernel_size": 1}),
    ],
)
def test_conv2d_equals_integer_arithmetic(seed: int, options: dict[str, Any], engine: str) -> None:
    torch.manual_seed(seed)
    conv = nn.Conv2d(8, **options).eval()
    x = torch.randn(2, 8, 15, 15) + 0.5
    model = quantize(conv, (x,), qconfig=jitquant.get_default_qconfig(engine)).int8
    op = integer_op(model, "conv2d")
    integers = torch.quantize_per_tensor(x, *op.x, torch.quint8).int_repr().double() - op.x[1]
    geometry: Any = (conv.stride, conv.padding, conv.dilation, conv.groups)
    acc = torch.conv2d(integers, op.weight.double(), None, *geometry)
    expected = op.requantize(acc.movedim(1, -1), engine).movedim(-1, 1)
    check_exact(int8_output(model, x, op.y), expected, engine)


@pytest.mark.parametrize(("seed", "shape"), [(0, (64, 32)), (1, (16, 5, 32)), (2, (4, 7, 3, 32))])
def test_linear_equals_integer_arithmetic(seed: int, shape: tuple[int, ...], engine: str) -> None:
    torch.manual_seed(seed)
    x = torch.randn(shape) - 0.5
    model = quantize(nn.Linear(32, 48).eval(), (x,), qconfig=jitquant.get_default_qconfig(engine))
    op = integer_op(model.int8, "linear")
    integers = torch.quantize_per_tensor(x, *op.x, torch.quint8).int_repr().double() - op.x[1]
    expected = op.requantize(integers @ op.weight.double().t(), engine)
    check_exact(int8_output(model.int8, x, op.y), expected, engine)


@pytest.mark.parametrize("kind", ["conv2d", "linear"])
def test_integer_weights_are_the_rounded_float_weights(kind: str) -> None:
    """The reference above takes the weights from the model; this is where they come from."""
    torch.manual_seed(0)
    module = nn.Conv2d(4, 6, 3) if kind == "conv2d" else nn.Linear(16, 6)
    x = torch.randn(2, 4, 8, 8) if kind == "conv2d" else torch.randn(8, 16)
    op = integer_op(quantize(module.eval(), (x,)).int8, kind)
    weight = module.weight.detach()
    scales = op.scales.reshape(-1, *[1] * (weight.dim() - 1))
    assert (op.weight * scales - weight).abs().le(scales * 0.5001).all()
    assert op.weight.abs().flatten(1).amax(1).ge(63).all()
    assert module.bias is not None and torch.equal(op.bias, module.bias.detach())

"""convert_jit(debug="exact"): the int8 model's bits from stock float and integer ops."""

import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jitquant
from jitquant._engine import engine_set
from jitquant.errors import JitQuantValueError
from tests.models import ResidualNet, calibrate, images, scripted
from tests.samples import SAMPLES
from tests.samples.base import OpSample

ENGINES = ("x86", "fbgemm", "onednn", "qnnpack")


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    with engine_set(request.param) as name:
        yield name


def tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [each for each in result if each is not None]


def both(
    model: torch.jit.ScriptModule, engine: str, *batches: tuple[Tensor, ...]
) -> tuple[Any, Any]:
    """The int8 model, and what spells it out."""
    prepared: Any = jitquant.prepare_jit(model, {"": jitquant.get_default_qconfig(engine)})
    with torch.no_grad():
        for batch in batches:
            prepared(*(tensor.clone() for tensor in batch))
    return jitquant.convert_jit(prepared), jitquant.convert_jit(prepared, debug="exact")


def shares(int8: Any, exact: Any, batches: list[tuple[Tensor, ...]]) -> float:
    """How many of all outputs have equal bits."""
    equal = total = 0
    with torch.no_grad():
        for batch in batches:
            pairs = zip(
                tensors(int8(*(tensor.clone() for tensor in batch))),
                tensors(exact(*(tensor.clone() for tensor in batch))),
                strict=True,
            )
            for a, b in pairs:
                equal += int((a == b).sum())
                total += a.numel()
    return equal / total


@pytest.mark.parametrize(
    "sample", [each for each in SAMPLES if each.scriptable], ids=lambda each: each.name
)
@pytest.mark.parametrize("engine", ["fbgemm"], indirect=True)
def test_samples_have_equal_bits(sample: OpSample, engine: str) -> None:
    torch.manual_seed(0)
    model = torch.jit.script(sample.module_factory())
    inputs = sample.inputs_factory()
    int8, exact = both(model, engine, inputs)
    assert shares(int8, exact, [inputs]) == 1.0


def test_small_model(engine: str) -> None:
    int8, exact = both(scripted(ResidualNet()), engine, (images(),))
    assert shares(int8, exact, [(images(8, 3, 16, 16, seed=seed),) for seed in range(5)]) == 1.0
    assert not [n for n in exact.inlined_graph.nodes() if n.kind().startswith("quantized::")]
    covered = jitquant.coverage(exact)
    assert covered.ops == jitquant.coverage(int8).ops
    assert covered.stage == "debug"


def test_needs_only_torch() -> None:
    _, exact = both(scripted(ResidualNet()), "x86", (images(),))
    file = io.BytesIO()
    torch.jit.save(exact, file)
    file.seek(0)
    loaded: Any = torch.jit.load(file)
    assert torch.equal(loaded(images()), exact(images()))


def test_folded_float_weight_stays_by_name() -> None:
    _, exact = both(scripted(ResidualNet()), "x86", (images(),))
    conv = exact.stem.conv1
    scale = conv.weight_scale.reshape(-1, 1, 1, 1)
    assert float((conv.weight_int8 * scale - conv.weight).abs().max() / scale.max()) <= 0.501


@pytest.mark.parametrize("debug", ["Exact", 2, None])
def test_other_kinds_of_debug_raise(debug: Any) -> None:
    model = scripted(nn.Sequential(nn.Linear(2, 2)))
    prepared = jitquant.prepare_jit(model, {"": jitquant.default_qconfig})
    calibrate(prepared, images(1, 2))
    with pytest.raises(JitQuantValueError, match=r"debug must be True, False or 'exact', got"):
        jitquant.convert_jit(prepared, debug=debug)


MODELS = (
    *("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large"),
    *("googlenet", "shufflenet_v2_x1_0"),
)


def torchvision_model(name: str) -> torch.jit.ScriptModule:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    options = {"init_weights": True, "aux_logits": False} if name == "googlenet" else {}
    model: torch.jit.ScriptModule = torch.jit.script(
        getattr(torchvision.models, name)(**options).eval()
    )
    return model


def random_images(count: int, seed: int) -> list[tuple[Tensor, ...]]:
    return [(images(1, 3, 64, 64, seed=seed + i),) for i in range(count)]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_large"])
def test_models(name: str, engine: str) -> None:
    int8, exact = both(torchvision_model(name), engine, *random_images(2, 0))
    assert shares(int8, exact, random_images(2, 100)) == 1.0


@pytest.mark.sweep
@pytest.mark.parametrize("name", MODELS)
def test_models_over_50_images(name: str) -> None:
    int8, exact = both(torchvision_model(name), "fbgemm", *random_images(4, 0))
    assert shares(int8, exact, random_images(50, 100)) == 1.0

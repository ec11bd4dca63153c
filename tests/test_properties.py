"""What holds for every model, tried on random ones.

`make test` draws the same 300 models each time, `make sweep` draws 3,000 new ones. A failing test prints the
model's source, its `RandomModel`, and hypothesis' blob for `@reproduce_failure`. Bugs that
were found so are kept by name in test_regressions.py.
"""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, note, settings
from torch import Tensor

import jitquant
from tests.models import assert_untouched, reloaded, sqnr
from tests.random_graphs import RandomModel, diverse_models, model_of, random_models
from tests.test_upstream_table import nodes, tensors

pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")

LEAST_SQNR = 12.0
"""dB of the emulated model against float. One 8-bit op leaves 40; six in a row with differences of near
values leave 20 at the least, and what is wrong leaves 6 or less."""


def outputs(model: Any, batches: list[tuple[Any, ...]]) -> list[Tensor]:
    with torch.no_grad():
        return [tensor.clone() for batch in batches for tensor in tensors(model(*batch))]


def prepared_and_calibrated(drawn: RandomModel, model: torch.jit.ScriptModule) -> Any:
    prepared: Any = jitquant.prepare_jit(model, {"": jitquant.default_qconfig})
    outputs(prepared, drawn.batches())
    return prepared


def saved(model: torch.jit.ScriptModule) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"  # a file holds its own name
        torch.jit.save(model, path)
        return path.read_bytes()


def check_prepared(expected: list[Tensor], actual: list[Tensor]) -> None:
    """Prepare only folds and rewrites: float32 rounding is all that differs."""
    assert len(actual) == len(expected)
    for one, other in zip(expected, actual, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)


def check_int8(expected: list[Tensor], debug: list[Tensor], int8: list[Tensor]) -> None:
    """Within two steps of emulation, of which a step is the output's range over 255.

    An int8 op may round a value one step apart from its emulation, and where a later value has a
    finer scale, one step becomes several of these. Emulation itself rounds to the same grids, so its distance
    from float is the larger of the two then. Of 1,600 models 93 % give the emulated bits, the
    worst value was 1.4 of these steps apart, and but for one model less than 1 % of the values
    were more than one step apart; a wrong op moves most values.
    """
    for one, emulated, actual in zip(expected, debug, int8, strict=True):
        assert one.shape == emulated.shape == actual.shape
        assert sqnr(one, emulated) >= LEAST_SQNR
        step = float(one.max() - one.min()) / 255
        passed_on = float((one - emulated).abs().max())
        apart = (actual - emulated).abs()
        assert float(apart.max()) <= 2 * max(step, passed_on)
        assert float((apart > 1.01 * step + 1e-6).float().mean()) <= 0.2


def check_coverage(prepared: Any, int8: Any) -> None:
    """Every op of the prepared model is listed once, and those listed as int8 are in the graph.

    Freezing merges equal ops, so that there may be fewer kernels than listed ops, but not none.
    """
    before, after = jitquant.coverage(prepared).ops, jitquant.coverage(int8).ops
    places = Counter((op.op, op.module, op.source) for op in before if op.method == "forward")
    assert Counter((op.op, op.module, op.source) for op in after) == places
    assert all(op.reason for op in after)
    kernels = Counter(str(node.kind()) for node in nodes(int8.graph))
    for op in ("conv2d", "linear"):
        listed = sum(entry.int8 and entry.op == f"aten::{op}" for entry in after)
        found = kernels[f"quantized::{op}"] + kernels[f"quantized::{op}_relu"]
        assert min(listed, 1) <= found <= listed
    assert not [kind for kind in kernels if "prepack" in kind or "per_channel" in kind]


def check(drawn: RandomModel) -> None:
    note(drawn.source)
    torch.set_num_threads(1)
    model = drawn.script()
    with assert_untouched(model):
        prepared = prepared_and_calibrated(drawn, model)
        int8 = jitquant.convert_jit(prepared)
    debug = jitquant.convert_jit(prepared, debug=True)

    expected = outputs(model, drawn.batches())
    check_prepared(expected, outputs(prepared, drawn.batches()))
    actual = outputs(int8, drawn.batches())
    check_int8(expected, outputs(debug, drawn.batches()), actual)
    check_coverage(prepared, int8)

    again = outputs(reloaded(int8), drawn.batches())
    assert all(torch.equal(a, b) for a, b in zip(actual, again, strict=True))
    assert saved(jitquant.convert_jit(prepared_and_calibrated(drawn, model))) == saved(int8)


@given(diverse_models)
@settings(
    max_examples=300,
    derandomize=True,
    phases=[Phase.generate],  # shrinking takes minutes; the sweep shrinks
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
def test_random_models(drawn: RandomModel) -> None:
    check(drawn)


@pytest.mark.sweep
@given(random_models)
@settings(
    max_examples=3000,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
def test_more_random_models(drawn: RandomModel) -> None:
    check(drawn)


def test_what_constants_give_is_folded_in_every_run() -> None:
    """Whether `torch.ones` in a method was folded or listed once differed from run to run."""
    model = model_of(16424).script()
    config = {"": jitquant.default_qconfig}
    for _ in range(40):
        ops = jitquant.coverage(jitquant.prepare_jit(model, config)).ops
        assert "aten::ones" not in [op.op for op in ops]

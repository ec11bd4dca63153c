"""calibrate, merge_calibration, calibrate_distributed: what runs, and what observers then hold."""

import io
import os
import re
import signal
import subprocess
import sys
from collections import UserDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import jitquant
from jitquant import JitQuantError, JitQuantTypeError, JitQuantValueError
from jitquant._observed import activation_observers
from jitquant.observers import (
    EntropyObserver,
    MovingAverageMinMaxObserver,
    MSEObserver,
    NoopObserver,
    PercentileObserver,
    PlaceholderObserver,
    RecordingObserver,
)
from tests.models import PlainNet, ResidualNet, scripted, sqnr

ROOT = Path(__file__).resolve().parent.parent


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        z: Tensor = self.fc(x) + y
        return z


def prepare(module: nn.Module) -> torch.jit.ScriptModule:
    return jitquant.prepare_jit(scripted(module), {"": jitquant.get_default_qconfig()})


def images(count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, 8, 8, generator=generator) * (1 + i) for i in range(count)]


def pairs(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(2, 4, generator=generator), torch.randn(2, 3, generator=generator))
        for _ in range(count)
    ]


def seen(prepared: torch.jit.ScriptModule) -> list[Any]:
    observers = activation_observers(prepared)
    assert observers
    return [[tensor.tolist() for tensor in observer.state()] for observer in observers]


def run_by_hand(prepared: torch.jit.ScriptModule, batches: list[Any]) -> torch.jit.ScriptModule:
    with torch.no_grad():
        for batch in batches:
            prepared(*batch) if isinstance(batch, tuple) else prepared(batch)
    return prepared


def save_and_load(model: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    file = io.BytesIO()
    torch.jit.save(model, file)
    file.seek(0)
    loaded: torch.jit.ScriptModule = torch.jit.load(file)
    return loaded


# --- calibrate ---


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter([row for batch in images() for row in batch])


def test_tensors_from_any_source_are_seen() -> None:
    expected = seen(run_by_hand(prepare(ResidualNet()), images()))
    sources: list[Any] = [
        images(),
        (image for image in images()),
        DataLoader(TensorDataset(torch.cat(images())), batch_size=2),
        DataLoader(Stream(), batch_size=2),
    ]
    for data in sources:
        prepared = prepare(ResidualNet())
        assert jitquant.calibrate(prepared, data) == jitquant.Calibration(4, False)
        assert seen(prepared) == expected


def test_tuples_lists_and_dicts_are_arguments() -> None:
    expected = seen(run_by_hand(prepare(TwoInputs()), pairs()))
    for data in (
        pairs(),
        [list(pair) for pair in pairs()],
        [{"y": y, "x": x} for x, y in pairs()],
    ):
        prepared = prepare(TwoInputs())
        jitquant.calibrate(prepared, data)
        assert seen(prepared) == expected


def test_batches_stops_and_takes_no_more_from_a_generator() -> None:
    prepared = prepare(ResidualNet())
    generator = iter(images())
    assert jitquant.calibrate(prepared, generator, batches=3).batches == 3
    assert seen(prepared) == seen(run_by_hand(prepare(ResidualNet()), images()[:3]))
    assert len(list(generator)) == 1


def test_no_gradients_are_recorded() -> None:
    def data() -> Iterator[Tensor]:
        assert not torch.is_grad_enabled()
        yield from images()

    jitquant.calibrate(prepare(ResidualNet()), data())
    assert torch.is_grad_enabled()


def test_calibration_goes_on_after_saving_and_loading() -> None:
    prepared = prepare(ResidualNet())
    jitquant.calibrate(prepared, images()[:2])
    loaded = save_and_load(prepared)
    jitquant.calibrate(loaded, images()[2:])
    assert seen(loaded) == seen(run_by_hand(prepare(ResidualNet()), images()))
    jitquant.convert_jit(loaded)


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, which processes that share the tests have switched off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_ctrl_c_ends_it_with_what_was_seen() -> None:
    def data() -> Iterator[Tensor]:
        yield from images()[:2]
        os.kill(os.getpid(), signal.SIGINT)
        yield from images()[2:]

    prepared = prepare(ResidualNet())
    done = jitquant.calibrate(prepared, data())
    assert done.interrupted and done.batches in (2, 3)  # Python takes signals between bytecodes
    by_hand = run_by_hand(prepare(ResidualNet()), images()[: done.batches])
    assert seen(prepared) == seen(by_hand)
    jitquant.convert_jit(prepared)


class TakesANumber(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, times: int) -> Tensor:
        y: Tensor = self.fc(x) * times
        return y


def test_models_that_take_more_than_tensors() -> None:
    batches = [(torch.rand(2, 4, generator=torch.Generator().manual_seed(i)), 3) for i in range(4)]
    whole, first, second = (prepare(TakesANumber()) for _ in range(3))
    assert jitquant.calibrate(whole, batches).batches == 4
    jitquant.calibrate(first, batches[:2])
    jitquant.calibrate(second, batches[2:])
    merged = jitquant.merge_calibration([first, second])
    assert seen(merged) == seen(whole)
    expected = jitquant.convert_jit(whole)(*batches[0])
    assert torch.equal(jitquant.convert_jit(merged)(*batches[0]), expected)


class Interrupting(tuple[Tensor, ...]):
    """Arguments that raise SIGINT when they are passed."""

    def __iter__(self) -> Iterator[Tensor]:
        os.kill(os.getpid(), signal.SIGINT)
        return super().__iter__()


@pytest.mark.usefixtures("_interruptible")
def test_ctrl_c_within_a_batch_waits_until_it_is_counted() -> None:
    prepared = prepare(ResidualNet())
    batches = images()
    done = jitquant.calibrate(prepared, [(batches[0],), Interrupting([batches[1]]), (batches[2],)])
    assert done == jitquant.Calibration(2, interrupted=True)
    assert seen(prepared) == seen(run_by_hand(prepare(ResidualNet()), batches[:2]))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_nothing_counts_after_an_error() -> None:
    prepared = prepare(ResidualNet())
    jitquant.calibrate(prepared, images()[:2])
    before = seen(prepared)
    too_many_channels = 1000 * torch.ones(1, 50, 8, 8)
    with pytest.raises(RuntimeError) as raised:
        jitquant.calibrate(prepared, [images()[2], too_many_channels])
    assert "calibrate: batch 1 is " in raised.value.__notes__[0]
    assert seen(prepared) == before
    jitquant.calibrate(prepared, images()[2:])
    assert seen(prepared) == seen(run_by_hand(prepare(ResidualNet()), images()))


def test_ctrl_c_before_the_first_batch_is_passed_on() -> None:
    def data() -> Iterator[Tensor]:
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        jitquant.calibrate(prepare(ResidualNet()), data())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bar_is_shown_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare(ResidualNet())
    for stream, progress, shown in (
        (Terminal(), True, True),
        (Terminal(), False, False),
        (io.StringIO(), True, False),
    ):
        monkeypatch.setattr(sys, "stderr", stream)
        jitquant.calibrate(prepared, images(), progress=progress)
        assert ("calibrating: 100%" in stream.getvalue()) == shown
        assert shown or stream.getvalue() == ""


def test_errors_say_which_batch() -> None:
    prepared = prepare(ResidualNet())
    with pytest.raises(RuntimeError) as caught:
        jitquant.calibrate(prepared, [*images(), torch.randn(2, 5, 8, 8)])
    assert caught.value.__notes__ == [
        "calibrate: batch 4 is a float32 tensor (2, 5, 8, 8); forward takes x: Tensor."
    ]

    def broken() -> Iterator[Tensor]:
        yield images()[0]
        raise OSError("no such photo")

    with pytest.raises(OSError, match=r"^no such photo") as raised:
        jitquant.calibrate(prepared, broken())
    assert raised.value.__notes__ == ["calibrate: data raised this and gave no batch 1."]


def test_correct_bias_says_which_batch() -> None:
    prepared = prepare(PlainNet())
    jitquant.calibrate(prepared, images())
    with pytest.raises(RuntimeError) as caught:
        jitquant.correct_bias(prepared, [images()[0], torch.randn(2, 5, 8, 8)])
    assert caught.value.__notes__ == [
        "correct_bias: batch 1 is a float32 tensor (2, 5, 8, 8); forward takes x: Tensor."
    ]


class Doubles(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        y: Tensor = self.last(torch.relu(self.first(x)))
        return y


@pytest.mark.parametrize("kind", [tuple, lambda batch: UserDict(x=batch[0])])
def test_batches_stay_as_they_are(kind: Callable[[Any], Any]) -> None:
    x = torch.ones(2, 4)
    mapping = jitquant.QConfigMapping().set_global(jitquant.get_default_qconfig())
    mapping = mapping.set_predicate(lambda _: NotImplemented, example_inputs=kind([x]))
    prepared = jitquant.prepare_jit(scripted(Doubles()), mapping)
    assert torch.equal(x, torch.ones(2, 4))
    jitquant.calibrate(prepared, [kind([x])])
    assert torch.equal(x, torch.ones(2, 4))
    jitquant.correct_bias(prepared, [kind([x])])
    assert torch.equal(x, torch.ones(2, 4))


class Arguments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, y: Tensor, scale: float = 2.0) -> Tensor:
        z: Tensor = self.fc(x) * scale + y
        return z


TAKES = "x: Tensor, y: Tensor, scale: float = 2.0"
X = torch.ones(2, 4)


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (
            (X,),
            JitQuantValueError,
            "batch 1 is a tuple (a float32 tensor (2, 4)), without the argument 'y'; forward takes "
            f"{TAKES}.",
        ),
        (
            {"y": X},
            JitQuantValueError,
            "batch 1 is a dict (y: a float32 tensor (2, 4)), without the argument 'x'; forward "
            f"takes {TAKES}.",
        ),
        (
            (X, X, 1.0, 2),
            JitQuantValueError,
            f"batch 1 has 4 elements, and forward takes {TAKES}. Leave out what is no input, such "
            "as labels: give (x for x, _ in loader).",
        ),
        (
            {"x": X, "z": X},
            JitQuantValueError,
            f"batch 1 has the keys 'z', and forward takes {TAKES}. Leave out what is no input",
        ),
        (
            X.numpy(),
            JitQuantTypeError,
            "batch 1 is ndarray; expected a tensor, a tuple or list of arguments, or a dict of "
            "keyword arguments. Make it one: torch.from_numpy(array).",
        ),
        (
            [X, X.numpy()],
            JitQuantTypeError,
            "batch 1 has ndarray for the argument 'y', which is a tensor. Make it one: "
            "torch.from_numpy(array).",
        ),
        (
            {"x": X, "y": [X, [1, 2, 3, 4, 5]]},
            JitQuantTypeError,
            "batch 1 has a list (a float32 tensor (2, 4), a list (int, int, int, int, ...)) for the "
            "argument 'y', which is a tensor.",
        ),
    ],
    ids=lambda value: value[8:50] if isinstance(value, str) else "",
)
def test_batches_that_forward_does_not_take(
    batch: Any, error: type[JitQuantError], message: str
) -> None:
    prepared = prepare(Arguments())
    with pytest.raises(error, match=f"^{re.escape(f'calibrate: {message}')}"):
        jitquant.calibrate(prepared, [(X, X), batch])
    assert all(observer.calls == 0 for observer in activation_observers(prepared))
    assert jitquant.calibrate(prepared, [(X, X), {"y": X, "x": X}, [X, X, 3.0]]).batches == 3


def test_calibrate_refuses_what_is_no_data() -> None:
    prepared = prepare(PlainNet())
    labelled = [(image, torch.zeros(2)) for image in images()]
    for data, error, message in (
        ([], JitQuantValueError, "data gave no batch"),
        (images()[0], JitQuantTypeError, "got Tensor. For a single batch give"),
        ({"x": images()[0]}, JitQuantTypeError, "got dict"),
        (3, JitQuantTypeError, "got int"),
        (["no"], JitQuantTypeError, "batch 0 is str; expected a tensor, a tuple"),
        (labelled, JitQuantValueError, "batch 0 has 2 elements, and forward takes x: Tensor. Le"),
        ([{"x": images()[0], "y": 1}], JitQuantValueError, "batch 0 has the keys 'y', and forward"),
    ):
        wrong: Any = data
        with pytest.raises(error, match=message):
            jitquant.calibrate(prepared, wrong)
    for batches, error in ((0, JitQuantValueError), ("3", JitQuantTypeError)):
        count: Any = batches
        with pytest.raises(error, match=f"batches must be .*got {batches!r}"):
            jitquant.calibrate(prepared, images(), batches=count)
    with pytest.raises(JitQuantValueError, match=r"^calibrate: the model was not prepared"):
        jitquant.calibrate(scripted(PlainNet()), images())


@pytest.mark.parametrize(
    ("activation", "least_db"),
    [
        (MSEObserver, 25),
        (PercentileObserver.with_args(percentile=99.9), 25),
        (EntropyObserver, 25),
        (RecordingObserver, 25),
        # Clips the first batch, whose outputs are the largest.
        (MovingAverageMinMaxObserver.with_args(averaging_constant=0.5), 15),
    ],
    ids=str,
)
def test_every_kind_of_activation_observer_gives_a_good_model(
    activation: Callable[[], nn.Module], least_db: float
) -> None:
    model = scripted(ResidualNet())
    qconfig = jitquant.QConfig(activation, jitquant.default_qconfig.weight)
    prepared = jitquant.prepare_jit(model, {"": qconfig})
    batches = [image / (1 + i) for i, image in enumerate(images())]
    jitquant.calibrate(prepared, batches)
    converted = save_and_load(jitquant.convert_jit(save_and_load(prepared)))
    assert all(op.int8 for op in jitquant.coverage(converted).ops)
    with torch.no_grad():
        assert sqnr(model(batches[0]), converted(batches[0])) > least_db


@pytest.mark.parametrize("kind", [NoopObserver, PlaceholderObserver])
def test_observers_without_statistics_are_refused(kind: type[nn.Module]) -> None:
    qconfig = jitquant.QConfig(kind, jitquant.default_qconfig.weight)
    with pytest.raises(JitQuantValueError, match=f"a {kind.__name__} keeps no statistics"):
        jitquant.prepare_jit(scripted(PlainNet()), {"": qconfig})


# --- merge_calibration ---


def test_merged_models_saw_what_all_saw() -> None:
    parts = [run_by_hand(prepare(ResidualNet()), images()[i::3]) for i in range(3)]
    before = [seen(part) for part in parts]
    merged = jitquant.merge_calibration([parts[0], save_and_load(parts[1]), parts[2]])
    assert [seen(part) for part in parts] == before
    whole = run_by_hand(prepare(ResidualNet()), images())
    assert seen(merged) == seen(whole)
    x = images()[0]
    assert torch.equal(jitquant.convert_jit(merged)(x), jitquant.convert_jit(whole)(x))


def test_merge_refuses_models_that_do_not_belong_together() -> None:
    model = prepare(ResidualNet())
    other_weights = scripted(ResidualNet())
    with torch.no_grad():
        next(other_weights.parameters()).mul_(2)
    others: list[Any] = [
        prepare(PlainNet()),
        jitquant.prepare_jit(other_weights, {"": jitquant.get_default_qconfig()}),
        jitquant.prepare_jit(scripted(ResidualNet()), {"": jitquant.default_qconfig}),
    ]
    for other in others:
        with pytest.raises(
            JitQuantValueError, match="model 1 was not prepared from the same model"
        ):
            jitquant.merge_calibration([model, other])
    wrong: Any = model
    with pytest.raises(JitQuantTypeError, match="expected a list of prepared models"):
        jitquant.merge_calibration(wrong)
    with pytest.raises(JitQuantValueError, match="the list of models is empty"):
        jitquant.merge_calibration([])
    with pytest.raises(JitQuantValueError, match=r"^merge_calibration: the model was not"):
        jitquant.merge_calibration([scripted(PlainNet())])


# --- calibrate_distributed ---

WORKER = """
import sys, warnings
from pathlib import Path
import torch
warnings.filterwarnings("ignore")
sys.path.insert(0, sys.argv[1])
import jitquant
from tests.models import ResidualNet
from tests.test_calibration import images, prepare

folder = Path(sys.argv[2])
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()

def save(name, done, model):
    (folder / f"{name}{rank}").mkdir()
    torch.jit.save(model, folder / f"{name}{rank}" / "model.pt")
    (folder / f"{name}{rank}" / "batches").write_text(str(done.batches))

prepared = prepare(ResidualNet())
save("list", jitquant.calibrate_distributed(prepared, images(7), batches=5), prepared)
save("goes_on", jitquant.calibrate_distributed(prepared, iter(images(7)[5:])), prepared)
save("converted", jitquant.Calibration(0, False), jitquant.convert_jit(prepared))

prepared = prepare(ResidualNet())
shard = images(7)[rank::world]
save("sharded", jitquant.calibrate_distributed(prepared, shard, sharded=True), prepared)

prepared = prepare(ResidualNet())
bad = [images()[0], torch.zeros(2, 5, 8, 8)]
try:
    jitquant.calibrate_distributed(prepared, bad)
except Exception as error:
    (folder / f"error{rank}").write_text(f"{type(error).__name__}: {error}")
save("failed", jitquant.Calibration(0, False), prepared)
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("world", [2, 3])
def test_every_rank_gets_what_one_process_gets(world: int, tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={world}", str(script), str(ROOT), str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr

    for name, expected in (
        ("list", images(7)[:5]),
        ("goes_on", images(7)),
        ("sharded", images(7)),
        ("failed", []),
    ):
        by_hand = seen(run_by_hand(prepare(ResidualNet()), expected))
        for rank in range(world):
            assert seen(torch.jit.load(tmp_path / f"{name}{rank}" / "model.pt")) == by_hand
    for name, count in (("list", "5"), ("goes_on", "2"), ("sharded", "7")):
        assert (tmp_path / f"{name}{world - 1}" / "batches").read_text() == count

    whole = jitquant.convert_jit(run_by_hand(prepare(ResidualNet()), images(7)))
    torch.jit.save(whole, tmp_path / "model.pt")
    for rank in range(world):
        file = tmp_path / f"converted{rank}" / "model.pt"
        assert file.read_bytes() == (tmp_path / "model.pt").read_bytes()

    assert (tmp_path / "error1").read_text().startswith("RuntimeError: ")
    first = (tmp_path / "error0").read_text()
    assert first.startswith("JitQuantError: calibrate_distributed: rank 1: RuntimeError: ")
    place = "calibrate_distributed: batch 1 is a float32 tensor (2, 5, 8, 8)"
    assert place in first and first.endswith("x: Tensor.")


def test_distributed_needs_a_process_group() -> None:
    with pytest.raises(JitQuantError, match=r"not initialized. Start the script with torchrun"):
        jitquant.calibrate_distributed(prepare(PlainNet()), images())

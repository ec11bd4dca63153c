"""jitquant.save: what torch.jit.save writes, in less space."""

import errno
import io
import os
import re
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jitquant
from benchmarks.compare_peers import SPARE_MB
from benchmarks.subjects import make_subject
from jitquant import numeric_suite
from jitquant.errors import JitQuantTypeError, JitQuantValueError
from tests.models import ResidualNet, calibrate, images, reloaded, scripted, traced

UNTYPED: Any = jitquant  # the same functions, for calls that a type checker would refuse
QCONFIG = {"": jitquant.get_default_qconfig()}


@cache
def prepared(kind: str) -> torch.jit.ScriptModule:
    """Calibrated."""
    model = scripted(ResidualNet()) if kind == "scripted" else traced(ResidualNet(), images())
    result = jitquant.prepare_jit(model, QCONFIG)
    calibrate(result, images())
    return result


@cache
def int8(kind: str = "scripted") -> torch.jit.ScriptModule:
    return jitquant.convert_jit(prepared(kind))


def saved(model: torch.jit.ScriptModule) -> bytes:
    file = io.BytesIO()
    jitquant.save(model, file)
    return file.getvalue()


def loaded(content: bytes) -> torch.jit.ScriptModule:
    model: torch.jit.ScriptModule = torch.jit.load(io.BytesIO(content))
    return model


def run(model: torch.jit.ScriptModule) -> Tensor:
    with torch.inference_mode():
        y: Tensor = model(images(5, 3, 7, 9, seed=1))
    return y


@pytest.mark.parametrize("kind", ["scripted", "traced"])
@pytest.mark.parametrize("of", [str, Path])
def test_a_path(kind: str, of: Callable[[Path], Any], tmp_path: Path) -> None:
    jitquant.save(int8(kind), of(tmp_path / "model.pt"))
    assert torch.equal(run(torch.jit.load(tmp_path / "model.pt")), run(int8(kind)))
    assert os.listdir(tmp_path) == ["model.pt"]


def test_a_file_object_is_written_where_it_stands() -> None:
    file = io.BytesIO()
    file.write(b"before")
    jitquant.save(int8(), file)
    assert file.getvalue() == b"before" + saved(int8())
    file.seek(len(b"before"))
    assert torch.equal(run(torch.jit.load(file)), run(int8()))


def test_a_file_object_needs_nothing_but_write() -> None:
    class Sink:
        def __init__(self) -> None:
            self.content = b""

        def write(self, data: bytes) -> None:
            self.content += data

    sink = Sink()
    jitquant.save(int8(), sink)
    assert sink.content == saved(int8())


def test_the_records_are_those_of_torch_but_deflated() -> None:
    stock = io.BytesIO()
    torch.jit.save(int8(), stock)
    theirs, ours = (zipfile.ZipFile(file) for file in (stock, io.BytesIO(saved(int8()))))
    assert ours.testzip() is None
    assert ours.namelist() == theirs.namelist()
    assert [ours.read(name) for name in ours.namelist()] == [
        theirs.read(name) for name in theirs.namelist()
    ]
    assert {of.compress_type for of in ours.infolist()} == {zipfile.ZIP_DEFLATED}
    assert zipfile.ZIP_STORED in {of.compress_type for of in theirs.infolist()}


def test_same_bytes_whatever_the_file_is_called(tmp_path: Path) -> None:
    """And whenever it is written."""
    jitquant.save(int8(), tmp_path / "a.pt")
    with open(tmp_path / "a.pt", "rb"):  # the file in memory gets another number
        jitquant.save(int8(), tmp_path / "b.pt")
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes() == saved(int8())
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        assert {of.date_time for of in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_extra_files() -> None:
    file = io.BytesIO()
    jitquant.save(
        int8(), file, _extra_files={"labels.txt": "Katze, Hündin", "größe.bin": b"\xff\0"}
    )
    file.seek(0)
    extra: dict[str, Any] = {"labels.txt": "", "größe.bin": ""}
    torch.jit.load(file, _extra_files=extra)
    assert extra == {"labels.txt": "Katze, Hündin".encode(), "größe.bin": b"\xff\0"}


def test_jitquant_reads_the_file() -> None:
    model = loaded(saved(int8()))
    jitquant.check(model)
    assert jitquant.coverage(model) == jitquant.coverage(int8())
    compared = [
        numeric_suite.compare_weights(scripted(ResidualNet()), each) for each in (model, int8())
    ]
    assert str(compared[0]) == str(compared[1])


def test_prepared_models_keep_what_their_observers_saw() -> None:
    assert saved(jitquant.convert_jit(loaded(saved(prepared("scripted"))))) == saved(int8())


@pytest.mark.parametrize("debug", [True, "exact"])
def test_debug_models(debug: Any) -> None:
    model = jitquant.convert_jit(prepared("scripted"), debug=debug)
    assert torch.equal(run(loaded(saved(model))), run(reloaded(model)))


def test_dynamic_models() -> None:
    model = scripted(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8)))
    dynamic = jitquant.quantize_dynamic_jit(model, {"": jitquant.per_channel_dynamic_qconfig})
    x = images(4, 64)
    assert torch.equal(loaded(saved(dynamic))(x), dynamic(x))


def test_size() -> None:
    """The bound is 1.02; torch.jit.save's file has 1.06."""
    subject = make_subject("mobilenet_v2", pixels=64)
    ready = jitquant.prepare_jit(subject.traced, QCONFIG)
    jitquant.calibrate(ready, subject.calibration[:1], progress=False)
    assert len(saved(jitquant.convert_jit(ready))) / 1e6 < 1.02 * (subject.int8_mb + SPARE_MB)


def test_records_above_two_gb(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their headers are of zip64, here from 50 bytes on."""
    plain = saved(int8())
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 50)
    content = saved(int8())
    assert len(content) > len(plain)
    assert torch.equal(run(loaded(content)), run(int8()))


# Where it is written


class Unsaveable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.python(x)
        return y

    @torch.jit.ignore  # type: ignore[untyped-decorator]
    def python(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("before", [None, b"what was there"])
def test_a_failure_leaves_what_was_there(before: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(RuntimeError, match="Could not export Python function call 'python'"):
        jitquant.save(scripted(Unsaveable()), path)
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == (
        {} if before is None else {"model.pt": before}
    )


def test_a_file_that_is_replaced_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.touch()
    path.chmod(0o604)
    jitquant.save(int8(), path)
    assert path.read_bytes() == saved(int8())
    assert path.stat().st_mode & 0o777 == 0o604


def test_a_new_file_has_the_mode_of_new_files(tmp_path: Path) -> None:
    jitquant.save(int8(), tmp_path / "model.pt")
    (tmp_path / "other").touch()
    assert (tmp_path / "model.pt").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_link_stays_one(tmp_path: Path) -> None:
    link, target = tmp_path / "link.pt", tmp_path / "folder" / "model.pt"
    target.parent.mkdir()
    link.symlink_to(target)
    for _ in range(2):  # it points to nothing, and then to a file
        jitquant.save(int8(), link)
        assert link.is_symlink() and target.read_bytes() == saved(int8())


def test_what_is_no_file_is_written_itself() -> None:
    with open(os.memfd_create("test"), "w+b") as file:
        jitquant.save(int8(), f"/proc/self/fd/{file.fileno()}")
        assert file.read() == saved(int8())
    with pytest.raises(OSError) as caught:
        jitquant.save(int8(), "/dev/full")
    assert caught.value.errno == errno.ENOSPC
    assert Path("/dev/full").is_char_device()


def test_paths_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path}/no_such_folder/model.pt")):
        jitquant.save(int8(), tmp_path / "no_such_folder" / "model.pt")
    with pytest.raises(FileNotFoundError, match=r"there is no such folder: ''$"):
        jitquant.save(int8(), "")
    with pytest.raises(IsADirectoryError, match=re.escape(str(tmp_path))):
        jitquant.save(int8(), tmp_path)


# Mistakes


def test_no_script_module() -> None:
    text = "save takes a ScriptModule, got the nn.Module ResidualNet. Script or trace it first: "
    with pytest.raises(JitQuantTypeError, match=re.escape(text)):
        UNTYPED.save(ResidualNet(), io.BytesIO())


def test_no_forward() -> None:
    class NoForward(nn.Module):
        pass

    with pytest.raises(JitQuantValueError, match="save: the model has no method 'forward'"):
        jitquant.save(torch.jit.script(NoForward()), io.BytesIO())


@pytest.mark.parametrize("f", [None, 3, b"model.pt", ["model.pt"]])
def test_no_path_and_no_file(f: object) -> None:
    text = (
        "save: f must be a path or a binary file that is open for writing, got "
        f"{type(f).__name__}. The model comes first: save(model, path)."
    )
    with pytest.raises(JitQuantTypeError, match=re.escape(text)):
        UNTYPED.save(int8(), f)


def test_the_file_before_the_model() -> None:
    with pytest.raises(JitQuantTypeError, match=r"got \w+Module\. The model comes first: save\(m"):
        UNTYPED.save("model.pt", int8())


def test_a_file_of_text(tmp_path: Path) -> None:
    text = (
        "save: f must be a binary file, got TextIOWrapper, which takes text: open it with mode "
        "'wb', or give its path."
    )
    with (
        open(tmp_path / "model.pt", "w", encoding="utf-8") as file,
        pytest.raises(JitQuantTypeError, match=re.escape(text)),
    ):
        UNTYPED.save(int8(), file)


@pytest.mark.parametrize(
    ("extra_files", "text"),
    [
        (["a.txt"], "must be a dict of names and contents, got list."),
        (
            {"a.txt": 1},
            "must map names to contents, str to str or bytes, and maps 'a.txt' to int.",
        ),
        ({1: "a"}, "must map names to contents, str to str or bytes, and maps 1 to str."),
    ],
)
def test_extra_files_that_are_none(extra_files: object, text: str) -> None:
    with pytest.raises(JitQuantTypeError, match=re.escape(f"save: _extra_files {text}")):
        UNTYPED.save(int8(), io.BytesIO(), _extra_files=extra_files)

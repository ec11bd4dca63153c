"""Model files with deflated records, and files in memory."""

import errno
import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Protocol

import torch

from jitquant import _checks
from jitquant.errors import JitQuantTypeError

__all__ = ["save", "saved_in_memory"]

_FOLDER = "archive"  # of all records; torch.jit.save takes the file's name
_DATE = (1980, 1, 1, 0, 0, 0)


class _Writable(Protocol):
    def write(self, data: bytes, /) -> object: ...


def save(
    m: torch.jit.ScriptModule,
    f: str | os.PathLike[str] | _Writable,
    _extra_files: Mapping[str, str | bytes] | None = None,
) -> None:
    """Write a model as `torch.jit.save` does, in a smaller file that takes longer to load.

    The records of the archive are deflated. `torch.jit.load` and libtorch inflate them. The same
    model gives the same bytes, whatever the file is called.

    Args:
        m: any ScriptModule, float or int8; unchanged.
        f: a path, or a binary file that is open for writing. At a path the whole file appears, or
            what was there stays.
        _extra_files: names and contents that are stored along; `torch.jit.load` gives them back.

    Raises:
        JitQuantTypeError: m is no ScriptModule; f is no path and no binary file; _extra_files maps
            something else.
        JitQuantValueError: m has no method forward.
        OSError: f cannot be written.
        RuntimeError: torch.jit.save cannot save the model.
    """
    _check_file(f)
    model = _checks.check_script_module(m, "save")
    _check_extra_files(_extra_files)
    with (
        _opened(f) as file,
        saved_in_memory(model, _extra_files) as plain,
        _memory_file() as deflated,
    ):
        _deflate(plain, deflated)
        deflated.seek(0)
        shutil.copyfileobj(deflated, file)


@contextmanager
def saved_in_memory(
    model: torch.jit.ScriptModule, extra_files: Mapping[str, str | bytes] | None = None
) -> Iterator[str]:
    """The path of a file in memory. torch copies what it loads from a buffer four times."""
    with _memory_file() as file:
        path = f"/proc/self/fd/{file.fileno()}"
        torch.jit.save(model, path, _extra_files=dict(extra_files or {}))
        yield path


def _memory_file() -> IO[bytes]:
    return open(os.memfd_create("jitquant"), "w+b")


@contextmanager
def _opened(f: str | os.PathLike[str] | _Writable) -> Iterator[_Writable]:
    """`f`, or a file that comes to lie at this path once the block is left without an error."""
    if not isinstance(f, str | os.PathLike):
        yield f
        return
    target = os.path.realpath(f)
    if not os.fspath(f) or not os.path.isdir(os.path.dirname(target)):
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", os.fspath(f))
    if os.path.exists(f) and not os.path.isfile(target):  # a device, a pipe or a folder
        with open(f, "wb") as file:
            yield file
        return
    with tempfile.TemporaryDirectory(dir=os.path.dirname(target)) as folder:
        part = os.path.join(folder, "part")
        with open(part, "wb") as file:
            yield file
        if os.path.exists(target):
            shutil.copymode(target, part)
        os.replace(part, target)


def _deflate(path: str, file: IO[bytes]) -> None:
    """Write the zip archive at `path` anew, its records in their order."""
    with (
        zipfile.ZipFile(path) as archive,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as deflated,
    ):
        for record in archive.infolist():
            _, _, name = record.filename.partition("/")
            info = zipfile.ZipInfo(f"{_FOLDER}/{name}", _DATE)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.file_size = record.file_size  # above 2 GB its header is another one
            with archive.open(record) as source, deflated.open(info, "w") as target:
                shutil.copyfileobj(source, target)


def _check_file(f: object) -> None:
    if isinstance(f, str | os.PathLike):
        return
    if not callable(getattr(f, "write", None)):
        raise JitQuantTypeError(
            "save: f must be a path or a binary file that is open for writing, got "
            f"{type(f).__name__}. The model comes first: save(model, path)."
        )
    if isinstance(f, io.TextIOBase):
        raise JitQuantTypeError(
            f"save: f must be a binary file, got {type(f).__name__}, which takes text: open it "
            "with mode 'wb', or give its path."
        )


def _check_extra_files(extra_files: object) -> None:
    if extra_files is None:
        return
    if not isinstance(extra_files, Mapping):
        raise JitQuantTypeError(
            "save: _extra_files must be a dict of names and contents, got "
            f"{type(extra_files).__name__}."
        )
    for name, content in extra_files.items():
        if not isinstance(name, str) or not isinstance(content, str | bytes):
            raise JitQuantTypeError(
                "save: _extra_files must map names to contents, str to str or bytes, and maps "
                f"{name!r} to {type(content).__name__}."
            )

"""_version_check: a missing or stale extension is explained before it is loaded."""

import importlib.util
import sys
from types import ModuleType

import pytest
import torch

from jitquant import _version_check

COMMAND = "pip install --no-build-isolation --force-reinstall --no-deps ."


@pytest.fixture
def build_info(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stand-in for the generated `jitquant._build_info`."""
    module = ModuleType("jitquant._build_info")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_the_installed_extension_fits_the_installed_torch() -> None:
    _version_check.check()


def test_another_release_names_both_and_the_command(build_info: ModuleType) -> None:
    build_info.__dict__["TORCH_VERSION"] = "1.2.3"
    release = torch.__version__.partition("+")[0]
    with pytest.raises(ImportError) as error:
        _version_check.check()
    assert str(error.value) == (
        f"jitquant's extension was built for torch 1.2.3, but torch {release} is installed. "
        f"Build it again, in jitquant's source folder: {COMMAND}"
    )


@pytest.mark.parametrize("running", ["2.14.1", "2.14.1+cpu", "2.14.1+cu130"])
def test_a_local_part_does_not_count(running: str) -> None:
    _version_check.check_release("2.14.1", running)


@pytest.mark.parametrize("running", ["2.14.0", "2.14.10", "2.14.1a0+git123", "2.15.0+cpu"])
def test_any_other_release_counts(running: str) -> None:
    with pytest.raises(ImportError, match=r"built for torch 2\.14\.1, but torch 2\.1"):
        _version_check.check_release("2.14.1", running)


def test_missing_build_info_means_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jitquant._build_info", None)
    with pytest.raises(ImportError) as error:
        _version_check.check()
    assert str(error.value) == (
        "jitquant's extension is not built: it has no jitquant/_build_info.py. "
        f"Build it, in jitquant's source folder: {COMMAND}"
    )


def test_missing_library_means_not_built(
    build_info: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_info.__dict__["TORCH_VERSION"] = torch.__version__.partition("+")[0]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"not built: it has no jitquant/_C for this Python"):
        _version_check.check()

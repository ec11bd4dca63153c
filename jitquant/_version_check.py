"""Says in words what would otherwise be an undefined symbol: the extension fits one torch release.

Called before `jitquant._C` is imported, and so it must not import it.
"""

import importlib
import importlib.util

import torch

BUILD_COMMAND = "pip install --no-build-isolation --force-reinstall --no-deps ."


def check() -> None:
    """Raises ImportError unless the extension is there and was built for the running torch."""
    try:
        built_for: str = importlib.import_module("jitquant._build_info").TORCH_VERSION
    except ModuleNotFoundError:
        raise ImportError(_not_built("it has no jitquant/_build_info.py")) from None
    if importlib.util.find_spec("jitquant._C") is None:
        raise ImportError(_not_built("it has no jitquant/_C for this Python"))
    check_release(built_for, running=torch.__version__)


def check_release(built_for: str, running: str) -> None:
    """Raises ImportError unless both are one release; a local part (`+cpu`) does not count."""
    release = str(running).partition("+")[0]
    if release != built_for:
        raise ImportError(
            f"jitquant's extension was built for torch {built_for}, but torch {release} is "
            f"installed. Build it again, in jitquant's source folder: {BUILD_COMMAND}"
        )


def _not_built(found: str) -> str:
    return (
        f"jitquant's extension is not built: {found}. "
        f"Build it, in jitquant's source folder: {BUILD_COMMAND}"
    )

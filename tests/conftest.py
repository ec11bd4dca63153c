"""How the tests run: graphs are checked after every pass, and each process has one thread.

Users' runs check a graph once, at the end. `make test` runs a process on each core.
"""

import os
from collections.abc import Iterator

import pytest
import torch

os.environ["JITQUANT_CHECK_EACH_PASS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def leaves_torch_as_it_was() -> Iterator[None]:
    """Each test must leave torch's settings of the process to the next ones."""
    before = _settings()
    yield
    assert _settings() == before


def _settings() -> tuple[bool, str, int]:
    return torch.is_grad_enabled(), torch.backends.quantized.engine, torch.get_num_threads()

"""torch's quantized engine, for as long as it is needed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["engine_set"]


@contextmanager
def engine_set(engine: str) -> Iterator[str]:
    """Run ops on a quantized engine, and go back to the one that was set."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    try:
        yield engine
    finally:
        torch.backends.quantized.engine = before

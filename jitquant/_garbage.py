"""Python's garbage collector, told when there is nothing to collect."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["uncollected"]


@contextmanager
def uncollected() -> Iterator[None]:
    """No search for garbage among Python objects while the block runs.

    torch makes tens of objects for each module of a model. All of them stay, and each time that
    there are a quarter more the collector would look at all that this process has.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

"""Tables for people, in one style."""

from collections.abc import Iterable, Sequence

from tabulate import tabulate

__all__ = ["table"]


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows under headers, all on the left: a module's path such as "0" is no number."""
    return str(tabulate(list(rows), headers=headers, disable_numparse=True))

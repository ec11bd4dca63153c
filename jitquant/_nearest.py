"""What a user may have meant by a name that does not exist."""

import difflib
import re
from collections.abc import Iterable, Sequence

__all__ = ["nearest", "nearest_to_regex", "some"]


def some(names: Sequence[str], count: int) -> str:
    """The first names, quoted, and how many more there are."""
    shown = ", ".join(map(repr, names[:count]))
    return shown if len(names) <= count else f"{shown} and {len(names) - count} more"


def nearest(name: str, candidates: Iterable[str]) -> str:
    """A sentence that names what is like `name`, or else what there is.

    Ops are compared without their namespace, all others as a whole, then by their last part, then
    with the paths around them.

    Args:
        name: what was given.
        candidates: what exists; "" is no name.
    """
    names = [candidate for candidate in dict.fromkeys(candidates) if candidate]
    close = [] if "::" in name else difflib.get_close_matches(name, names, n=3)
    close = close or [
        candidate
        for part in difflib.get_close_matches(_last(name), map(_last, names), n=3)
        for candidate in names
        if _last(candidate) == part
    ]
    close = list(dict.fromkeys(close)) or [each for each in names if name.startswith(f"{each}.")]
    if close:
        return f"The nearest names are: {some(close, 3)}."
    outermost_first = sorted(names, key=lambda each: each.count("."))
    return f"It has {some(outermost_first, 8)}." if names else "It has none."


def nearest_to_regex(regex: str, candidates: Iterable[str]) -> str:
    """A sentence that says how far a regular expression, which matches nothing, does match."""
    names = [candidate for candidate in candidates if candidate]
    inside = [name for name in names if re.search(regex, name)]
    if inside:
        return (
            "It is matched at the start of a path, and would match inside of "
            f"{some(inside, 3)}: begin it with '.*'."
        )
    for length in range(len(regex) - 1, 0, -1):
        found = _matching(regex[:length], names)
        if found:
            return f"Its beginning {regex[:length]!r} matches {some(found, 3)}."
    return nearest(regex, names)


def _last(name: str) -> str:
    return re.split(r"\.|::", name)[-1]


def _matching(regex: str, names: Sequence[str]) -> list[str]:
    """What a regular expression matches with one character or more; nothing if it is none."""
    try:
        pattern = re.compile(regex)
    except re.error:
        return []
    return [name for name in names if (found := pattern.match(name)) and found.group()]

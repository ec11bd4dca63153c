"""What comparing two models gives."""

import os
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from jitquant import _export
from jitquant._table import table
from jitquant.numeric_suite._sites import Site, Unmatched
from jitquant.numeric_suite.errors import Errors

__all__ = ["Comparison", "OpError", "What"]

What = Literal["weights", "outputs", "ops"]

_TITLES = {
    "weights": "weights",
    "outputs": "accumulated error of each op's output",
    "ops": "error of each op on the float model's inputs",
}


@dataclass(frozen=True)
class OpError:
    """One op of both models.

    Attributes:
        module: path of the module that called it, "" for the top module. The argument's name for
            the rounding of an input, and "output" or "output.0" for what forward returns.
        op: the float op with what it absorbs, such as "aten::conv2d + aten::relu"; "quantize input"
            and "quantize aten::mean" for the rounding of what an argument of forward or a float op
            gives; "return" for what forward returns.
        index: how many of the same op come before it in its module.
        int8: whether it runs in int8.
        how: how it is int8 ("quantized::conv2d_relu"), or why it stays float.
        source: file and line of the user's code, "" if the archive does not say.
        errors: what its values differ by.
    """

    module: str
    op: str
    index: int
    int8: bool
    how: str
    source: str
    errors: Errors

    @classmethod
    def of(cls, site: Site, errors: Errors) -> "OpError":
        """The errors of a site."""
        return cls(site.module, site.op, site.index, site.int8, site.how, site.source, errors)


@dataclass(frozen=True)
class Comparison:
    """Two models, op by op; prints as a table, the most damaged op first.

    Attributes:
        what: "weights", "outputs" or "ops", as the function that made it.
        ops: in graph order.
        unmatched: the ops that could not be compared, with reasons.
        batches: how many batches both models ran on, 0 for weights.
    """

    what: What
    ops: tuple[OpError, ...]
    unmatched: tuple[Unmatched, ...]
    batches: int

    @property
    def ranked(self) -> tuple[OpError, ...]:
        """The ops, the most damaged first: by `Errors.damage`, equal ones in graph order."""
        return tuple(sorted(self.ops, key=lambda each: -each.errors.damage))

    @property
    def left_out(self) -> str:
        """A line about values that are not finite in the float model, "" if all are."""
        count = sum(each.errors.not_finite for each in self.ops)
        if not count:
            return ""
        if not any(each.errors.count for each in self.ops):
            return f"nothing was compared: none of {count} values is finite in the float model"
        return f"left out: {count} values that are not finite in the float model"

    def __str__(self) -> str:
        rows = [
            (
                each.module,
                each.op,
                "int8" if each.int8 else "float",
                _export.decibels(each.errors.sqnr),
                _export.decibels(each.errors.channel_sqnr),
                _export.number(each.errors.max_abs_error),
                _export.number(each.errors.mean_abs_error),
                f"{each.errors.cosine:.5f}",
            )
            for each in self.ranked
        ]
        headers = ["module", "op", "runs in", "SQNR (dB)", "by channel (dB)"]
        headers += ["max error", "mean error", "cosine"]
        lines = [_TITLES[self.what], "", table(headers, rows)]
        if self.left_out:
            lines += ["", self.left_out]
        if self.unmatched:
            reasons = Counter(f"{each.op}: {each.reason}" for each in self.unmatched)
            lines += ["", f"{len(self.unmatched)} not compared:"]
            lines += [f"  {count} x {reason}" for reason, count in reasons.most_common()]
        return "\n".join(lines)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one line for each op, the most damaged first."""
        _export.write_csv(path, (_flat(each) for each in self.ranked))

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write all of it, ops in graph order; infinite numbers are "inf" and "-inf"."""
        _export.write_json(path, self)


def _flat(op: OpError) -> dict[str, Any]:
    values = _export.plain(op)
    errors = values.pop("errors")
    errors.pop("channels")
    return {**values, **errors}

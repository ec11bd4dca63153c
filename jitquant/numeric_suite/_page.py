"""The HTML of a report: styles and drawings are in the page, and no script."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from jitquant._export import decibels, number
from jitquant.numeric_suite import _drawings
from jitquant.numeric_suite.comparison import Comparison, OpError
from jitquant.numeric_suite.ranges import OutlierChannel, ValueRange, WeightRange

if TYPE_CHECKING:
    from jitquant.numeric_suite.report import Report

__all__ = ["page"]

_LARGE = 12
"""How many of the most damaged ops have their histograms shown; the others are folded away."""

_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; color: #222; max-width: 1240px; margin: 24px auto;
  padding: 0 20px; }
h1 { font-size: 22px; } h2 { font-size: 17px; margin: 32px 0 8px; }
p { max-width: 80ch; color: #555; margin: 4px 0 12px; }
.cards { display: flex; gap: 12px; flex-wrap: wrap; }
.card { border: 1px solid #ddd; border-radius: 8px; padding: 10px 16px; min-width: 130px; }
.card b { display: block; font-size: 20px; } .card span { color: #666; font-size: 12px; }
table { border-collapse: collapse; font-size: 12.5px; }
th { text-align: left; border-bottom: 2px solid #ccc; padding: 4px 10px 4px 0; background: #fff;
  position: sticky; top: 0; }
td { border-bottom: 1px solid #eee; padding: 3px 10px 3px 0; vertical-align: middle; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.bad { color: #b00020; font-weight: 600; }
.scroll { overflow-x: auto; }
.grid { display: grid; grid-template-columns: repeat(3, 1fr); gap: 14px; }
figure { margin: 0; border: 1px solid #eee; border-radius: 6px; padding: 8px; }
figcaption { font-size: 12px; overflow-wrap: anywhere; } svg { display: block; max-width: 100%; }
summary { cursor: pointer; margin: 10px 0; }
"""

_BAD_SQNR = 15.0
_BAD_SHARE = 0.01


def page(report: "Report", title: str) -> str:
    """The whole page."""
    sections = [_cards(report), _not_finite(report), _curve(report), _damage(report)]
    sections += [_histograms(report)]
    sections += [_unmatched(report.outputs), _coverage(report)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{escape(title)}</h1>\n" + "\n".join(sections) + "\n</body></html>\n"
    )


def _cards(report: "Report") -> str:
    before, after = report.float_cost, report.quantized_cost
    returned = [each for each in report.outputs.ops if each.op == "return"]
    covered = report.coverage
    cards = [
        (f"{after.size / 1e6:.2f} MB", f"size; float {before.size / 1e6:.2f} MB"),
        (
            f"{after.latency:.2f} ms",
            f"latency; float {before.latency:.2f} ms; threads: {after.threads}",
        ),
        (f"{before.latency / after.latency:.2f}x", "as fast"),
        (f"{len(covered.int8)} of {len(covered.ops)}", "ops in int8"),
    ]
    cards += [
        (
            f"{decibels(each.errors.sqnr)} dB",
            f"SQNR of {each.module}, {report.outputs.batches} batches",
        )
        for each in returned
    ]
    inner = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(text)}</span></div>'
        for value, text in cards
    )
    return f'<div class="cards">{inner}</div>'


def _not_finite(report: "Report") -> str:
    text = report.outputs.left_out
    return f'<p class="bad">{escape(text[:1].upper() + text[1:])}.</p>' if text else ""


def _curve(report: "Report") -> str:
    lines = [
        (each.what, [(_label(op), op.errors.sqnr) for op in each.ops])
        for each in (report.ops, report.outputs)
    ]
    return (
        "<h2>SQNR through the model</h2><p>Ops from first to last. <b>ops</b>: each op on the "
        "float model's values, so that a dip is an op that makes an error itself. <b>outputs</b>: "
        "the error that came up to there. Point at a dot to see its op.</p>"
        f'<div class="scroll">{_drawings.curves(lines)}</div>'
    )


def _damage(report: "Report") -> str:
    outputs = {_key(each): each.errors for each in report.outputs.ops}
    weights = {_key(each): each.errors for each in report.weights.ops}
    ranges = {_key(each): each for each in report.histograms.values}
    rows = []
    for each in report.ops.ranked:
        total, weight = outputs.get(_key(each)), weights.get(_key(each))
        rows.append(
            [
                _text(each.module),
                _text(each.op.replace("aten::", "")),
                _text("int8" if each.int8 else "float"),
                f"<td>{_drawings.bar(each.errors.sqnr)}</td>",
                _sqnr(each.errors.sqnr),
                _sqnr(each.errors.channel_sqnr),
                _sqnr(total.sqnr) if total else "<td></td>",
                _sqnr(weight.sqnr) if weight else "<td></td>",
                *_range_cells(ranges.get(_key(each))),
            ]
        )
    headers = ["module", "op", "runs in", "", "SQNR (dB)", "by channel", "accumulated", "weight"]
    headers += ["clipped", "unused", "outlier channels"]
    return (
        "<h2>Damage by layer</h2><p>The most damaged op first. SQNR and its mean over channels are "
        "those of the op alone, on the float model's values; accumulated is with the error of all "
        "ops before it. Clipped: the share of values outside of the range that calibration chose; "
        "unused: the share of that range in which nothing lies.</p>"
        f'<div class="scroll">{_table(headers, rows)}</div>'
    )


def _range_cells(found: ValueRange | None) -> list[str]:
    if found is None:
        return ["<td></td>"] * 3
    style = "n bad" if found.saturated > _BAD_SHARE else "n"
    return [
        f'<td class="{style}">{100 * found.saturated:.2f} %</td>',
        f'<td class="n">{100 * found.unused:.0f} %</td>',
        _text(_outliers(found.outliers)),
    ]


def _histograms(report: "Report") -> str:
    weights: dict[tuple[str, str, int], WeightRange] = {
        _key(each): each for each in report.histograms.weights
    }
    ranges = {_key(each): each for each in report.histograms.values}
    figures = []
    for each in report.ops.ranked:
        value, weight = ranges.get(_key(each)), weights.get(_key(each))
        if value is None:
            continue
        caption = _label(each)
        text = f"{number(value.low)} to {number(value.high)}"
        figures.append(_figure(f"{caption}: values, {text}", _drawings.bars(value.histogram)))
        if weight is not None:
            text = f"{number(weight.low)} to {number(weight.high)}"
            figures.append(_figure(f"{caption}: weight, {text}", _drawings.bars(weight.histogram)))
    shown, folded = figures[:_LARGE], figures[_LARGE:]
    rest = (
        f"<details><summary>{len(folded)} more</summary>{_grid(folded)}</details>" if folded else ""
    )
    return (
        "<h2>Histograms</h2><p>Of the most damaged ops first, counts on a logarithmic scale. Grey: "
        f"float; blue: quantized.</p>{_grid(shown)}{rest}"
    )


def _unmatched(comparison: Comparison) -> str:
    if not comparison.unmatched:
        return ""
    rows = [
        [_text(each.module), _text(each.op), _text(each.reason)] for each in comparison.unmatched
    ]
    table = _table(["module", "op", "reason"], rows)
    return f"<h2>Not compared</h2><details><summary>{len(rows)} ops</summary>{table}</details>"


def _coverage(report: "Report") -> str:
    headers = ["module", "op", "runs in", "how or why", "source"]
    rows = [
        [
            _text(each.module),
            _text(each.op),
            _text("int8" if each.int8 else "float"),
            _text(each.reason),
            _text(each.source),
        ]
        for each in report.coverage.ops
    ]
    kept = [row for row, op in zip(rows, report.coverage.ops, strict=True) if not op.int8]
    floats = _table(headers, kept) if kept else "<p>No op stays float.</p>"
    return (
        f"<h2>Coverage</h2><p>{len(report.coverage.int8)} of {len(rows)} ops are int8. Those that "
        f'stay float:</p><div class="scroll">{floats}</div>'
        f'<details><summary>all {len(rows)} ops</summary><div class="scroll">'
        f"{_table(headers, rows)}</div></details>"
    )


def _key(each: OpError | ValueRange | WeightRange) -> tuple[str, str, int]:
    return each.module, each.op, each.index


def _label(each: OpError) -> str:
    count = f" ({each.index + 1})" if each.index else ""
    return f"{each.module} {each.op.replace('aten::', '')}{count}".strip()


def _sqnr(value: float) -> str:
    style = "n bad" if value < _BAD_SQNR else "n"
    return f'<td class="{style}">{decibels(value)}</td>'


def _outliers(channels: Sequence[OutlierChannel]) -> str:
    shown = ", ".join(f"{each.channel} ({each.ratio:.0f}x)" for each in channels[:3])
    return shown + (f" and {len(channels) - 3} more" if len(channels) > 3 else "")


def _text(value: str) -> str:
    return f"<td>{escape(value)}</td>"


def _table(headers: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{escape(each)}</th>" for each in headers)
    body = "".join(f"<tr>{''.join(row)}</tr>\n" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"


def _figure(caption: str, drawing: str) -> str:
    return f"<figure>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


def _grid(figures: Iterable[str]) -> str:
    return f'<div class="grid">{"".join(figures)}</div>'

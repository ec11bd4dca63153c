"""Small SVG drawings."""

import math
from collections.abc import Sequence
from html import escape

from jitquant.numeric_suite.ranges import Histogram

__all__ = ["bar", "bars", "curves"]

_TOP = 60.0
"""The SQNR in dB at which scales end; what is better is drawn there."""

_COLORS = ("#1a73e8", "#d9822b")


def bar(sqnr: float) -> str:
    """The SQNR as a length, red where it is low."""
    part = _clamped(sqnr) / _TOP
    color = "#b00020" if sqnr < 15 else "#d9822b" if sqnr < 25 else "#2e7d32"
    return (
        '<svg width="90" height="10"><rect width="90" height="10" fill="#eee"/>'
        f'<rect width="{90 * part:.1f}" height="10" fill="{color}"/></svg>'
    )


def bars(histogram: Histogram) -> str:
    """Both counts on a logarithmic scale: float grey and filled, quantized a blue line."""
    width, height = 360, 110
    largest = max(*histogram.float_counts, *histogram.quantized_counts, 1)
    step = width / len(histogram.float_counts)

    def heights(counts: Sequence[int]) -> list[float]:
        return [height - 2 - (height - 4) * math.log1p(n) / math.log1p(largest) for n in counts]

    def line(counts: Sequence[int]) -> str:
        return " ".join(
            f"{i * step:.1f},{y:.1f} {(i + 1) * step:.1f},{y:.1f}"
            for i, y in enumerate(heights(counts))
        )

    base = height - 2
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f'<polygon fill="#ccc" points="0,{base} {line(histogram.float_counts)} {width},{base}"/>'
        f'<polyline fill="none" stroke="{_COLORS[0]}" points="{line(histogram.quantized_counts)}"/>'
        "</svg>"
    )


def curves(lines: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> str:
    """Lines over ops: (label, [(op, SQNR in dB)]); ops that one line lacks are left out of it."""
    names = list(dict.fromkeys(name for _, points in lines for name, _ in points))
    places = {name: place for place, name in enumerate(names)}
    width, height, left, top = 1180, 240, 40, 12
    step = (width - left - 20) / max(len(names) - 1, 1)

    def y(sqnr: float) -> float:
        return top + (height - top - 20) * (1 - _clamped(sqnr) / _TOP)

    parts = [f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}">']
    for mark in range(0, int(_TOP) + 1, 20):
        parts.append(
            f'<line x1="{left}" x2="{width}" y1="{y(mark):.1f}" y2="{y(mark):.1f}" stroke="#ddd"/>'
            f'<text x="0" y="{y(mark) + 4:.1f}" font-size="11">{mark} dB</text>'
        )
    for number, (label, points) in enumerate(lines):
        color = _COLORS[number % len(_COLORS)]
        spots = [(left + step * places[name], y(value), name, value) for name, value in points]
        parts.append(
            f'<polyline fill="none" stroke="{color}" stroke-width="1.5" points="'
            + " ".join(f"{x:.1f},{at:.1f}" for x, at, _, _ in spots)
            + '"/>'
        )
        parts += [
            f'<circle cx="{x:.1f}" cy="{at:.1f}" r="3" fill="{color}">'
            f"<title>{escape(name)}: {value:.1f} dB</title></circle>"
            for x, at, name, value in spots
        ]
        parts.append(
            f'<text x="{left + 90 * number}" y="{height - 4}" font-size="12" fill="{color}">'
            f"{escape(label)}</text>"
        )
    return "".join(parts) + "</svg>"


def _clamped(sqnr: float) -> float:
    return 0.0 if math.isnan(sqnr) else min(max(sqnr, 0.0), _TOP)

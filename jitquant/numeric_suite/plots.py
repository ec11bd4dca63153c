"""Results as matplotlib figures."""

from typing import Any

from jitquant.errors import JitQuantError, JitQuantTypeError
from jitquant.numeric_suite.comparison import Comparison
from jitquant.numeric_suite.ranges import Histograms

__all__ = ["plot_histograms", "plot_sqnr"]

_LIMIT = 80.0


def plot_sqnr(*comparisons: Comparison, title: str = "SQNR by layer") -> Any:
    """Draw the SQNR of each op in graph order, a line for each comparison.

    Args:
        comparisons: of one pair of models or of several; ops are told apart by module and op.
        title: above the plot.

    Returns:
        The matplotlib Figure; `figure.savefig("sqnr.png")` writes it. Values above 80 dB are drawn
        at 80 dB.

    Raises:
        JitQuantTypeError: something else than a comparison.
        JitQuantError: matplotlib is not installed.
    """
    for each in comparisons:
        if not isinstance(each, Comparison):
            raise JitQuantTypeError(
                f"plot_sqnr takes what compare_weights, compare_outputs or compare_ops returned, "
                f"got {type(each).__name__}."
            )
    names = list(dict.fromkeys(_name(op) for each in comparisons for op in each.ops))
    places = {name: place for place, name in enumerate(names)}
    figure, (axes,) = _figure(max(6.0, 0.22 * len(names) + 2), 4.5, 1)
    for each in comparisons:
        points = [(places[_name(op)], min(op.errors.sqnr, _LIMIT)) for op in each.ops]
        xs, ys = zip(*points, strict=True) if points else ((), ())
        axes.plot(xs, ys, marker="o", markersize=3, linewidth=1, label=each.what)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    axes.set_ylabel("SQNR (dB)")
    axes.set_title(title)
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    return figure


def plot_histograms(histograms: Histograms, module: str) -> Any:
    """Draw the values and the weight of a module, before and after quantization.

    Args:
        histograms: what `histograms` returned.
        module: path of the module, or the name of an argument.

    Returns:
        The matplotlib Figure.

    Raises:
        JitQuantTypeError: histograms is something else.
        JitQuantError: the module has no quantized value; matplotlib is not installed.
    """
    if not isinstance(histograms, Histograms):
        raise JitQuantTypeError(
            f"plot_histograms takes what histograms returned, got {type(histograms).__name__}."
        )
    found = [
        (f"{each.op}, {kind}", each.histogram)
        for kind, part in (("values", histograms.values), ("weight", histograms.weights))
        for each in part
        if each.module == module
    ]
    if not found:
        known = sorted({repr(each.module) for each in histograms.values})
        raise JitQuantError(
            f"plot_histograms: {module!r} has no quantized value. There are {', '.join(known)}."
        )
    figure, all_axes = _figure(6.0, 2.6 * len(found), len(found))
    for axes, (title, histogram) in zip(all_axes, found, strict=True):
        width = (histogram.high - histogram.low) / len(histogram.float_counts)
        edges = [histogram.low + width * i for i in range(len(histogram.float_counts) + 1)]
        axes.stairs(histogram.float_counts, edges, fill=True, alpha=0.4, label="float")
        axes.stairs(histogram.quantized_counts, edges, label="quantized")
        axes.set_yscale("log")
        axes.set_title(f"{module}: {title}", fontsize=8)
        axes.legend(fontsize=7)
    figure.tight_layout()
    return figure


def _figure(width: float, height: float, rows: int) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise JitQuantError(
            "matplotlib, which plots need, is not installed: pip install jitquant[plot]."
        ) from error
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(rows, squeeze=False)[:, 0]


def _name(op: Any) -> str:
    count = f" {op.index + 1}" if op.index else ""
    return f"{op.module} {op.op.replace('aten::', '')}{count}".strip()

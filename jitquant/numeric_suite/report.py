"""write_report: one HTML page about a quantized model."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from jitquant import _batches, _export
from jitquant._cost import Cost, costs
from jitquant.coverage import Coverage, coverage
from jitquant.errors import JitQuantTypeError
from jitquant.numeric_suite import _page
from jitquant.numeric_suite._runs import Runs
from jitquant.numeric_suite._sites import Models
from jitquant.numeric_suite.activations import ComparisonSum
from jitquant.numeric_suite.comparison import Comparison
from jitquant.numeric_suite.histogram import HistogramSum
from jitquant.numeric_suite.ranges import Histograms
from jitquant.numeric_suite.weights import weight_errors

__all__ = ["Report", "write_report"]


@dataclass(frozen=True)
class Report:
    """What a report shows.

    Attributes:
        coverage: which ops are int8.
        weights: see `compare_weights`.
        outputs: see `compare_outputs`.
        ops: see `compare_ops`.
        histograms: see `histograms`.
        float_cost, quantized_cost: size and latency of both models.
    """

    coverage: Coverage
    weights: Comparison
    outputs: Comparison
    ops: Comparison
    histograms: Histograms
    float_cost: Cost
    quantized_cost: Cost


def write_report(
    path: str | os.PathLike[str],
    float_model: torch.jit.ScriptModule,
    quantized_model: torch.jit.ScriptModule,
    data: Iterable[Any],
    *,
    title: str = "Quantization report",
) -> Report:
    """Compare two models in every way, and write one HTML page that needs no other file.

    It shows size and latency (the median of runs of the first batch, in which the models take
    turns, with the threads that torch has), coverage, damage by layer, and histograms.

    Args:
        path: the file to write.
        float_model, quantized_model: see `compare_outputs`.
        data: batches as for `calibrate`. Each runs twice in both models.
        title: above the page.

    Returns:
        What the page shows, as data.

    Raises:
        JitQuantError: see `compare_outputs`.
        JitQuantTypeError: path is no path, or title no string.
        OSError: the file cannot be written.
    """
    _export.check_path(path, "write_report")
    if not isinstance(title, str):
        raise JitQuantTypeError(
            f"write_report: title must be a string, got {type(title).__name__}."
        )
    models = Models(float_model, quantized_model, "write_report")
    plain, shadow = Runs(models, shadow=False), Runs(models, shadow=True)
    outputs, ops = ComparisonSum(plain, "outputs"), ComparisonSum(shadow, "ops")
    histograms = HistogramSum(plain)
    first: list[Any] = []
    for batch in _batches.batches_of(data, "write_report"):
        first = first or [batch]
        for each in plain.run(batch):
            outputs.add(*each)
            histograms.add(*each)
        for each in shadow.run(batch):
            ops.add(*each)
    float_cost, quantized_cost = costs([models.float_model, models.quantized_model], first[0])
    report = Report(
        coverage=coverage(models.quantized_model),
        weights=weight_errors(models),
        outputs=outputs.result(),
        ops=ops.result(),
        histograms=histograms.result(),
        float_cost=float_cost,
        quantized_cost=quantized_cost,
    )
    with open(path, "w", encoding="utf-8") as file:
        file.write(_page.page(report, title))
    return report

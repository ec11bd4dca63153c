"""numeric_suite: histograms, exported tables, plots, and the report."""

import csv
import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jitquant
from jitquant import JitQuantError, JitQuantTypeError
from jitquant.numeric_suite import (
    Histograms,
    compare_ops,
    compare_outputs,
    compare_weights,
    histograms,
    plot_histograms,
    plot_sqnr,
    write_report,
)
from tests.ir import FIXED, sample, scripted


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.linear(x)))


Pair = tuple[torch.jit.ScriptModule, torch.jit.ScriptModule]


@pytest.fixture(scope="module")
def pair() -> Pair:
    model = scripted(Layers())
    return model, _quantized(model, sample(3, 4))


def _quantized(model: torch.jit.ScriptModule, *batch: Tensor) -> torch.jit.ScriptModule:
    prepared = jitquant.prepare_jit(model, {"": FIXED})
    prepared(*batch)
    return jitquant.convert_jit(prepared)


# --- histograms ---


def test_clipped_and_unused(pair: Pair) -> None:
    """-8 to 7.9375 in steps of 1/16. 7.96 is nearer to 7.9375 than half a step, 7.97 is not."""
    data = [torch.tensor([[-9.0, 0.0, 1.0, 7.96]]), torch.tensor([[0.0, 0.0, 7.97, 1.0]])]
    found = histograms(*pair, data).values[0]
    assert (found.module, found.op, found.scale) == ("x", "quantize input", 1 / 16)
    assert (found.low, found.high) == (-8.0, 7.9375)
    assert found.seen_low == -9.0
    assert found.seen_high == pytest.approx(7.97)
    assert found.saturated == 2 / 8
    assert found.unused == 0.0
    small = histograms(*pair, [torch.tensor([[-2.0, 0.0, 0.0, 1.98]])]).values[0]
    assert small.saturated == 0.0
    assert small.unused == pytest.approx(1 - 3.98 / 15.9375)


def test_counts_lie_in_the_same_bins(pair: Pair) -> None:
    """Two steps a bin, from -8: 0 is in bin 64, and 1 eight bins behind. -9 counts as -8."""
    data = [torch.tensor([[-9.0, 0.0, 0.03, 1.0]])]
    histogram = histograms(*pair, data).values[0].histogram
    expected = [0] * 128
    expected[0], expected[64], expected[72] = 1, 2, 1
    assert list(histogram.float_counts) == expected
    assert histogram.quantized_counts == histogram.float_counts
    assert (histogram.low, histogram.high) == (-8.03125, 7.96875)


def test_outlier_channels(pair: Pair) -> None:
    """Of the largest values 1, 1, 1 and 16 the median is 1. Channels of an input are dimension 1."""
    data = [torch.tensor([[1.0, -16.0, 1.0, -1.0], [0.0, 0.0, 0.0, 0.0]])]
    (found,) = histograms(*pair, data).values[0].outliers
    assert (found.channel, found.largest, found.ratio) == (1, 16.0, 16.0)
    assert histograms(*pair, [torch.ones(1, 4) * 5]).values[0].outliers == ()


def test_weights_and_ranking(pair: Pair) -> None:
    result = histograms(*pair, [sample(3, 4)])
    assert [each.module for each in result.weights] == ["linear", "last"]
    weight = result.weights[0]
    assert sum(weight.histogram.float_counts) == sum(weight.histogram.quantized_counts) == 16
    assert [each.module for each in result.values] == ["x", "linear", "last"]
    shares = [(-each.saturated, -each.unused) for each in result.ranked]
    assert shares == sorted(shares)
    assert result.batches == 1
    assert str(result).splitlines()[0].split()[:2] == ["module", "op"]


def test_seven_bits_have_a_range_of_128_steps() -> None:
    model = scripted(Layers())
    qconfig = jitquant.get_default_qconfig(activation_bits=7)
    prepared = jitquant.prepare_jit(model, {"": qconfig})
    prepared(sample(3, 4))
    found = histograms(model, jitquant.convert_jit(prepared), [sample(3, 4)]).values[0]
    assert (found.high - found.low) / found.scale == pytest.approx(127)
    assert found.unused < 0.1


# --- tables and files ---


def test_tables_are_sorted_by_damage(pair: Pair) -> None:
    result = compare_outputs(*pair, [sample(3, 4)])
    ranked = [each.errors.damage for each in result.ranked]
    assert ranked == sorted(ranked, reverse=True)
    lines = str(result).splitlines()
    assert lines[0] == "accumulated error of each op's output"
    assert [line.split("  ")[0] for line in lines[4:]] == [each.module for each in result.ranked]


def test_a_table_names_what_is_not_compared() -> None:
    class Sorts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x + x).argsort(-1)

    model = scripted(Sorts())
    result = compare_outputs(model, _quantized(model, sample(2, 3)), [sample(2, 3)])
    assert str(result).splitlines()[-2:] == [
        "1 not compared:",
        "  1 x aten::argsort: its values are int64",
    ]


def test_csv(pair: Pair, tmp_path: Path) -> None:
    result = compare_ops(*pair, [sample(3, 4)])
    result.to_csv(tmp_path / "ops.csv")
    with open(tmp_path / "ops.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["module"] for row in rows] == [each.module for each in result.ranked]
    assert [float(row["sqnr"]) for row in rows] == [each.errors.sqnr for each in result.ranked]
    found = histograms(*pair, [sample(3, 4)])
    found.to_csv(tmp_path / "ranges.csv")
    with open(tmp_path / "ranges.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["unused"]) for row in rows] == [each.unused for each in found.ranked]


def test_json_has_infinite_numbers_as_text(pair: Pair, tmp_path: Path) -> None:
    result = compare_weights(*pair)
    exact = compare_weights(*_float_pair())
    assert exact.ops[0].errors.sqnr == math.inf
    for each in (result, exact):
        each.to_json(tmp_path / "weights.json")
        read = json.loads((tmp_path / "weights.json").read_text(encoding="utf-8"))
        sqnrs = [float(op["errors"]["sqnr"]) for op in read["ops"]]
        assert sqnrs == [op.errors.sqnr for op in each.ops]
    histograms(*pair, [sample(3, 4)]).to_json(tmp_path / "ranges.json")
    read = json.loads((tmp_path / "ranges.json").read_text(encoding="utf-8"))
    assert len(read["values"][0]["histogram"]["float_counts"]) == 128


def _float_pair() -> Pair:
    """A layer that is left float beside one that is not."""
    model = scripted(Layers())
    prepared = jitquant.prepare_jit(model, {"last": FIXED, "linear": None})
    prepared(sample(3, 4))
    return model, jitquant.convert_jit(prepared)


# --- plots ---


def test_plots_have_a_point_for_each_op(pair: Pair, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    outputs, ops = compare_outputs(*pair, [sample(3, 4)]), compare_ops(*pair, [sample(3, 4)])
    figure = plot_sqnr(outputs, ops)
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == ["outputs", "ops"]
    assert [len(line.get_xdata()) for line in axes.lines] == [len(outputs.ops), len(ops.ops)]
    assert max(axes.lines[0].get_ydata()) <= 80
    figure.savefig(tmp_path / "sqnr.png")
    figure = plot_histograms(histograms(*pair, [sample(3, 4)]), "linear")
    assert [axes.get_title() for axes in figure.axes] == [
        "linear: aten::linear + aten::relu, values",
        "linear: aten::linear + aten::relu, weight",
    ]
    figure.savefig(tmp_path / "histograms.png")


def test_plot_errors(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    result = histograms(*pair, [sample(3, 4)])
    wrong: Any = 3
    with pytest.raises(
        JitQuantTypeError, match="plot_sqnr takes what compare_weights, compare_out"
    ):
        plot_sqnr(wrong)
    with pytest.raises(JitQuantTypeError, match="plot_histograms takes what histograms returned"):
        plot_histograms(wrong, "x")
    with pytest.raises(
        JitQuantError, match=r"'y' has no quantized value[.] There are 'last', 'linear', 'x'"
    ):
        plot_histograms(result, "y")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(JitQuantError, match=r"is not installed: pip install jitquant\[plot\]"):
        plot_histograms(result, "x")


# --- report ---


class _Page(HTMLParser):
    """Checks that tags close, and collects texts, headings and what would be loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.loads: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [f"{name}={value}" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


def test_report(pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    data = (x for x in [sample(3, 4), -sample(3, 4)])
    report = write_report(path, *pair, data, title="A < B")
    assert report.outputs.batches == report.ops.batches == report.histograms.batches == 2
    assert isinstance(report.histograms, Histograms)
    assert report.outputs == compare_outputs(*pair, [sample(3, 4), -sample(3, 4)])
    assert report.quantized_cost.size > 0 and report.float_cost.runs >= 5
    text = path.read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert page.open == [] and page.loads == []
    assert page.headings == [
        "A < B",
        "SQNR through the model",
        "Damage by layer",
        "Histograms",
        "Coverage",
    ]
    assert not re.search(r"https?:|@import|url\(|<script", text)
    modules = [op.module for op in report.coverage.ops] + [op.module for op in report.ops.ops]
    assert set(modules) - {""} <= set(page.cells)
    assert text.count("<figure>") == 3 + 2


class Counts(nn.Module):
    n: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("n", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.n = self.n + 1.0
        x.mul_(0.5)
        return self.linear(x)


def test_report_runs_no_model_of_the_user_and_writes_into_no_batch(tmp_path: Path) -> None:
    model = scripted(Counts())
    model.n = torch.zeros(1)
    int8 = _quantized(model, sample(3, 4))
    batch = sample(3, 4)
    write_report(tmp_path / "report.html", model, int8, [batch])
    assert model.n.item() == 0.0
    assert batch.equal(sample(3, 4))
    assert int8(batch).equal(_quantized(model, sample(3, 4))(sample(3, 4)))


def test_report_errors(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(JitQuantError, match="write_report: data gave no batch"):
        write_report(tmp_path / "report.html", *pair, [])
    with pytest.raises(JitQuantError, match="write_report: the second model is not quantized"):
        write_report(tmp_path / "report.html", pair[0], pair[0], [sample(3, 4)])
    assert list(tmp_path.iterdir()) == []

"""Where an int8 model loses accuracy: float and quantized models compared, op by op.

| function | question |
|---|---|
| `compare_weights` | what does quantizing the weights cost? |
| `compare_outputs` | how much error has come up to each op? |
| `compare_ops` | which op makes it? |
| `histograms` | do values fit the ranges that calibration chose, and use them? |

`write_report` writes the answers as one HTML page; `plot_sqnr` and `plot_histograms` draw them with
matplotlib.
"""

from jitquant._cost import Cost
from jitquant.numeric_suite._sites import Unmatched
from jitquant.numeric_suite.activations import compare_ops, compare_outputs
from jitquant.numeric_suite.comparison import Comparison, OpError
from jitquant.numeric_suite.errors import ChannelError, Errors, sqnr
from jitquant.numeric_suite.histogram import histograms
from jitquant.numeric_suite.plots import plot_histograms, plot_sqnr
from jitquant.numeric_suite.ranges import (
    Histogram,
    Histograms,
    OutlierChannel,
    ValueRange,
    WeightRange,
)
from jitquant.numeric_suite.report import Report, write_report
from jitquant.numeric_suite.weights import compare_weights

__all__ = [
    "ChannelError",
    "Comparison",
    "Cost",
    "Errors",
    "Histogram",
    "Histograms",
    "OpError",
    "OutlierChannel",
    "Report",
    "Unmatched",
    "ValueRange",
    "WeightRange",
    "compare_ops",
    "compare_outputs",
    "compare_weights",
    "histograms",
    "plot_histograms",
    "plot_sqnr",
    "sqnr",
    "write_report",
]

"""Observers: modules that watch the values of one tensor and choose its qparams.

Every observer is an `nn.Module` that `torch.jit.script` compiles, and that saves and loads with the
model it sits in. The graph passes know an observer only by what it has after scripting:

| name | type | meaning |
|---|---|---|
| `dtype` | int (ScalarType) | quint8, qint8, or float32: no qparams, as of `ShapeRecorder` |
| `qscheme` | QScheme | per_tensor_affine, per_tensor_symmetric, per_channel_affine or _symmetric |
| `quant_min`, `quant_max` | int | lowest and highest quantized value |
| `ch_axis` | int | channel axis, -1 for per tensor |
| `shapes` | List[List[int]] | one example shape for each rank seen, first seen wins |
| `calls` | int | forward calls with a floating-point tensor of at least one element |
| `seen_dtypes` | List[int] | distinct dtypes seen, in order, floating point or not |
| `saw_nan`, `saw_inf` | bool | whether a NaN or an infinite value was seen |
| `forward(x)` | Tensor -> Tensor | returns x itself |
| `calculate_qparams()` | -> (Tensor, Tensor) | scale float32 and zero_point int64, (1,) or (C,) |
| `reset()` | -> None | forgets everything seen |
| `state()`, `merge_state(state)` | -> List[Tensor], -> None | adds what another one saw |

Formulas are those of the observers of the same name in torch.ao.quantization (see
`Observer._qparams`), except for the clipping search of `HistogramObserver`, which is our own.
A tensor with NaN or infinite values sets the flags and leaves the statistics as they were.
An error raised inside a scripted observer arrives as `torch.jit.Error` with the same text.
State is replaced, never written in place, so two observers that share a tensor do not disturb each
other, and calibrating works in and out of `torch.inference_mode`.
"""

from jitquant.observers._base import Observer, ObserverFactory
from jitquant.observers._clipping import EntropyObserver, PercentileObserver
from jitquant.observers._fixed import (
    FixedQParamsObserver,
    NoopObserver,
    PlaceholderObserver,
    ShapeRecorder,
)
from jitquant.observers._histogram import HistogramObserver, MSEObserver
from jitquant.observers._merge import merge
from jitquant.observers._min_max import (
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
    RecordingObserver,
)
from jitquant.observers._per_channel_mse import PerChannelMSEObserver

__all__ = [
    "EntropyObserver",
    "FixedQParamsObserver",
    "HistogramObserver",
    "MSEObserver",
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "NoopObserver",
    "Observer",
    "ObserverFactory",
    "PerChannelMSEObserver",
    "PerChannelMinMaxObserver",
    "PercentileObserver",
    "PlaceholderObserver",
    "RecordingObserver",
    "ShapeRecorder",
    "merge",
]

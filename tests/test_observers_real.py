"""Our observers against torch.ao's of the same name, on what the layers of a real model give.

EfficientNet-Lite0 with ImageNet weights, three crops of one photo and three of another.
"""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.ao.quantization import observer as torch_ao

import jitquant
from jitquant import observers
from jitquant.observers import RecordingObserver
from tests.test_observers import squared_error
from tutorials import efficientnet_lite0_demo as demo
from tutorials.photos import calibration_photos

SYMMETRIC = {"dtype": torch.qint8, "qscheme": torch.per_tensor_symmetric}


@pytest.fixture(scope="module")
def recorded() -> list[list[Tensor]]:
    """For each observed value the tensors of six runs."""
    photos = [*calibration_photos()[:3], *calibration_photos()[10:13]]
    qconfig = jitquant.QConfig(RecordingObserver, jitquant.default_qconfig.weight)
    prepared = jitquant.prepare_jit(demo.trace_model(photos[0]), {"": qconfig})
    jitquant.calibrate(prepared, photos, progress=False)
    recorders: list[Any] = [
        module
        for name, module in prepared.named_children()
        if getattr(module, "original_name", "") == "RecordingObserver" and "weight" not in name
    ]
    assert len(recorders) > 50
    return [recorder.get_tensor_value() for recorder in recorders]


def pair(name: str, kwargs: dict[str, Any], batches: list[Tensor]) -> tuple[Any, Any]:
    """Our observer and torch.ao's, which both saw the batches."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        both = getattr(observers, name)(**kwargs), getattr(torch_ao, name)(**kwargs)
    for batch in batches:
        for observer in both:
            observer(batch)
    return both


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("MinMaxObserver", {}),
        ("MinMaxObserver", SYMMETRIC),
        ("MovingAverageMinMaxObserver", {"averaging_constant": 0.1}),
        ("PerChannelMinMaxObserver", {"ch_axis": 1}),
        ("MovingAveragePerChannelMinMaxObserver", {"ch_axis": 1, "averaging_constant": 0.1}),
    ],
    ids=str,
)
def test_qparams_equal(name: str, kwargs: dict[str, Any], recorded: list[list[Tensor]]) -> None:
    for batches in recorded:
        ours, theirs = pair(name, kwargs, batches)
        scale, zero_point = ours.calculate_qparams()
        expected_scale, expected_zero_point = theirs.calculate_qparams()
        torch.testing.assert_close(scale, expected_scale, rtol=1e-6, atol=0)
        assert zero_point.tolist() == expected_zero_point.tolist()


@pytest.mark.parametrize("kwargs", [{}, SYMMETRIC, {"reduce_range": True}], ids=str)
def test_histogram_error_is_no_worse(kwargs: dict[str, Any], recorded: list[list[Tensor]]) -> None:
    for batches in recorded:
        ours, theirs = pair("HistogramObserver", kwargs, batches)
        x = torch.cat([batch.flatten() for batch in batches]).double()
        levels = (ours.quant_min, ours.quant_max)
        error = squared_error(x, ours.calculate_qparams(), *levels)
        assert error <= 1.02 * squared_error(x, theirs.calculate_qparams(), *levels)

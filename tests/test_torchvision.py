"""torchvision's models, scripted and traced: a dozen of them, and with `make sweep` all.

`benchmarks/torchvision_sweep.py` makes the same measurements and prints them as a table.
"""

import pytest

import jitquant
from benchmarks.torchvision_sweep import (
    LEAST_INT8_MACS,
    OTHER_MODELS,
    Result,
    classification_models,
    measure,
    shortcomings,
    task_of,
    ways_of,
)

QUICK = [
    ("convnext_tiny", "trace"),
    ("densenet121", "script"),  # a list that grows
    ("efficientnet_b0", "trace"),
    ("googlenet", "script"),
    ("inception_v3", "trace"),
    ("lraspp_mobilenet_v3_large", "script"),  # a dict in and out
    ("mc3_18", "trace"),
    ("mnasnet0_5", "trace"),
    ("mobilenet_v3_small", "script"),
    ("regnet_y_400mf", "trace"),
    ("resnet18", "script"),
    ("shufflenet_v2_x1_0", "script"),  # channels that are no multiple of 8
    ("squeezenet1_1", "trace"),
    ("ssdlite320_mobilenet_v3_large", "script"),  # lists of dicts, loops, early returns, state
    ("swin_t", "script"),  # attention, rolled windows
]
ALL = [(name, way) for name in [*classification_models(), *OTHER_MODELS] for way in ways_of(name)]
SIZE = 64  # pixels


@pytest.mark.parametrize(("name", "way"), QUICK)
def test_model_is_int8_and_right(name: str, way: str) -> None:
    check(measure(name, way, SIZE, jitquant.default_qconfig, batches=2))


@pytest.mark.sweep
@pytest.mark.parametrize(("name", "way"), ALL)
def test_every_model_is_int8_and_right(name: str, way: str) -> None:
    check(measure(name, way, SIZE))


def check(result: Result) -> None:
    assert shortcomings(result) == []
    assert result.sqnr_db is not None and result.emulated_sqnr_db is not None
    assert result.int8_macs is not None
    # int8 kernels may round the last step of a value differently, which later layers pass on.
    assert result.sqnr_db >= result.emulated_sqnr_db - 3.0
    if task_of(result.model) == "detection":
        assert result.int8_macs >= LEAST_INT8_MACS


def test_requirements_can_fail() -> None:
    good = Result("resnet18", "classification", "script", 1, "ok", 1.0, 30.0, 30.0, True)
    assert shortcomings(good) == []
    for name, value in (
        ("status", "RuntimeError: no"),
        ("int8_macs", 0.98),
        ("sqnr_db", 19.0),
        ("reload_equal", False),
    ):
        bad = Result(**{**vars(good), name: value})
        assert len(shortcomings(bad)) == 1

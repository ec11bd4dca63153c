"""jitquant/_garbage.py: no search for garbage while models are wrapped, and as before afterwards."""

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import jitquant
from jitquant import QConfigMapping
from jitquant._garbage import uncollected
from jitquant.errors import JitQuantError
from tests.ir import scripted


@pytest.fixture(autouse=True)
def enabled() -> Iterator[None]:
    gc.enable()
    yield
    gc.enable()


def test_the_collector_rests_inside_only() -> None:
    with uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_collector_that_the_user_stopped_stays_so() -> None:
    gc.disable()
    with uncollected():
        pass
    assert not gc.isenabled()


def test_prepare_and_convert_rest_it_and_an_error_starts_it_again() -> None:
    seen = []

    def predicate(op: Any) -> Any:
        seen.append(gc.isenabled())
        return jitquant.get_default_qconfig()

    model = scripted(nn.Sequential(nn.Linear(2, 2)))
    prepared = jitquant.prepare_jit(model, QConfigMapping().set_predicate(predicate))
    assert seen == [False]
    assert gc.isenabled()
    with pytest.raises(JitQuantError):
        jitquant.convert_jit(prepared)  # not calibrated
    assert gc.isenabled()
    prepared(torch.rand(1, 2))
    jitquant.convert_jit(prepared)
    assert gc.isenabled()

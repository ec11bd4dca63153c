"""Stock kernels that write past their buffers are never run."""

import pytest
import torch
from torch import nn

import jitquant


@pytest.mark.parametrize(("engine", "groups"), [("fbgemm", 10), ("x86", 116)])
def test_groups_that_fbgemm_overruns_stay_float(
    engine: str, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It aborts the process, in some runs only: "double free or corruption"."""
    monkeypatch.setattr(torch.backends.quantized, "engine", engine)
    conv = nn.Conv2d(2 * groups, 2 * groups, 3, padding=1, groups=groups).eval()
    prepared = jitquant.prepare_jit(
        torch.jit.script(conv), {"": jitquant.get_default_qconfig(engine)}
    )
    with torch.no_grad():
        prepared(torch.randn(1, 2 * groups, 7, 7))
    (op,) = jitquant.coverage(jitquant.convert_jit(prepared)).float
    assert op.reason == "fbgemm corrupts memory for this number of groups"

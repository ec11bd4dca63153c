"""Coverage and sensitivity as CSV and JSON. Those of numeric_suite are in test_numeric_suite_ranges."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from jitquant import JitQuantTypeError, OpCoverage
from jitquant.coverage import Coverage
from jitquant.sensitivity import OpSensitivity, Sensitivity

RESULTS = [
    Coverage(
        "converted",
        (
            OpCoverage("forward", "aten::linear", "fc", "a.py:3", True, "quantized::linear"),
            OpCoverage("forward", "aten::exp", "", "a.py:4", False, "no int8, \u00e4h"),
        ),
    ),
    Sensitivity(
        (
            OpSensitivity(1, "aten::linear", "fc", "a.py:3", 0.25, 0.5),
            OpSensitivity(0, "aten::add", "", "a.py:4", 0.125, torch.inf),
        ),
        0.75,
    ),
]


@pytest.mark.parametrize("result", RESULTS, ids=["coverage", "sensitivity"])
def test_tables(result: Any, tmp_path: Path) -> None:
    path = tmp_path / "table"
    result.to_csv(path)
    with path.open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert found == [{k: str(v) for k, v in vars(op).items()} for op in result.ops]
    result.to_json(str(path))
    loaded = json.loads(path.read_text(encoding="utf-8"))
    ops = [{**vars(op)} for op in result.ops]
    for op in ops:
        op.update({k: "inf" for k, v in op.items() if v == torch.inf})
    assert loaded == {**vars(result), "ops": ops}


@pytest.mark.parametrize("method", ["to_csv", "to_json"])
def test_a_number_is_no_path(method: str) -> None:
    """`open` takes it for a file that is open already, and closes it."""
    with pytest.raises(JitQuantTypeError, match=f"{method}: path must be a path, got int."):
        getattr(RESULTS[0], method)(2)

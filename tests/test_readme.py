"""The README's examples run, in their order, as a reader would run them."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import jitquant
from jitquant import QConfigMapping

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.filterwarnings("ignore::jitquant.DroppedWarning")
def test_python_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With smaller images, and fewer of them."""
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {"loader": [torch.randn(1, 3, 64, 64)]}
    for block in blocks("python"):
        exec(block.replace("224", "64").replace("range(8)", "range(2)"), found)
    assert jitquant.coverage(found["int8_model"]).float == ()
    assert jitquant.coverage(torch.jit.load(tmp_path / "resnet18_int8.pt")).float == ()
    coverage = jitquant.coverage(found["prepared"])
    assert {op.op for op in coverage.float} == {"aten::max_pool2d", "aten::add"}
    predicate = found["mapping"].explain(found["scripted"])
    assert {each.rule for each in predicate.decisions} >= {"predicate", "global"}


def test_toml_example() -> None:
    (text,) = blocks("toml")
    rules = {str(rule) for rule in QConfigMapping.from_toml(text).rules}
    assert rules == {
        "global",
        "object_type 'torch.nn.modules.linear.Linear'",
        "module_name 'layer1'",
        "module_name 'layer4.1'",
    }

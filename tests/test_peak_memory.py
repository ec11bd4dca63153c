"""benchmarks/memory.py sees what is allocated, also where it is freed again, and nothing else."""

import torch

from benchmarks.memory import PeakMemory


def test_a_freed_tensor_counts() -> None:
    with PeakMemory() as peak:
        torch.ones(10_000_000).sum()  # 40 MB
    assert peak.mb is not None and 38 < peak.mb < 60


def test_what_was_there_before_does_not_count() -> None:
    earlier = torch.ones(10_000_000)
    with PeakMemory() as peak:
        torch.ones(1_000_000)
    assert peak.mb is not None and peak.mb < 20
    assert earlier.numel() == 10_000_000

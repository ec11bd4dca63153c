"""lower_tables: an embedding looks its rows up in the packed table."""

from typing import Final

import pytest
import torch
from torch import Tensor, nn

from jitquant import default_dynamic_qconfig, float_qparams_weight_only_qconfig
from tests.ir import assert_text, assert_unchanged, before_and_after, scripted


class Bags(nn.Module):
    mean: Final[bool]
    last: Final[bool]

    def __init__(self, mean: bool, last: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(6, 4))
        self.mean = mean
        self.last = last

    def forward(self, i: Tensor, o: Tensor) -> Tensor:
        return torch.embedding_bag(
            self.weight, i, o, False, int(self.mean), False, None, self.last
        )[0]


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(6, 4))

    def forward(self, i: Tensor, o: Tensor, w: Tensor) -> Tensor:
        return torch.embedding_bag(self.weight, i, o, False, 0, False, w)[0]


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 4)

    def forward(self, i: Tensor) -> Tensor:
        y: Tensor = self.table(i)
        return y


def lowered(module: nn.Module) -> str:
    """verify_tables takes away the float ops that lower_tables leaves."""
    config = {"": float_qparams_weight_only_qconfig}
    return before_and_after(
        "verify_tables", scripted(module), qconfig_dict=config, function="prepare_dynamic_jit"
    ).after


def test_rows() -> None:
    """Indices of any rank."""
    assert_text(
        lowered(Table()),
        """
            graph(self, %i : Tensor):
              %0 : Tensor = quantized::embedding_bag_byte_prepack(self.table.weight)
              %1 : Tensor = aten::reshape(%i, [-1, 1])
              %2 : Tensor = quantized::embedding_bag_byte_rowwise_offsets(%0, %1, None, False, 0, False, None, None, False)
              %3 : int[] = aten::size(%i)
              %4 : int[] = aten::add(%3, [4])
              %5 : Tensor = aten::view(%2, %4)
              return (%5)
        """,
    )


@pytest.mark.parametrize("last", [False, True])
def test_sums(last: bool) -> None:
    assert_text(
        lowered(Bags(mean=False, last=last)),
        f"""
            graph(self, %i : Tensor, %o : Tensor):
              %0 : Tensor = quantized::embedding_bag_byte_prepack(self.weight)
              %1 : Tensor = quantized::embedding_bag_byte_rowwise_offsets(%0, %i, %o, False, 0, False, None, None, {last})
              return (%1)
        """,
    )


def test_weighted_sums() -> None:
    assert_text(
        lowered(Weighted()),
        """
            graph(self, %i : Tensor, %o : Tensor, %w : Tensor):
              %0 : Tensor = quantized::embedding_bag_byte_prepack(self.weight)
              %1 : Tensor = quantized::embedding_bag_byte_rowwise_offsets(%0, %i, %o, False, 0, False, %w, None, False)
              return (%1)
        """,
    )


def test_means() -> None:
    """The number of indices is where the last bag ends."""
    assert_text(
        lowered(Bags(mean=True)),
        """
            graph(self, %i : Tensor, %o : Tensor):
              %0 : Tensor = quantized::embedding_bag_byte_prepack(self.weight)
              %1 : Tensor = quantized::embedding_bag_byte_rowwise_offsets(%0, %i, %o, False, 0, False, None, None, False)
              %2 : int = aten::numel(%i)
              %3 : Tensor = aten::new_full(%o, [1], %2, None, None, None, None)
              %4 : Tensor = aten::diff(%o, 1, -1, None, %3)
              %5 : Tensor = aten::clamp_min(%4, 1)
              %6 : Tensor = aten::unsqueeze(%5, 1)
              %7 : Tensor = aten::div(%1, %6)
              return (%7)
        """,
    )


def test_means_with_a_last_offset() -> None:
    assert_text(
        lowered(Bags(mean=True, last=True)),
        """
            graph(self, %i : Tensor, %o : Tensor):
              %0 : Tensor = quantized::embedding_bag_byte_prepack(self.weight)
              %1 : Tensor = quantized::embedding_bag_byte_rowwise_offsets(%0, %i, %o, False, 0, False, None, None, True)
              %2 : Tensor = aten::diff(%o, 1, -1, None, None)
              %3 : Tensor = aten::clamp_min(%2, 1)
              %4 : Tensor = aten::unsqueeze(%3, 1)
              %5 : Tensor = aten::div(%1, %4)
              return (%5)
        """,
    )


def test_float_tables_are_left() -> None:
    change = before_and_after(
        "lower_tables",
        scripted(Table()),
        qconfig_dict={"": default_dynamic_qconfig},
        function="prepare_dynamic_jit",
    )
    assert_unchanged(
        change,
        """
            graph(self, %i : Tensor):
              %0 : Tensor = aten::embedding(self.table.weight, %i, -1, False, False)
              return (%0)
        """,
    )

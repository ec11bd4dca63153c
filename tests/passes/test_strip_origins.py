"""strip_origins: the finished graph no longer says where in the user's source it came from."""

import io
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.ir import assert_change, before_and_after, sample, scripted


def text_with_places(text: str) -> str:
    """Module paths and source places, without the folder of this machine."""
    text = re.sub(r"___torch_mangle_\d+\.", "", text)
    return text.strip("\n").replace(f"{Path(__file__).parent}/", "")


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Hardsigmoid())

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.sum() > 0):
            x = x.neg()
        y: Tensor = self.body(x)
        return y


def test_module_paths_and_places_go() -> None:
    change = before_and_after(
        "strip_origins", scripted(Branches()), sample(1, 2), show=text_with_places
    )
    assert_change(
        change,
        before="""
            graph(%self : __torch__.tests.passes.test_strip_origins.Branches,
                  %x.1 : Tensor):
              %2 : int = prim::Constant[value=13](), scope: body.0
              %3 : int = prim::Constant[value=128](), scope: body.0
              %4 : float = prim::Constant[value=0.0625](), scope: body.0
              %5 : int = prim::Constant[value=0]()
              %6 : NoneType = prim::Constant()
              %7 : Tensor = aten::sum[jitquant_value=0](%x.1, %6)
              %8 : Tensor = aten::gt[jitquant_value=1](%7, %5)
              %9 : bool = aten::Bool(%8)
              %x : Tensor = prim::If(%9)
                block0():
                  %x.7 : Tensor = aten::neg[jitquant_value=2](%x.1) # test_strip_origins.py:26:16
                  %12 : Tensor = aten::quantize_per_tensor(%x.7, %4, %3, %2), scope: body.0
                  -> (%12)
                block1():
                  %13 : Tensor = aten::quantize_per_tensor(%x.1, %4, %3, %2), scope: body.0
                  -> (%13)
              %14 : Tensor = aten::hardsigmoid[jitquant_value=3](%x), scope: body.0
              %15 : Tensor = aten::dequantize(%14)
              %16 : Tensor = aten::contiguous(%15, %5)
              return (%16)
        """,
        after="""
            graph(%self : __torch__.tests.passes.test_strip_origins.Branches,
                  %x.1 : Tensor):
              %2 : int = prim::Constant[value=13]()
              %3 : int = prim::Constant[value=128]()
              %4 : float = prim::Constant[value=0.0625]()
              %5 : int = prim::Constant[value=0]()
              %6 : NoneType = prim::Constant()
              %7 : Tensor = aten::sum(%x.1, %6)
              %8 : Tensor = aten::gt(%7, %5)
              %9 : bool = aten::Bool(%8)
              %x : Tensor = prim::If(%9)
                block0():
                  %x.7 : Tensor = aten::neg(%x.1) # <converted>:0:0
                  %12 : Tensor = aten::quantize_per_tensor(%x.7, %4, %3, %2) # <converted>:0:0
                  -> (%12)
                block1():
                  %13 : Tensor = aten::quantize_per_tensor(%x.1, %4, %3, %2) # <converted>:0:0
                  -> (%13)
              %14 : Tensor = aten::hardsigmoid(%x)
              %15 : Tensor = aten::dequantize(%14)
              %16 : Tensor = aten::contiguous(%15, %5)
              return (%16)
        """,
    )


def test_saved_file_names_no_path_of_this_machine() -> None:
    model = scripted(Branches())
    converted = before_and_after("strip_origins", model, sample(1, 2)).model
    contents = []
    for each in (model, converted):
        buffer = io.BytesIO()
        torch.jit.save(each, buffer)
        contents.append(buffer.getvalue())
    original, stripped = contents
    assert Path(__file__).name.encode() in original  # so that the next line can fail
    for secret in (str(Path(__file__).parent), str(Path(torch.__file__).parent)):
        assert secret.encode() not in stripped


def test_graph_without_places_loses_marks_only() -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.exp()

    change = before_and_after("strip_origins", scripted(Flat()), sample(2), show=text_with_places)
    assert_change(
        change,
        before="""
            graph(%self : __torch__.tests.passes.test_strip_origins.Flat,
                  %x.1 : Tensor):
              %2 : Tensor = aten::exp[jitquant_value=0](%x.1)
              return (%2)
        """,
        after="""
            graph(%self : __torch__.tests.passes.test_strip_origins.Flat,
                  %x.1 : Tensor):
              %2 : Tensor = aten::exp(%x.1)
              return (%2)
        """,
    )

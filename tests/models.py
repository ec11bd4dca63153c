"""Small models that tests share, and how to compare what they give."""

import hashlib
import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Convolution, BatchNorm and ReLU: one int8 op."""

    def __init__(self, in_channels: int = 3, out_channels: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.bn1(self.conv1(x)))
        return y


class Around(nn.Module):
    """A model around another one, to whose result it adds 1."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y + 1


class ResidualNet(nn.Module):
    """Convolutions with BatchNorm, a residual add, pooling, dropout and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Block()
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.relu(self.bn2(self.conv2(x)) + x)
        y: Tensor = self.fc(self.dropout(torch.flatten(self.pool(x), 1)))
        return y


class PlainNet(nn.Module):
    """Convolution, ReLU, mean and linear layer, without BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.relu(self.conv1(x)).mean(dim=[2, 3]))
        return y


class Remembers(nn.Module):
    """Adds the mean that it saw before."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x) + self.seen
        self.seen.copy_(y.mean(0))
        return y


class TwoMethodNet(nn.Module):
    """Has an exported method besides forward, with a layer of its own, and a plain attribute."""

    labels: list[str]

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)
        self.head = nn.Linear(8, 2)
        self.labels = ["cat", "dog"]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.conv1(x).mean(dim=[2, 3]))
        return y

    @torch.jit.export
    def embed(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.conv1(x).mean(dim=[2, 3]))
        return y


def settle(model: nn.Module) -> nn.Module:
    """`model` in eval mode, with weights that depend on its shapes only, and BatchNorms used."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            tensor.uniform_(-0.5, 0.5, generator=generator)
            if "running_var" in name or ("bn" in name and name.endswith("weight")):
                tensor.add_(1.0)
    return model.eval()


def scripted(model: nn.Module) -> torch.jit.ScriptModule:
    """`model`, settled and scripted."""
    script: torch.jit.ScriptModule = torch.jit.script(settle(model))
    return script


def traced(model: nn.Module, x: Tensor) -> torch.jit.ScriptModule:
    """`model`, settled and traced with `x`."""
    trace: torch.jit.ScriptModule = torch.jit.trace(settle(model), x)
    return trace


def images(*shape: int, seed: int = 0) -> Tensor:
    """Normally distributed values, float32, always the same; `(2, 3, 8, 8)` by default."""
    return torch.randn(shape or (2, 3, 8, 8), generator=torch.Generator().manual_seed(seed))


def calibrate(model: torch.jit.ScriptModule, *batches: Tensor) -> None:
    """A run_fn: runs `model` on each batch."""
    with torch.inference_mode():
        for batch in batches:
            model(batch)


def reloaded(model: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """`model`, saved and loaded."""
    file = io.BytesIO()
    torch.jit.save(model, file)
    file.seek(0)
    loaded: torch.jit.ScriptModule = torch.jit.load(file)
    return loaded


def package_folder(name: str) -> Path:
    """Where an installed package lies; the package is not imported."""
    spec = find_spec(name)
    assert spec and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def sqnr(a: Tensor, b: Tensor) -> float:
    """Signal-to-noise ratio of `b` against the reference `a`, in dB; inf if they are equal."""
    a, b = a.detach().double(), b.detach().double()
    noise = float((a - b).norm())
    return 20 * math.log10(float(a.norm()) / noise) if noise > 0 else math.inf


@dataclass(frozen=True)
class Snapshot:
    """All that a user can see of a ScriptModule, for comparison."""

    tensors: dict[str, tuple[torch.dtype, torch.device, tuple[int, ...], int, bool, str]]
    graphs: dict[str, str]
    attributes: str
    training: dict[str, bool | None]


def snapshot(model: torch.jit.ScriptModule) -> Snapshot:
    """The present state of `model`: tensors (bits and addresses), graphs, attributes, modes."""
    graphs, training = {}, {}
    for path, module in model.named_modules():
        assert isinstance(module, torch.jit.ScriptModule)
        for name in module._c._method_names():
            graphs[f"{path}.{name}"] = str(module._c._get_method(name).graph)
        training[path] = getattr(module, "training", None)
    is_meta = any(parameter.is_meta for parameter in [*model.parameters(), *model.buffers()])
    # Values of meta tensors cannot be printed.
    attributes = "" if is_meta else model._c.dump_to_str(code=False, attrs=True, params=False)
    tensors = {
        name: (
            tensor.dtype,
            tensor.device,
            tuple(tensor.shape),
            0 if tensor.is_meta else tensor.data_ptr(),
            tensor.requires_grad,
            bits(tensor),
        )
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }
    return Snapshot(tensors, graphs, attributes, training)


def bits(tensor: Tensor) -> str:
    """A hash of the tensor's bytes, which also tells NaNs and signs of zero apart."""
    if tensor.is_meta:
        return "meta"
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(bytes(flat.tolist())).hexdigest()


@contextmanager
def assert_untouched(model: torch.jit.ScriptModule) -> Iterator[None]:
    """Checks that what runs inside changes nothing of `model` that a user can see."""
    before = snapshot(model)
    yield
    after = snapshot(model)
    assert after.tensors == before.tensors
    assert after.graphs == before.graphs
    assert after.attributes == before.attributes
    assert after.training == before.training


def graph_text(model: torch.jit.ScriptModule, method: str = "forward") -> str:
    """One method's graph with canonical names, without source positions and mangled class names.

    Saving and loading moves constants, see `code_text`.
    """
    graph = model._c._get_method(method).graph
    text: str = torch._C._jit_pass_canonicalize(graph, False).str(False)
    return re.sub(r"___torch_mangle_\d+\.", "", text)


def code_text(model: torch.jit.ScriptModule) -> str:
    """All methods as the code that a file holds: equal for a model and its loaded file."""
    names = sorted(model._c._method_names())
    text = "\n".join(model._c._get_method(name).code for name in names)
    return re.sub(r"___torch_mangle_\d+\.", "", text)


@torch.jit.script
class Scaler:
    """An object that is no module."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def apply(self, x: Tensor) -> Tensor:
        return x * self.factor

    def halve(self) -> None:
        self.factor *= 0.5

"""The transformers that `dynamic.py` quantizes, and the tokens that they read."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.macs import macs_by_module
from benchmarks.subjects import Subject, int8_bytes
from tutorials.phrases import load_bert

LEAST_TOKENS = 6
"""silero-stress's BERT looks at tokens 3 to 5."""
TOKENS = 8000  # of which ids are drawn; silero-stress has more
SIZES = {"BERT, 312 wide": (312, 12, 600, 3), "BERT, 768 wide": (768, 12, 3072, 4)}
"""Width, heads, width of the feed-forward part, layers: those of silero-stress; 4 of BERT-base."""

SILERO = "silero-stress"
NAMES = (*SIZES, SILERO)


class Layer(nn.Module):
    """Self-attention and a feed-forward part, as BERT has them, of layers that all tools know."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)
        self.norm2 = nn.LayerNorm(width)

    def split(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) to (batch, heads, tokens, width of a head)."""
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        scores = torch.softmax(q @ k.transpose(2, 3) / float(q.shape[3]) ** 0.5, -1)
        mixed = (scores @ v).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.out(mixed))
        y: Tensor = self.norm2(x + self.down(functional.gelu(self.up(x))))
        return y


class Encoder(nn.Module):
    """Tokens in, (batch, 2) out."""

    def __init__(self, width: int, heads: int, inner: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.Sequential(*(Layer(width, heads, inner) for _ in range(layers)))
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.layers(self.norm(self.embedding(x)))[:, 0])
        return y


class Marked(nn.Module):
    """silero-stress's BERT, with the marks in the same place each time."""

    start: Tensor
    end: Tensor

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert
        self.register_buffer("start", torch.tensor([3]))
        self.register_buffer("end", torch.tensor([5]))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bert(x, self.start, self.end)
        return y


def make_text_model(name: str, lengths: list[int]) -> Subject:
    """The same weights and tokens each time; one evaluation input for each length."""
    torch.manual_seed(0)
    module = Encoder(*SIZES[name]) if name in SIZES else Marked(load_bert(1).model)
    module.eval()
    evaluation = [torch.randint(0, TOKENS, (1, length)) for length in lengths]
    has_source = name in SIZES
    macs = macs_by_module(module, evaluation[-1]) if has_source else {}
    return Subject(
        name=name,
        module=module,
        traced=torch.jit.script(module),
        calibration=[],
        evaluation=evaluation,
        macs=sum(sum(of) for of in macs.values()),
        int8_mb=sum(int8_bytes(part) for part in module.modules()) / 1e6,
    )

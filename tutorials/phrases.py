"""A real transformer and real phrases: the scripted BERT in the package silero-stress.

Russian spells some words alike that are stressed differently. The model reads a phrase in which one
of these is marked, and gives one logit, whose sign chooses between the two.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.package.package_importer import PackageImporter

ARCHIVE = "data/accentor.pt"
PHRASES_OF_A_WORD = 3


@dataclass(frozen=True)
class Phrase:
    """What the model reads.

    Attributes:
        ids: tokens, int64, (1, tokens).
        start, end: where the marks around the word are among the tokens, int64, (1,).
    """

    ids: torch.Tensor
    start: torch.Tensor
    end: torch.Tensor


@dataclass(frozen=True)
class Bert:
    """The model as it comes, without source, and phrases that the package knows an answer for.

    Attributes:
        model: scripted, in eval mode; 3 layers of 312 channels, and a table of 83,830 tokens.
        phrases: 300, of 5 to 12 tokens.
    """

    model: torch.jit.ScriptModule
    phrases: list[Phrase]

    def logits(self, model: Any) -> torch.Tensor:
        """The logit of each phrase, float32, (phrases,), by this model or one made of it."""
        with torch.no_grad():
            return torch.cat([model(of.ids, of.start, of.end)[0] for of in self.phrases])


def load_bert(count: int = 300) -> Bert:
    """The model, with `count` phrases, the same each time."""
    spec = find_spec("silero_stress")
    if spec is None or spec.origin is None:
        raise SystemExit(
            "The model is inside the package silero-stress, which is not installed. Run:\n"
            "    pip install --no-deps -r requirements-models.txt"
        )
    with torch_left_alone():
        archive: Any = PackageImporter(str(Path(spec.origin).parent / ARCHIVE))
        solver: Any = archive.load_pickle("accentor_models", "accentor").homosolver
        model = solver.model.eval()
        # It keeps the table of tokens in int8, and expands it in the same way.
        table = model.bert.embeddings.word_embeddings.weight
        table.data = model.bert.scale * (table.data - model.bert.zero_point)
        texts = marked_phrases(solver)
        step = max(len(texts) // count, 1)
        return Bert(model, [to_phrase(solver.tokenizer, text) for text in texts[::step][:count]])


@contextmanager
def torch_left_alone() -> Iterator[None]:
    """The package switches gradients off, and all threads but one, for the whole process."""
    threads = torch.get_num_threads()
    with torch.set_grad_enabled(torch.is_grad_enabled()):
        yield
    torch.set_num_threads(threads)


def marked_phrases(solver: Any) -> list[str]:
    """Up to three for each word: "stuff [HOMO] word [/HOMO] stuff"."""
    texts = []
    for word in sorted(set(solver.compiled_phrases) & set(solver.homodict)):
        pattern = solver.compiled_phrases[word].pattern
        found = re.findall(r"(?:\(\?:|\|)([^|()]*\\\[HOMO\\\][^|()]*)", pattern)
        texts += [text.replace("\\", "") for text in found[:PHRASES_OF_A_WORD]]
    return texts


def to_phrase(tokenizer: Any, text: str) -> Phrase:
    ids = torch.tensor([tokenizer(text)])
    start, end = (
        torch.where(ids[0] == mark)[0][:1]
        for mark in (tokenizer.homo_start_id, tokenizer.homo_end_id)
    )
    return Phrase(ids, start, end)

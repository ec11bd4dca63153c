"""An LSTM trained on real speech, dynamically quantized: as accurate as in float.

JapaneseVowels (Kudo, Toyama and Shimbo 1999): 9 men say the vowels "ae", 12 coefficients of linear
prediction a frame, 7 to 29 frames. Which man is it?
"""

import functools

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

import jitquant
from jitquant import QConfig
from tests.models import package_folder, reloaded


@functools.cache
def recordings(part: str) -> tuple[Tensor, Tensor, Tensor]:
    """Frames (recordings, longest, 12), lengths and speakers (recordings,)."""
    folder = package_folder("aeon") / "datasets" / "data" / "JapaneseVowels"
    lines = (folder / f"JapaneseVowels_{part}.ts").read_text().splitlines()
    sequences, speakers = [], []
    for line in lines[lines.index("@data") + 1 :]:
        *channels, label = line.split(":")
        values = [[float(value) for value in channel.split(",")] for channel in channels]
        sequences.append(torch.tensor(values).T)
        speakers.append(int(label) - 1)
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    return pad_sequence(sequences, batch_first=True), lengths, torch.tensor(speakers)


class Speaker(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(12, 64, batch_first=True)
        self.head = nn.Linear(64, 9)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(frames, lengths, batch_first=True, enforce_sorted=False)
        _, (h, _) = self.lstm(packed)
        scores: Tensor = self.head(h[-1])
        return scores


@pytest.fixture(scope="module")
def model() -> torch.jit.ScriptModule:
    torch.manual_seed(0)
    module = Speaker()
    frames, lengths, speakers = recordings("TRAIN")
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(30):
        for batch in torch.randperm(len(frames)).split(45):
            optimizer.zero_grad()
            scores = module(frames[batch], lengths[batch])
            nn.functional.cross_entropy(scores, speakers[batch]).backward()
            optimizer.step()
    scripted: torch.jit.ScriptModule = torch.jit.script(module.eval())
    return scripted


def accuracy(model: torch.jit.ScriptModule) -> float:
    """In percent, of 370 recordings that training did not see."""
    frames, lengths, speakers = recordings("TEST")
    with torch.no_grad():
        right = model(frames, lengths).argmax(1) == speakers
    return 100 * float(right.float().mean())


@pytest.mark.parametrize(
    "qconfig",
    [
        jitquant.default_dynamic_qconfig,
        jitquant.per_channel_dynamic_qconfig,
        jitquant.float16_dynamic_qconfig,
    ],
)
def test_accuracy(model: torch.jit.ScriptModule, qconfig: QConfig) -> None:
    expected = accuracy(model)
    assert expected > 93
    result = reloaded(jitquant.quantize_dynamic_jit(model, {"": qconfig}))
    assert "aten::quantized_lstm(" in str(result.graph)
    assert abs(accuracy(result) - expected) <= 1

"""silero-vad, a TorchScript archive without source: one of two networks for each sample rate.

The archive has control flow (36 `prim::If`, a loop in `audio_forward`) and keeps the state of its
LSTM in attributes.
"""

import functools
import math

import pytest
import torch
from torch import Tensor

import jitquant
from tests.models import package_folder, reloaded

CHUNKS = {16000: 512, 8000: 256}
"""Sample rate in Hz: samples in a chunk, which the archive demands."""

SECONDS = 3.0
PERIOD = 1.5  # seconds of voice and pause together
VOICED = 0.9  # seconds of voice in a period
SYLLABLE = 0.18  # seconds

FORMANTS = [(730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480)]
"""In Hz, of the vowels in "father", "see", "boot", "bed": Peterson and Barney 1952, men."""


@functools.cache
def voice(rate: int, seed: int = 0) -> Tensor:
    """(samples,) in [-1, 1]: vowels in syllables, pauses, and a little noise throughout."""
    generator = torch.Generator().manual_seed(seed)
    count = int(rate * SECONDS)
    time = torch.arange(count) / rate
    pitch = 120 + 20 * seed + 20 * torch.sin(2 * math.pi * 3 * time)  # Hz
    phase = 2 * math.pi * torch.cumsum(pitch / rate, 0)
    harmonics = range(1, int(rate / 2 / 200))
    source = torch.stack([torch.sin(k * phase) / k for k in harmonics]).sum(0)
    vowels = torch.stack([vowel(source, formants, rate) for formants in FORMANTS])
    syllable = (time / SYLLABLE).long()
    sound = vowels[(syllable + seed) % len(FORMANTS), torch.arange(count)]
    loudness = torch.sin(math.pi * (time / SYLLABLE - syllable)) ** 2 * (time % PERIOD < VOICED)
    sound = sound * loudness
    noise = 0.003 * torch.randn(count, generator=generator)
    audio: Tensor = 0.5 * sound / sound.abs().max() + noise
    return audio


def vowel(source: Tensor, formants: tuple[int, ...], rate: int) -> Tensor:
    """`source` through one resonance for each formant."""
    spectrum = torch.fft.rfft(source)
    z = torch.exp(2j * math.pi * torch.arange(len(spectrum)) / len(source))
    radius = math.exp(-math.pi * 80 / rate)  # a bandwidth of 80 Hz
    response = torch.zeros_like(z)
    for formant in formants:
        angle = 2 * math.pi * formant / rate
        response += (1 - radius) / (1 - 2 * radius * math.cos(angle) / z + radius**2 / z**2)
    sound: Tensor = torch.fft.irfft(spectrum * response, n=len(source))
    return sound


def load() -> torch.jit.ScriptModule:
    model: torch.jit.ScriptModule
    model = torch.jit.load(package_folder("silero_vad") / "data" / "silero_vad.jit")
    return model.eval()


def chunks(rate: int, seed: int = 0) -> list[Tensor]:
    size = CHUNKS[rate]
    return [chunk for chunk in voice(rate, seed).split(size) if len(chunk) == size]


def probabilities(model: torch.jit.ScriptModule, rate: int) -> Tensor:
    """(chunks,) that there is speech, of a recording that calibration does not see."""
    with torch.no_grad():
        model.reset_states()
        return torch.cat([model(chunk, rate).flatten() for chunk in chunks(rate, seed=1)])


@pytest.fixture(scope="module")
def prepared() -> torch.jit.ScriptModule:
    """Calibrated for both sample rates and both methods."""
    model = jitquant.prepare_jit(load(), {"": jitquant.get_default_qconfig()})
    with torch.no_grad():
        for rate in CHUNKS:
            model.reset_states()
            for chunk in chunks(rate):
                model(chunk, rate)
            model.audio_forward(voice(rate)[None], rate)
    return model


@pytest.fixture(scope="module")
def int8(prepared: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    return jitquant.convert_jit(prepared, preserved_attrs=["reset_states", "audio_forward"])


@pytest.mark.parametrize("rate", CHUNKS)
def test_probabilities_are_those_of_float(int8: torch.jit.ScriptModule, rate: int) -> None:
    expected, actual = probabilities(load(), rate), probabilities(int8, rate)
    assert expected.min() < 0.1 and expected.max() > 0.9  # both silence and speech
    difference = (expected - actual).abs()
    assert difference.median() <= 0.03
    assert ((expected > 0.5) == (actual > 0.5)).float().mean() >= 0.9


@pytest.mark.parametrize("method", ["forward", "audio_forward"])
def test_all_convolutions_are_int8(int8: torch.jit.ScriptModule, method: str) -> None:
    ops = [op for op in jitquant.coverage(int8).ops if op.method == method]
    convolutions = [op for op in ops if op.op == "aten::conv1d"]
    assert len(convolutions) == 12
    assert all(op.int8 for op in convolutions)
    assert {op.module.split(".")[0] for op in convolutions} == {"_model", "_model_8k"}


@pytest.mark.parametrize("rate", CHUNKS)
def test_reset_states_forgets(int8: torch.jit.ScriptModule, rate: int) -> None:
    once = probabilities(int8, rate)
    with torch.no_grad():
        goes_on = torch.cat([int8(chunk, rate).flatten() for chunk in chunks(rate, seed=1)])
    assert not torch.equal(goes_on, once)
    assert torch.equal(probabilities(int8, rate), once)


@pytest.mark.parametrize("rate", CHUNKS)
def test_audio_forward_takes_a_whole_recording(int8: torch.jit.ScriptModule, rate: int) -> None:
    audio = voice(rate, seed=1)[None]
    with torch.no_grad():
        expected, actual = load().audio_forward(audio, rate), int8.audio_forward(audio, rate)
    assert actual.shape == expected.shape == (1, math.ceil(audio.shape[1] / CHUNKS[rate]))
    # Not the probabilities themselves: the LSTM carries rounding on, and their median difference is
    # anywhere from 0.01 to 0.06 for histograms of 512 to 16384 bins and for minimum and maximum.
    assert ((expected > 0.5) == (actual > 0.5)).float().mean() >= 0.9


@pytest.mark.parametrize("rate", CHUNKS)
def test_saved_file_gives_the_same(int8: torch.jit.ScriptModule, rate: int) -> None:
    assert torch.equal(probabilities(reloaded(int8), rate), probabilities(int8, rate))


def test_weights_are_packed_once(int8: torch.jit.ScriptModule) -> None:
    for method in ("forward", "audio_forward"):
        graph = str(int8._c._get_method(method).graph)
        assert "quantized::conv1d(" in graph
        assert "prepack" not in graph


@pytest.fixture(scope="module")
def dynamic() -> torch.jit.ScriptModule:
    """The LSTM cells alone are int8, as linear layers."""
    mapping = (
        jitquant.QConfigMapping()
        .set_global(None)
        .set_object_type("aten::lstm_cell", jitquant.per_channel_dynamic_qconfig)
    )
    prepared = jitquant.prepare_dynamic_jit(load(), mapping)
    return jitquant.convert_dynamic_jit(prepared, preserved_attrs=["reset_states", "audio_forward"])


@pytest.mark.parametrize("rate", CHUNKS)
def test_dynamic_lstm_cells(dynamic: torch.jit.ScriptModule, rate: int) -> None:
    """Nothing was calibrated. The state carries 8-bit rounding on over 90 chunks."""
    expected, actual = probabilities(load(), rate), probabilities(reloaded(dynamic), rate)
    assert (expected - actual).abs().max() <= 0.05
    assert torch.equal(expected > 0.5, actual > 0.5)


def test_dynamic_lstm_cells_are_packed_once(dynamic: torch.jit.ScriptModule) -> None:
    linears = [op for op in jitquant.coverage(dynamic).ops if op.op == "aten::linear"]
    assert [op.reason for op in linears] == ["quantized::linear_dynamic"] * 16
    for method in ("forward", "audio_forward"):
        graph = str(dynamic._c._get_method(method).graph)
        assert graph.count("quantized::linear_dynamic(") == 8
        assert "prepack" not in graph and "lstm_cell(" not in graph

"""Log-mel spectrograms: those of the definition, and those of librosa."""

import numpy as np
import numpy.typing as npt
import pytest
import torch

from sft_lightning.networks.audio.log_mel import FLOOR, Sound, compute_mel, make_mel_filters, scale_log, unscale_log
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import InputSpec

SETTINGS = [(16_000, 512, 256, 64), (22_050, 1024, 320, 128), (8000, 200, 80, 40)]
Array = npt.NDArray[np.float64]


def make_signal(rate: int) -> Array:
    """Return noise with two tones, so that no band is near silence."""
    time = np.arange(rate) / rate
    noise = np.random.default_rng(0).normal(size=rate)
    return 0.1 * noise + 0.3 * np.sin(2 * np.pi * 440 * time) + 0.2 * np.sin(2 * np.pi * 2500 * time)


def compute_by_definition(x: Array, rate: int, fft: int, hop: int, mels: int) -> Array:
    """Return a mel spectrogram by loops in double precision, from the formulas of Slaney's toolbox."""
    padded = np.concatenate([np.zeros(fft // 2), x, np.zeros(fft // 2)])
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(fft) / fft)
    frames = [padded[start : start + fft] * window for start in range(0, len(padded) - fft + 1, hop)]
    power = np.abs(np.fft.rfft(np.stack(frames), axis=1)) ** 2

    def to_hertz(mel: float) -> float:
        return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    highest = 15 + 27 * np.log(rate / 2000) / np.log(6.4)
    edges = [to_hertz(highest * k / (mels + 1)) for k in range(mels + 2)]
    filters = np.zeros((mels, power.shape[1]))
    for m, (low, middle, high) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        for k in range(power.shape[1]):
            frequency = k * rate / fft
            height = min((frequency - low) / (middle - low), (high - frequency) / (high - middle))
            filters[m, k] = max(0.0, height) * 2 / (high - low)
    mel: Array = filters @ power.T
    return mel


@pytest.mark.parametrize(("rate", "fft", "hop", "mels"), SETTINGS)
def test_spectrograms_are_those_of_the_definition(rate: int, fft: int, hop: int, mels: int) -> None:
    x = make_signal(rate)
    ours = compute_mel(torch.from_numpy(x).float()[None], Sound(rate, len(x), fft, hop, mels))[0]
    assert ours.shape == (mels, Sound(rate, len(x), fft, hop, mels).frames)
    theirs = torch.from_numpy(compute_by_definition(x, rate, fft, hop, mels))
    assert (ours.double().log() - theirs.clamp_min(FLOOR).log()).abs().max() < 1e-4


@pytest.mark.parametrize(("rate", "fft", "hop", "mels"), SETTINGS)
def test_spectrograms_are_those_of_librosa(rate: int, fft: int, hop: int, mels: int) -> None:
    librosa = pytest.importorskip("librosa")
    x = make_signal(rate)
    ours = compute_mel(torch.from_numpy(x).float()[None], Sound(rate, len(x), fft, hop, mels))[0]
    theirs = librosa.feature.melspectrogram(y=x, sr=rate, n_fft=fft, hop_length=hop, n_mels=mels, power=2.0)
    assert np.abs(np.log(ours.numpy()) - np.log(theirs)).max() < 1e-4


def test_filters_have_area_one() -> None:
    filters = make_mel_filters(16_000, 4096, 64)
    assert torch.allclose(filters.sum(1) * 16_000 / 4096, torch.ones(64), atol=0.02)


def test_scaled_logarithms_lie_between_silence_and_full_scale() -> None:
    time = torch.arange(32_000) / 16_000
    loudest = (2 * torch.pi * 1000 * time).sin()
    mel = compute_mel(torch.stack([torch.zeros_like(time), loudest]), Sound())
    x = scale_log(mel)
    assert x[0].abs().max() < 1e-6
    assert 0.9 < x[1].max() <= 1.05
    assert torch.allclose(unscale_log(x[1]).log(), mel[1].clamp_min(FLOOR).log(), atol=1e-4)


def test_specifications_say_everything() -> None:
    for sound in (Sound(), Sound(8000, 4000, 200, 80, 40), Sound(8000, 4000).as_waveform()):
        assert Sound.parse(sound.spec) == sound
        assert Sound.parse(InputSpec.parse(sound.spec.to_dict())) == sound
    for spec in (InputSpec("audio", (1, 64, 126)), InputSpec("audio", (1, 64), encoding="log_mel:16000:1:2:3")):
        with pytest.raises(InputError, match="which is not one of recordings"):
            Sound.parse(spec)

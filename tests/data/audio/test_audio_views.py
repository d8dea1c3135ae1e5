"""Views of recordings: each change is what its name says, and every recording of a batch has its own."""

import pytest
import torch
from torch import Tensor

from sft_lightning.data.audio.views import AudioView, make_views
from sft_lightning.networks.audio.log_mel import Sound, scale_decibel
from sft_lightning.utils.errors import InputError

SPECTROGRAM = Sound(8000, 4000, 256, 128, 32)
WAVEFORM = SPECTROGRAM.as_waveform()


def make(count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(count, 1, 4000, generator=generator)


def views(sound: Sound, **changes: float) -> Tensor:
    made = make_views(sound, AudioView(), AudioView(**changes))  # type: ignore[arg-type]
    x = made.prepare(make())
    assert torch.equal(made.weak(x, 3), x)
    return made.strong(x, 5)


@pytest.mark.parametrize("sound", [SPECTROGRAM, WAVEFORM])
@pytest.mark.parametrize(
    "changes", [{"gain": 6}, {"noise": 0.3}, {"shift": 0.3}, {"time_masks": 2}, {"gain": 3, "shift": 0.1, "noise": 0.1}]
)
def test_each_recording_changes_by_its_own_seed(sound: Sound, changes: dict[str, float]) -> None:
    made = make_views(sound, AudioView(**changes), AudioView(**changes))  # type: ignore[arg-type]
    x = made.prepare(make(1)).repeat(4, *[1] * (2 if sound is WAVEFORM else 3))
    weak = made.weak(x, 9)
    assert torch.equal(weak, made.weak(x, 9))
    others = [made.weak(x, 10), made.weak(x, 9, 1), made.strong(x, 9)]
    assert not any(torch.equal(weak, other) for other in others)
    assert len(weak.flatten(1).unique(dim=0)) > 2
    assert torch.equal(made.weak(x, None), x)


def test_loudness_and_shifts_of_spectrograms_are_those_of_waveforms() -> None:
    spectrogram, waveform = make_views(SPECTROGRAM, AudioView(), AudioView()), make()
    x = spectrogram.prepare(waveform)
    louder = spectrogram.prepare(waveform * 10 ** (6 / 20))
    assert torch.allclose(louder - x, scale_decibel(torch.tensor(6.0)), atol=1e-5)
    changed = views(SPECTROGRAM, gain=6) - x
    assert torch.allclose(changed, changed[:, :, :1, :1], atol=1e-5)
    assert changed.abs().max() <= scale_decibel(torch.tensor(6.0)) + 1e-6
    assert changed[:, 0, 0, 0].unique().numel() == 4
    shifted = views(SPECTROGRAM, shift=0.5)
    for row, own in zip(shifted, x, strict=True):
        assert any(torch.equal(row, own.roll(k, -1)) for k in range(-16, 17))


@pytest.mark.parametrize("sound", [SPECTROGRAM, WAVEFORM])
def test_noise_is_a_share_of_the_recording(sound: Sound) -> None:
    made = make_views(sound, AudioView(), AudioView(noise=1.0))
    quiet = made.prepare(make(64)[:1].repeat(64, 1, 1))
    noisy = made.strong(quiet, 1)
    if sound is WAVEFORM:
        change = (noisy - quiet).square().mean((1, 2)).sqrt() / quiet.square().mean().sqrt()
        assert change.min() < 0.1
        assert 0.9 < change.max() < 1.05
    else:  # white noise of the same power makes twice the power, 3 dB
        gained = (noisy - quiet).mean((1, 2, 3)) / scale_decibel(torch.tensor(1.0))
        assert gained.min() < 0.3
        assert 1.8 < gained.max() < 3.2


def test_silence_stays_silence() -> None:
    made = make_views(SPECTROGRAM, AudioView(gain=6, noise=0.5, shift=0.1), AudioView(gain=6))
    x = made.prepare(torch.zeros(2, 1, 4000))
    assert x.abs().max() < 1e-6
    assert made.weak(x, 1).abs().max() < 1e-6


def test_bands_are_hidden_by_the_mean() -> None:
    x = make_views(SPECTROGRAM, AudioView(), AudioView()).prepare(make())
    hidden = views(SPECTROGRAM, frequency_masks=1, frequency_mask=0.9, time_masks=1, time_mask=0.9)
    mean = x.mean((1, 2, 3), keepdim=True).expand_as(x)
    covered = hidden == mean
    assert torch.equal(torch.where(covered, x, hidden), x)
    rows, columns = covered.all(3)[:, 0], covered.all(2)[:, 0]
    assert torch.equal(covered[:, 0], rows[:, :, None] | columns[:, None, :])
    assert rows.sum(1).unique().numel() > 1
    assert all(row.long().diff().abs().sum() <= 2 for row in [*rows, *columns])


def test_mixtures_flat_vectors_and_pictures() -> None:
    made = make_views(SPECTROGRAM, AudioView(), AudioView())
    x = made.prepare(make())
    mixed = made.mix(x, torch.tensor([1, 0, 3, 2]), torch.full((4,), 0.7))
    assert torch.allclose(mixed[0], 0.7 * x[0] + 0.3 * x[1], atol=1e-6)
    assert made.flatten(x).shape == (4, 64)
    shown = made.show(torch.cat([x, x], 1))
    assert shown.shape == (4, 1, 32, 32)
    assert torch.equal(shown[:, :, 0], x[:, :, -1].clamp(0, 1))
    waveforms = make_views(WAVEFORM, AudioView(), AudioView())
    assert waveforms.show(make()).shape[:3] == (4, 1, 64)


def test_shares_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match=r"shift is 1\.5"):
        AudioView(shift=1.5)
    with pytest.raises(InputError, match="time_masks is -1"):
        AudioView(time_masks=-1)
    assert not AudioView(time_masks=2, time_mask=0)

"""Views of recordings for whole batches: loudness, noise, shifts, and bands of time and frequency that are hidden.

Hidden bands are those of Park et al. 2019, "SpecAugment: A Simple Data Augmentation Method for Automatic Speech
Recognition". Each recording of a batch has its own randomness, from the seed of the batch. Numbers are drawn on the
CPU, so that every device gets the same ones.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sft_lightning.data.modality import Views, seed_view
from sft_lightning.networks.audio.backbones import summarize_frames
from sft_lightning.networks.audio.log_mel import (
    Sound,
    make_mel_filters,
    prepare_windows,
    scale_decibel,
    scale_log,
    unscale_log,
)
from sft_lightning.utils.errors import check_fraction, check_min
from sft_lightning.utils.transfer import to_device


@dataclass(frozen=True)
class AudioView:
    """Random changes of a view of a recording.

    Attributes:
        gain: Largest change of loudness in dB, in either direction.
        noise: Largest amplitude of white noise, as a share of that of the recording; 0.1 is 20 dB below it.
        shift: Largest shift in time as a share of the window, in either direction; what leaves at one end enters at the
            other.
        time_masks: Number of stretches of time that are hidden.
        time_mask: Largest length of one, as a share of the window.
        frequency_masks: Number of bands of frequencies that are hidden; of spectrograms alone.
        frequency_mask: Largest width of one, as a share of the mel bands.
    """

    gain: float = 0.0
    noise: float = 0.0
    shift: float = 0.0
    time_masks: int = 0
    time_mask: float = 0.2
    frequency_masks: int = 0
    frequency_mask: float = 0.2

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_min(0, gain=self.gain, noise=self.noise, time_masks=self.time_masks, frequency_masks=self.frequency_masks)
        check_fraction(shift=self.shift, time_mask=self.time_mask, frequency_mask=self.frequency_mask)

    def __bool__(self) -> bool:
        """Return whether the view changes anything."""
        masks = (self.time_masks and self.time_mask) or (self.frequency_masks and self.frequency_mask)
        return bool(self.gain or self.noise or self.shift or masks)


class AudioViews(Views):
    """Views of windows of recordings, (B, W, ...), of which training has one each."""

    def __init__(self, sound: Sound, weak: AudioView, strong: AudioView) -> None:
        """Keep the settings.

        Args:
            sound: Network inputs.
            weak: Changes of weak views.
            strong: Changes of strong views.
        """
        self.sound, self._weak, self._strong = sound, weak, strong

    @property
    def has_strong(self) -> bool:
        """Whether the strong view changes anything."""
        return bool(self._strong)

    def prepare(self, raw: Tensor) -> Tensor:
        """Return the network inputs of windows, (B, W, S)."""
        return prepare_windows(raw, self.sound)

    def weak(self, x: Tensor, seed: int | None, number: int = 0) -> Tensor:
        """Change recordings slightly."""
        return x if seed is None else self._change(x, self._weak, seed_view(seed, 2 * number))

    def strong(self, x: Tensor, seed: int) -> Tensor:
        """Change recordings strongly."""
        return self._change(x, self._strong, seed_view(seed, 1))

    def pretrain(self, x: Tensor, seed: int, number: int) -> Tensor:
        """Change a window for self-supervised pre-training: each view has its own, where the recording is longer.

        So two views of a recording are alike in what all of it has in common, as in Saeed et al. 2021, "Contrastive
        learning of general-purpose audio representations".
        """
        place = number % x.shape[1]
        return self.strong(x[:, place : place + 1], seed_view(seed, number + 1))

    def _change(self, x: Tensor, view: AudioView, seed: int) -> Tensor:
        if not view:
            return x
        generator = torch.Generator().manual_seed(seed)
        gain, noise, shift = torch.rand(3, len(x), *[1] * (x.ndim - 1), generator=generator)
        if view.shift:
            places = ((2 * shift - 1) * view.shift * x.shape[-1]).round().long()
            x = _roll(x, to_device(places.flatten(), x.device))
        if view.noise:
            x = self._add_noise(x, to_device(noise * view.noise, x.device), generator)
        if view.gain:
            x = self._amplify(x, to_device((2 * gain - 1) * view.gain, x.device))
        hidden = _draw_bands(x.shape, -1, view.time_masks, view.time_mask, generator)
        if self.sound.mels:
            hidden = hidden | _draw_bands(x.shape, -2, view.frequency_masks, view.frequency_mask, generator)
        return torch.where(to_device(hidden, x.device), self._neutral(x), x)

    @abstractmethod
    def _add_noise(self, x: Tensor, share: Tensor, generator: torch.Generator) -> Tensor:
        """Add white noise whose amplitude is a share of that of each recording, (B, 1, ...)."""

    @abstractmethod
    def _amplify(self, x: Tensor, decibel: Tensor) -> Tensor:
        """Change the loudness of each recording, (B, 1, ...) in dB."""

    @abstractmethod
    def _neutral(self, x: Tensor) -> Tensor:
        """Return what hidden bands show, (B, 1, ...)."""

    @abstractmethod
    def draw(self, x: Tensor) -> Tensor:
        """Return scaled log-mel spectrograms, (B, W, mels, frames).

        Args:
            x: Network inputs, (B, W, ...).
        """

    def show(self, x: Tensor) -> Tensor:
        """Return spectrograms of first windows as images in [0, 1], low frequencies below, (B, 1, mels, frames)."""
        spectrograms = self.draw(x)[:, :1]
        shown: Tensor = spectrograms.clamp(0, 1).flip(-2)
        return shown

    def flatten(self, x: Tensor) -> Tensor:
        """Return mean and deviation of each mel band, (B, 2 * mels), as the backbone `log_mel`."""
        return summarize_frames(self.draw(x))


class SpectrogramViews(AudioViews):
    """Views of scaled log-mel spectrograms, (B, W, mels, frames)."""

    inputs_name: ClassVar[str] = "log-mel statistics"

    def _add_noise(self, x: Tensor, share: Tensor, generator: torch.Generator) -> Tensor:
        areas = make_mel_filters(self.sound.rate, self.sound.fft, self.sound.mels).sum(1).to(x.device)[:, None]
        power = torch.where(x > 0, unscale_log(x), 0)  # silence stays silence
        density = (power / areas).mean((1, 2, 3), keepdim=True)  # of the recording, in one frequency
        # The power of white noise in one frequency has an exponential distribution.
        drawn = torch.empty(x.shape).exponential_(generator=generator)
        return scale_log(power + share.square() * density * areas * to_device(drawn, x.device))

    def _amplify(self, x: Tensor, decibel: Tensor) -> Tensor:
        return torch.where(x > 0, (x + scale_decibel(decibel)).clamp_min(0), x)

    def _neutral(self, x: Tensor) -> Tensor:
        return x.mean((1, 2, 3), keepdim=True)

    def draw(self, x: Tensor) -> Tensor:
        """Return the inputs."""
        return x


class WaveformViews(AudioViews):
    """Views of waveforms, (B, W, S)."""

    inputs_name: ClassVar[str] = "log-mel statistics"

    def _add_noise(self, x: Tensor, share: Tensor, generator: torch.Generator) -> Tensor:
        amplitude = x.square().mean((1, 2), keepdim=True).sqrt()
        return x + share * amplitude * to_device(torch.randn(x.shape, generator=generator), x.device)

    def _amplify(self, x: Tensor, decibel: Tensor) -> Tensor:
        return x * 10 ** (decibel / 20)

    def _neutral(self, x: Tensor) -> Tensor:
        return x.new_zeros(())

    def draw(self, x: Tensor) -> Tensor:
        """Return spectrograms with the usual settings."""
        return prepare_windows(x, Sound(self.sound.rate, self.sound.samples))


def make_views(sound: Sound, weak: AudioView, strong: AudioView) -> AudioViews:
    """Return the views of the inputs of a network.

    Args:
        sound: Network inputs.
        weak: Changes of weak views.
        strong: Changes of strong views.
    """
    return (SpectrogramViews if sound.mels else WaveformViews)(sound, weak, strong)


def _roll(x: Tensor, places: Tensor) -> Tensor:
    """Shift each example along its last side in a circle, by its own number of places, int64 (B,)."""
    length = x.shape[-1]
    index = (torch.arange(length, device=x.device) - places[:, None]) % length
    rolled: Tensor = x.gather(-1, index.view(len(x), *[1] * (x.ndim - 2), length).expand_as(x))
    return rolled


def _draw_bands(shape: torch.Size, side: int, count: int, most: float, generator: torch.Generator) -> Tensor:
    """Draw bands along a side of each example, and return where they are, bool, of a shape that expands to `shape`."""
    length = shape[side]
    size, begin = torch.rand(2, shape[0], count, 1, generator=generator)
    size = size * most * length
    begin = begin * (length - size)
    places = torch.arange(length)
    inside = ((places >= begin) & (places < begin + size)).any(1)
    sides = [1] * len(shape)
    sides[0], sides[side] = shape[0], length
    placed: Tensor = inside.view(sides)
    return placed

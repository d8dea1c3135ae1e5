"""Log-mel spectrograms in plain torch, and what the `InputSpec` of recordings says about them.

The filters are those of Slaney 1998, "Auditory Toolbox", as librosa draws them: equal distances on a scale that is
linear up to 1 kHz and logarithmic above, each filter of area 1.
"""

import math
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import InputSpec

FLOOR = 1e-10  # smallest power that differs from silence
# Logarithms that become 0 and 1: silence, and slightly above a tone at full scale in a window of 512 samples.
_LOW, _HIGH = math.log(FLOOR), 6.0
_LINEAR, _BEND = 200 / 3, 1000.0  # Hz of a mel below the bend, and the bend itself
_STEP = math.log(6.4) / 27  # of the logarithm of the frequency, per mel above it


@dataclass(frozen=True)
class Sound:
    """Windows of recordings as network inputs.

    Attributes:
        rate: Sample rate in Hz.
        samples: Length of a window in samples.
        fft: Samples of a frame, whose spectrum is taken.
        hop: Samples from one frame to the next.
        mels: Number of mel bands; 0 for waveforms.
    """

    rate: int = 16_000
    samples: int = 32_000
    fft: int = 512
    hop: int = 256
    mels: int = 64

    @property
    def frames(self) -> int:
        """Number of frames of a window."""
        return 1 + self.samples // self.hop

    @property
    def spec(self) -> InputSpec:
        """Specification of the inputs: scaled log-mel spectrograms, (1, mels, frames), or waveforms, (1, samples)."""
        if not self.mels:
            return InputSpec("audio", (1, self.samples), encoding=f"waveform:{self.rate}")
        encoding = f"log_mel:{self.rate}:{self.samples}:{self.fft}:{self.hop}"
        return InputSpec("audio", (1, self.mels, self.frames), encoding=encoding)

    @classmethod
    def parse(cls, spec: InputSpec) -> "Sound":
        """Return what a specification says.

        Args:
            spec: Specification of recordings.

        Raises:
            InputError: It says nothing that this package understands.
        """
        kind, *numbers = spec.encoding.split(":")
        if all(number.isdecimal() and 0 < int(number) < 2**31 for number in numbers):
            given = [int(number) for number in numbers]
            if kind == "waveform" and len(given) == 1 and len(spec.shape) == 2:
                return cls(given[0], spec.shape[1], mels=0)
            if kind == "log_mel" and len(given) == 4 and len(spec.shape) == 3:
                return cls(given[0], given[1], given[2], given[3], spec.shape[1])
        raise InputError(f"input_spec has the encoding {spec.encoding!r}, which is not one of recordings")

    def as_waveform(self) -> "Sound":
        """Return the same windows as waveforms."""
        return replace(self, mels=0)


def _to_mel(frequency: float) -> float:
    if frequency < _BEND:
        return frequency / _LINEAR
    return _BEND / _LINEAR + math.log(frequency / _BEND) / _STEP


def _to_hertz(mel: Tensor) -> Tensor:
    bend = _BEND / _LINEAR
    return torch.where(mel < bend, mel * _LINEAR, _BEND * ((mel - bend).clamp_min(0) * _STEP).exp())


@cache
def make_mel_filters(rate: int, fft: int, mels: int, high: float | None = None) -> Tensor:
    """Return triangular filters of area 1 at equal distances in mel, float32, (mels, 1 + fft // 2).

    Args:
        rate: Sample rate in Hz.
        fft: Number of samples of a frame.
        mels: Number of filters.
        high: Frequency in Hz where the last filter ends; None for half the rate.
    """
    top = _to_mel(rate / 2 if high is None else high)
    edges = _to_hertz(torch.linspace(0, top, mels + 2, dtype=torch.float64))
    frequencies = torch.linspace(0, rate / 2, 1 + fft // 2, dtype=torch.float64)
    slopes = edges[:, None] - frequencies
    widths = edges.diff()[:, None]
    rising, falling = -slopes[:-2] / widths[:-1], slopes[2:] / widths[1:]
    filters = torch.minimum(rising, falling).clamp_min(0)
    return (filters * (2 / (edges[2:] - edges[:-2]))[:, None]).float()


def compute_power(waveforms: Tensor, fft: int, hop: int, padding: str = "constant") -> Tensor:
    """Return power spectrograms of waveforms with Hann's window, (B, 1 + fft // 2, frames).

    Args:
        waveforms: Waveforms, float32, (B, S).
        fft: Number of samples of a frame, which are centered at multiples of `hop`.
        hop: Samples from one frame to the next.
        padding: How a waveform goes on at its ends: `constant` for silence, or `reflect`.
    """
    window = torch.hann_window(fft, device=waveforms.device)
    spectrum = torch.stft(waveforms, fft, hop, window=window, pad_mode=padding, return_complex=True)
    return spectrum.real.square() + spectrum.imag.square()


def compute_mel(waveforms: Tensor, sound: Sound) -> Tensor:
    """Return mel spectrograms of waveforms, power, (B, mels, frames), as librosa's `melspectrogram` with `power=2`.

    Args:
        waveforms: Waveforms, float32, (B, S).
        sound: Rate, frames and bands.
    """
    filters = make_mel_filters(sound.rate, sound.fft, sound.mels).to(waveforms.device)
    return filters @ compute_power(waveforms, sound.fft, sound.hop)


def scale_log(power: Tensor) -> Tensor:
    """Return the logarithm of mel powers, scaled so that silence is 0 and a tone at full scale nearly 1.

    Args:
        power: Mel spectrograms, of any shape.
    """
    return (power.clamp_min(FLOOR).log() - _LOW) / (_HIGH - _LOW)


def prepare_windows(windows: Tensor, sound: Sound) -> Tensor:
    """Return network inputs: scaled log-mel spectrograms, (B, W, mels, frames), or the waveforms themselves.

    Args:
        windows: Waveforms of windows of recordings, float32, (B, W, S).
        sound: Network inputs.
    """
    if not sound.mels:
        return windows
    prepared: Tensor = scale_log(compute_mel(windows.flatten(0, 1), sound)).unflatten(0, windows.shape[:2])
    return prepared


def unscale_log(x: Tensor) -> Tensor:
    """Return the mel powers of scaled logarithms, the inverse of `scale_log`.

    Args:
        x: Scaled logarithms, of any shape.
    """
    return (x * (_HIGH - _LOW) + _LOW).exp()


def scale_decibel(change: Tensor) -> Tensor:
    """Return changes of loudness as what is added to scaled logarithms.

    Args:
        change: Changes in dB, of any shape.
    """
    return change * (math.log(10) / 10 / (_HIGH - _LOW))

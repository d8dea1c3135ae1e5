"""Published encoders of waveforms: what each kind computes before its network, and how its outputs are pooled.

What the feature extractors of transformers compute is computed here for a batch, on its device. Zeros at the end of a
window are taken for padding.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning.networks.audio.log_mel import Sound, compute_power, make_mel_filters
from sft_lightning.networks.hugging_face import find_file, load_model
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.json_files import read_json_object

_KALDI_FLOOR = 1.192092955078125e-07  # of the power, as in Kaldi


class PublishedModel(ABC):
    """A published network with what it computes of waveforms first.

    Attributes:
        net: Network of transformers.
        num_features: Number F of features.
    """

    def __init__(self, name: str, net: Any, sound: Sound, pool: str, settings: dict[str, Any]) -> None:
        """Keep the network.

        Args:
            name: Name of the encoder, for messages.
            net: Network of transformers.
            sound: Waveforms.
            pool: `mean` over time, or `cls` for the first tokens where the network has some.
            settings: Settings of its feature extractor (`preprocessor_config.json`).

        Raises:
            InputError: The network takes other waveforms, or has no such tokens.
        """
        self.net: nn.Module = net
        self.config: Any = net.config
        self.sound, self.pool, self.settings = sound, pool, settings
        self.num_features = int(self.config.hidden_size)
        rate = settings.get("sampling_rate", 16_000)
        if rate != sound.rate:
            raise InputError(f"backbone {name!r} takes {rate} Hz, and sample_rate is {sound.rate}: set it to {rate}")
        if (most := self.most_samples) is not None and sound.samples > most:
            raise InputError(
                f"backbone {name!r} takes windows of {most / rate:g} s, and seconds is "
                f"{sound.samples / rate:g}: lower it"
            )
        if pool == "cls" and not self.has_tokens:
            raise InputError(f"backbone {name!r} has no token of a whole recording: leave ':cls' out")

    has_tokens = False

    @property
    def most_samples(self) -> int | None:
        """Largest number of samples of a window; None for any."""
        return None

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Return features of windows, (N, S) to (N, F).

        Args:
            x: Waveforms.
        """


def count_given(x: Tensor) -> Tensor:
    """Return the number of samples of each window up to the last one that is not zero, at least 1, int64 (N,).

    Args:
        x: Waveforms, (N, S).
    """
    places = torch.arange(1, x.shape[1] + 1, device=x.device)
    return ((x != 0) * places).amax(1).clamp_min(1)


def average_frames(frames: Tensor, count: Tensor) -> Tensor:
    """Return the mean of the first frames of each window, (N, F).

    Args:
        frames: Features of frames, (N, T, F).
        count: Number of frames that are not padding, at least 1 of which is taken, (N,).
    """
    places = torch.arange(frames.shape[1], device=frames.device)
    given = (places < count.clamp(1, frames.shape[1])[:, None]).to(frames.dtype).unsqueeze(-1)
    return (frames * given).sum(1) / given.sum(1)


class Wav2Vec2(PublishedModel):
    """wav2vec 2.0 (Baevski et al. 2020), HuBERT (Hsu et al. 2021), or one with the same convolutions, as WavLM."""

    def __init__(self, *args: Any) -> None:
        """Switch off what would draw random numbers that a resumed run could not repeat.

        Args:
            args: Arguments of `PublishedModel`.
        """
        super().__init__(*args)
        self.config.apply_spec_augment, self.config.layerdrop = False, 0.0  # masks of numpy's global generator
        if isinstance(getattr(self.net, "masked_spec_embed", None), nn.Parameter):
            setattr(self.net, "masked_spec_embed", None)  # noqa: B010  # without masks it has no gradient, for which DDP would wait

    def encode(self, x: Tensor) -> Tensor:
        """Normalize waveforms, and average the frames that are not padding."""
        count = count_given(x)
        given = torch.arange(x.shape[1], device=x.device) < count[:, None]
        if self.settings.get("do_normalize", True):
            mean = (x * given).sum(1, keepdim=True) / count[:, None]
            variance = ((x - mean).square() * given).sum(1, keepdim=True) / count[:, None]
            x = (x - mean) / (variance + 1e-7).sqrt() * given
        # Networks that normalize groups were trained without masks.
        masks = getattr(self.config, "feat_extract_norm", "group") == "layer"
        net: Any = self.net
        frames = net(x, attention_mask=given.long() if masks else None).last_hidden_state
        return average_frames(frames, net._get_feat_extract_output_lengths(count))


class SpectrogramTransformer(PublishedModel):
    """AST (Gong et al. 2021), over log-mel spectrograms of Kaldi."""

    has_tokens = True

    def __init__(self, *args: Any) -> None:
        """Draw the filters.

        Args:
            args: Arguments of `PublishedModel`.
        """
        super().__init__(*args)
        self._filters = make_kaldi_filters(self.sound.rate, 512, self.config.num_mel_bins)

    @property
    def most_samples(self) -> int:
        """Samples of the longest spectrogram."""
        return 400 + 160 * (int(self.config.max_length) - 1)

    def encode(self, x: Tensor) -> Tensor:
        """Return the mean of all tokens, or of the first two, as the network's own classifier takes them."""
        mel = compute_kaldi(x, self._filters.to(x.device))
        mel = F.pad(mel, (0, 0, 0, int(self.config.max_length) - mel.shape[1]))
        mean, std = self.settings.get("mean", -4.2677393), self.settings.get("std", 4.5689974)
        if self.settings.get("do_normalize", True):
            mel = (mel - mean) / (2 * std)
        tokens: Tensor = self.net(mel).last_hidden_state
        return tokens[:, :2].mean(1) if self.pool == "cls" else tokens.mean(1)


class Whisper(PublishedModel):
    """Encoder of Whisper (Radford et al. 2022), over log-mel spectrograms of 30 s."""

    @property
    def most_samples(self) -> int:
        """Samples of the inputs, 30 s."""
        return 2 * 160 * int(self.config.max_source_positions)

    def encode(self, x: Tensor) -> Tensor:
        """Fill windows up with silence, and average the frames that are not padding."""
        power = compute_power(F.pad(x, (0, self.most_samples - x.shape[1])), 400, 160, "reflect")[..., :-1]
        filters = make_mel_filters(self.sound.rate, 400, int(self.config.num_mel_bins)).to(x.device)
        logarithm = (filters @ power).clamp_min(1e-10).log10()
        logarithm = torch.maximum(logarithm, logarithm.amax((1, 2), keepdim=True) - 8)
        frames = self.net((logarithm + 4) / 4).last_hidden_state
        return average_frames(frames, (count_given(x) + 319) // 320)


_KINDS: dict[str, type[PublishedModel]] = {
    **dict.fromkeys(("wav2vec2", "hubert", "wavlm", "unispeech-sat", "data2vec-audio"), Wav2Vec2),
    "audio-spectrogram-transformer": SpectrogramTransformer,
    "whisper": Whisper,
}


def load_published(name: str, where: str, sound: Sound, pool: str, has_weights: bool) -> PublishedModel:
    """Load a published encoder of waveforms.

    Args:
        name: Name as the user wrote it.
        where: The name without its pooling.
        sound: Waveforms.
        pool: `mean` or `cls`.
        has_weights: Whether to load the published weights, or to draw them.

    Raises:
        InputError: The model is missing, is not an encoder of waveforms, or takes other ones.
    """
    net = load_model(where, has_weights)
    kind = _KINDS.get(str(net.config.model_type))
    if kind is None:
        raise InputError(
            f"backbone {name!r} is a model of type {net.config.model_type!r}: give one of {', '.join(_KINDS)}"
        )
    settings = read_settings(where, is_needed=has_weights)
    return kind(name, net.get_encoder() if kind is Whisper else net, sound, pool, settings)


def read_settings(where: str, is_needed: bool = False) -> dict[str, Any]:
    """Return the settings of the feature extractor of a published encoder.

    Args:
        where: Name `hf/FOLDER` or `hf/NAME`.
        is_needed: Whether to refuse an encoder without them, such as one whose weights were trained with them.

    Raises:
        InputError: They are missing or damaged.
    """
    try:
        return read_json_object(find_file(where, "preprocessor_config.json"), "fetch it again")
    except InputError:
        if is_needed:
            raise
        return {}


def make_kaldi_filters(rate: int, fft: int, mels: int) -> Tensor:
    """Return Kaldi's filters from 20 Hz on, triangular in mel, float32, (mels, 1 + fft // 2).

    Args:
        rate: Sample rate in Hz.
        fft: Number of samples of a frame.
        mels: Number of filters.
    """

    def to_mel(frequency: Tensor) -> Tensor:
        return 1127 * (1 + frequency / 700).log()

    low, high = to_mel(torch.tensor([20.0, rate // 2], dtype=torch.float64)).tolist()
    edges = torch.linspace(low, high, mels + 2, dtype=torch.float64)
    slopes = edges[:, None] - to_mel(torch.linspace(0, rate // 2, 1 + fft // 2, dtype=torch.float64))
    widths = edges.diff()[:, None]
    return torch.minimum(-slopes[:-2] / widths[:-1], slopes[2:] / widths[1:]).clamp_min(0).float()


def compute_kaldi(x: Tensor, filters: Tensor) -> Tensor:
    """Return Kaldi's log-mel spectrograms, (N, frames, mels): 25 ms in steps of 10 ms at 16 kHz.

    Args:
        x: Waveforms, (N, S).
        filters: Filters from `make_kaldi_filters` of 512 samples.
    """
    frames = F.pad(x, (0, max(0, 400 - x.shape[1]))).unfold(1, 400, 160)
    frames = frames - frames.mean(2, keepdim=True)
    before = torch.cat([frames[..., :1], frames[..., :-1]], 2)
    window = torch.hann_window(400, periodic=False, device=x.device)
    spectrum = torch.fft.rfft((frames - 0.97 * before) * window, 512)
    power = spectrum.real.square() + spectrum.imag.square()
    logarithm: Tensor = (power @ filters.T).clamp_min(_KALDI_FLOOR).log()
    return logarithm

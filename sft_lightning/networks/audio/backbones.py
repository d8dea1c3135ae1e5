"""Encoders of recordings by name: statistics of spectrograms, networks for images over them, or published ones.

Inputs are windows of recordings, (B, W, ...). Features of an example are the mean over its windows, so that a linear
classifier on them averages the logits of the windows.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from sft_lightning.networks.audio.log_mel import Sound
from sft_lightning.networks.audio.published import PublishedModel, load_published, read_settings
from sft_lightning.networks.encoder import Encoder
from sft_lightning.networks.hugging_face import split_pool
from sft_lightning.networks.vision.backbones import Backbone, build_backbone
from sft_lightning.networks.weights import Tensors, find_weights, load_encoder_weights
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import InputSpec

Numbers = float | Sequence[float]
STATISTICS = "log_mel"


def average_windows(encode: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the mean features of the windows of each example, (B, F).

    Args:
        encode: Function from windows, (N, ...), to features, (N, F).
        x: Windows, (B, W, ...).
    """
    averaged: Tensor = encode(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)
    return averaged


def summarize_frames(x: Tensor) -> Tensor:
    """Return mean and standard deviation over time of each mel band, without frames of silence, (B, 2 * mels).

    Silence (zeros) is mostly the padding of short recordings, whose share would say more than their sound.

    Args:
        x: Scaled log-mel spectrograms, (B, W, mels, frames).
    """
    frames = x.transpose(1, 2).flatten(2)
    given = (frames > 0).any(1, keepdim=True)
    given = (given | ~given.any(2, keepdim=True)).to(x.dtype)
    count = given.sum(2)
    mean = (frames * given).sum(2) / count
    variance = ((frames - mean.unsqueeze(2)).square() * given).sum(2) / count
    return torch.cat([mean, variance.sqrt()], 1)


class LogMelStatistics(Encoder):
    """Mean and standard deviation over time of each mel band, without any weights."""

    modality: ClassVar[str] = "audio"

    def __init__(self, spec: InputSpec) -> None:
        """Build nothing.

        Args:
            spec: Inputs.
        """
        super().__init__()
        self.net = nn.Identity()
        self.num_features = 2 * spec.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        """Summarize spectrograms, (B, W, mels, frames) to (B, 2 * mels)."""
        return summarize_frames(x)


class SpectrogramEncoder(Backbone):
    """A network for images that sees scaled log-mel spectrograms as images of one channel."""

    modality: ClassVar[str] = "audio"

    def forward(self, x: Tensor) -> Tensor:
        """Compute features.

        Args:
            x: Windows, (B, W, mels, frames).

        Returns:
            Features, (B, num_features).
        """
        return average_windows(lambda windows: super(SpectrogramEncoder, self).forward(windows.unsqueeze(1)), x)

    def reconstruct(self, decoder: nn.Module, x: Tensor) -> Tensor:
        """Encode and decode each window by itself, (B, W, mels, frames)."""
        windows: Tensor = decoder(self(x.flatten(0, 1).unsqueeze(1)))
        return windows.view_as(x)


class WaveformEncoder(Encoder):
    """An encoder of transformers for recordings: wav2vec 2.0, HuBERT, AST, or the encoder of Whisper.

    No code of the model's folder is run, and weights are read from safetensors alone.
    """

    modality: ClassVar[str] = "audio"

    def __init__(self, name: str, spec: InputSpec, has_weights: bool) -> None:
        """Load the model.

        Args:
            name: Name `hf/FOLDER` or `hf/NAME`, with `:mean` (the default) or `:cls` for its pooling.
            spec: Inputs.
            has_weights: Whether to load the published weights, or to draw them.

        Raises:
            InputError: The model is missing, is not one of these, or takes other inputs.
        """
        super().__init__()
        where, self._pool = split_pool(name)
        sound = Sound.parse(spec)
        if sound.mels:
            raise InputError(
                f"backbone {name!r} reads waveforms, and the data has spectrograms: set data.encoding to waveform"
            )
        self._model: PublishedModel = load_published(name, where, sound, self._pool, has_weights)
        self.net, self.num_features = self._model.net, self._model.num_features

    def forward(self, x: Tensor) -> Tensor:
        """Compute features of waveforms, (B, W, S) to (B, F)."""
        return average_windows(self._model.encode, x)


def adapt_spec(name: str, spec: InputSpec) -> InputSpec:
    """Return the inputs that an encoder of recordings takes: waveforms of their sample rate for published ones.

    Args:
        name: Name of the encoder.
        spec: Inputs of the data.
    """
    if not name.startswith("hf/"):
        return spec
    sound = Sound.parse(spec)
    rate = read_settings(split_pool(name)[0]).get("sampling_rate", sound.rate)
    return Sound(rate, round(sound.samples * rate / sound.rate), mels=0).spec


def build_from_spec(
    name: str, spec: InputSpec, weights: str, mean: Numbers | None, std: Numbers | None
) -> tuple[Encoder, Tensors]:
    """Build an encoder of recordings and load its weights.

    Args:
        name: `log_mel` (statistics of spectrograms), the name of a network for images, such as `resnet8`, `conv` or
            `timm/NAME`, which sees spectrograms as images of one channel, or `hf/` and a folder of a published model.
        spec: Inputs.
        weights: `none`, `default` (published ones), or the path of a file or run.
        mean: Mean of the normalization of spectrograms; None for that of the weights.
        std: Standard deviation of that normalization; None for that of the weights.

    Returns:
        The encoder, and all tensors of the file, which may contain a head.

    Raises:
        InputError: The name is unknown, or the inputs or weights do not fit.
    """
    sound = Sound.parse(spec)
    is_image_network = not name.startswith("hf/") and name != STATISTICS
    if not is_image_network and (mean is not None or std is not None):
        raise InputError(f"mean or std is set, which backbone {name!r} does not take: leave it out")
    if not name.startswith("hf/") and not sound.mels:
        raise InputError(
            f"backbone {name!r} reads spectrograms, and the data has waveforms: set data.encoding to log_mel"
        )
    if is_image_network:
        backbone, tensors = build_backbone(name, spec.shape, weights, mean, std, SpectrogramEncoder)
        backbone.input_spec = spec
        return backbone, tensors
    if name == STATISTICS and weights != "none":
        raise InputError(f"weights is {weights!r}, but backbone {name!r} has none: leave it out")
    encoder: Encoder
    encoder = LogMelStatistics(spec) if name == STATISTICS else WaveformEncoder(name, spec, weights == "default")
    encoder.name, encoder.input_spec = name, spec
    if weights in ("none", "default"):
        return encoder, {}
    return encoder, load_encoder_weights(encoder, find_weights(Path(weights)))[1]

"""Backbones by name, our own or any torchvision or timm model; weights from nowhere, a publisher or a file."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sft_lightning.networks.heads import extract_linear_head
from sft_lightning.networks.resampling import Filter
from sft_lightning.networks.vision.autoencoders import ConvEncoder, MLPEncoder
from sft_lightning.networks.vision.normalization import Stats
from sft_lightning.networks.vision.pretrained import build_library_net, infer_normalization
from sft_lightning.networks.vision.wide_resnet import WideResNet
from sft_lightning.networks.weights import (
    Tensors,
    find_weights,
    load_into,
    read_weights,
    reject_unmerged_adapters,
    select_evaluated_weights,
)
from sft_lightning.utils.errors import InputError

_log = logging.getLogger(__name__)
BUILT_IN: dict[str, Callable[[Sequence[int]], nn.Module]] = {
    "mlp": MLPEncoder,
    "conv": ConvEncoder,
    "wrn_28_2": WideResNet,
}


class Backbone(nn.Module):
    """A network without its classifier, and the normalization that belongs to its weights.

    Pixels in [0, 1] go in, so whoever takes the weights cannot take them with another normalization. One gray channel
    is repeated for a network that was made for three.

    Attributes:
        name: As the user wrote it.
        image_shape: (C, H, W) that goes in.
        num_features: Size of what comes out.
        net: The network itself.
        classifier: Name of the layer that was cut off, under which a file of the library's own may hold it, or None.
        misfits: Tensors that the file of its weights has in another shape, so that they start anew.
        constant_buffers: Those of its own that no training step changes.
    """

    mean: Tensor
    std: Tensor
    constant_buffers: ClassVar[tuple[str, ...]] = ("mean", "std")

    def __init__(
        self,
        name: str,
        net: nn.Module,
        num_features: int,
        image_shape: Sequence[int],
        mean: Stats = 0.0,
        std: Stats = 1.0,
        classifier: str | None = None,
    ) -> None:
        """Wraps a network.

        Args:
            name: For messages and for rebuilding.
            net: (B, C, H, W) to (B, num_features).
            num_features: Of the output.
            image_shape: (C, H, W).
            mean: Subtracted from the pixels, one number or one for each channel.
            std: Divides the pixels.
            classifier: See above.
        """
        super().__init__()
        self.name, self.net, self.num_features, self.classifier = name, net, num_features, classifier
        self.image_shape = tuple(image_shape)
        self.misfits: list[str] = []
        self._channels = image_shape[0] if name in BUILT_IN else 3
        self.register_buffer("mean", self._stats(mean))
        self.register_buffer("std", self._stats(std))
        self._plain = self._is_plain()

    def _stats(self, value: Stats) -> Tensor:
        numbers = [float(value)] if isinstance(value, (int, float)) else [float(v) for v in value]
        if len(numbers) == 1:
            numbers *= self._channels
        if len(numbers) != self._channels:
            raise InputError(f"mean or std is {numbers}: give one number or {self._channels}, one for each channel")
        return torch.tensor(numbers).view(-1, 1, 1)

    def _is_plain(self) -> bool:
        return bool((self.mean == 0).all() and (self.std == 1).all())

    def normalize(self, mean: Tensor, std: Tensor) -> None:
        """Replaces the normalization.

        Args:
            mean: (C, 1, 1).
            std: (C, 1, 1).
        """
        self.mean.copy_(mean)
        self.std.copy_(std)
        self._plain = self._is_plain()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._plain = self._is_plain()

    def forward(self, x: Tensor) -> Tensor:
        """Computes features.

        Args:
            x: Pixels in [0, 1], (B, C, H, W).

        Returns:
            (B, num_features).
        """
        if x.shape[1] == 1 and self._channels == 3:
            x = x.expand(-1, 3, -1, -1)
        x = x.to(self.mean.dtype)  # where all of the network is in half or double precision
        if not self._plain:
            x = (x - self.mean) / self.std
        features: Tensor = self.net(x)
        return features

    def describe(self) -> dict[str, Any]:
        """What `rebuild_backbone` needs, as primitives."""
        return {"backbone": self.name, "image_shape": list(self.image_shape), "num_features": self.num_features}


def build_backbone(
    name: str,
    image_shape: Sequence[int],
    weights: str = "none",
    mean: Stats | None = None,
    std: Stats | None = None,
) -> tuple[Backbone, Tensors]:
    """Builds a backbone and fills it.

    Args:
        name: `mlp`, `conv`, `wrn_28_2`, a torchvision or timm name; `torchvision/NAME` or `timm/NAME` where both have
            it (torchvision's comes first).
        image_shape: (C, H, W) of the pictures.
        weights: `none`, `default` (the published ones, downloaded), or the path of a file or run.
        mean: Normalization; null for that of the weights, or none.
        std: The same.

    Returns:
        The backbone, and all tensors of the file (a head among them, perhaps).

    Raises:
        InputError: The name is unknown, or the weights cannot be had or fit nothing.
    """
    published = weights == "default"
    if name in BUILT_IN:
        if published:
            raise InputError(f"weights is 'default', but nobody publishes weights of {name!r}: give none or a path")
        net = BUILT_IN[name](image_shape)
        backbone = Backbone(name, net, int(net.num_features), image_shape)  # type: ignore[arg-type]
        library_filter = None
    else:
        if image_shape[0] not in (1, 3):
            raise InputError(f"backbone {name!r} takes 1 or 3 channels, the pictures have {image_shape[0]}")
        made = build_library_net(name, image_shape, published, [*BUILT_IN])._asdict()
        library_filter = made.pop("library_filter")
        backbone = Backbone(name, image_shape=image_shape, **made)
        backbone.net.to(memory_format=torch.channels_last)  # a convolutional network takes half the time on a CPU
    tensors: Tensors = {}
    if weights not in ("none", "default"):
        tensors = _fill(backbone, find_weights(Path(weights)), library_filter, mean is None or std is None)
    new_mean = backbone.mean if mean is None else backbone._stats(mean)
    new_std = backbone.std if std is None else backbone._stats(std)
    if not bool((new_std > 0).all()):
        raise InputError(f"std is {new_std.flatten().tolist()}: give numbers above 0")
    backbone.normalize(new_mean.clone(), new_std.clone())
    return backbone, tensors


def rebuild_backbone(path: str | Path) -> Backbone:
    """Rebuilds the backbone that an `encoder.safetensors` describes.

    Args:
        path: The file or its run folder.

    Raises:
        InputError: The file does not say what it is.
    """
    file = find_weights(Path(path))
    _, about = read_weights(file)
    if "backbone" not in about:
        raise InputError(f"weights {str(file)!r} do not say which backbone they are of: name it yourself")
    return build_backbone(about["backbone"], about["image_shape"], str(file))[0]


def find_source_head(backbone: Backbone, tensors: Tensors) -> Tensors:
    """The classifier that a network had where its weights come from.

    Args:
        backbone: Of a library, or our own.
        tensors: All of the file, or of `libraries.published_tensors`.

    Returns:
        `weight` (S, F) and `bias` (S,) of a linear layer on the features, or nothing.
    """
    found = extract_linear_head(tensors)
    if not found and backbone.classifier is not None:
        for prefix in ("", "module.", "model."):
            pair = {n: tensors.get(f"{prefix}{backbone.classifier}.{n}") for n in ("weight", "bias")}
            found = found or {n: t for n, t in pair.items() if t is not None}
    weight = found.get("weight")
    fits = weight is not None and weight.ndim == 2 and weight.shape[1] == backbone.num_features and "bias" in found
    return found if fits else {}


def _fill(backbone: Backbone, path: Path, library_filter: Filter | None, needs_stats: bool) -> Tensors:
    tensors, about = read_weights(path)
    if about.get("part") == "head":
        raise InputError(f"weights {str(path)!r} is a head without a backbone: give it as head_weights")
    if about.get("backbone", backbone.name) != backbone.name:
        raise InputError(
            f"weights {str(path)!r} are of backbone {about['backbone']!r}, asked for is {backbone.name!r}: set "
            f"backbone: {about['backbone']}"
        )
    reject_unmerged_adapters(tensors, str(path))
    tensors = select_evaluated_weights(tensors)
    matched = load_into(backbone.net, tensors, str(path), library_filter, backbone.classifier)
    backbone.misfits = matched.other_shape
    prefix = matched.prefix.removesuffix("net.")
    stated = [tensors.get(prefix + name) for name in ("mean", "std")]
    if stated[0] is not None and stated[1] is not None:
        backbone.normalize(*(_to_channels(stats, backbone.mean) for stats in stated if stats is not None))
    elif backbone.name not in BUILT_IN:
        stats = infer_normalization(backbone.name, backbone.net, path)
        backbone.normalize(backbone._stats(stats.mean), backbone._stats(stats.std))
        if needs_stats:
            matched.notes.append(
                f"the file states no normalization, so that of {stats.source} is used, mean {_listed(backbone.mean)} "
                f"and std {_listed(backbone.std)}: set mean and std for another"
            )
    _log.info("Weights %s: %s.", path, matched)
    return tensors


def _to_channels(stats: Tensor, like: Tensor) -> Tensor:
    """Means or deviations for another number of channels, as the first layer is adapted to it."""
    return stats if stats.shape == like.shape else stats.mean().expand_as(like)


def _listed(stats: Tensor) -> str:
    return ", ".join(f"{value:.4g}" for value in stats.flatten().tolist())

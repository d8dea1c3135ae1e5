"""Backbones by name: built-in, torchvision or timm networks with random, published or own weights."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sft_lightning.networks.encoder import Encoder, MaskedDecoder
from sft_lightning.networks.heads import extract_linear_head
from sft_lightning.networks.modes import eval_mode
from sft_lightning.networks.resampling import Filter
from sft_lightning.networks.vision.autoencoders import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from sft_lightning.networks.vision.corruption import add_noise, hide_patches
from sft_lightning.networks.vision.masking import MapDecoder, TokenDecoder, find_tokens
from sft_lightning.networks.vision.normalization import Stats
from sft_lightning.networks.vision.pixels import Pixels
from sft_lightning.networks.vision.pooling import find_pool, keep_pooled, replace_pool, split_pool
from sft_lightning.networks.vision.pretrained import build_library_net, infer_normalization, interpolate_positions
from sft_lightning.networks.vision.pyramid import (
    STRIDE,
    FeaturePyramid,
    Hypercolumns,
    Level,
    collect_maps,
    find_levels,
    remove_unused,
)
from sft_lightning.networks.vision.resnet8 import ResNet8
from sft_lightning.networks.vision.wide_resnet import WideResNet
from sft_lightning.networks.weights import Tensors, find_weights, load_encoder_weights
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import InputSpec
from sft_lightning.utils.transfer import to_device

_log = logging.getLogger(__name__)
_COLOR_STRIDES = (4, 8, 16, 32)  # sides of the squares of pixels whose mean colors stand for a network's maps
BUILT_IN: dict[str, Callable[[Sequence[int]], nn.Module]] = {
    "mlp": MLPEncoder,
    "conv": ConvEncoder,
    "resnet8": ResNet8,
    "wrn_28_2": WideResNet,
    "pixels": Pixels,
}


class Backbone(Encoder):
    """A network without its classifier, with the normalization that belongs to its weights.

    It takes pixels in [0, 1], so that weights are never used with another normalization. A single gray channel is
    repeated for networks with three input channels.

    Attributes:
        name: Name as given by the user.
        image_shape: Shape of the inputs, (C, H, W).
        num_features: Number of output features.
        net: The network itself.
        decoder: Decoder that makes the features a map, or None.
        levels: Maps that `forward_maps` gives.
    """

    modality: ClassVar[str] = "image"
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
        """Wrap a network.

        Args:
            name: Name for messages and for rebuilding.
            net: Network from (B, C, H, W) to (B, num_features).
            num_features: Number of output features.
            image_shape: Shape of the inputs, (C, H, W).
            mean: Mean that is subtracted from pixels; one number, or one for each channel.
            std: Standard deviation that divides pixels; one number, or one for each channel.
            classifier: Name of the layer that was removed, or None.
        """
        super().__init__()
        self.name, self.net, self.num_features, self.classifier = name, net, num_features, classifier
        self.image_shape = tuple(image_shape)
        self.input_spec = InputSpec("image", self.image_shape)
        self._channels = image_shape[0] if self.architecture in BUILT_IN else 3
        self.decoder: FeaturePyramid | Hypercolumns | None = None
        self.levels: tuple[Level, ...] = ()
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

    def set_normalization(self, mean: Tensor, std: Tensor) -> None:
        """Replace the normalization.

        Args:
            mean: Mean of each channel, (C, 1, 1).
            std: Standard deviation of each channel, (C, 1, 1).
        """
        self.mean.copy_(mean)
        self.std.copy_(std)
        self._plain = self._is_plain()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._plain = self._is_plain()

    def forward(self, x: Tensor) -> Tensor:
        """Compute features.

        Args:
            x: Pixels in [0, 1], (B, C, H, W).

        Returns:
            Features, (B, num_features).
        """
        x = self._normalize(x)
        if self.decoder is not None:
            levels = self.decoder.levels
            if isinstance(self.net, Pixels):
                maps = self.net.average(x, [level.stride for level in levels])
            else:
                maps = collect_maps(self.net, levels, x)
            mapped: Tensor = self.decoder(maps, x.shape[-2:])
            return mapped
        features: Tensor = self.net(x)
        return features

    def _normalize(self, x: Tensor) -> Tensor:
        if x.shape[1] == 1 and self._channels == 3:
            x = x.expand(-1, 3, -1, -1)
        x = x.to(self.mean.dtype)  # the whole network may be in half or double precision
        return x if self._plain else (x - self.mean) / self.std

    @property
    def new_parts(self) -> Sequence[nn.Module]:
        """The decoder, if there is one."""
        return () if self.decoder is None else (self.decoder,)

    def list_strides(self) -> list[int]:
        """Return the strides of the maps, the smallest first; of a plain transformer, equal ones."""
        return [level.stride for level in find_levels(self.net, self.name, (self._channels, *self.image_shape[1:]))]

    def select_maps(self, strides: Sequence[int]) -> None:
        """Choose the last map of each stride; of a plain transformer, the inner ones of four."""
        shape = self._channels, *self.image_shape[1:]
        levels = find_levels(self.net, self.name, shape)
        found = {level.stride for level in levels}
        if len(found) == 1 and len(levels) > 1:
            chosen = levels[1:-1] or levels[:1]
        else:
            chosen = [level for level in levels if level.stride in strides]
            if missing := [stride for stride in strides if stride not in found]:
                raise InputError(
                    f"strides is {list(strides)}, and backbone {self.name!r} has maps of the strides "
                    f"{', '.join(map(str, sorted(found)))}, none of {missing[0]}: choose among these"
                )
        self.levels = tuple(chosen)
        remove_unused(self.net, chosen, torch.zeros(1, *shape, dtype=self.mean.dtype, device=self.device))

    def forward_maps(self, x: Tensor) -> list[Tensor]:
        """Compute the chosen maps of pixels in [0, 1], (B, C, H, W)."""
        return collect_maps(self.net, self.levels, self._normalize(x))

    def forward_pooled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute features and the last map of pixels in [0, 1], (B, C, H, W)."""
        return keep_pooled(self, self.net, x) or super().forward_pooled(x)

    def add_decoder(self, tensors: Mapping[str, Tensor]) -> None:
        """Make the features a map, (B, F, H / 4, W / 4), by a feature pyramid; that of the weights if it fits.

        Args:
            tensors: Tensors of the weights file.

        Raises:
            InputError: The network gives no maps, or the images have sides that 4 does not divide.
        """
        levels = self._keep_levels()
        self.decoder = FeaturePyramid(levels)
        self.num_features = self.decoder.num_features
        own = self.decoder.state_dict()
        files = [
            {n: tensors[f"{prefix}decoder.{n}"] for n in own if f"{prefix}decoder.{n}" in tensors}
            for prefix in ("backbone.", "")
        ]  # of a run or model, and of a backbone alone
        found = max(files, key=len)
        if {name: t.shape for name, t in found.items()} == {name: t.shape for name, t in own.items()}:
            self.decoder.load_state_dict(found)
            _log.info("The decoder of the weights was taken over, too.")

    def stack_maps(self) -> None:
        """Make the features a map, (B, F, H / 4, W / 4), of the network's maps; of `pixels`, of means of colors.

        Raises:
            InputError: The network gives no maps, or the images have sides that 4 does not divide.
        """
        self.decoder = Hypercolumns(self._keep_levels(takes_colors=True))
        self.num_features = self.decoder.num_features

    def _keep_levels(self, takes_colors: bool = False) -> list[Level]:
        """Return the maps from which pixels are classified, and drop what none of them depends on.

        Args:
            takes_colors: Whether means of colors stand for the maps of `pixels`, which has none.
        """
        sides = self.image_shape[1:]
        if any(side % STRIDE for side in sides):
            raise InputError(f"images of {sides[0]} x {sides[1]} pixels have no map of every {STRIDE}th pixel: set "
                             f"image_size to a multiple of {STRIDE}")  # fmt: skip
        shape = self._channels, *sides
        if isinstance(self.net, Pixels) and takes_colors:
            return [Level("", self._channels, stride) for stride in _COLOR_STRIDES]
        levels = find_levels(self.net, self.name, shape)
        if unused := remove_unused(self.net, levels, torch.zeros(1, *shape, dtype=self.mean.dtype, device=self.device)):
            _log.info("Without %s of the backbone, on which no map depends.", ", ".join(unused))
        return levels

    @contextmanager
    def scale_maps(self, draw: Callable[[int, int], Tensor]) -> Iterator[None]:
        """Scale the channels of the maps that enter the decoder."""
        if self.decoder is None:
            super().scale_maps(draw)
        assert self.decoder is not None

        def scale(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
            maps = [x * to_device(draw(*x.shape[:2]), x.device)[:, :, None, None].to(x.dtype) for x in given[0]]
            return maps, *given[1:]

        handle = self.decoder.register_forward_pre_hook(scale)
        try:
            yield
        finally:
            handle.remove()

    def build_decoder(self) -> nn.Module:
        """Build the mirrored MLP for `mlp`, and otherwise a CNN for images of any size."""
        if self.name == "mlp":
            return MLPDecoder(self.image_shape)
        return ConvDecoder(self.image_shape, self.num_features)

    def accept_smaller_inputs(self) -> None:
        """Let a ViT of timm interpolate its positions; any other network is tried on an image of half the size."""
        if interpolate_positions(self.net):
            return
        channels, *sides = self.image_shape
        try:
            with eval_mode(self), torch.no_grad():
                smaller = self(torch.zeros(1, channels, *((side + 1) // 2 for side in sides)))
            fits = smaller.shape[1:] == (self.num_features,)
        except (AssertionError, RuntimeError, ValueError):
            fits = False
        if not fits:
            raise InputError(
                f"backbone {self.name!r} takes images of one size only, and local crops are smaller: set local_crops "
                "to 0, or choose a convolutional network that averages its last map or a ViT of timm"
            )

    def build_masked_decoder(self, patch: int | None, width: int, depth: int) -> MaskedDecoder:
        """Build a transformer on the tokens of a ViT, and otherwise one layer on the last map."""
        if tokens := find_tokens(self.net):
            return TokenDecoder(tokens, self.name, self.image_shape, patch, width, depth)
        if pool := find_pool(self.net):
            return MapDecoder(self, pool, self.name, self.image_shape, patch)
        return super().build_masked_decoder(patch, width, depth)

    def corrupt(self, x: Tensor, noise: float, hidden: float, patch: int, generator: torch.Generator) -> Tensor:
        """Add noise to pixels and set a share of the square patches to zero."""
        x = add_noise(x, noise, generator) if noise else x
        return hide_patches(x, hidden, patch, generator) if hidden else x


def build_backbone(
    name: str,
    image_shape: Sequence[int],
    weights: str = "none",
    mean: Stats | None = None,
    std: Stats | None = None,
    kind: "type[Backbone]" = Backbone,
) -> tuple[Backbone, Tensors]:
    """Build a backbone and load its weights.

    Args:
        name: `mlp`, `conv`, `resnet8`, `wrn_28_2`, `pixels` (no network), or a name of torchvision or timm;
            `torchvision/NAME` or `timm/NAME` if both have it (torchvision takes precedence). `:flatten` or `:catavgmax`
            after the name replaces the average over its last map.
        image_shape: Shape of the images, (C, H, W).
        weights: `none`, `default` (the published weights, which are downloaded), or the path of a file or run.
        mean: Mean of the normalization; null for that of the weights, if any.
        std: Standard deviation of the normalization; null for that of the weights, if any.
        kind: Class of the backbone.

    Returns:
        The backbone, and all tensors of the file, which may contain a head.

    Raises:
        InputError: The name is unknown, or the weights are unavailable or do not fit.
    """
    published = weights == "default"
    architecture, pool = split_pool(name)
    name = architecture if pool == "average" else name
    if architecture in BUILT_IN:
        if published:
            raise InputError(f"weights is 'default', but nobody publishes weights of {name!r}: give none or a path")
        if architecture == "pixels" and weights != "none":
            raise InputError(f"weights is {weights!r}, but backbone 'pixels' has none: leave it out")
        net = BUILT_IN[architecture](image_shape)
        backbone = kind(name, net, int(net.num_features), image_shape)  # type: ignore[arg-type]
        library_filter = None
    else:
        if image_shape[0] not in (1, 3):
            raise InputError(f"backbone {name!r} takes 1 or 3 channels, the images have {image_shape[0]}")
        made = build_library_net(architecture, image_shape, published, [*BUILT_IN])._asdict()
        library_filter = made.pop("library_filter")
        backbone = kind(name, image_shape=image_shape, **made)
        backbone.net.to(memory_format=torch.channels_last)  # halves the time of convolutions on a CPU
    if pool != "average":
        backbone.num_features = replace_pool(backbone.net, pool, name, (backbone._channels, *image_shape[1:]))
    tensors: Tensors = {}
    if weights not in ("none", "default"):
        tensors = _load_weights(backbone, find_weights(Path(weights)), library_filter, mean is None or std is None)
    new_mean = backbone.mean if mean is None else backbone._stats(mean)
    new_std = backbone.std if std is None else backbone._stats(std)
    if not bool((new_std > 0).all()):
        raise InputError(f"std is {new_std.flatten().tolist()}: give numbers above 0")
    backbone.set_normalization(new_mean.clone(), new_std.clone())
    return backbone, tensors


def build_from_spec(
    name: str, spec: InputSpec, weights: str, mean: Stats | None, std: Stats | None
) -> tuple[Backbone, Tensors]:
    """Build a backbone for images, with the arguments of `build_backbone`."""
    return build_backbone(name, spec.shape, weights, mean, std)


def find_source_head(backbone: Encoder, tensors: Tensors) -> Tensors:
    """Find the classifier that belongs to the weights of a backbone.

    Args:
        backbone: Backbone of any kind.
        tensors: All tensors of the weights file, or those of `pretrained.fetch_published_weights`.

    Returns:
        `weight` (S, F) and `bias` (S,) of a linear layer on the features, or an empty dict.
    """
    head = extract_linear_head(tensors)
    if not head and backbone.classifier is not None:
        for prefix in ("", "module.", "model."):
            pair = {n: tensors.get(f"{prefix}{backbone.classifier}.{n}") for n in ("weight", "bias")}
            head = head or {n: t for n, t in pair.items() if t is not None}
    weight = head.get("weight")
    fits = weight is not None and weight.ndim == 2 and weight.shape[1] == backbone.num_features and "bias" in head
    return head if fits else {}


def _load_weights(backbone: Backbone, path: Path, library_filter: Filter | None, needs_stats: bool) -> Tensors:
    matched, tensors = load_encoder_weights(backbone, path, library_filter)
    prefix = matched.prefix.removesuffix("net.")
    stated = [tensors.get(prefix + name) for name in ("mean", "std")]
    if stated[0] is not None and stated[1] is not None:
        backbone.set_normalization(*(_to_channels(stats, backbone.mean) for stats in stated if stats is not None))
    elif backbone.architecture not in BUILT_IN:
        stats = infer_normalization(backbone.architecture, backbone.net, path)
        backbone.set_normalization(backbone._stats(stats.mean), backbone._stats(stats.std))
        if needs_stats:
            matched.notes.append(
                f"the file states no normalization, so that of {stats.source} is used, mean "
                f"{_join_numbers(backbone.mean)} and std {_join_numbers(backbone.std)}: set mean and std for another"
            )
    _log.info("Weights %s: %s.", path, matched)
    return tensors


def _to_channels(stats: Tensor, like: Tensor) -> Tensor:
    """Adapt means or deviations to another number of channels, like the kernels of the first layer."""
    return stats if stats.shape == like.shape else stats.mean().expand_as(like)


def _join_numbers(stats: Tensor) -> str:
    return ", ".join(f"{value:.4g}" for value in stats.flatten().tolist())

"""Map of features at a quarter of the image's sides, from the maps of any backbone.

A feature pyramid (Lin et al. 2017, "Feature Pyramid Networks for Object Detection") whose levels are brought to one
size and added (Kirillov et al. 2019, "Panoptic Feature Pyramid Networks").
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning.networks.modes import eval_mode
from sft_lightning.utils.errors import InputError

STRIDE = 4  # of the map that the decoder gives
_COARSEST = 32
_GROUPS = 8  # of each group normalization: small batches of large images leave too little for batch statistics
_NARROW, _WIDE = 32, 128


class Level(NamedTuple):
    """A map of a backbone.

    Attributes:
        place: Name of the module that gives the map, or its position among those of timm's `forward_intermediates`.
        channels: Number of channels.
        stride: Side of the image divided by that of the map.
    """

    place: str | int
    channels: int
    stride: int


class FeaturePyramid(nn.Module):
    """Decoder from maps of several strides to one of stride 4.

    From the coarsest map to the finest, each is added to the coarser one, enlarged (Lin et al. 2017). Every level then
    goes through convolutions with enlargements by 2 until it has a quarter of the image's sides, and all are added
    (Kirillov et al. 2019). Group normalization leaves no statistics behind, so that a frozen backbone stays as it is.

    Attributes:
        levels: Maps that go in, the finest first.
        num_features: Number of channels of the map that comes out.
    """

    def __init__(self, levels: Sequence[Level]) -> None:
        """Build the layers.

        Args:
            levels: Maps that go in, the finest first, of strides from 4 on.
        """
        super().__init__()
        self.levels = tuple(levels)
        self.num_features = width = max(_NARROW, min(_WIDE, levels[-1].channels // 2 // _GROUPS * _GROUPS))
        self.lateral = nn.ModuleList(nn.Conv2d(level.channels, width, 1) for level in levels)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in levels)
        self.enlarge = nn.ModuleList(
            nn.ModuleList(_Block(width) for _ in range(max(1, (level.stride // STRIDE).bit_length() - 1)))
            for level in levels
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.to(memory_format=torch.channels_last)

    def forward(self, maps: Sequence[Tensor], side: tuple[int, int]) -> Tensor:
        """Join maps.

        Args:
            maps: Maps of `levels`, (B, C, h, w) each.
            side: Height and width of the images.

        Returns:
            (B, num_features, H / 4, W / 4).
        """
        merged: list[Tensor] = []
        for lateral, x in zip(reversed(self.lateral), reversed(maps), strict=True):
            own = lateral(x)
            merged.append(own if not merged else own + _resize(merged[-1], own.shape[-2:], "nearest"))
        size = (side[0] // STRIDE, side[1] // STRIDE)
        total: Tensor | None = None
        for smooth, blocks, x in zip(self.smooth, self.enlarge, reversed(merged), strict=True):
            x = smooth(x)
            for block in cast(nn.ModuleList, blocks):
                x = block(x)
                if x.shape[-1] < size[1]:
                    x = _resize(x, (min(size[0], 2 * x.shape[-2]), min(size[1], 2 * x.shape[-1])), "bilinear")
            x = _resize(x, size, "bilinear")
            total = x if total is None else total + x
        assert total is not None
        return total


class Hypercolumns(nn.Module):
    """Maps of several strides side by side, each enlarged bilinearly to stride 4 (Hariharan et al. 2015).

    Nothing in it learns, so that a classifier of its pixels sees what the network alone gives.

    Attributes:
        levels: Maps that go in, the finest first.
        num_features: Number of channels of the map that comes out.
    """

    def __init__(self, levels: Sequence[Level]) -> None:
        """Count the channels.

        Args:
            levels: Maps that go in, the finest first.
        """
        super().__init__()
        self.levels = tuple(levels)
        self.num_features = sum(level.channels for level in levels)

    def forward(self, maps: Sequence[Tensor], side: tuple[int, int]) -> Tensor:
        """Join maps.

        Args:
            maps: Maps of `levels`, (B, C, h, w) each.
            side: Height and width of the images.

        Returns:
            (B, num_features, H / 4, W / 4).
        """
        size = (side[0] // STRIDE, side[1] // STRIDE)
        return torch.cat([_resize(x, size, "bilinear") for x in maps], 1)


class _Block(nn.Sequential):
    """Convolution, group normalization and activation."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(_GROUPS, width), nn.ReLU(inplace=True)
        )


def _resize(x: Tensor, size: Sequence[int], mode: str) -> Tensor:
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, tuple(size), mode=mode, align_corners=False if mode == "bilinear" else None)


def find_levels(net: nn.Module, name: str, shape: Sequence[int]) -> list[Level]:
    """Find the last map of each stride from 4 on in a network for images.

    Args:
        net: Network from images to features; its modes and statistics stay.
        name: Name of the backbone for messages.
        shape: Shape (C, H, W) of the images that go into it.

    Returns:
        Maps, the finest first.

    Raises:
        InputError: The network gives no maps, or none of some stride between 4 and its coarsest.
    """
    parameter = next(net.parameters(), torch.zeros(()))
    x = torch.zeros(1, *shape, device=parameter.device, dtype=parameter.dtype)
    try:
        with torch.no_grad(), eval_mode(net):
            levels = _find_intermediates(net, x) if hasattr(net, "forward_intermediates") else _find_modules(net, x)
    except (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError):  # as libraries refuse a size
        levels = []
    strides = [level.stride for level in levels]
    has_gap = any(b > 2 * a for a, b in zip([STRIDE // 2, *strides], strides, strict=False))
    is_plain = len({*strides}) == 1 and len(levels) > 1  # transformer, whose maps have one stride
    if not levels or (has_gap and not is_plain):
        found = f"only maps of stride {', '.join(map(str, strides))}" if strides else "no maps"
        raise InputError(
            f"backbone {name!r} gives {found}, which masks, boxes and heat maps cannot be made from: choose a "
            "convolutional network, such as resnet18, or for masks a transformer of timm"
        )
    return levels


def _find_intermediates(net: Any, x: Tensor) -> list[Level]:
    """Find maps through timm's interface; a plain transformer has one stride, of which four maps are taken."""
    maps = net.forward_intermediates(x, intermediates_only=True)
    levels = [Level(i, m.shape[1], x.shape[-1] // m.shape[-1]) for i, m in enumerate(maps)]
    levels = [level for level in levels if level.stride >= STRIDE]
    last = {level.stride: level for level in levels}
    if len(last) > 1 or len(levels) < 2:
        return [last[stride] for stride in sorted(last)]
    count = len(levels)
    return [levels[i] for i in sorted({max(0, (k + 1) * count // 4 - 1) for k in range(4)})]


def _find_modules(net: nn.Module, x: Tensor) -> list[Level]:
    """Find the last module of each stride that gives a square map, in the order of the pass.

    Of those, the outermost count: the first convolution of the next stage often has the stride of this one, and lies
    inside of a block.
    """
    last: dict[int, Level] = {}
    handles = []

    def record(place: str) -> Any:
        def hook(module: nn.Module, __: Any, out: Any) -> None:
            is_map = isinstance(out, Tensor) and out.ndim == 4 and out.shape[2] == out.shape[3]
            if not is_map or isinstance(module, nn.AdaptiveAvgPool2d):
                return
            stride = round(x.shape[-1] / out.shape[-1])
            if stride > _COARSEST:  # the scales of a squeeze-and-excitation
                return
            if stride not in last or place.count(".") <= str(last[stride].place).count("."):
                last[stride] = Level(place, out.shape[1], stride)

        return hook

    try:
        handles = [module.register_forward_hook(record(place)) for place, module in net.named_modules() if place]
        net(x)
    finally:
        for handle in handles:
            handle.remove()
    return [last[stride] for stride in sorted(last) if stride >= STRIDE]


def collect_maps(net: Any, levels: Sequence[Level], x: Tensor) -> list[Tensor]:
    """Run a network and return its maps.

    Args:
        net: Network that `find_levels` looked through.
        levels: Maps to return.
        x: Images as the network takes them, (B, C, H, W).
    """
    if isinstance(levels[0].place, int):
        indices = [int(level.place) for level in levels]
        found: list[Tensor] = net.forward_intermediates(x, indices=indices, intermediates_only=True)
        return found
    maps: dict[str, Tensor] = {}

    def record(place: str) -> Any:
        def hook(_: nn.Module, __: Any, out: Tensor) -> None:
            maps[place] = out

        return hook

    handles = [net.get_submodule(str(one.place)).register_forward_hook(record(str(one.place))) for one in levels]
    try:  # hooks of this pass alone: copies of the network would share those that stay
        net(x)
    finally:
        for handle in handles:
            handle.remove()
    return [maps[str(level.place)] for level in levels]


def remove_unused(net: nn.Module, levels: Sequence[Level], x: Tensor) -> list[str]:
    """Replace the parts of a network by identities that no map depends on, such as a norm after the last one.

    DDP waits for the gradient of every parameter, and penalties would count parameters that nothing uses.

    Args:
        net: Network, changed in place.
        levels: Maps that are used.
        x: Images, (1, C, H, W).

    Returns:
        Names of the parts.
    """
    learning = {p: p.requires_grad for p in net.parameters()}
    for p in learning:
        p.requires_grad_(True)
    with torch.enable_grad(), eval_mode(net):
        total = torch.stack([m.sum() for m in collect_maps(net, levels, x)]).sum()
        used = torch.autograd.grad(total, [*learning], allow_unused=True)
    unused = {id(p) for p, gradient in zip(learning, used, strict=True) if gradient is None}
    for p, learns in learning.items():
        p.requires_grad_(learns)
    removed: list[str] = []
    for place, module in [*net.named_modules()]:
        inside = [id(p) for p in module.parameters()]
        if place and inside and unused.issuperset(inside) and not any(place.startswith(f"{one}.") for one in removed):
            parent, _, child = place.rpartition(".")
            setattr(net.get_submodule(parent), child, nn.Identity())
            removed.append(place)
    return removed

"""Maps of several strides and one width, from those of an encoder (Lin et al. 2017, "Feature Pyramid Networks")."""

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork

from sft_lightning.networks.encoder import Encoder
from sft_lightning.networks.modes import eval_mode
from sft_lightning.utils.errors import InputError

_STEP = 32  # that widths are multiples of
_GROUPS, _MEMBERS = (
    8,
    8,
)  # of a group normalization: most groups, and fewest channels of each, which a map of 1 x 1 needs
_WIDEST = 256


class Pyramid(nn.Module):
    """Feature pyramid, with coarser maps on top.

    Group normalization leaves no statistics behind, and takes small batches.

    Attributes:
        width: Number of channels of each map.
    """

    def __init__(self, channels: Sequence[int], width: int, coarser: int, is_pooled: bool = False) -> None:
        """Build the layers.

        Args:
            channels: Channels of the maps of the encoder, the finest first.
            width: Number of channels of each map, a multiple of 32.
            coarser: Number of maps beyond the coarsest one, each of half the side.
            is_pooled: Whether they are every second place of the map before (Faster R-CNN), or learned (RetinaNet).
        """
        super().__init__()
        self.width, self.coarser = width, coarser
        self.fpn = FeaturePyramidNetwork([*channels], width, norm_layer=group_norm)
        learned = 0 if is_pooled else coarser
        self.more = nn.ModuleList(nn.Conv2d(width, width, 3, 2, 1) for _ in range(learned))
        for module in self.more:
            assert isinstance(module, nn.Conv2d)
            nn.init.kaiming_uniform_(module.weight, a=1)
            assert module.bias is not None
            nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the maps, the finest first, (B, width, h, w) each.

        Args:
            maps: Maps of the encoder, the finest first.
        """
        made = list(self.fpn(OrderedDict((str(i), x) for i, x in enumerate(maps))).values())
        for i in range(self.coarser):
            made.append(self.more[i](F.relu(made[-1])) if len(self.more) else F.max_pool2d(made[-1], 1, 2))
        return made


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a group normalization with up to 8 groups of at least 8 channels.

    Args:
        channels: Number of channels.
    """
    return nn.GroupNorm(math.gcd(_GROUPS, max(1, channels // _MEMBERS)), channels)


def choose_maps(encoder: Encoder, finest: int, most: int | None = None) -> tuple[list[int], list[int]]:
    """Let an encoder give the maps that a detector takes.

    Args:
        encoder: Encoder, changed in place: layers after the last map are dropped.
        finest: Smallest stride; if no map has such a one, the coarsest is taken.
        most: Largest number of maps, of which the coarsest are taken; None for all.

    Returns:
        Strides and channels of the maps, the finest first.

    Raises:
        InputError: The encoder gives no maps, or those of a transformer.
    """
    strides = encoder.list_strides()
    if len(strides) > len({*strides}):
        raise InputError(
            f"backbone {encoder.name!r} is a transformer whose maps have one stride, {strides[0]}, and a detector "
            "takes several: choose a convolutional network, such as resnet18"
        )
    strides = [stride for stride in strides if stride >= finest] or strides[-1:]
    encoder.select_maps(strides if most is None else strides[-most:])
    with torch.no_grad(), eval_mode(encoder):
        maps = encoder.forward_maps(encoder.make_example())
    side = encoder.input_spec.shape[-1]
    return [round(side / x.shape[-1]) for x in maps], [x.shape[1] for x in maps]


def choose_width(channels: Sequence[int], width: int | None) -> int:
    """Return the width of a pyramid: half of the channels of the coarsest map, from 32 to 256, if none is given.

    Args:
        channels: Channels of the maps of the encoder.
        width: Width that the user gave, or None.

    Raises:
        InputError: The width is not a positive multiple of 32.
    """
    if width is None:
        return max(_STEP, min(_WIDEST, channels[-1] // 2 // _STEP * _STEP))
    if width < _STEP or width % _STEP:
        raise InputError(f"width is {width}: give a multiple of {_STEP}, such as 128")
    return width


def count_coarser(strides: Sequence[int], coarsest: int, side: int) -> int:
    """Return how many maps are added so that the last one has a stride, unless the images are smaller.

    Args:
        strides: Strides of the encoder's maps.
        coarsest: Stride of the last map.
        side: Side of the images in pixels.
    """
    return max(0, math.floor(math.log2(min(coarsest, side) / strides[-1])))


def choose_anchor_scale(anchor_scale: float | None, largest: float, coarsest: int, side: int) -> float:
    """Return the side of the smallest anchor of each map as a multiple of its stride.

    On COCO's images of 800 pixels, those of the coarsest map have 64% of the side; so they do on smaller images, but
    for a multiple below 2.

    Args:
        anchor_scale: Multiple that the user gave, or None.
        largest: Multiple of the method, which is the largest.
        coarsest: Stride of the coarsest map.
        side: Side of the images in pixels.

    Raises:
        InputError: The multiple is not positive.
    """
    if anchor_scale is None:
        return min(largest, max(2.0, 0.64 * side / coarsest))
    if anchor_scale <= 0:
        raise InputError(f"anchor_scale is {anchor_scale}: give a number above 0, such as {largest:g}")
    return anchor_scale

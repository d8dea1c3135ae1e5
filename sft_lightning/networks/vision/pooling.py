"""Pooling of a network's last map into features: its mean, all of its cells, or its mean and maximum."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from sft_lightning.utils.errors import InputError, did_you_mean

Pool = Literal["average", "flatten", "catavgmax"]
POOLS: tuple[str, ...] = get_args(Pool)
_MOST_FEATURES = 100_000  # more features are a map that was meant to be averaged


class MeanAndMax(nn.Module):
    """Mean and maximum of each channel over the map, (B, C, H, W) to (B, 2 C, 1, 1); timm's `catavgmax`."""

    def forward(self, x: Tensor) -> Tensor:
        """Pool maps.

        Args:
            x: Maps, (B, C, H, W).
        """
        return torch.cat([x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)], 1)


class AllCells(nn.Identity):
    """All cells of a map, in place of their mean."""


def split_pool(name: str) -> tuple[str, str]:
    """Split the name of a backbone into that of its architecture and its pooling.

    Args:
        name: Name such as `resnet8` or `resnet8:flatten`.

    Returns:
        Name of the architecture, and `average`, `flatten` or `catavgmax`; `average` if the name states none.

    Raises:
        InputError: The pooling is unknown.
    """
    architecture, colon, pool = name.rpartition(":")
    if not colon:
        return name, "average"
    if pool not in POOLS:
        raise InputError(
            f"backbone {name!r} has pooling {pool!r}{did_you_mean(pool, POOLS)}: give {', '.join(POOLS[:-1])} or "
            f"{POOLS[-1]} after the colon, or leave it out"
        )
    return architecture, pool


def replace_pool(net: nn.Module, pool: str, name: str, shape: Sequence[int]) -> int:
    """Replace the average over a network's last map.

    Args:
        net: Network from images to features; changed in place.
        pool: `flatten` or `catavgmax`.
        name: Name of the backbone for errors.
        shape: Shape (C, H, W) of the images that the network takes.

    Returns:
        New number of features.

    Raises:
        InputError: The network has no map that it averages, or its map has too many cells to flatten.
    """
    place = _find_average(net)
    if place is None:
        raise InputError(f"backbone {name!r} averages no map at its end: leave out {':' + pool!r}")
    owner, attribute, flattens = place
    new: nn.Module = MeanAndMax() if pool == "catavgmax" else AllCells()
    setattr(owner, attribute, nn.Sequential(new, nn.Flatten()) if flattens else new)
    count = _count_features(net, name, pool, shape)
    if count > _MOST_FEATURES:
        raise InputError(
            f"backbone {name!r} has {count:,} features for images of side {shape[1]}: lower image_size, or leave "
            f"out {':' + pool!r}"
        )
    return count


def find_pool(net: nn.Module) -> nn.Module | None:
    """Find the module that pools a network's last map, (B, C, H, W), in whichever way; None if it pools no map.

    Args:
        net: Network from images to features.
    """
    replaced = next((module for module in net.modules() if isinstance(module, (MeanAndMax, AllCells))), None)
    place = _find_average(net)
    return replaced if place is None else getattr(place[0], place[1])


def keep_pooled(encoder: nn.Module, net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the outputs of an encoder, and the map that its network pools on the way; None if it pools no map.

    Args:
        encoder: Encoder that calls the network.
        net: Network from images to features.
        x: Inputs of the encoder.
    """
    pool = find_pool(net)
    if pool is None or getattr(pool, "input_fmt", "NCHW") != "NCHW":
        return None
    kept: list[Tensor] = []
    handle = pool.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    try:
        outputs: Tensor = encoder(x)
    finally:
        handle.remove()
    return (outputs, kept[0]) if kept[0].ndim == 4 else None


def _find_average(net: nn.Module) -> tuple[nn.Module, str, bool] | None:
    """Find the pooling near the top of a network, and whether it also flattens; pooling in blocks lies deeper."""
    found = None
    for path, module in net.named_modules():
        if path.count(".") > 1:
            continue
        if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
            found = path, False
        elif type(module).__name__ == "SelectAdaptivePool2d" and getattr(module, "pool_type", "") == "avg":  # timm
            found = path, isinstance(module.flatten, nn.Flatten)
    if found is None:
        return None
    parent, _, attribute = found[0].rpartition(".")
    return net.get_submodule(parent), attribute, found[1]


@torch.no_grad()
def _count_features(net: nn.Module, name: str, pool: str, shape: Sequence[int]) -> int:
    parameter = next(net.parameters())
    modes = {part: part.training for part in net.modules()}
    net.eval()
    try:
        features = net(torch.zeros(1, *shape, device=parameter.device, dtype=parameter.dtype))
    except RuntimeError as error:  # such as a norm after the average
        raise InputError(f"backbone {name!r} needs the average of its map: leave out {':' + pool!r}") from error
    for part, mode in modes.items():
        part.training = mode
    return int(features.flatten(1).shape[1])

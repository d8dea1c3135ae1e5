"""Resampling of weights for another input size or number of channels, by the code of the network's library."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Tensors = dict[str, Tensor]
Filter = Callable[[Tensors, nn.Module], Tensors]


@contextmanager
def keep_timm_filter() -> Iterator[list[Filter]]:
    """Let timm build a network as if it loaded published weights, and capture the filter that it would apply to them.

    Each family of timm has its own function to rename and resample tensors, which only the builder gets (read in timm
    1.0.31: `_builder.build_model_with_cfg` calls `load_pretrained(..., filter_fn=...)`).

    Yields:
        A list that contains the filter after a network was built inside the block; it stays empty for families without
        one.
    """
    from timm.models import _builder

    kept: list[Filter] = []

    def keep(*args: Any, filter_fn: Filter | None = None, **kwargs: Any) -> None:
        if filter_fn is not None:
            kept.append(filter_fn)

    load = _builder.load_pretrained
    _builder.load_pretrained = keep
    try:
        yield kept
    finally:
        _builder.load_pretrained = load


def torchvision_filter(tensors: Tensors, net: nn.Module) -> Tensors:
    """Resample the position embedding of torchvision's ViT; its other networks need no change.

    Args:
        tensors: Tensors under the network's names.
        net: Network of torchvision.
    """
    from torchvision.models import VisionTransformer
    from torchvision.models.vision_transformer import interpolate_embeddings

    if isinstance(net, VisionTransformer) and "encoder.pos_embedding" in tensors:
        return dict(interpolate_embeddings(net.image_size, net.patch_size, dict(tensors)))
    return tensors


def fit_to_network(net: nn.Module, tensors: Tensors, library_filter: Filter | None) -> tuple[Tensors, list[str]]:
    """Resample and rename tensors so that as many as possible fit a network.

    Args:
        net: Network to fit.
        tensors: Tensors of the file, without the prefix of the network.
        library_filter: Function of the network's library that adapts published files, or None.

    Returns:
        The tensors, and a phrase for each first layer that was adapted to another number of channels.
    """
    own = net.state_dict()

    def count(given: Tensors) -> int:
        return sum(name in given and given[name].shape == tensor.shape for name, tensor in own.items())

    if count(tensors) == len(own):
        return tensors, []
    if library_filter is not None:
        try:
            changed = library_filter(_match_prefix_tokens(net, own, tensors), net)
        except Exception:  # a family's filter expects its own files, and may raise anything for others
            changed = tensors
        if count(changed) >= count(tensors):
            tensors = changed
    tensors = {name: _resize_grid(name, tensor, own.get(name)) for name, tensor in tensors.items()}
    return _match_channels(net, own, tensors)


def _match_prefix_tokens(net: nn.Module, own: Tensors, tensors: Tensors) -> Tensors:
    """Give a position embedding as many entries for class tokens and the like as the network has.

    timm's filters assume that file and network have the same number.
    """
    grid = getattr(getattr(net, "patch_embed", None), "grid_size", None)
    here, there = own.get("pos_embed"), tensors.get("pos_embed")
    if grid is None or here is None or there is None or here.ndim != 3 or there.ndim != 3:
        return tensors
    prefix, length = here.shape[1] - math.prod(grid), there.shape[1]
    if prefix < 0 or _is_square(length - prefix) or here.shape[2] != there.shape[2]:
        return tensors
    given = next((n for n in range(9) if _is_square(length - n)), None)
    if given is None:
        return tensors
    parts = [there[:, : min(given, prefix)], here[:, given:prefix].to(there.dtype), there[:, given:]]
    return {**tensors, "pos_embed": torch.cat(parts, dim=1)}


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number


def _resize_grid(name: str, tensor: Tensor, own: Tensor | None) -> Tensor:
    """Resize a learned square grid of positions, for families whose filter does not."""
    if own is None or tensor.shape == own.shape or tensor.ndim != own.ndim or not tensor.is_floating_point():
        return tensor
    changed = [i for i, (there, here) in enumerate(zip(tensor.shape, own.shape, strict=True)) if there != here]
    is_grid = any(word in name for word in ("pos_embed", "relative_position_bias_table", "attention_biases"))
    if not is_grid or (len(changed) == 2 and changed[1] != changed[0] + 1) or len(changed) > 2:
        return tensor
    if len(changed) == 1 and not (_is_square(tensor.shape[changed[0]]) and _is_square(own.shape[changed[0]])):
        return tensor
    sizes = [
        (math.isqrt(t.shape[changed[0]]),) * 2 if len(changed) == 1 else tuple(t.shape[i] for i in changed)
        for t in (tensor, own)
    ]
    rest = [n for i, n in enumerate(tensor.shape) if i not in changed]
    # Move the grid to the last dimensions, resize it, and move it back.
    channels = tensor.float().movedim(changed, list(range(-len(changed), 0))).reshape(1, -1, *sizes[0])
    resized = F.interpolate(channels, size=sizes[1], mode="bicubic", antialias=True)
    there = resized.reshape(*rest, *(own.shape[i] for i in changed))
    return there.movedim(list(range(-len(changed), 0)), changed).to(tensor.dtype)


def _match_channels(net: nn.Module, own: Tensors, tensors: Tensors) -> tuple[Tensors, list[str]]:
    """Sum or repeat the kernels of the first layer over the colors, as timm does."""
    from timm.models._manipulate import adapt_input_conv

    config = getattr(net, "pretrained_cfg", None) or {}
    first = config.get("first_conv") or next((n.removesuffix(".weight") for n, t in own.items() if t.ndim == 4), ())
    notes = []
    for layer in (first,) if isinstance(first, str) else first:
        name = f"{layer}.weight"
        if name not in own or name not in tensors or own[name].ndim != 4 or tensors[name].ndim != 4:
            continue
        here, there = own[name].shape, tensors[name].shape
        plain = (here[0], *here[2:]) == (there[0], *there[2:]) and here[1] in (1, 3) and here[1] != there[1]
        if plain:
            tensors = {**tensors, name: adapt_input_conv(here[1], tensors[name], base_chans=there[1])}
            how = "summed" if here[1] == 1 else "repeated"
            notes.append(f"the first layer ({name}) was {how} from {there[1]} to {here[1]} color channels")
    return tensors, notes

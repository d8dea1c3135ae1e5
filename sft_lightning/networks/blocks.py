"""Division of any network into blocks from input to output, the units of freezing and of layer-wise rates."""

from collections import defaultdict
from typing import NamedTuple

from torch import nn

_Norm = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


class Block(NamedTuple):
    """A part of a network whose parameters are frozen and scaled together.

    Attributes:
        modules: Modules that lie entirely in the block.
        parameters: All parameters of the block: those of its modules and others, such as a class token.
    """

    modules: list[nn.Module]
    parameters: list[nn.Parameter]


def split_blocks(network: nn.Module) -> list[Block]:
    """Divide a network into blocks.

    timm's networks define the order of their parameters by `group_matcher`, since some families register modules in
    another order. In all other networks, a `Sequential` or `ModuleList` is a row of blocks, and so is any module with
    at least half of all parameters (`encoder` of torchvision's ViT). Everything else, such as a residual block, is one
    block. A separate normalization, or a module that says `is_pooling`, belongs to the block before it.

    Args:
        network: Any module with parameters.

    Returns:
        Blocks that together hold all parameters. Parameters of the network itself are in the first block, unless timm
        defines another order.
    """
    layers = _timm_layers(network) if hasattr(network, "group_matcher") else {}
    if layers:
        modules: dict[int, list[nn.Module]] = defaultdict(list)
        _collect(network, "", layers, modules)
        rows = sorted(modules.items())
    else:
        rows = [(i, [unit]) for i, unit in enumerate(_split_rows(network))]
    result: list[Block] = []
    block_of_layer: dict[int, int] = {}  # index of the block by timm's layer number
    for layer, units in rows:
        if result and all(map(_ends_a_block, units)):
            result[-1].modules.extend(units)
        else:
            result.append(Block(units, []))
        block_of_layer[layer] = len(result) - 1
    inside: dict[int, int] = {}  # index of the block by parameter; two modules may share a parameter
    for i, block in enumerate(result):
        for unit in block.modules:
            for p in unit.parameters():
                inside.setdefault(id(p), i)
    ordered = list(network.named_parameters())
    for name, p in sorted(ordered, key=lambda pair: id(pair[1]) not in inside):  # those outside of modules are last
        layer_block = block_of_layer.get(layers.get(name, -1), inside.get(id(p), 0))
        result[layer_block].parameters.append(p)
    return result


def list_parameters(network: nn.Module) -> list[nn.Parameter]:
    """List all parameters in the order of optimizers, which resuming relies on.

    It is the order of registration, with parameters outside of modules after the first row.

    Args:
        network: Any module with parameters.
    """
    rows = [list(unit.parameters()) for unit in _split_rows(network)]
    inside = {id(p) for row in rows for p in row}
    loose = [p for p in network.parameters() if id(p) not in inside]
    return [p for row in [*rows[:1], loose, *rows[1:]] for p in row]


def _timm_layers(network: nn.Module) -> dict[str, int]:
    """Return timm's layer number of each parameter by name."""
    from timm.models import group_parameters

    layers: dict[str, int] = group_parameters(network, network.group_matcher(coarse=False), reverse=True)  # type: ignore[operator]
    return layers if len(set(layers.values())) > 1 else {}


def _collect(module: nn.Module, prefix: str, layers: dict[str, int], into: dict[int, list[nn.Module]]) -> None:
    """Group by layer the largest modules whose parameters all belong to one layer."""
    for name, child in module.named_children():
        numbers = {layers[key] for n, _ in child.named_parameters() if (key := f"{prefix}{name}.{n}") in layers}
        if len(numbers) == 1:
            into[numbers.pop()].append(child)
        elif numbers:
            _collect(child, f"{prefix}{name}.", layers, into)


def _split_rows(network: nn.Module) -> list[nn.Module]:
    return _split_units(network, sum(p.numel() for p in network.parameters()))


def _split_units(module: nn.Module, total: int) -> list[nn.Module]:
    units: list[nn.Module] = []
    for child in module.children():
        size = sum(p.numel() for p in child.parameters())
        if size == 0:
            continue
        row = type(child) in (nn.Sequential, nn.ModuleList)
        if (row or 2 * size >= total) and any(True for _ in child.children()) and not _is_layer(child):
            units += _split_units(child, total)
        else:
            units.append(child)
    return units


def _ends_a_block(module: nn.Module) -> bool:
    owners = [m for m in module.modules() if any(True for _ in m.parameters(recurse=False))]
    return all(isinstance(m, _Norm) or getattr(m, "is_pooling", False) for m in owners)


def _is_layer(module: nn.Module) -> bool:
    """Return whether a module is a linear or convolutional layer with its activation or normalization."""
    parts = [m for m in module.children() if any(True for _ in m.parameters())]
    return len(parts) <= 2 and all(
        not any(True for _ in part.children()) and (i == 0 or isinstance(part, _Norm)) for i, part in enumerate(parts)
    )

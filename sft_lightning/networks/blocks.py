"""The blocks of any network, in the order from input to output: what is frozen, released and scaled together."""

from collections import defaultdict
from typing import NamedTuple

from torch import nn

_Norm = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


class Block(NamedTuple):
    """A part of a network that is frozen, released and scaled as one.

    Attributes:
        modules: Modules that lie in the block as a whole.
        parameters: All parameters of the block, those of its modules and loose ones such as a class token.
    """

    modules: list[nn.Module]
    parameters: list[nn.Parameter]


def split_blocks(network: nn.Module) -> list[Block]:
    """Divide a network into blocks.

    A network of timm says by `group_matcher` how its parameters follow one another; the order in which its modules are
    registered is another one in some families. In any other network a `Sequential` or `ModuleList` is a row of blocks;
    so is any module that holds at least half of all parameters (torchvision's `encoder` of a ViT). Everything else,
    such as a residual block, is one block. A normalization that stands alone belongs to the block before it.

    Args:
        network: Any module with parameters.

    Returns:
        Blocks that together hold all parameters. A parameter of the network itself is in the first block, unless timm
        says otherwise.
    """
    layers = _timm_layers(network) if hasattr(network, "group_matcher") else {}
    if layers:
        modules: dict[int, list[nn.Module]] = defaultdict(list)
        _collect(network, "", layers, modules)
        rows = sorted(modules.items())
    else:
        rows = [(i, [unit]) for i, unit in enumerate(_rows(network))]
    found: list[Block] = []
    place: dict[int, int] = {}  # number of the block that a layer of timm became
    for layer, units in rows:
        if found and all(map(_only_norms, units)):
            found[-1].modules.extend(units)
        else:
            found.append(Block(units, []))
        place[layer] = len(found) - 1
    inside: dict[int, int] = {}  # number of the block by parameter, of which two modules may share one
    for i, block in enumerate(found):
        for unit in block.modules:
            for p in unit.parameters():
                inside.setdefault(id(p), i)
    ordered = list(network.named_parameters())
    for name, p in sorted(ordered, key=lambda pair: id(pair[1]) not in inside):  # loose ones stand last
        found[place[layers[name]] if layers.get(name) in place else inside.get(id(p), 0)].parameters.append(p)
    return found


def list_parameters(network: nn.Module) -> list[nn.Parameter]:
    """List all parameters in the order in which optimizers have them, which resuming relies on.

    It is the order of registration, with the loose ones after the first row.

    Args:
        network: Any module with parameters.
    """
    rows = [list(unit.parameters()) for unit in _rows(network)]
    inside = {id(p) for row in rows for p in row}
    loose = [p for p in network.parameters() if id(p) not in inside]
    return [p for row in [*rows[:1], loose, *rows[1:]] for p in row]


def _timm_layers(network: nn.Module) -> dict[str, int]:
    """Return the number of the layer, as timm counts them, by the name of each parameter."""
    from timm.models import group_parameters

    layers: dict[str, int] = group_parameters(network, network.group_matcher(coarse=False), reverse=True)  # type: ignore[operator]
    return layers if len(set(layers.values())) > 1 else {}


def _collect(module: nn.Module, prefix: str, layers: dict[str, int], into: dict[int, list[nn.Module]]) -> None:
    """Sort the largest modules whose parameters are all of one layer by that layer."""
    for name, child in module.named_children():
        numbers = {layers[key] for n, _ in child.named_parameters() if (key := f"{prefix}{name}.{n}") in layers}
        if len(numbers) == 1:
            into[numbers.pop()].append(child)
        elif numbers:
            _collect(child, f"{prefix}{name}.", layers, into)


def _rows(network: nn.Module) -> list[nn.Module]:
    return _units(network, sum(p.numel() for p in network.parameters()))


def _units(module: nn.Module, total: int) -> list[nn.Module]:
    units: list[nn.Module] = []
    for child in module.children():
        size = sum(p.numel() for p in child.parameters())
        if size == 0:
            continue
        row = type(child) in (nn.Sequential, nn.ModuleList)
        if (row or 2 * size >= total) and any(True for _ in child.children()) and not _layer(child):
            units += _units(child, total)
        else:
            units.append(child)
    return units


def _only_norms(module: nn.Module) -> bool:
    return all(isinstance(m, _Norm) for m in module.modules() if any(True for _ in m.parameters(recurse=False)))


def _layer(module: nn.Module) -> bool:
    """A linear or convolutional layer with its activation or normalization is one block."""
    parts = [m for m in module.children() if any(True for _ in m.parameters())]
    return len(parts) <= 2 and all(
        not any(True for _ in part.children()) and (i == 0 or isinstance(part, _Norm)) for i, part in enumerate(parts)
    )

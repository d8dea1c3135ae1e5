"""The blocks of any network, in the order from input to output: what is frozen, released and scaled together."""

from torch import nn

_Norm = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


def blocks(network: nn.Module) -> list[list[nn.Module]]:
    """Divides a network into blocks without knowing its kind.

    A `Sequential` or `ModuleList` is a row of blocks; so is any module that holds at least half of all parameters
    (torchvision's `encoder` of a ViT). Everything else, such as a residual block, is one block. A normalization that
    stands alone belongs to the block before it.

    Args:
        network: Any module with parameters.

    Returns:
        Groups of modules that together hold all parameters of submodules; parameters of the network itself (a class
        token, say) belong to the first block.
    """
    total = sum(p.numel() for p in network.parameters())
    found: list[list[nn.Module]] = []
    for unit in _units(network, total):
        if found and _only_norms(unit):
            found[-1].append(unit)
        else:
            found.append([unit])
    return found


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

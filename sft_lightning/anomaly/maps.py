"""What is done with maps of features and of scores: joined, enlarged and smoothed."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def join_maps(maps: Sequence[Tensor]) -> Tensor:
    """Bring maps to the size of the first one and join their channels, (B, D, h, w).

    Args:
        maps: Maps, (B, C, h, w) each.
    """
    size = maps[0].shape[-2:]
    same = [maps[0], *(F.interpolate(m, size, mode="bilinear", align_corners=False) for m in maps[1:])]
    return torch.cat([m if m.dtype == torch.float64 else m.float() for m in same], 1)


def smooth_map(scores: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """Enlarge maps of scores bilinearly, and smooth them with a Gaussian of at most three standard deviations.

    Args:
        scores: Scores, (B, h, w).
        size: Height and width of the result.
        sigma: Standard deviation of the Gaussian in places of the result; 0 for none.

    Returns:
        (B, H, W).
    """
    large = F.interpolate(scores[:, None], size, mode="bilinear", align_corners=False)
    radius = min(round(3 * sigma), min(size) - 1)
    if radius < 1:
        return large[:, 0]
    places = torch.arange(-radius, radius + 1, dtype=large.dtype, device=large.device)
    kernel = torch.exp(-0.5 * (places / sigma) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    # The edge is mirrored, since zeros would hide a defect at the border.
    across = F.conv2d(F.pad(large, (radius, radius, 0, 0), mode="reflect"), kernel)
    return F.conv2d(F.pad(across, (0, 0, radius, radius), mode="reflect"), kernel.transpose(2, 3))[:, 0]

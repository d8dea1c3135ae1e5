"""PatchCore (Roth et al. 2022, "Towards Total Recall in Industrial Anomaly Detection").

A memory bank of patch features of normal examples, thinned to a coreset. An example is as far from normal as that of
its patches which is farthest from the bank.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.anomaly.base import MOST, AnomalyMethod, MapBatch, Scores
from sft_lightning.anomaly.coreset import choose_coreset
from sft_lightning.anomaly.maps import join_maps
from sft_lightning.classifiers.neighbors import find_neighbors
from sft_lightning.utils.distributed import all_gather_cat
from sft_lightning.utils.errors import InputError, check_fraction, check_min, check_positive


class PatchCore(AnomalyMethod):
    """Memory bank of patches, and the distance to its nearest one.

    Attributes:
        bank: Features of the chosen patches, (K, D).
    """

    fitted_buffers: ClassVar[tuple[str, ...]] = ("bank",)
    strides: ClassVar[tuple[int, ...]] = (8, 16)
    bank: Tensor

    def __init__(
        self, coreset: float = 0.1, max_bank: int = 10_000, max_candidates: int = 100_000, neighbors: int = 9
    ) -> None:
        """Keep the settings.

        Args:
            coreset: Share of the patches that the bank keeps; the paper has 0.25, 0.1 and 0.01.
            max_bank: Largest number of patches in the bank, on which memory and the time of a prediction depend.
            max_candidates: Largest number of patches that the bank is chosen from, drawn equally from all examples.
            neighbors: Number of patches of the bank that the score of an example is weighed by, 9 in the paper; 1 for
                its largest distance itself.

        Raises:
            InputError: A setting is out of its range.
        """
        super().__init__()
        check_fraction(coreset=coreset)
        check_positive(coreset=coreset)
        check_min(1, max_bank=max_bank, max_candidates=max_candidates, neighbors=neighbors)
        self.coreset, self.max_bank, self.max_candidates, self.neighbors = coreset, max_bank, max_candidates, neighbors

    # --- fitting

    def fit(self, batches: Iterator[MapBatch], count: int, seed: int) -> str:
        """Draw patches of all examples, and keep a coreset of them."""
        drawn = [self._draw_patches(batch, count, seed) for batch in batches]
        positions, patches = (all_gather_cat(torch.cat(pieces)) for pieces in zip(*drawn, strict=True))
        order = positions.argsort()  # processes take turns, and the choice depends on the order
        candidates = patches[order].flatten(0, 1)
        size = min(self.max_bank, max(1, round(self.coreset * len(candidates))))
        self.bank = candidates[choose_coreset(candidates, size, seed)].contiguous()
        return (
            f"keeps {len(self.bank):,} of {len(candidates):,} patches with {self.bank.shape[1]:,} features each, "
            f"{self.bank.nbytes / 1e6:.1f} MB"
        )

    def _draw_patches(self, batch: MapBatch, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return the positions of examples, and as many patches of each as candidates may have, (B, P, D)."""
        patches = describe_patches(batch.maps)
        number = max(1, min(patches.shape[1], self.max_candidates // count))
        if (size := patches.element_size() * count * number * patches.shape[2]) > MOST:
            raise InputError(
                f"{count * number:,} patches with {patches.shape[2]:,} features each take {size / 1e9:.0f} GB: lower "
                "max_candidates or num_labels, or use a backbone with fewer features"
            )
        rows = []
        for position, own in zip(batch.positions.tolist(), patches, strict=True):
            draw = torch.Generator().manual_seed((seed + 1) * 2**31 + position)
            rows.append(own[torch.randperm(len(own), generator=draw)[:number].sort().values.to(own.device)])
        return batch.positions.to(patches.device), torch.stack(rows)

    # --- scores

    def score(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Scores:
        """Return the distances of patches to the bank, and of each example the largest one, weighed."""
        patches = describe_patches(maps).to(self.bank)
        nearest = find_neighbors(patches.flatten(0, 1), self.bank, 1)[:, 0].to(patches.device).view(patches.shape[:2])
        distances = torch.stack([(own - self.bank[at]).norm(dim=1) for own, at in zip(patches, nearest, strict=True)])
        farthest, at = distances.max(1)
        rows = torch.arange(len(patches), device=at.device)
        example = farthest * self._weigh(patches[rows, at], nearest[rows, at], farthest)
        height, width = maps[0].shape[-2:]
        return Scores(example, self.enlarge(distances.view(-1, height, width), size))

    def _weigh(self, patches: Tensor, nearest: Tensor, distances: Tensor) -> Tensor:
        """Return weights that are lower where the nearest patch of the bank has near neighbors of the same distance.

        Equation 7 of the paper: 1 - exp(distance to the nearest patch) / sum of exp(distance to each neighbor of it).

        Args:
            patches: Farthest patch of each example, (B, D).
            nearest: Position of the nearest one in the bank, int64, (B,).
            distances: Distances between these, (B,).
        """
        count = min(self.neighbors, len(self.bank))
        if count < 2:
            return torch.ones_like(distances)
        around = find_neighbors(self.bank[nearest], self.bank, count).to(nearest.device)
        others = (self.bank[around] - patches[:, None]).norm(dim=2)
        share: Tensor = (distances - others.logsumexp(1)).exp()
        return 1 - share.clamp_max(1)


def describe_patches(maps: Sequence[Tensor]) -> Tensor:
    """Describe each place by the mean over its neighborhood of 3 x 3 in each map, joined, (B, h * w, D).

    Args:
        maps: Maps of features, the finest first, (B, C, h, w) each.
    """
    means = [F.avg_pool2d(m, 3, 1, 1) for m in maps]
    return join_maps(means).flatten(2).transpose(1, 2).contiguous()

"""PaDiM (Defard et al. 2021, "PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization").

A Gaussian of the features at each place. It suits parts that lie in the same place in every example.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from sft_lightning.anomaly.base import MOST, AnomalyMethod, MapBatch, Scores
from sft_lightning.anomaly.maps import join_maps
from sft_lightning.utils.distributed import sum_over_ranks
from sft_lightning.utils.errors import InputError, check_min, check_positive


class PaDiM(AnomalyMethod):
    """Gaussian of each place, and the Mahalanobis distance from it.

    Attributes:
        mean: Mean of the features at each of P places, (P, d).
        whitening: Inverse of the Cholesky factor of each covariance, (P, d, d).
        chosen: Channels that are used, int64, (d,).
    """

    fitted_buffers: ClassVar[tuple[str, ...]] = ("mean", "whitening", "chosen")
    strides: ClassVar[tuple[int, ...]] = (4, 8, 16)
    mean: Tensor
    whitening: Tensor
    chosen: Tensor

    def __init__(self, dimensions: int = 100, epsilon: float = 0.01) -> None:
        """Keep the settings.

        Args:
            dimensions: Number of channels, drawn at random: 100 for ResNet-18 and 550 for Wide ResNet-50 in the paper.
            epsilon: Number that is added to the diagonal of each covariance, so that it has an inverse.

        Raises:
            InputError: A setting is out of its range.
        """
        super().__init__()
        check_min(1, dimensions=dimensions)
        check_positive(epsilon=epsilon)
        self.dimensions, self.epsilon = dimensions, epsilon

    def fit(self, batches: Iterator[MapBatch], count: int, seed: int) -> str:
        """Add up the features and their products at each place, and compute means and covariances from the sums."""
        total = products = None
        for batch in batches:
            x = join_maps(batch.maps).flatten(2)
            if total is None or products is None:
                self.chosen = self._choose(x.shape[1], seed).to(x.device)
                places, d = x.shape[2], len(self.chosen)
                if (size := 8 * places * d * d) > MOST:
                    raise InputError(
                        f"PaDiM keeps a covariance of {d} x {d} numbers for each of {places:,} places, which takes "
                        f"{size / 1e9:.0f} GB: lower dimensions, or give smaller inputs"
                    )
                total = x.new_zeros(places, d, dtype=torch.float64)
                products = x.new_zeros(places, d, d, dtype=torch.float64)
            own = x[:, self.chosen].permute(2, 0, 1).double()  # (P, B, d)
            total += own.sum(1)
            products.baddbmm_(own.transpose(1, 2), own)
        assert total is not None
        assert products is not None
        total, products = sum_over_ranks(total), sum_over_ranks(products)
        mean = total / count
        covariance = products.sub_(torch.einsum("pi,pj->pij", mean, total)).div_(max(1, count - 1))
        covariance.diagonal(dim1=1, dim2=2).add_(self.epsilon)
        factor = torch.linalg.cholesky(covariance)
        identity = torch.eye(len(self.chosen), dtype=factor.dtype, device=factor.device)
        whitening = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
        self.mean, self.whitening = mean.to(x.dtype), whitening.to(x.dtype)
        return (
            f"keeps a Gaussian of {len(self.chosen)} of {x.shape[1]:,} features at each of {len(mean):,} places, "
            f"{(self.mean.nbytes + self.whitening.nbytes) / 1e6:.1f} MB"
        )

    def _choose(self, channels: int, seed: int) -> Tensor:
        draw = torch.Generator().manual_seed(seed)
        return torch.randperm(channels, generator=draw)[: self.dimensions].sort().values

    def score(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Scores:
        """Return the Mahalanobis distance of each place, and of each example the largest one of its smoothed map."""
        height, width = maps[0].shape[-2:]
        x = join_maps(maps).flatten(2)[:, self.chosen].to(self.mean)
        centered = x.permute(2, 1, 0) - self.mean[:, :, None]  # (P, d, B)
        distances = torch.bmm(self.whitening, centered).norm(dim=1).T
        scores = self.enlarge(distances.reshape(-1, height, width), size)
        return Scores(scores.flatten(1).amax(1), scores)

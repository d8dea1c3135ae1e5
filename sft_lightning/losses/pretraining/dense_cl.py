"""DenseCL: Wang et al. 2021, "Dense Contrastive Learning for Self-Supervised Visual Pre-Training"."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning.data.batches import Unlabeled
from sft_lightning.losses.pretraining.base import Network, Objective, ObjectiveStep, compute_spread
from sft_lightning.losses.pretraining.projectors import build_projector
from sft_lightning.networks.encoder import Encoder
from sft_lightning.networks.modes import eval_mode
from sft_lightning.utils.distributed import all_gather_cat
from sft_lightning.utils.errors import InputError, check_decay, check_fraction, check_min, check_positive

_SIDE = 7  # of the grid, unless the map is smaller


class DenseCL(Objective):
    """Cross-entropy of finding the other view of an example, and of each place the same place of it (eq. 1 to 4).

    Places are the cells of a grid over the last map. A place of the first view goes with that of the second view whose
    features of the encoder are most similar to its own. Keys come from the momentum network, and negatives from two
    queues of earlier keys of all processes: of examples, and of the mean of the places of examples.

    Reference setting (ImageNet, ResNet-50, batch 256, 200 epochs; the paper): temperature .2, dense .5, grid 7, queues
    of 65,536, projections 2048 - 128, constant decay .999, SGD with rate .03 and weight decay 1e-4.
    """

    needs_momentum: ClassVar[bool] = True
    takes_compiled: ClassVar[bool] = False
    queued: Tensor
    queued_places: Tensor

    def __init__(
        self,
        dense: float = 0.5,
        grid: int | None = None,
        temperature: float = 0.2,
        decay: float = 0.999,
        queue: int = 4096,
        hidden: int = 2048,
        projection: int = 128,
    ) -> None:
        """Check and store the settings.

        Args:
            dense: Share lambda of the loss of places in the sum of both.
            grid: Side S of the grid; null for that of the last map, up to 7.
            temperature: Temperature tau of the cosine similarities.
            decay: Share of the momentum network that its first update keeps; it rises to 1 at the end of training.
            queue: Number of keys in each of the two queues; more than there are examples hold keys of the same one.
            hidden: Number of outputs of the hidden layers of both projectors.
            projection: Number of outputs of both projectors.

        Raises:
            InputError: A setting is out of range.
        """
        super().__init__()
        check_fraction(dense=dense)
        check_positive(temperature=temperature)
        check_decay(decay=decay)
        check_min(1, grid=grid, queue=queue, hidden=hidden, projection=projection)
        self.dense, self.grid, self.temperature, self.decay = dense, grid, temperature, decay
        self.queue, self.hidden, self.projection = queue, hidden, projection

    def attach(self, encoder: Encoder) -> None:
        """Build both projectors, one hidden layer each without batch normalization, and queues of random keys.

        Args:
            encoder: Network from inputs to features.

        Raises:
            InputError: The encoder pools no map, or one with fewer places than the grid.
        """
        with eval_mode(encoder), torch.no_grad():
            channels, *sides = encoder.forward_pooled(encoder.make_example())[1].shape[1:]
        if self.grid is not None and self.grid > min(sides):
            raise InputError(
                f"grid is {self.grid}, and the last map of backbone {encoder.name!r} has {sides[0]} x {sides[1]} "
                "places: give at most as many, or larger inputs"
            )
        self.side = self.grid or min(_SIDE, *sides)
        sizes = [self.hidden, self.projection]
        self.projector = build_projector([encoder.num_features, *sizes], hidden_norm=False)
        self.place_projector = build_projector([channels, *sizes], hidden_norm=False)
        for name in ("queued", "queued_places"):
            self.register_buffer(name, F.normalize(torch.randn(self.queue, self.projection), dim=1))

    def list_averaged(self, encoder: Encoder) -> dict[str, nn.Module]:
        """Return encoder and both projectors."""
        return {"encoder": encoder, "projector": self.projector, "place_projector": self.place_projector}

    def compute(
        self, encoder: Encoder, momentum: Network | None, batch: Unlabeled, global_step: int, epoch: int
    ) -> ObjectiveStep:
        """Compute the loss of a batch, with queries of the first view and keys of the second, in full precision.

        Args:
            encoder: Network from inputs to features.
            momentum: Momentum network, whose parts are applied one by one.
            batch: Examples with their views.
            global_step: Number of optimizer steps so far.
            epoch: Number of epochs so far.
        """
        assert isinstance(momentum, nn.Module)
        view, other = batch.crops[:2]
        features, cells = encoder.forward_pooled(view)
        places = self._lay_grid(cells)
        queries, place_queries = self.projector(features), self.place_projector(places)
        with torch.no_grad():
            averaged: Encoder = momentum.get_submodule("encoder")  # type: ignore[assignment]
            other_features, other_cells = averaged.forward_pooled(other)
            other_places = self._lay_grid(other_cells)
            keys = momentum.get_submodule("projector")(other_features)
            place_keys = momentum.get_submodule("place_projector")(other_places)
        with torch.autocast(features.device.type, enabled=False):
            q, k, r, t = (_normalize(x) for x in (queries, keys, place_queries, place_keys))
            found = match_places(places, other_places)
            matched = t.gather(1, found.unsqueeze(-1).expand_as(t))
            of_examples = self._contrast(q, k, self.queued)
            of_places = self._contrast(r.flatten(0, 1), matched.flatten(0, 1), self.queued_places)
            loss = (1 - self.dense) * of_examples + self.dense * of_places
            _enqueue(self.queued, k)
            _enqueue(self.queued_places, _normalize(place_keys.mean(1)))
        logs = {"example_loss": of_examples.detach(), "place_loss": of_places.detach()}
        logs["projection_spread"] = compute_spread(q.detach())
        return ObjectiveStep(loss, logs, features.detach(), lambda: batch.crops[:2])

    def _lay_grid(self, cells: Tensor) -> Tensor:
        """Return the mean features of each place of the grid, (B, S^2, C)."""
        return F.adaptive_avg_pool2d(cells, self.side).flatten(2).transpose(1, 2)

    def _contrast(self, queries: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """Return the mean cross-entropy of the positive of each query, (N, P), among it and all negatives, (Q, P)."""
        own = (queries * positives).sum(1, keepdim=True)
        logits = torch.cat([own, queries @ negatives.to(queries.dtype, copy=True).T], 1) / self.temperature
        return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


@torch.no_grad()
def match_places(places: Tensor, others: Tensor) -> Tensor:
    """Return the place of the other view that is most similar to each place by the cosine, int64, (B, S^2).

    Args:
        places: Features of the places of one view, (B, S^2, C).
        others: Those of the other view.
    """
    similarity = _normalize(places) @ _normalize(others).transpose(1, 2)
    return similarity.argmax(2)


def _normalize(x: Tensor) -> Tensor:
    return F.normalize(x.float() if x.dtype.itemsize < 4 else x, dim=-1)


def _enqueue(queue: Tensor, keys: Tensor) -> None:
    """Put the keys of all processes at the beginning of a queue, whose oldest ones leave it."""
    queue.copy_(torch.cat([all_gather_cat(keys).to(queue.dtype), queue])[: len(queue)])

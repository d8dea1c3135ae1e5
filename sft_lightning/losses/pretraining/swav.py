"""SwAV: Caron et al. 2020, "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments"."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.losses.pretraining.base import ObjectiveInputs, ObjectiveOutput, ViewObjective
from sft_lightning.losses.pretraining.projectors import build_projector
from sft_lightning.losses.pretraining.prototypes import Prototypes, compute_entropy, count_used
from sft_lightning.utils.distributed import all_gather_cat
from sft_lightning.utils.errors import check_min, check_positive

_TINY = 1e-30  # keeps rows without mass at 0


class SwAV(ViewObjective):
    """Cross-entropy of a view's distribution over prototypes with the balanced code of another view (eq. 1 and 2).

    Codes share the examples of all processes out evenly among the prototypes, which keeps the features apart. With
    fewer examples in a batch than prototypes, a queue of earlier projections takes part in that (`queue`).

    Reference setting (CIFAR-10, ResNet-18, batch 256, 1,000 epochs; solo-learn): temperature .1, epsilon .05, 3
    iterations, projection 2048 - 128, 3,000 prototypes, queue of 3,840 from epoch 15, LARS with rate .6 and weight
    decay 1e-6; linear accuracy 89.2. The paper adds 6 local crops on ImageNet, with crops of .14 to 1 and .05 to .14.
    """

    queued: Tensor

    def __init__(
        self,
        local_crops: int = 0,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        queue: int = 0,
        queue_from_epoch: int = 15,
        frozen_epochs: int = 1,
        hidden: int = 2048,
        projection: int = 128,
        prototypes: int = 3000,
    ) -> None:
        """Check and store the settings.

        Args:
            local_crops: Number of local views, which are smaller (`pretrain_view_local` of the data) and get no code.
            temperature: Temperature of the network's distribution.
            epsilon: Temperature of the codes; small for sharp ones.
            iterations: Number of normalizations of Sinkhorn and Knopp.
            queue: Number of earlier projections of each global view, of all processes, that the codes count in.
            queue_from_epoch: Epoch from which the queue is filled and used.
            frozen_epochs: Number of epochs at the start in which the prototypes are not trained.
            hidden: Number of outputs of the projector's hidden layer.
            projection: Number of outputs of the projector.
            prototypes: Number of prototypes.

        Raises:
            InputError: A setting is out of range.
        """
        super().__init__()
        epochs = {"queue_from_epoch": queue_from_epoch, "frozen_epochs": frozen_epochs}
        check_min(0, local_crops=local_crops, queue=queue, **epochs)
        check_positive(temperature=temperature, epsilon=epsilon)
        check_min(1, iterations=iterations, hidden=hidden, projection=projection)
        check_min(2, prototypes=prototypes)
        self.num_local_views, self.temperature = local_crops, temperature
        self.epsilon, self.iterations = epsilon, iterations
        self.queue, self.queue_from_epoch, self.frozen_epochs = queue, queue_from_epoch, frozen_epochs
        self.hidden, self.projection, self.num_prototypes = hidden, projection, prototypes

    def build(self, num_features: int) -> None:
        """Build the projector, one hidden layer with batch normalization, and the prototypes."""
        self.projector = build_projector([num_features, self.hidden, self.projection])
        self.prototypes = Prototypes(self.projection, self.num_prototypes)
        if self.queue:
            self.register_buffer("queued", torch.zeros(self.num_views, self.queue, self.projection))

    def loss(self, step: ObjectiveInputs) -> ObjectiveOutput:
        """Compute the mean over all pairs of a global view and another view of the examples of all processes."""
        self.prototypes.is_frozen = step.epoch < self.frozen_epochs
        z = [all_gather_cat(F.normalize(output, dim=1)) for output in step.outputs]
        scores = [self.prototypes(view) for view in z]
        codes = self._assign(scores[: self.num_views], z, step.epoch)
        log_p = [(view / self.temperature).log_softmax(1) for view in scores]
        pairs = [(i, j) for i in range(len(codes)) for j in range(len(log_p)) if i != j]
        loss = torch.stack([-(codes[i] * log_p[j]).sum(1).mean() for i, j in pairs]).mean()
        used = count_used(log_p[0].detach().exp().mean(0))
        return ObjectiveOutput(
            loss, {"code_entropy": compute_entropy(torch.cat(codes)).mean(), "prototypes_used": used}
        )

    @torch.no_grad()
    def _assign(self, scores: Sequence[Tensor], z: Sequence[Tensor], epoch: int) -> list[Tensor]:
        """Return the code of each example and global view, and put its projections into the queue."""
        if not self.queue or epoch < self.queue_from_epoch:
            return [assign_codes(view, self.epsilon, self.iterations) for view in scores]
        codes = []
        for i, view in enumerate(scores):
            queued = self.queued[i]
            together = torch.cat([view, self.prototypes(queued).to(view.dtype)])
            # Places that are not filled yet hold zeros.
            is_filled = torch.cat([view.new_ones(len(view)), queued.any(1).to(view.dtype)])
            codes.append(assign_codes(together, self.epsilon, self.iterations, is_filled)[: len(view)])
            queued.copy_(torch.cat([z[i].to(queued.dtype), queued])[: self.queue])
        return codes


def assign_codes(scores: Tensor, epsilon: float, iterations: int, weights: Tensor | None = None) -> Tensor:
    """Share examples out evenly among prototypes by the algorithm of Sinkhorn and Knopp (Cuturi 2013).

    Args:
        scores: Similarities of examples and prototypes, (N, K).
        epsilon: Temperature of the codes.
        iterations: Number of normalizations.
        weights: Mass of each example, (N,), 1 by default; 0 leaves it out.

    Returns:
        Codes, (N, K), whose rows sum to 1.
    """
    q = ((scores - scores.amax()) / epsilon).exp()
    if weights is not None:
        q = q * weights.unsqueeze(1)
    for _ in range(iterations):
        q = q / q.sum(0).clamp_min(_TINY)
        q = q / q.sum(1, keepdim=True).clamp_min(_TINY)
    return q

"""DINO: Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers"."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from sft_lightning.losses.pretraining.base import ObjectiveInputs, ObjectiveOutput, ViewObjective
from sft_lightning.losses.pretraining.projectors import build_projector
from sft_lightning.losses.pretraining.prototypes import Prototypes, compute_entropy, count_used
from sft_lightning.networks.encoder import Encoder
from sft_lightning.utils.distributed import mean_over_ranks
from sft_lightning.utils.errors import check_decay, check_min, check_positive


class DINO(ViewObjective):
    """Cross-entropy of a view's distribution over prototypes with the momentum network's for another view (eq. 3).

    The momentum network sees the two global views only. Subtracting a running mean over the examples of all processes
    (centering) keeps one prototype from taking all examples, and a low temperature (sharpening) keeps the distribution
    from becoming uniform. `target_entropy` is 0 in the first kind of collapse and log(prototypes) in the second.

    Reference setting (ImageNet, ViT-S/16): 8 local crops, crops of .25 to 1 and .05 to .25, target temperature .04 to
    .07 in 30 epochs, 65,536 prototypes, decay .996 rising to 1, gradients clipped at 3, AdamW with rate 5e-4 for each
    256 examples. On CIFAR-10 (ResNet-18, batch 256, 1,000 epochs; solo-learn): projection 2048 - 2048 - 256, 4,096
    prototypes, decay .9995 rising to 1, LARS with rate .3 and weight decay 1e-6; linear accuracy 89.5.
    """

    needs_momentum: ClassVar[bool] = True
    predictor: Prototypes
    center: Tensor

    def __init__(
        self,
        local_crops: int = 8,
        temperature: float = 0.1,
        target_temperature: float = 0.07,
        start_temperature: float = 0.04,
        warmup_epochs: int = 30,
        center_decay: float = 0.9,
        frozen_epochs: int = 1,
        decay: float = 0.9995,
        hidden: int = 2048,
        projection: int = 256,
        prototypes: int = 4096,
    ) -> None:
        """Check and store the settings.

        Args:
            local_crops: Number of local views, which are smaller (`pretrain_view_local` of the data); 0 for none.
            temperature: Temperature of the network's distribution.
            target_temperature: Temperature of the momentum network's distribution after the warm-up.
            start_temperature: That temperature in the first epoch, from which it rises linearly with each epoch.
            warmup_epochs: Number of epochs in which it rises.
            center_decay: Share of the running mean that each step keeps.
            frozen_epochs: Number of epochs at the start in which the prototypes are not trained.
            decay: Share of the momentum network that its first update keeps; it rises to 1 at the end of training.
            hidden: Number of outputs of the projector's two hidden layers.
            projection: Number of outputs of the projector.
            prototypes: Number of prototypes.

        Raises:
            InputError: A setting is out of range.
        """
        super().__init__()
        check_min(0, local_crops=local_crops, warmup_epochs=warmup_epochs, frozen_epochs=frozen_epochs)
        temperatures = {"target_temperature": target_temperature, "start_temperature": start_temperature}
        check_positive(temperature=temperature, **temperatures)
        check_decay(center_decay=center_decay, decay=decay)
        check_min(1, hidden=hidden, projection=projection)
        check_min(2, prototypes=prototypes)
        self.num_local_views, self.temperature, self.decay = local_crops, temperature, decay
        self.start_temperature, self.target_temperature = start_temperature, target_temperature
        self.warmup_epochs, self.frozen_epochs, self.center_decay = warmup_epochs, frozen_epochs, center_decay
        self.hidden, self.projection, self.prototypes = hidden, projection, prototypes

    def build(self, num_features: int) -> None:
        """Build the projector, two hidden layers without batch normalization, and the prototypes, which predict."""
        sizes = [num_features, self.hidden, self.hidden, self.projection]
        self.projector = build_projector(sizes, hidden_norm=False, activation=nn.GELU)
        self.predictor = Prototypes(self.projection, self.prototypes)
        self.register_buffer("center", torch.zeros(self.prototypes))

    def list_averaged(self, encoder: Encoder) -> dict[str, nn.Module]:
        """Return encoder, projector and prototypes.

        Args:
            encoder: Network from inputs to features.
        """
        return {**super().list_averaged(encoder), "predictor": self.predictor}

    def forward(
        self, features: Sequence[Tensor], targets: Sequence[Tensor] | None, global_step: int, epoch: int = 0
    ) -> ObjectiveOutput:
        """Compute the loss of a batch, with fixed prototypes in the first epochs.

        Args:
            features: Features of each view, (B, F), with gradient.
            targets: Similarities of each global view by the momentum network, (B, prototypes).
            global_step: Number of optimizer steps so far.
            epoch: Number of epochs so far.
        """
        self.predictor.is_frozen = epoch < self.frozen_epochs
        return super().forward(features, targets, global_step, epoch)

    def temperature_at(self, epoch: int) -> float:
        """Return the temperature of the targets in an epoch.

        Args:
            epoch: Number of epochs before it.
        """
        progress = 1.0 if epoch >= self.warmup_epochs else epoch / self.warmup_epochs
        return self.start_temperature + progress * (self.target_temperature - self.start_temperature)

    def loss(self, step: ObjectiveInputs) -> ObjectiveOutput:
        """Compute the mean over all pairs of a global view and another view, then move the center."""
        temperature = self.temperature_at(step.epoch)
        targets = [((k - self.center) / temperature).softmax(1) for k in step.targets]
        log_p = [(q / self.temperature).log_softmax(1) for q in step.outputs]
        pairs = [(i, j) for i in range(len(targets)) for j in range(len(log_p)) if i != j]
        loss = torch.stack([-(targets[i] * log_p[j]).sum(1).mean() for i, j in pairs]).mean()
        center = mean_over_ranks(torch.cat(step.targets))
        self.center.lerp_(center.to(self.center.dtype), 1 - self.center_decay)
        used = count_used(mean_over_ranks(torch.cat(targets)))
        return ObjectiveOutput(
            loss, {"target_entropy": compute_entropy(torch.cat(targets)).mean(), "prototypes_used": used}
        )

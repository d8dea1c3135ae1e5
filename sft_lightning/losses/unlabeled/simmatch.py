"""SimMatch: Zheng et al. 2022, "SimMatch: Semi-supervised Learning with Similarity Matching"."""

from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.losses.pretraining.projectors import build_projector
from sft_lightning.losses.unlabeled.base import (
    Consistency,
    Outputs,
    StrategyContext,
    StrategyInputs,
    StrategyOutput,
)
from sft_lightning.losses.unlabeled.memory import LabeledBank, Queue, align_with_recent, normalize_projected
from sft_lightning.utils.distributed import all_gather_cat
from sft_lightning.utils.errors import InputError, check_decay, check_fraction, check_min, check_positive
from sft_lightning.utils.inputs import select_inputs
from sft_lightning.utils.transfer import to_device


class SimMatch(Consistency):
    """Consistency of the class prediction and of the similarities to all labeled examples, which correct each other.

    A bank holds a projected feature of each labeled example. The weak view gives a prediction p, aligned with the
    uniform distribution, and a softmax q over its similarities to the bank. The instance target is q times the
    prediction of each labeled example's class, normalized (unfolding). The semantic target is alpha p plus 1 - alpha
    times the sums of q over the examples of each class (aggregation). The strong view learns the first by
    cross-entropy of its own similarities, L_in, and the second where its largest probability reaches tau.

    Differences from the authors' code: labeled examples that no batch has held yet are left out of q, where that code
    sets L_in and alpha aside for the first epoch, and a batch enters the bank before its unlabeled examples are
    compared with it.

    Reference settings: the averaged network is the teacher, tau .7, mean of 256 batches, `lambda_u` 10 and instance .5
    (ImageNet with 1 or 10 % of the labels). The network itself is the teacher, with a bank momentum of .7, tau .95, 32
    batches, `lambda_u` 1 and instance 1 (CIFAR-10). Temperature .1 and alpha .9 in both.
    """

    needs_labels: ClassVar[bool] = True

    def __init__(
        self,
        threshold: float = 0.95,
        alpha: float = 0.9,
        temperature: float = 0.1,
        instance: float = 1.0,
        averaged_teacher: bool = True,
        bank_momentum: float = 0.0,
        recent_batches: int = 32,
        projection: int = 128,
        **consistency: Any,
    ) -> None:
        """Check and store the settings.

        Args:
            threshold: tau, minimum probability of an accepted pseudo-label.
            alpha: Share of the prediction in the semantic target; 1 leaves the labeled examples out of it.
            temperature: Temperature t of the similarities.
            instance: Weight of L_in; the paper's lambda_in is this times `lambda_u`.
            averaged_teacher: Whether the averaged network makes the targets and fills the bank. Without it, the network
                itself does, in one pass less.
            bank_momentum: Share of a labeled example's old feature that the bank keeps when it meets it again.
            recent_batches: Number of batches whose mean prediction is aligned with the uniform distribution.
            projection: Number of projected features.
            consistency: Settings of `Consistency`, by name.

        Raises:
            InputError: A setting is out of range.
        """
        super().__init__(**consistency)
        check_fraction(threshold=threshold, alpha=alpha)
        check_positive(temperature=temperature)
        check_min(0, instance=instance)
        check_decay(bank_momentum=bank_momentum)
        check_min(1, recent_batches=recent_batches, projection=projection)
        self.threshold, self.alpha, self.temperature, self.instance = threshold, alpha, temperature, instance
        self.averaged_teacher, self.bank_momentum = averaged_teacher, bank_momentum
        self.recent_batches, self.projection = recent_batches, projection

    @property
    def needs_teacher(self) -> bool:  # type: ignore[override] # a setting decides
        """Whether the averaged network is used."""
        return self.averaged_teacher

    def build(self, context: StrategyContext) -> None:
        """Build the projector and its average, the bank, and the queue of mean predictions.

        Args:
            context: Numbers of classes and features, and the backbone.
        """
        features = context.num_features
        self.projector = build_projector([features, features, self.projection], hidden_norm=False)
        self.averaged_projector = deepcopy(self.projector) if self.averaged_teacher else None
        if self.averaged_projector is not None:
            self.averaged_projector.requires_grad_(False)
        self.bank = LabeledBank(self.projection, self.bank_momentum)
        self.recent = Queue(self.recent_batches, context.num_classes)

    def start_labeled(self, num_labeled: int) -> None:
        """Make room for the labeled examples in the bank.

        Args:
            num_labeled: Number of labeled examples.

        Raises:
            InputError: The number is unknown.
        """
        if not num_labeled:
            raise InputError(
                "SimMatch remembers each labeled example by its position, and these batches come from plain loaders: "
                "train with a FewLabelDataModule, such as ImageDataModule"
            )
        self.bank.start(num_labeled)

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """Average the projector like the network.

        Args:
            decay: Share of the old average that this update keeps.
        """
        if self.averaged_projector is not None:
            for mean, value in zip(self.averaged_projector.parameters(), self.projector.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)

    def loss(self, step: StrategyInputs) -> StrategyOutput:
        """Return the cross-entropy with the semantic targets plus that with the instance targets."""
        output = super().loss(step)
        projected = normalize_projected(self.projector(step.student.features))
        with torch.autocast(projected.device.type, enabled=False):
            instance = F.cross_entropy(self.bank.similarities(projected, self.temperature), self._instance_targets)
        logs = {"semantic": output.loss.detach(), "instance": instance.detach()}
        return output._replace(loss=output.loss + self.instance * instance, logs=logs)

    def weak_outputs(self, step: StrategyInputs) -> Outputs:
        """Return features and logits of the weak view by the teacher."""
        return (
            step.network.teacher_outputs(step.unlabeled.weak) if self.averaged_teacher else super().weak_outputs(step)
        )

    def targets(self, logits: Tensor, step: StrategyInputs) -> tuple[Tensor, Tensor]:
        """Return the semantic targets, accepted where the largest probability reaches tau; keep the instance targets.

        The labeled batch enters the bank first.
        """
        assert step.weak is not None
        projector = self.projector if self.averaged_projector is None else self.averaged_projector
        labeled, weak = (normalize_projected(projector(f)) for f in (self._labeled_features(step), step.weak.features))
        with torch.autocast(logits.device.type, enabled=False):
            self._fill_bank(step.labeled, labeled)
            prediction = align_with_recent(logits.softmax(1), self.recent)
            similarities = self.bank.similarities(weak, self.temperature).softmax(1)
            semantic, self._instance_targets = self.propagate(prediction, similarities)
        return semantic, (semantic.amax(1) >= self.threshold).float()

    def propagate(self, prediction: Tensor, similarities: Tensor) -> tuple[Tensor, Tensor]:
        """Return the semantic and the instance targets, each corrected by the other kind.

        Args:
            prediction: Probabilities p of the classes, (B, C).
            similarities: Probabilities q of the labeled examples, (B, N).
        """
        classes = self.bank.class_indicators(prediction.shape[1]).to(prediction.dtype)
        unfolded = similarities * (prediction @ classes.T)
        aggregated = similarities @ classes
        semantic = self.alpha * prediction + (1 - self.alpha) * aggregated
        return semantic, unfolded / unfolded.sum(1, keepdim=True).clamp_min(1e-12)

    def _labeled_features(self, step: StrategyInputs) -> Tensor:
        """Return the features of the weak views of the labeled batch by the teacher."""
        count = step.labeled.num_weak or len(step.labeled.y)
        if self.averaged_teacher:
            return step.network.teacher_outputs(select_inputs(step.labeled.x, slice(count))).features
        return step.labeled_outputs.features[:count]

    def _fill_bank(self, labeled: Any, features: Tensor) -> None:
        count, device = len(features), features.device
        positions, labels = to_device(labeled.indices, device)[:count], labeled.y[:count]
        self.bank.update(all_gather_cat(positions), all_gather_cat(labels), all_gather_cat(features))

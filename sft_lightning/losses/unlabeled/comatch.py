"""CoMatch: Li et al. 2021, "CoMatch: Semi-supervised Learning with Contrastive Graph Regularization"."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.losses.pretraining.projectors import build_projector
from sft_lightning.losses.unlabeled.base import Consistency, StrategyContext, StrategyInputs, StrategyOutput
from sft_lightning.losses.unlabeled.memory import Queue, align_with_recent, normalize_projected
from sft_lightning.utils.distributed import all_gather_cat
from sft_lightning.utils.errors import check_fraction, check_min, check_positive


class CoMatch(Consistency):
    """Consistency with smoothed pseudo-labels, and a contrast that makes examples of like pseudo-labels similar.

    A memory holds projected features and predictions of recent weak views, labels in place of predictions for labeled
    examples. The pseudo-label q is alpha times the prediction, aligned with the uniform distribution, plus 1 - alpha
    times the mean prediction of the memory, weighted by similarity. The strong view learns q where its largest
    probability reaches tau. In the pseudo-label graph of the batch, an edge weighs q_i . q_j where that reaches T, and
    1 from each example to itself. L_ctr is the cross-entropy of the similarities of the first to the second strong
    views with that graph, over the examples of all processes.

    As in the authors' code, smoothing starts once the memory is full.

    Reference setting (CIFAR-10): tau .95, alpha .9, temperature .2, T .8, a memory of 5 batches of 64 + 448 examples,
    mean of 32 batches, 64 projected features, `lambda_u` 1 and contrast 1; all else as in FixMatch.
    """

    views: ClassVar[tuple[str, ...]] = ("weak", "strong", "strong_2")
    needs_labels: ClassVar[bool] = True

    def __init__(
        self,
        threshold: float = 0.95,
        alpha: float = 0.9,
        temperature: float = 0.2,
        contrast: float = 1.0,
        graph_threshold: float = 0.8,
        memory: int = 2560,
        recent_batches: int = 32,
        projection: int = 64,
        **consistency: Any,
    ) -> None:
        """Check and store the settings.

        Args:
            threshold: tau, minimum probability of an accepted pseudo-label.
            alpha: Share of the prediction in the pseudo-label; 1 leaves the memory out of it.
            temperature: Temperature t of the similarities.
            contrast: Weight of L_ctr; the paper's lambda_ctr is this times `lambda_u`.
            graph_threshold: T, minimum weight of an edge between two examples.
            memory: Number of remembered examples, those of some five batches of all processes.
            recent_batches: Number of batches whose mean prediction is aligned with the uniform distribution.
            projection: Number of projected features.
            consistency: Settings of `Consistency`, by name.

        Raises:
            InputError: A setting is out of range.
        """
        super().__init__(**consistency)
        check_fraction(threshold=threshold, alpha=alpha, graph_threshold=graph_threshold)
        check_positive(temperature=temperature)
        check_min(0, contrast=contrast)
        check_min(1, memory=memory, recent_batches=recent_batches, projection=projection)
        self.threshold, self.alpha, self.temperature = threshold, alpha, temperature
        self.contrast, self.graph_threshold = contrast, graph_threshold
        self.memory_size, self.recent_batches, self.projection = memory, recent_batches, projection

    def build(self, context: StrategyContext) -> None:
        """Build the projector, the memory of features and predictions, and the queue of mean predictions.

        Args:
            context: Numbers of classes and features, and the backbone.
        """
        features = context.num_features
        self.projector = build_projector([features, features, self.projection], hidden_norm=False)
        self.memory = Queue(self.memory_size, self.projection + context.num_classes)
        self.recent = Queue(self.recent_batches, context.num_classes)

    def loss(self, step: StrategyInputs) -> StrategyOutput:
        """Return the cross-entropy with the pseudo-labels plus the contrast of the strong views."""
        output = super().loss(step)
        second = step.network.outputs(step.unlabeled.strong_2).features
        views = [normalize_projected(self.projector(f)) for f in (step.student.features, second)]
        with torch.autocast(second.device.type, enabled=False):
            first, second = (all_gather_cat(z) for z in views)
            graph = self.build_graph(all_gather_cat(self._pseudo_labels))
            contrast = F.cross_entropy(first @ second.T / self.temperature, graph)
        logs = {"semantic": output.loss.detach(), "contrast": contrast.detach()}
        return output._replace(loss=output.loss + self.contrast * contrast, logs=logs)

    def targets(self, logits: Tensor, step: StrategyInputs) -> tuple[Tensor, Tensor]:
        """Return smoothed predictions, accepted where the largest probability reaches tau; then remember the batch."""
        assert step.weak is not None
        count = step.labeled.num_weak or len(step.labeled.y)
        weak, labeled = (
            normalize_projected(self.projector(f)) for f in (step.weak.features, step.labeled_outputs.features[:count])
        )
        with torch.autocast(logits.device.type, enabled=False):
            prediction = align_with_recent(logits.softmax(1), self.recent)
            self._pseudo_labels = self.smooth(prediction, weak)
            known = F.one_hot(step.labeled.y[:count], logits.shape[1]).to(prediction)
            for features, classes in ((weak, prediction), (labeled, known)):
                self.memory.push(all_gather_cat(torch.cat([features, classes], 1)))
        return self._pseudo_labels, (self._pseudo_labels.amax(1) >= self.threshold).float()

    def smooth(self, prediction: Tensor, features: Tensor) -> Tensor:
        """Return alpha times the predictions plus 1 - alpha times those of similar examples in the memory.

        Args:
            prediction: Probabilities of the classes, (B, C).
            features: Normalized projected features, (B, P).
        """
        remembered, classes = self.memory.rows.to(prediction.dtype).tensor_split([self.projection], dim=1)
        neighbors = (features @ remembered.T / self.temperature).softmax(1) @ classes
        smoothed = self.alpha * prediction + (1 - self.alpha) * neighbors
        return torch.where(self.memory.is_full(), smoothed, prediction)

    def build_graph(self, pseudo_labels: Tensor) -> Tensor:
        """Return the weights of the edges from each example, normalized, (B, B).

        Args:
            pseudo_labels: Probabilities q of the classes, (B, C).
        """
        weights = (pseudo_labels @ pseudo_labels.T).fill_diagonal_(1)
        weights = torch.where(weights >= self.graph_threshold, weights, 0.0)
        return weights / weights.sum(1, keepdim=True)

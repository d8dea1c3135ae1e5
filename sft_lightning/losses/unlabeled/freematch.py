"""FreeMatch: Wang et al. 2023, "FreeMatch: Self-adaptive Thresholding for Semi-supervised Learning"."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.losses.unlabeled.base import (
    Consistency,
    StrategyContext,
    StrategyInputs,
    StrategyOutput,
    ema_update_,
)
from sft_lightning.utils.distributed import mean_over_ranks, sum_over_ranks
from sft_lightning.utils.errors import check_decay, check_min


class FreeMatch(Consistency):
    """Thresholds that follow the network's own confidence, global (eq. 5) and by class (eq. 6 to 8), and fairness."""

    mean_confidence: Tensor
    mean_prediction: Tensor
    label_histogram: Tensor

    def __init__(self, momentum: float = 0.999, fairness: float = 0.001) -> None:
        """Sets both.

        Args:
            momentum: Of the running means.
            fairness: w_f, weight of the class fairness (eq. 10 to 12).

        Raises:
            InputError: One is out of its range.
        """
        super().__init__()
        check_decay(momentum=momentum)
        check_min(0, fairness=fairness)
        self.momentum, self.fairness = momentum, fairness

    def build(self, about: StrategyContext) -> None:
        """Running means, at first as of a network that knows nothing.

        Args:
            about: Sizes.
        """
        uniform = torch.full((about.num_classes,), 1 / about.num_classes)
        self.register_buffer("mean_confidence", torch.tensor(1 / about.num_classes))
        self.register_buffer("mean_prediction", uniform.clone())
        self.register_buffer("label_histogram", uniform.clone())

    @property
    def thresholds(self) -> Tensor:
        """(C,): tau(c)."""
        return self.mean_prediction / self.mean_prediction.max() * self.mean_confidence

    def targets(self, logits: Tensor, step: StrategyInputs) -> tuple[Tensor, Tensor]:
        """The most likely class, where its probability reaches the threshold of that class."""
        probabilities = logits.softmax(1)
        confidence, label = probabilities.max(1)
        ema_update_(self.mean_confidence, mean_over_ranks(confidence), self.momentum)
        ema_update_(self.mean_prediction, mean_over_ranks(probabilities), self.momentum)
        ema_update_(self.label_histogram, mean_over_ranks(F.one_hot(label, logits.shape[1]).to(logits)), self.momentum)
        return label, (confidence >= self.thresholds[label]).float()

    def loss(self, step: StrategyInputs) -> StrategyOutput:
        """The consistency loss, and w_f times the fairness."""
        result = super().loss(step)
        assert result.weight is not None
        if not self.fairness:
            return result
        return result._replace(loss=result.loss + self.fairness * self._fairness(step.student.logits, result.weight))

    def _fairness(self, logits: Tensor, weight: Tensor) -> Tensor:
        """Eq. 12: running p / h times log of the accepted strong views' p / h, both normalized, over classes."""
        probabilities, chosen = logits.softmax(1), (weight > 0).to(logits)
        answers = F.one_hot(probabilities.argmax(1), logits.shape[1]) * chosen[:, None]
        counts, mass = sum_over_ranks(answers.sum(0)), sum_over_ranks((probabilities * chosen[:, None]).sum(0))
        # A class that no accepted example was predicted as has no modulated share.
        now = mass * torch.where(counts > 0, 1 / counts.clamp_min(1), 0.0)
        running = self.mean_prediction / self.label_histogram.clamp_min(1e-12)
        now, running = now / now.sum().clamp_min(1e-12), running / running.sum()
        any_accepted = counts.sum().clamp(max=1)  # no `if`: that would wait for the device
        return any_accepted * (running * (now + 1e-12).log()).sum()

    def log_metrics(self) -> Mapping[str, Tensor]:
        """The lowest and the highest threshold."""
        return {"threshold_min": self.thresholds.min(), "threshold_max": self.thresholds.max()}

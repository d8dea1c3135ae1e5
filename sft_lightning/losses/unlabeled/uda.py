"""UDA: Xie et al. 2020, "Unsupervised Data Augmentation for Consistency Training"."""

from typing import Any

from torch import Tensor

from sft_lightning.losses.unlabeled.base import Consistency, StrategyInputs
from sft_lightning.utils.errors import check_fraction, check_positive


class UDA(Consistency):
    """Cross-entropy of the strong view with the sharpened probabilities of a confident weak view.

    Its gradient is that of the paper's KL divergence (eq. 1). Training signal annealing (TSA) of the labeled examples
    is left out.

    Reference setting (CIFAR-10): temperature .4, threshold .8.
    """

    def __init__(self, temperature: float = 0.4, threshold: float = 0.8, **consistency: Any) -> None:
        """Check and store the settings.

        Args:
            temperature: Divisor of the weak view's logits.
            threshold: Minimum probability of an accepted example, before sharpening.
            consistency: Settings of `Consistency`, by name.

        Raises:
            InputError: A setting is out of range.
        """
        super().__init__(**consistency)
        check_positive(temperature=temperature)
        check_fraction(threshold=threshold)
        self.temperature, self.threshold = temperature, threshold

    def targets(self, logits: Tensor, step: StrategyInputs) -> tuple[Tensor, Tensor]:
        """Return the sharpened probabilities, accepted where the plain ones reach the threshold."""
        confident = logits.softmax(1).amax(1) >= self.threshold
        return (logits / self.temperature).softmax(1), confident.float()

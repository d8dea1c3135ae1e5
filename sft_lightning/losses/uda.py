"""UDA: Xie et al. 2020, "Unsupervised Data Augmentation for Consistency Training"."""

from typing import Any

from torch import Tensor

from sft_lightning.errors import InputError
from sft_lightning.losses.unlabeled import Consistency


class UDA(Consistency):
    """Sharpened probabilities of confident weak views are learned on the strong view.

    The gradient is that of the paper's KL divergence. Its annealing of the labeled examples (TSA) is left out.
    """

    def __init__(self, temperature: float = 0.4, threshold: float = 0.8) -> None:
        """Sets both.

        Args:
            temperature: Divides the logits of the weak view.
            threshold: Least probability, before sharpening, of an accepted example.

        Raises:
            InputError: One is out of its range.
        """
        super().__init__()
        if temperature <= 0 or not 0 <= threshold <= 1:
            raise InputError(
                f"temperature is {temperature}, threshold {threshold}: give a temperature above 0, a threshold 0 to 1"
            )
        self.temperature, self.threshold = temperature, threshold

    def targets(self, logits: Tensor, unlabeled: Any, known: Tensor | None, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """Softmax at low temperature, where the softmax at 1 reaches the threshold."""
        confident = logits.softmax(1).amax(1) >= self.threshold
        return (logits / self.temperature).softmax(1), confident.float()

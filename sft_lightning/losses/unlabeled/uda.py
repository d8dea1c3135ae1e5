"""UDA: Xie et al. 2020, "Unsupervised Data Augmentation for Consistency Training"."""

from torch import Tensor

from sft_lightning.losses.unlabeled.base import Consistency, StrategyInputs
from sft_lightning.utils.errors import check_fraction, check_positive


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
        check_positive(temperature=temperature)
        check_fraction(threshold=threshold)
        self.temperature, self.threshold = temperature, threshold

    def targets(self, logits: Tensor, step: StrategyInputs) -> tuple[Tensor, Tensor]:
        """Softmax at low temperature, where the softmax at 1 reaches the threshold."""
        confident = logits.softmax(1).amax(1) >= self.threshold
        return (logits / self.temperature).softmax(1), confident.float()

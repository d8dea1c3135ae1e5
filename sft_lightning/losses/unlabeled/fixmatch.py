"""FixMatch: Sohn et al. 2020, "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence"."""

from typing import Any, ClassVar

from torch import Tensor

from sft_lightning.losses.unlabeled.base import Consistency, StrategyInputs
from sft_lightning.utils.errors import check_fraction


class FixMatch(Consistency):
    """Cross-entropy of the strong view with the class of a confident weak view (eq. 4).

    For segmentation, each pixel has a pseudo-label of its own; the strong view changes colors alone, and may be cut and
    mixed together with the pseudo-labels (French et al. 2020, "Semi-supervised semantic segmentation needs strong,
    varied perturbations"; Yang et al. 2023, UniMatch, show that this is a strong baseline).

    Reference setting (CIFAR-10, WRN-28-2): tau .95, lambda_u 1, 64 labeled and 448 unlabeled examples in a batch, SGD
    with rate .03 and momentum .9, average of the weights with decay .999.
    """

    tasks: ClassVar[tuple[str, ...]] = ("classification", "segmentation")

    def __init__(self, threshold: float = 0.95, **consistency: Any) -> None:
        """Check and store the settings.

        Args:
            threshold: tau, minimum probability of an accepted pseudo-label.
            consistency: Settings of `Consistency`, by name.

        Raises:
            InputError: The threshold is outside [0, 1].
        """
        super().__init__(**consistency)
        check_fraction(threshold=threshold)
        self.threshold = threshold

    def targets(self, logits: Tensor, step: StrategyInputs) -> tuple[Tensor, Tensor]:
        """Return the most likely class, accepted where its probability reaches tau."""
        confidence, label = logits.softmax(1).max(1)
        return label, (confidence >= self.threshold).float()

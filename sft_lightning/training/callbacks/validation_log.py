"""What the command `validate` measures, kept apart from the curves of the training."""

import re
from collections.abc import Mapping

from lightning.pytorch.loggers import TensorBoardLogger

VALIDATE = "validate"  # in place of `val`


class ValidationLogger(TensorBoardLogger):
    """Logs what the command `validate` finds under `validate/`.

    TensorBoard forgets the points of a curve that come after an earlier step which is written later: measuring the best
    checkpoint would cut the curves of the training off behind it.
    """

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Renames `val/`.

        Args:
            metrics: By name.
            step: Of the checkpoint.
        """
        super().log_metrics(rename_validation_metrics(metrics), step)


def rename_validation_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics of the command `validate`, beside those of the validations inside a training.

    Args:
        metrics: By name.
    """
    return {re.sub("^val/", f"{VALIDATE}/", name): value for name, value in metrics.items()}

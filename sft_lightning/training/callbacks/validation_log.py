"""Metrics of the command `validate`, separate from the curves of the training."""

import re
from collections.abc import Mapping

from lightning.pytorch.loggers import TensorBoardLogger

VALIDATE = "validate"  # in place of `val`


class ValidationLogger(TensorBoardLogger):
    """Logs metrics of the command `validate` under `validate/`.

    TensorBoard drops the points of a curve after a step that is written again, so validating the best checkpoint would
    cut off the curves of the training.
    """

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics with `val/` renamed to `validate/`.

        Args:
            metrics: Values by name.
            step: Step of the checkpoint.
        """
        super().log_metrics(rename_validation_metrics(metrics), step)


def rename_validation_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Rename metrics of `val/` to `validate/`.

    Args:
        metrics: Values by name.
    """
    return {re.sub("^val/", f"{VALIDATE}/", name): value for name, value in metrics.items()}

"""Methods that learn what normal examples look like, and say how far others are from that: one method a file."""

from sft_lightning.anomaly.base import AnomalyMethod
from sft_lightning.anomaly.padim import PaDiM
from sft_lightning.anomaly.patchcore import PatchCore

__all__ = ["AnomalyMethod", "PaDiM", "PatchCore"]

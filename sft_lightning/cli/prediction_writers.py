"""What writes the predictions of a model: a table, and what it predicts of places."""

from lightning.pytorch import Callback, LightningModule

from sft_lightning.paradigms.defect_detector import DefectDetector
from sft_lightning.paradigms.fine_tune_detector import FineTuneDetector
from sft_lightning.training.callbacks.predictions import PredictionWriter


def make_writer(model: LightningModule) -> Callback:
    """Return the callback that writes the predictions of a model.

    Args:
        model: Model that is about to predict.
    """
    if isinstance(model, DefectDetector):
        from sft_lightning.training.callbacks.vision.heat_maps import HeatMapWriter

        return HeatMapWriter()
    if isinstance(model, FineTuneDetector):
        from sft_lightning.training.callbacks.vision.box_predictions import BoxWriter

        return BoxWriter()
    if not getattr(getattr(model, "task", None), "is_dense", False):
        return PredictionWriter()
    from sft_lightning.training.callbacks.vision.mask_predictions import MaskWriter

    return MaskWriter()

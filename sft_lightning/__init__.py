"""sft-lightning: learning from few labels and many unlabeled examples, on PyTorch Lightning."""

from typing import TYPE_CHECKING, Any

from sft_lightning import _moved
from sft_lightning._version import __version__ as __version__

_moved.install()

__all__ = [
    "AnomalyDataModule",
    "AnomalyDetector",
    "AudioDataModule",
    "AudioView",
    "AutoencoderModule",
    "ColorView",
    "DecoupledFeatureClassifier",
    "DetectionDataModule",
    "DistillModule",
    "FineTuneClassifier",
    "FineTuneDetector",
    "FrozenFeatureClassifier",
    "ImageDataModule",
    "PatchView",
    "PretrainView",
    "SegmentationDataModule",
    "SelfSupervisedModule",
    "SemiSupervisedDetector",
    "SemiSupervisedModule",
    "StrongView",
    "StudentTeacherDetector",
    "TextDataModule",
    "TextView",
    "WarmupCosine",
    "WeakView",
    "solve",
]

if TYPE_CHECKING:
    from sft_lightning.data.audio.datamodule import AudioDataModule
    from sft_lightning.data.audio.views import AudioView
    from sft_lightning.data.text.datamodule import TextDataModule
    from sft_lightning.data.text.views import TextView
    from sft_lightning.data.vision.anomaly_datamodule import AnomalyDataModule
    from sft_lightning.data.vision.datamodule import ImageDataModule
    from sft_lightning.data.vision.detection_datamodule import DetectionDataModule
    from sft_lightning.data.vision.detection_views import PatchView
    from sft_lightning.data.vision.pretrain_views import PretrainView
    from sft_lightning.data.vision.segmentation_datamodule import SegmentationDataModule
    from sft_lightning.data.vision.segmentation_views import ColorView
    from sft_lightning.data.vision.views import StrongView, WeakView
    from sft_lightning.paradigms.anomaly import AnomalyDetector
    from sft_lightning.paradigms.autoencoder import AutoencoderModule
    from sft_lightning.paradigms.decoupled import DecoupledFeatureClassifier
    from sft_lightning.paradigms.distill import DistillModule
    from sft_lightning.paradigms.fine_tune import FineTuneClassifier
    from sft_lightning.paradigms.fine_tune_detector import FineTuneDetector
    from sft_lightning.paradigms.frozen_features import FrozenFeatureClassifier
    from sft_lightning.paradigms.self_supervised import SelfSupervisedModule
    from sft_lightning.paradigms.semi_supervised import SemiSupervisedModule
    from sft_lightning.paradigms.semi_supervised_detector import SemiSupervisedDetector
    from sft_lightning.paradigms.student_teacher import StudentTeacherDetector
    from sft_lightning.solver.solve import solve
    from sft_lightning.training.lr_schedulers import WarmupCosine

_HOMES = {
    "AnomalyDataModule": "sft_lightning.data.vision.anomaly_datamodule",
    "AnomalyDetector": "sft_lightning.paradigms.anomaly",
    "AudioDataModule": "sft_lightning.data.audio.datamodule",
    "AudioView": "sft_lightning.data.audio.views",
    "AutoencoderModule": "sft_lightning.paradigms.autoencoder",
    "ColorView": "sft_lightning.data.vision.segmentation_views",
    "DecoupledFeatureClassifier": "sft_lightning.paradigms.decoupled",
    "DetectionDataModule": "sft_lightning.data.vision.detection_datamodule",
    "DistillModule": "sft_lightning.paradigms.distill",
    "FineTuneClassifier": "sft_lightning.paradigms.fine_tune",
    "FineTuneDetector": "sft_lightning.paradigms.fine_tune_detector",
    "FrozenFeatureClassifier": "sft_lightning.paradigms.frozen_features",
    "ImageDataModule": "sft_lightning.data.vision.datamodule",
    "PatchView": "sft_lightning.data.vision.detection_views",
    "PretrainView": "sft_lightning.data.vision.pretrain_views",
    "SegmentationDataModule": "sft_lightning.data.vision.segmentation_datamodule",
    "SelfSupervisedModule": "sft_lightning.paradigms.self_supervised",
    "SemiSupervisedDetector": "sft_lightning.paradigms.semi_supervised_detector",
    "SemiSupervisedModule": "sft_lightning.paradigms.semi_supervised",
    "StudentTeacherDetector": "sft_lightning.paradigms.student_teacher",
    "StrongView": "sft_lightning.data.vision.views",
    "TextDataModule": "sft_lightning.data.text.datamodule",
    "TextView": "sft_lightning.data.text.views",
    "WarmupCosine": "sft_lightning.training.lr_schedulers",
    "WeakView": "sft_lightning.data.vision.views",
    "solve": "sft_lightning.solver.solve",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first access, because importing torch takes seconds and `--help` must be fast."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)

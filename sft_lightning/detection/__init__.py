"""Detectors of objects on any encoder with maps: one method a file, with their metrics."""

from sft_lightning.detection.base import DetectionHead, Detections
from sft_lightning.detection.build import build_detector

__all__ = ["DetectionHead", "Detections", "build_detector"]

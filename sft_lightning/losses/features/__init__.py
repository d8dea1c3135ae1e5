"""Export all losses on features, so that YAML can say `class_path: SupCon`."""

from sft_lightning.losses.features.base import (
    FeatureLoss as FeatureLoss,
)
from sft_lightning.losses.features.center import Center
from sft_lightning.losses.features.cosine_prototype import CosinePrototype
from sft_lightning.losses.features.supcon import SupCon

__all__ = ["Center", "CosinePrototype", "SupCon"]

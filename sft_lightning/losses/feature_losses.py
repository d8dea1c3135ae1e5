"""All losses on features by name, so that a YAML can say `class_path: SupCon`."""

from sft_lightning.losses.center import Center
from sft_lightning.losses.cosine_prototype import CosinePrototype
from sft_lightning.losses.supcon import SupCon

__all__ = ["Center", "CosinePrototype", "SupCon"]

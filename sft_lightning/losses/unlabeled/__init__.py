"""Export all strategies for L_u, so that YAML can say `class_path: FixMatch`."""

import warnings
from typing import Any

from sft_lightning.losses.unlabeled.adamatch import AdaMatch
from sft_lightning.losses.unlabeled.base import (
    Consistency as Consistency,
    Network as Network,
    Outputs as Outputs,
    Strategy as Strategy,
    StrategyContext as StrategyContext,
    StrategyInputs as StrategyInputs,
    StrategyOutput as StrategyOutput,
    align_distribution as align_distribution,
    at_least_float32 as at_least_float32,
    ema_update_ as ema_update_,
    frozen_bn_stats as frozen_bn_stats,
    masked_cross_entropy as masked_cross_entropy,
    sharpen as sharpen,
)
from sft_lightning.losses.unlabeled.class_aware import ClassAwarePseudoLabels
from sft_lightning.losses.unlabeled.comatch import CoMatch
from sft_lightning.losses.unlabeled.debiasmatch import DebiasMatch
from sft_lightning.losses.unlabeled.dst import DST
from sft_lightning.losses.unlabeled.entropy_minimization import EntropyMinimization
from sft_lightning.losses.unlabeled.fixmatch import FixMatch
from sft_lightning.losses.unlabeled.flexmatch import FlexMatch
from sft_lightning.losses.unlabeled.freematch import FreeMatch
from sft_lightning.losses.unlabeled.label_propagation import LabelPropagation
from sft_lightning.losses.unlabeled.mean_teacher import MeanTeacher
from sft_lightning.losses.unlabeled.mixmatch import MixMatch
from sft_lightning.losses.unlabeled.pi_model import PiModel
from sft_lightning.losses.unlabeled.pseudo_label import PseudoLabel
from sft_lightning.losses.unlabeled.reconstruction import Reconstruction
from sft_lightning.losses.unlabeled.self_distillation import SelfDistillation
from sft_lightning.losses.unlabeled.simmatch import SimMatch
from sft_lightning.losses.unlabeled.softmatch import SoftMatch
from sft_lightning.losses.unlabeled.uda import UDA
from sft_lightning.losses.unlabeled.unimatch import UniMatch
from sft_lightning.losses.unlabeled.unimatch_v2 import UniMatchV2
from sft_lightning.losses.unlabeled.virtual_adversarial import VirtualAdversarial

__all__ = [
    "DST",
    "UDA",
    "AdaMatch",
    "ClassAwarePseudoLabels",
    "CoMatch",
    "DebiasMatch",
    "EntropyMinimization",
    "FixMatch",
    "FlexMatch",
    "FreeMatch",
    "LabelPropagation",
    "MeanTeacher",
    "MixMatch",
    "PiModel",
    "PseudoLabel",
    "Reconstruction",
    "SelfDistillation",
    "SimMatch",
    "SoftMatch",
    "UniMatch",
    "UniMatchV2",
    "VirtualAdversarial",
]

_RENAMED = {"About": StrategyContext, "Step": StrategyInputs, "Result": StrategyOutput}


def __getattr__(name: str) -> Any:
    """Return a renamed class of the interface under its old name, with a deprecation warning."""
    if name not in _RENAMED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"{name} is now {_RENAMED[name].__name__}; the old name will be removed in 0.4",
        DeprecationWarning,
        stacklevel=2,
    )
    return _RENAMED[name]

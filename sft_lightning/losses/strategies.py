"""All strategies for L_u by name, so that a YAML can say `class_path: FixMatch`."""

from sft_lightning.losses.adamatch import AdaMatch
from sft_lightning.losses.debiasmatch import DebiasMatch
from sft_lightning.losses.dst import DST
from sft_lightning.losses.entropy_minimization import EntropyMinimization
from sft_lightning.losses.fixmatch import FixMatch
from sft_lightning.losses.flexmatch import FlexMatch
from sft_lightning.losses.freematch import FreeMatch
from sft_lightning.losses.image_reconstruction import Reconstruction
from sft_lightning.losses.mean_teacher import MeanTeacher
from sft_lightning.losses.mixmatch import MixMatch
from sft_lightning.losses.pi_model import PiModel
from sft_lightning.losses.pseudo_label import PseudoLabel
from sft_lightning.losses.softmatch import SoftMatch
from sft_lightning.losses.uda import UDA
from sft_lightning.losses.virtual_adversarial import VirtualAdversarial

__all__ = [
    "DST",
    "UDA",
    "AdaMatch",
    "DebiasMatch",
    "EntropyMinimization",
    "FixMatch",
    "FlexMatch",
    "FreeMatch",
    "MeanTeacher",
    "MixMatch",
    "PiModel",
    "PseudoLabel",
    "Reconstruction",
    "SoftMatch",
    "VirtualAdversarial",
]

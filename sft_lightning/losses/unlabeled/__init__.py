"""All strategies for L_u by name, so that a YAML can say `class_path: FixMatch`."""

from sft_lightning.losses.unlabeled.adamatch import AdaMatch
from sft_lightning.losses.unlabeled.base import (
    About as About,
)
from sft_lightning.losses.unlabeled.base import (
    Consistency as Consistency,
)
from sft_lightning.losses.unlabeled.base import (
    Network as Network,
)
from sft_lightning.losses.unlabeled.base import (
    Outputs as Outputs,
)
from sft_lightning.losses.unlabeled.base import (
    Result as Result,
)
from sft_lightning.losses.unlabeled.base import (
    Step as Step,
)
from sft_lightning.losses.unlabeled.base import (
    Strategy as Strategy,
)
from sft_lightning.losses.unlabeled.base import (
    aligned as aligned,
)
from sft_lightning.losses.unlabeled.base import (
    at_least_float32 as at_least_float32,
)
from sft_lightning.losses.unlabeled.base import (
    masked_cross_entropy as masked_cross_entropy,
)
from sft_lightning.losses.unlabeled.base import (
    moved_toward as moved_toward,
)
from sft_lightning.losses.unlabeled.base import (
    sharpened as sharpened,
)
from sft_lightning.losses.unlabeled.base import (
    still_statistics as still_statistics,
)
from sft_lightning.losses.unlabeled.debiasmatch import DebiasMatch
from sft_lightning.losses.unlabeled.dst import DST
from sft_lightning.losses.unlabeled.entropy_minimization import EntropyMinimization
from sft_lightning.losses.unlabeled.fixmatch import FixMatch
from sft_lightning.losses.unlabeled.flexmatch import FlexMatch
from sft_lightning.losses.unlabeled.freematch import FreeMatch
from sft_lightning.losses.unlabeled.mean_teacher import MeanTeacher
from sft_lightning.losses.unlabeled.mixmatch import MixMatch
from sft_lightning.losses.unlabeled.pi_model import PiModel
from sft_lightning.losses.unlabeled.pseudo_label import PseudoLabel
from sft_lightning.losses.unlabeled.reconstruction import Reconstruction
from sft_lightning.losses.unlabeled.softmatch import SoftMatch
from sft_lightning.losses.unlabeled.uda import UDA
from sft_lightning.losses.unlabeled.virtual_adversarial import VirtualAdversarial

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

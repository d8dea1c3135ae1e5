"""Export all self-supervised objectives, so that YAML can say `class_path: SimCLR`."""

from sft_lightning.losses.pretraining.barlow_twins import BarlowTwins
from sft_lightning.losses.pretraining.base import (
    Objective as Objective,
    ObjectiveInputs as ObjectiveInputs,
    ObjectiveOutput as ObjectiveOutput,
    ObjectiveStep as ObjectiveStep,
    ViewObjective as ViewObjective,
)
from sft_lightning.losses.pretraining.byol import BYOL
from sft_lightning.losses.pretraining.dense_cl import DenseCL
from sft_lightning.losses.pretraining.dino import DINO
from sft_lightning.losses.pretraining.lejepa import LeJEPA
from sft_lightning.losses.pretraining.mae import MAE
from sft_lightning.losses.pretraining.moco_v3 import MoCoV3
from sft_lightning.losses.pretraining.projectors import build_projector as build_projector
from sft_lightning.losses.pretraining.simclr import SimCLR
from sft_lightning.losses.pretraining.simsiam import SimSiam
from sft_lightning.losses.pretraining.swav import SwAV
from sft_lightning.losses.pretraining.vicreg import VICReg

__all__ = ["BYOL", "DINO", "MAE", "BarlowTwins", "DenseCL", "LeJEPA", "MoCoV3", "SimCLR", "SimSiam", "SwAV", "VICReg"]

"""Export all regularizers R(theta), so that YAML can say `class_path: L2SP`."""

from sft_lightning.losses.regularizers.base import (
    ActivationRegularizer as ActivationRegularizer,
    Regularizer as Regularizer,
    StartRegularizer as StartRegularizer,
    half_squared_norm as half_squared_norm,
    half_squared_norm_of_trained as half_squared_norm_of_trained,
    record_outputs as record_outputs,
)
from sft_lightning.losses.regularizers.bss import BSS
from sft_lightning.losses.regularizers.delta import DELTA
from sft_lightning.losses.regularizers.l2 import L2
from sft_lightning.losses.regularizers.l2sp import L2SP

__all__ = ["BSS", "DELTA", "L2", "L2SP"]

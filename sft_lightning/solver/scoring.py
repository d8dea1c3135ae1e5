"""How well held-out labels are predicted, and what turns their probabilities into predictions."""

import numpy as np
import torch
from torch import Tensor

from sft_lightning.paradigms.calibration import fit_temperature
from sft_lightning.runs.temperature import CrossFittedTemperature
from sft_lightning.solver.labels import LabeledSource
from sft_lightning.tasks.held_out import score_folds


def score_held_out(repeated: Tensor, source: LabeledSource) -> np.ndarray:
    """Return how well each judged example is predicted in each division, 0 to 1, (R, J).

    Args:
        repeated: Probabilities of the labeled examples without their fold in R divisions, (R, N, C).
        source: Source with labels and folds.
    """
    outputs, targets = list_held_out(repeated, source)
    divisions = source.divisions[:, source.folds >= 0]
    rows = zip(outputs, divisions, strict=False)  # of trainings, the first division alone
    return np.stack([score_folds(source.task, own, targets, division) for own, division in rows])


def list_held_out(repeated: Tensor, source: LabeledSource) -> tuple[Tensor, Tensor]:
    """Return outputs of the judged examples, (R, J, C), and their targets, (J,) or (J, C), of classes that are judged.

    Args:
        repeated: Probabilities of the labeled examples without their fold in R divisions, (R, N, C).
        source: Source with labels and folds.
    """
    judged = torch.from_numpy(source.folds >= 0)
    outputs, targets = source.task.invert_probabilities(repeated[:, judged]), source.targets[judged]
    if targets.ndim == 2 and source.unjudged:
        kept = torch.tensor([name not in source.unjudged for name in source.data.class_names])
        return outputs[..., kept], targets[:, kept]
    return outputs, targets


def calibrate(repeated: Tensor, source: LabeledSource) -> CrossFittedTemperature:
    """Fit temperature and thresholds to held-out predictions.

    Predictions of each division count by themselves: their mean would be more certain than those of one model.

    Args:
        repeated: Probabilities of the labeled examples without their fold in R divisions, (R, N, C).
        source: Source with labels and folds.

    Returns:
        Temperature, 1 where all are right, which no temperature fits best.
    """
    outputs, targets = list_held_out(repeated, source)
    every, wanted = outputs.flatten(0, 1), torch.cat([targets] * len(outputs))
    is_right = bool(source.task.is_right(every, wanted).all())
    temperature = 1.0 if is_right else fit_temperature(every, wanted)
    limits = source.task.fit_shared_threshold(every / temperature, wanted)
    thresholds = limits[:1].repeat(source.data.num_classes) if len(limits) else limits
    return CrossFittedTemperature(temperature, len(targets), tuple(thresholds.tolist()))

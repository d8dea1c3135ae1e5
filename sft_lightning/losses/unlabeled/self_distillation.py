"""Self-distillation: Chen et al. 2020, "Big Self-Supervised Models are Strong Semi-Supervised Learners" (SimCLRv2)."""

from typing import cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from sft_lightning.data.contract import FewLabelData
from sft_lightning.losses.teacher import load_teacher
from sft_lightning.losses.unlabeled.pool_targets import PoolTargets


class SelfDistillation(PoolTargets):
    """Targets are the soft answers of a teacher, a trained run, to all unlabeled examples (eq. 2 of the paper).

    The student starts from the teacher (`weights` and `head_weights` of the paradigm name its run), from the features
    that the teacher started from, or as a smaller network. Rounds repeat with the student as the next teacher. Su et
    al. 2021, "A Realistic Evaluation of Semi-Supervised Learning for Fine-Grained Classification", found fine-tuning
    followed by self-distillation the most robust of ten methods where a good start exists.

    Reference setting: temperature 1, labels left out of the loss or added to it.
    """

    def __init__(self, weights: str, temperature: float = 1.0) -> None:
        """Store the settings.

        Args:
            weights: Path of the teacher: a run with a classifier or its checkpoint, or a solution of `solve`.
            temperature: Temperature of the teacher's answers; values below 1 sharpen them.

        Raises:
            InputError: A setting is out of range.
        """
        super().__init__(temperature)
        self.weights = weights

    def compute_targets(self, network: LightningModule, data: FewLabelData) -> Tensor:
        """Ask the teacher, whose classes are matched by name.

        Raises:
            InputError: The teacher has no classifier, knows other classes, or takes other inputs.
        """
        teacher = load_teacher(self.weights, data.input_spec, data.class_names, value_ranges=data.value_ranges).to(
            network.device
        )
        targets = torch.zeros(len(data.splits["unlabeled"]), len(data.class_names))
        for batch in data.batches_of("unlabeled", network.device):
            targets[batch.indices.cpu()] = cast(Tensor, teacher(batch.x).logits).cpu().softmax(1)
        return targets

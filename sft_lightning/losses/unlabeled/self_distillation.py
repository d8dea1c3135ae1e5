"""Self-distillation: Chen et al. 2020, "Big Self-Supervised Models are Strong Semi-Supervised Learners" (SimCLRv2)."""

from pathlib import Path

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.data.class_names import find_missing_classes, format_class_names
from sft_lightning.data.contract import FewLabelData
from sft_lightning.losses.unlabeled.pool_targets import PoolTargets
from sft_lightning.networks.encoder import Encoder
from sft_lightning.networks.weights import find_weights
from sft_lightning.runs.trained_network import load_trained_network
from sft_lightning.utils.errors import InputError


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
            weights: Path of the teacher: a run with a classifier, or its checkpoint or exported model.
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
        backbone, weight, bias = self._load_teacher(data)
        backbone.to(network.device)
        targets = torch.zeros(len(data.splits["unlabeled"]), len(weight))
        for batch in data.batches_of("unlabeled", network.device):
            logits = F.linear(backbone(batch.x).float().cpu(), weight, bias)
            targets[batch.indices.cpu()] = logits.softmax(1)
        return targets

    def _load_teacher(self, data: FewLabelData) -> tuple[Encoder, Tensor, Tensor]:
        path = find_weights(Path(self.weights), "head")
        teacher = load_trained_network(path)
        teacher.require_classes(self.weights)
        if not teacher.head:
            raise InputError(f"strategy SelfDistillation: {self.weights!r} has no classifier: give a run that has one")
        names, own = teacher.metadata["class_names"], data.class_names
        if missing := find_missing_classes(own, names):
            raise InputError(
                f"strategy SelfDistillation: the teacher {self.weights!r} does not know {format_class_names(missing)}: "
                "give one that was trained on all classes"
            )
        backbone = teacher.network()
        if backbone.input_spec != data.input_spec:
            raise InputError(
                f"strategy SelfDistillation: the teacher {self.weights!r} takes inputs of shape "
                f"{backbone.input_spec.shape}, and the data gives {data.input_spec.shape}: train both on the same size"
            )
        rows = [names.index(name) for name in own]
        return backbone, teacher.head["weight"].float()[rows], teacher.head["bias"].float()[rows]

"""Student and teacher (Wang et al. 2021, "Student-Teacher Feature Pyramid Matching for Anomaly Detection").

A student learns the maps of a frozen teacher on normal examples alone. Where it fails on others, they are not normal.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.anomaly.base import Scores
from sft_lightning.networks.build import build_encoder
from sft_lightning.paradigms.base import StepResult, resolve_input_spec
from sft_lightning.paradigms.defect_detector import DefectDetector
from sft_lightning.training.nonfinite import OnNonfinite
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import Inputs, InputSpec


class StudentTeacherDetector(DefectDetector):
    """Detector of defects whose student learns the maps of a frozen backbone, its teacher, on normal examples.

    At each place, both describe it by a vector of length 1, and half of the squared distance is the loss and the score.
    The map of an example is the product of the maps of all strides, enlarged; its score is the highest place.

    Attributes:
        student: Network of the backbone's architecture, from random weights.
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        input_spec: InputSpec | Mapping[str, Any] | Sequence[int] | None = None,
        weights: str = "none",
        mean: float | list[float] | None = None,
        std: float | list[float] | None = None,
        strides: list[int] | None = None,
        false_alarm_rate: float = 0.05,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        on_nonfinite: OnNonfinite = "raise",
        nonfinite_limit: int = 10,
    ) -> None:
        """Build teacher and student, and load the weights of the teacher.

        Args:
            backbone: Network with maps of features, of teacher and student: a torchvision or timm name, `resnet8`,
                `wrn_28_2`, `conv`, or the class path of an `Encoder`.
            input_spec: Specification of the inputs: `input_spec` of the data, or (C, H, W) of images, by default
                (3, 224, 224). The command line takes it from the data.
            weights: Weights of the teacher: `default` (published, downloaded), or the path of a `.safetensors`,
                checkpoint or run; `none` is refused in training.
            mean: Mean of the pixels for normalization; null for that of the weights.
            std: Standard deviation of the pixels for normalization; null for that of the weights.
            strides: Strides of the maps that are learned; null for [4, 8, 16], as in the paper.
            false_alarm_rate: Largest expected share of normal examples above the threshold, which `predict`,
                `validate` and `test` may set anew; 0.05 needs at least 19 held-out normal examples, and 0.01 needs 99.
            optimizer: Function that makes an optimizer from the student's parameters; SGD with a rate of 0.4, momentum
                0.9 and weight decay 0.0001 in the paper. Needed for training only.
            lr_scheduler: Function that makes a schedule from the optimizer, or null for a constant rate.
            on_nonfinite: Policy for a step whose loss or gradients are NaN or infinite: stop the training (`raise`) or
                leave the step out (`skip`).
            nonfinite_limit: Number of steps that may be left out; one more stops the training.

        Raises:
            InputError: A setting is out of its range, the backbone is unknown, or the weights do not fit.
        """
        super().__init__(
            false_alarm_rate,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            on_nonfinite=on_nonfinite,
            nonfinite_limit=nonfinite_limit,
        )
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        spec = resolve_input_spec(input_spec, None, (3, 224, 224))
        self.hparams["input_spec"] = spec.to_dict()
        self.backbone, _ = build_encoder(backbone, spec, weights, mean, std)
        self.student, _ = build_encoder(backbone, spec)
        inputs = {name: getattr(self.backbone, name) for name in self.backbone.constant_buffers}
        self.student.load_state_dict(inputs, strict=False)  # which sees the same normalization
        for network in (self.backbone, self.student):
            network.select_maps(strides or (4, 8, 16))
        self.backbone.requires_grad_(False).eval()
        self._weights = weights

    def train(self, mode: bool = True) -> "StudentTeacherDetector":
        """Set the mode of the student; the teacher stays in eval mode.

        Args:
            mode: Whether to train.
        """
        super().train(mode)
        self.backbone.eval()
        return self

    def on_fit_start(self) -> None:
        """Check the data and the teacher.

        Raises:
            InputError: The data says not which examples are normal, or holds out none, or the teacher knows nothing.
        """
        data = self.find_data()
        self.check_normal(data)
        if data.normal_splits != ("labeled",):
            raise InputError(
                f"unlabeled_as_normal is true, and {type(self).__name__} learns from labeled normal examples alone: "
                "leave it out, or move them to the normal ones"
            )
        if self._weights == "none" and self.trainer.ckpt_path is None:
            raise InputError(
                "weights is 'none', and a teacher with random weights teaches nothing: set weights to default, a file "
                "or a run"
            )

    def step(self, batch: Any) -> StepResult:
        """Compute the mean distance of student and teacher, added over the maps."""
        loss = torch.stack([each.mean() for each in self._compare(batch["labeled"].x)]).sum()
        return StepResult(loss, {})

    def _compare(self, x: Inputs) -> list[Tensor]:
        """Return half of the squared distance of student and teacher at each place of each map, (B, h, w) each."""
        with torch.no_grad():
            taught = self.backbone.forward_maps(x)
        learned = self.student.forward_maps(x)
        pairs = zip(learned, taught, strict=True)
        return [(F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1) / 2 for a, b in pairs]

    def forward(self, x: Inputs) -> Scores:
        """Return the scores of examples and of their places.

        Args:
            x: Inputs as the data module gives them, such as images in [0, 1], (B, C, H, W).
        """
        each = [
            F.interpolate(own[:, None], self.map_size, mode="bilinear", align_corners=False)[:, 0]
            for own in self._compare(x)
        ]
        scores = math.prod(each[1:], start=each[0])
        return Scores(scores.flatten(1).amax(1), scores)

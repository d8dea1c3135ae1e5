"""Fine-tuning of a detector: a backbone that may be pretrained, and a head that finds objects, trained on few boxes."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from sft_lightning.data.contract import few_label_data
from sft_lightning.detection.base import DetectionHead, Detections
from sft_lightning.detection.build import Kind, build_detector
from sft_lightning.detection.metrics import AP, DetectionMetrics, check_extra
from sft_lightning.detection.reuse import take_detector
from sft_lightning.losses.regularizers.base import Regularizer
from sft_lightning.networks.build import build_encoder
from sft_lightning.paradigms.base import StepResult, resolve_input_spec
from sft_lightning.paradigms.freezing import NormStats, Tune
from sft_lightning.paradigms.named_classes import NamedClasses
from sft_lightning.paradigms.tuned_backbone import TunedBackbone
from sft_lightning.training.nonfinite import OnNonfinite
from sft_lightning.utils.errors import InputError, check_fraction
from sft_lightning.utils.inputs import Inputs, InputSpec


class FineTuneDetector(TunedBackbone, NamedClasses):
    """A detector on a backbone, from scratch or from weights.

    Attributes:
        head: Detector without its backbone.
        has_trained_head: Whether it was taken over from an earlier run.
        compared_by: Name and title of the metric by which studies compare detectors.
    """

    monitor: ClassVar[tuple[str, str]] = ("val/map", "max")
    compared_by: ClassVar[tuple[str, str]] = ("map", "mean average precision")
    head: DetectionHead

    def __init__(
        self,
        backbone: str,
        num_classes: int = 0,
        input_spec: InputSpec | Mapping[str, Any] | Sequence[int] | None = None,
        class_names: list[str] | None = None,
        detector: Kind = "faster_rcnn",
        width: int | None = None,
        anchor_scale: float | None = None,
        score_threshold: float | None = None,
        nms_threshold: float | None = None,
        max_detections: int = 100,
        drawn_score: float | None = None,
        weights: str = "none",
        mean: float | list[float] | None = None,
        std: float | list[float] | None = None,
        tune: Tune = "all",
        last_k_blocks: int = 1,
        head_only_epochs: int = 0,
        backbone_lr_scale: float = 1.0,
        layer_decay: float = 1.0,
        norm_stats: NormStats = "auto",
        regularizer: Regularizer | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        on_nonfinite: OnNonfinite = "raise",
        nonfinite_limit: int = 10,
    ) -> None:
        """Build the network and load its weights.

        Args:
            backbone: Network with maps of features: a torchvision or timm name, `resnet8`, `wrn_28_2`, `conv`, or the
                class path of an `Encoder`.
            num_classes: Number of classes; the command line takes it from the data.
            input_spec: Specification of the inputs: `input_spec` of the data, or (C, S, S) of square ones, by default
                (3, 512, 512). The command line takes it from the data.
            class_names: Names of the classes for predictions; the command line takes them from the data.
            detector: Method: `faster_rcnn` in two stages, `retinanet` or `fcos` in one, or `ssdlite`, which is small.
            width: Channels of the feature pyramid, a multiple of 32; null for half of those of the coarsest map, up to
                256.
            anchor_scale: Side of the smallest anchors of each map of `faster_rcnn` or `retinanet` as a multiple of its
                stride; null for 8 or 4, as published, and less for inputs below 800 pixels a side.
            score_threshold: Smallest score of a detection; null for 0.05, and 0.01 for `ssdlite`. Average precision
                counts detections of low scores, too.
            nms_threshold: Intersection over union above which the weaker of two detections of a class is dropped; null
                for 0.5, and 0.6 for `fcos` and 0.45 for `ssdlite`.
            max_detections: Most detections of an example.
            drawn_score: Score from which `predict` draws boxes into copies of its inputs; null to draw none.
            weights: `none`, `default` (published, downloaded), or the path of a `.safetensors`, checkpoint or run. The
                detector of a detection run is taken over, too, its classes matched by name.
            mean: Mean of the pixels for normalization; null for that of the weights.
            std: Standard deviation of the pixels for normalization; null for that of the weights.
            tune: Parameters to train: those of the detector, of the last k blocks of the backbone and the detector, or
                all.
            last_k_blocks: Number k of blocks that `last_k_blocks` trains.
            head_only_epochs: Epochs in which only the detector is trained before the rest is released.
            backbone_lr_scale: Learning rate of the backbone as a share of the detector's.
            layer_decay: Factor of the learning rate from each block to the one before it.
            norm_stats: Statistics by which batch normalization of the backbone normalizes in training: those of each
                `batch`, or those of the `weights`, which stay. By default (`auto`) they stay where there are weights,
                unless a run from scratch or without labels has learned them, since batches of detection are small.
            regularizer: lambda R(theta): `L2`, `L2SP`, `DELTA`, `BSS` or a class of your own.
            optimizer: Function that makes an optimizer from parameter groups; needed for training only.
            lr_scheduler: Function that makes a schedule from the optimizer, or None for a constant rate.
            on_nonfinite: Policy for a step whose loss or gradients are NaN or infinite: stop the training (`raise`) or
                leave the step out (`skip`). In either case it changes no parameter.
            nonfinite_limit: Number of steps that may be left out; one more stops the training.

        Raises:
            InputError: A setting is out of its range, the backbone is unknown, or the weights do not fit.
        """
        super().__init__(
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            regularizer=regularizer,
            on_nonfinite=on_nonfinite,
            nonfinite_limit=nonfinite_limit,
        )
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler", "regularizer"])
        spec = resolve_input_spec(input_spec, None, (3, 512, 512))
        self.hparams["input_spec"] = spec.to_dict()
        check_fraction(drawn_score=drawn_score or 0.0)
        self.num_classes, self.drawn_score = num_classes, drawn_score
        self.class_names = [str(i) for i in range(num_classes)]
        self.backbone, tensors = build_encoder(backbone, spec, weights, mean, std)
        self.head = build_detector(
            detector, self.backbone, num_classes, width, anchor_scale, score_threshold, nms_threshold, max_detections
        )
        if class_names and len(class_names) != num_classes:
            raise InputError(f"class_names has {len(class_names)} names for {num_classes} classes: give one each")
        if class_names:
            self.name_classes(class_names)
        self.has_trained_head = take_detector(self.head, tensors, weights, class_names or None)
        self.regularize(self.backbone, compile=False)
        self.tune_backbone(
            tune, last_k_blocks, None, backbone_lr_scale, layer_decay, norm_stats, weights, keeps_by_default=True,
            head_only_epochs=head_only_epochs,
        )  # fmt: skip
        self._side = spec.shape[-1]
        self._metrics = {stage: DetectionMetrics() for stage in ("val", "test")}

    # --- data

    def setup(self, stage: str) -> None:
        """Check the data, and that metrics can be computed, before the first step.

        Args:
            stage: Name of the stage: `fit`, `validate`, `test` or `predict`.

        Raises:
            InputError: The data has no boxes, or the extra `detection` is not installed.
        """
        data = few_label_data(self.trainer)
        if data is not None and data.target != "boxes":
            raise InputError(
                f"{type(self).__name__} learns boxes of objects, which {type(data).__name__} does not give: set data "
                "to DetectionDataModule"
            )
        if stage != "predict":
            check_extra()

    def on_fit_start(self) -> None:
        """Compare the classes of the data with the model's."""
        self.check_classes()
        self.check_norm_stats()

    # --- detection

    def features(self, x: Inputs) -> Tensor:
        """Compute the mean of the coarsest map of each example, (B, F).

        Args:
            x: Inputs as the data module gives them, such as images in [0, 1], (B, C, H, W).
        """
        coarsest: Tensor = self.evaluated_network()[0].forward_maps(x)[-1]
        return coarsest.mean((2, 3))

    def evaluated_network(self) -> tuple[Any, DetectionHead]:
        """Return the backbone and the head that are evaluated."""
        return self.backbone, self.head

    def forward(self, x: Inputs) -> Detections:
        """Find objects; the module is in evaluation mode.

        Args:
            x: Inputs as the data module gives them, such as images in [0, 1], (B, C, H, W).
        """
        backbone, head = self.evaluated_network()
        return head.detect(backbone.forward_maps(x), self._side)

    # --- steps

    def step(self, batch: Any) -> StepResult:
        """Compute the sum of the detector's losses on the labeled batch."""
        losses = self.compute_losses(batch["labeled"].x, batch["labeled"].y)
        return StepResult(torch.stack([*losses.values()]).sum(), {n: loss.detach() for n, loss in losses.items()})

    def compute_losses(self, x: Inputs, y: Tensor) -> dict[str, Tensor]:
        """Compute the parts of the loss, scalars by name.

        Args:
            x: Inputs, (B, C, S, S).
            y: Targets, (B, M, 6): class, four corners and whether it is ignored.
        """
        with self.watched():
            maps = self.backbone.forward_maps(x)
        return self.head.compute_losses(maps, self._side, y)

    # --- evaluation and prediction

    def on_validation_start(self) -> None:
        """Compare the classes, and start without detections."""
        super().on_validation_start()
        self._metrics["val"].reset()

    def on_test_start(self) -> None:
        """Compare the classes, and start without detections."""
        super().on_test_start()
        self._metrics["test"].reset()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the validation metrics."""
        self._metrics["val"].update(self(batch.x), batch.y, batch.indices)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the test metrics."""
        self._metrics["test"].update(self(batch.x), batch.y, batch.indices)

    def evaluate(self, stage: str) -> dict[str, Tensor]:
        """Return the mean average precision, also at IoU 0.5 and 0.75, the recall, and the precision of each class."""
        named = {}
        for name, value in self._metrics[stage].compute(self.device).items():
            kind = f"{AP}{self.class_names[int(name.removeprefix(AP))]}" if name.startswith(AP) else name
            named[kind] = value.to(self.device)
        return named

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Return boxes, scores and classes in the coordinates of the network's inputs."""
        found = cast(Detections, self(batch.x))
        return {"indices": batch.indices, "boxes": found.boxes, "scores": found.scores, "classes": found.classes}

"""What all classifiers on a backbone share: names of the classes, evaluation and prediction."""

from typing import Any, ClassVar

from torch import Tensor, nn

from sft_lightning.data.batches import holds_features
from sft_lightning.data.contract import few_label_data
from sft_lightning.networks.encoder import Encoder
from sft_lightning.paradigms.calibration import Calibration, use_calibration
from sft_lightning.paradigms.named_classes import NamedClasses
from sft_lightning.tasks.base import Task
from sft_lightning.training.figures import ConfusionMatrix, Figure
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import Inputs

# What examples have, by the target of the data.
_TARGETS = {
    "class": "one class each",
    "class_set": "several classes (label_separator, label_columns)",
    "mask": "masks",
    "defect": "labels of normal ones alone",
    "boxes": "boxes of objects",
}
_REMEDIES = {"defect": "use AnomalyDetector", "boxes": "use FineTuneDetector or SemiSupervisedDetector"}


class BackboneClassifier(NamedClasses):
    """Base of the classifiers on a backbone.

    Attributes:
        backbone: Network from inputs to features.
        head: Module from features to logits.
        num_classes: Number of classes.
        class_names: Names of the outputs, which checkpoints record.
        task: Kind of target, with its loss and metrics.
        trust: Calibration of predictions.
    """

    batch_parts: ClassVar[tuple[str, ...]] = ("labeled",)
    monitor: ClassVar[tuple[str, str]] = ("val/accuracy", "max")
    backbone: Encoder
    head: Any

    def __init__(self, task: Task, **training: Any) -> None:
        """Keep the task and build its metrics; a subclass builds backbone and head.

        Args:
            task: Kind of target.
            training: Settings of `Paradigm`, by name.

        Raises:
            InputError: A setting is out of its range.
        """
        super().__init__(**training)
        self.task = task
        self.monitor = task.monitor  # type: ignore[misc] # of the instance, as the task decides
        self.num_classes = num_classes = task.num_classes
        self.class_names = [str(i) for i in range(num_classes)]
        self.trust = Calibration()
        self._metrics = nn.ModuleDict({f"{stage}_metrics": self.task.build_metrics() for stage in ("val", "test")})

    def check_classes(self) -> None:
        """Check that the data has targets of the task, and numbers its classes like the outputs.

        Raises:
            InputError: The data has other targets, other classes, or the same ones in another order.
        """
        data = few_label_data(self.trainer)
        if data is not None and data.target != self.task.target:
            plain = f"give FineTuneClassifier or SemiSupervisedModule target {data.target!r}"
            raise InputError(
                f"{type(self).__name__} is for {self.task.name.replace('_', '-')}, and the examples have "
                f"{_TARGETS[data.target]}: {_REMEDIES.get(data.target, plain)}, or other data"
            )
        super().check_classes()

    # --- features, which may come from the cache

    def on_fit_end(self) -> None:
        """Switch the data module from features back to examples."""
        if (data := few_label_data(self.trainer)) is not None:
            data.use_features({})

    def features(self, x: Inputs) -> Tensor:
        """Compute the features of examples.

        Args:
            x: Inputs as the data module gives them, such as images in [0, 1], (B, C, H, W).

        Returns:
            (B, F).
        """
        features: Tensor = self.backbone(x)
        return features

    def batch_features(self, batch: Any) -> Tensor:
        """Return the features of a labeled batch: those that it holds, or else those of its examples.

        Args:
            batch: `Labeled`, or a tuple of a plain loader that starts with the examples.

        Returns:
            (B, F).
        """
        x = batch[0]
        return x if holds_features(batch) else self.features(x)

    # --- evaluation and prediction

    def forward(self, x: Inputs) -> Tensor:
        """Compute logits.

        Args:
            x: Inputs as the data module gives them, such as images in [0, 1], (B, C, H, W).

        Returns:
            Logits, (B, num_classes).
        """
        return self.classify(self.features(x))

    def classify(self, features: Tensor) -> Tensor:
        """Apply the head to features.

        Args:
            features: Features, (B, F).

        Returns:
            Logits, (B, num_classes).
        """
        logits: Tensor = self.head(features)
        return logits

    def _evaluation_step(self, stage: str, batch: Any) -> None:
        metrics: Any = self._metrics[f"{stage}_metrics"]
        metrics.update(self.classify(batch.x) if holds_features(batch) else self(batch.x), batch.y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the validation metrics."""
        self._evaluation_step("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the test metrics."""
        self._evaluation_step("test", batch)

    def evaluated(self, x: Inputs) -> tuple[Tensor, Tensor]:
        """Return features (B, F) and logits (B, num_classes) of the network that is evaluated.

        Args:
            x: Inputs as the data module gives them, such as images in [0, 1], (B, C, H, W).
        """
        features = self.features(x)
        return features, self.classify(features)

    def on_predict_start(self) -> None:
        """Load or fit the calibration of the checkpoint's run, if it has one; predicted masks have none."""
        self.trust = Calibration() if self.task.is_dense else use_calibration(self.trainer, self)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Return class probabilities, float32, (B, num_classes), and the distances of `Calibration`.

        Of pixels, return the logits, (B, num_classes, H, W).
        """
        features, logits = self.evaluated(batch.x)
        if self.task.is_dense:
            return {"indices": batch.indices, "logits": logits.float()}
        return {"indices": batch.indices, **self.trust.of(features.float(), logits.float(), self.task)}

    def evaluate(self, stage: str) -> dict[str, Tensor]:
        """Return the metrics of the task, such as loss, accuracy, macro-F1 and calibration error."""
        values: dict[str, Tensor] = self._metrics[f"{stage}_metrics"].compute()  # type: ignore[operator]
        return self.task.name_metrics(values, self.class_names)

    def figures(self, stage: str) -> dict[str, Figure]:
        """Return the confusion matrix."""
        confusion: Tensor | None = self._metrics[f"{stage}_metrics"].confusion  # type: ignore[assignment]
        return {} if confusion is None else {"confusion": ConfusionMatrix(confusion)}

    def score_counts(self, stage: str) -> Tensor | None:
        """Return the histograms of the probabilities of all classes."""
        counted: Tensor | None = self._metrics[f"{stage}_metrics"].counted  # type: ignore[assignment]
        return counted

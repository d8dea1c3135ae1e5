"""What all detectors of defects share: scores of examples and places, a threshold, evaluation and prediction."""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from sft_lightning.anomaly.base import Scores
from sft_lightning.anomaly.metrics import AnomalyMetrics
from sft_lightning.anomaly.threshold import AlarmThreshold
from sft_lightning.data.contract import FewLabelData, few_label_data
from sft_lightning.networks.encoder import Encoder
from sft_lightning.paradigms.base import Paradigm
from sft_lightning.tasks.intervals import has_groups
from sft_lightning.utils.distributed import all_gather_cat
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import Inputs


class DefectDetector(Paradigm):
    """Base of the detectors that learn from normal examples alone, on maps of features of a frozen backbone.

    Each validation of a training sets the threshold, from the scores of normal examples that were not learned, and so
    does its end if steps followed the last validation.

    Attributes:
        alarm: Threshold, with what it promises.
        backbone: Frozen network from inputs to maps.
    """

    monitor: ClassVar[None] = None  # held-out normal examples say nothing about what finds defects
    alarm: AlarmThreshold
    backbone: Encoder

    def __init__(self, false_alarm_rate: float, **training: Any) -> None:
        """Keep the rate of false alarms; a subclass builds the backbone.

        Args:
            false_alarm_rate: Largest expected share of normal examples above the threshold.
            training: Settings of `Paradigm`, by name.

        Raises:
            InputError: A setting is out of its range.
        """
        super().__init__(**training)
        self.alarm = AlarmThreshold(false_alarm_rate)
        self._metrics = {stage: AnomalyMetrics() for stage in ("val", "test")}
        self._held_out: list[Tensor] = []  # scores and highest places of normal validation examples, (B, 2)
        self._set_at = -1  # step of the training at which the threshold was set

    def warn_without_weights(self, weights: str) -> None:
        """Say that maps of random weights say little.

        Args:
            weights: Setting of the weights.
        """
        if weights == "none":
            rank_zero_info(
                "The backbone has random weights, whose maps say little: set weights to default, a file or a run."
            )

    # --- data

    def find_data(self) -> FewLabelData:
        """Return the data, which says what examples are normal.

        Raises:
            InputError: It does not.
        """
        data = few_label_data(self.trainer)
        if data is None or data.target != "defect":
            given = "plain loaders" if data is None else type(data).__name__
            raise InputError(
                f"{type(self).__name__} learns from normal examples, which {given} does not tell from others: set data "
                "to AnomalyDataModule"
            )
        return data

    def check_normal(self, data: FewLabelData) -> None:
        """Check that there are normal examples to learn from, and others for the threshold.

        Args:
            data: Data that is about to be learned from.

        Raises:
            InputError: There are none, or validation is left out.
        """
        count, world = len(data.splits["labeled"]), self.trainer.world_size
        if not count:
            raise InputError(
                f"{type(data).__name__} gives no normal training example: lower val_size and test_size, or add some"
            )
        if count < world:
            raise InputError(f"there are {count} normal training examples for {world} processes: use fewer devices")
        if not self.trainer.limit_val_batches:
            raise InputError("limit_val_batches is 0, and the threshold comes from validation examples: leave it out")
        check_held_out(int((data.splits["val"].labels == 0).sum()))

    # --- scores

    @abstractmethod
    def forward(self, x: Inputs) -> Scores:
        """Return the scores of examples and of their places.

        Args:
            x: Inputs as the data module gives them, such as images in [0, 1], (B, C, H, W).
        """

    @property
    def map_size(self) -> tuple[int, int]:
        """Height and width of the maps of scores: those of the inputs."""
        height, width = self.backbone.input_spec.shape[-2:]
        return height, width

    def _score(self, batch: Any) -> Scores:
        """Return finite scores: NaN would be above no threshold, and so would pass as normal."""
        scores: Scores = self(batch.x)
        if not bool(scores.example.isfinite().all()):
            raise InputError(
                f"{int((~scores.example.isfinite()).sum())} examples of a batch have scores that are NaN or infinite: "
                "set trainer.precision to 32-true, or use other weights"
            )
        return scores

    def _evaluation_step(self, stage: str, batch: Any) -> Scores:
        scores = self._score(batch)
        self._metrics[stage].update(scores.example, batch.y, scores.map, batch.mask)
        return scores

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the validation metrics, and its normal examples to those of the threshold."""
        self._hold_out(batch, self._evaluation_step("val", batch))

    def _hold_out(self, batch: Any, scores: Scores) -> None:
        """Keep the scores of the normal examples of a batch."""
        both = torch.stack([scores.example, scores.map.flatten(1).amax(1)], 1).double()
        self._held_out.append(both[batch.y.to(both.device) == 0])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the test metrics."""
        self._evaluation_step("test", batch)

    def on_validation_start(self) -> None:
        """Check the data, and start without scores."""
        self.find_data()
        self._held_out = []

    def on_test_start(self) -> None:
        """Check the data."""
        self.find_data()

    def on_validation_epoch_end(self) -> None:
        """Set the threshold if this is the validation of a training, and log the metrics."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._set_threshold(all_gather_cat(torch.cat(self._held_out)))
        super().on_validation_epoch_end()

    def on_train_epoch_end(self) -> None:
        """Set the threshold at the end of a training whose last steps no validation followed."""
        super().on_train_epoch_end()
        if not self.is_last_epoch or self._set_at == self.trainer.global_step:
            return
        self._held_out = []
        self.eval()
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            for batch in self.find_data().batches_of("val", self.device):  # all of them on every process
                self._hold_out(batch, self._score(batch))
        self.train()
        self._set_threshold(torch.cat(self._held_out))

    def _set_threshold(self, held_out: Tensor) -> None:
        """Set the threshold from scores and highest places of all normal validation examples, (n, 2)."""
        scores, peaks = held_out.T
        check_held_out(len(scores))
        self.alarm.fit(scores, peaks)
        self._set_at = self.trainer.global_step
        promise = self.alarm.promise
        if not self.is_last_epoch:
            return
        rank_zero_info(f"Alarm: {promise}.")
        split = self.find_data().splits["val"]
        if has_groups(groups := split.part.groups_of(split.indices)):
            count = len(set(groups or ()))
            rank_zero_info(
                f"Alarm: these examples are of {count:,} {'group' if count == 1 else 'groups'}, and examples of a "
                "group score alike, so that false alarms may be more frequent: hold out more groups (val_size)."
            )
        if promise.examples < self.alarm.needed:
            rank_zero_info(
                f"Alarm: {promise.examples:,} held-out normal examples cannot keep a rate of {self.alarm.rate:g}, so "
                f"the threshold is their largest score: hold out at least {self.alarm.needed:,} (val_size), or set a "
                "larger false_alarm_rate."
            )

    def evaluate(self, stage: str) -> dict[str, Tensor]:
        """Return the metrics, and of the threshold what it promises."""
        promise, data = self.alarm.promise, self.find_data()
        values = self._metrics[stage].compute(promise.threshold, data.class_names)
        said = {"threshold": promise.threshold, "expected_false_alarm_rate": promise.expected}
        said["false_alarm_bound"] = promise.bound
        device = self.device
        values |= {name: torch.tensor(value, dtype=torch.float64) for name, value in said.items()}
        return {name: value.to(device, torch.float32) for name, value in values.items()}

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Return scores, whether they are above the threshold, the threshold, and maps.

        Maps are in units of the highest place in the map of a typical held-out normal example, (B, H, W).
        """
        scores, threshold = self._score(batch), self.alarm.promise.threshold
        peak = self.alarm.normal_peaks.median().clamp_min(1e-30)
        return {
            "indices": batch.indices,
            "score": scores.example.double(),
            "is_defect": scores.example.double() > threshold,
            "threshold": torch.full((len(scores.example),), threshold, dtype=torch.float64),
            "map": scores.map / peak.to(scores.map),
        }


def check_held_out(count: int) -> None:
    """Check that validation has normal examples, from which the threshold comes.

    Args:
        count: Number of these examples.

    Raises:
        InputError: There are none.
    """
    if not count:
        raise InputError("validation has no normal example, from which the threshold comes: set a larger val_size")

"""Anomaly detection: what normal examples look like, learned in one pass, and how far others are from that."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from sft_lightning.anomaly import AnomalyMethod, PatchCore
from sft_lightning.anomaly.base import MapBatch, Scores
from sft_lightning.anomaly.metrics import AnomalyMetrics
from sft_lightning.anomaly.threshold import AlarmThreshold
from sft_lightning.data.contract import FewLabelData, few_label_data
from sft_lightning.data.splits import Split
from sft_lightning.networks.build import build_encoder
from sft_lightning.networks.modes import eval_mode
from sft_lightning.paradigms.base import resolve_input_spec
from sft_lightning.paradigms.without_steps import WithoutSteps
from sft_lightning.utils.distributed import all_gather_cat
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import Inputs, InputSpec

_SHARE = "share"  # name of the split whose maps this process computes


class _Anchor(nn.Module):
    """A parameter that nothing uses and no checkpoint holds, since DDP refuses a module without one to train."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None: ...

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None: ...


class AnomalyDetector(WithoutSteps):
    """Detector of defects that learns from normal examples alone, on maps of features of a frozen backbone.

    Training is one pass over the normal examples and an empty step. The validation after it sets the threshold, from
    the scores of normal examples that the method has not seen. Several processes share the passes, and learn what one
    process learns.

    Attributes:
        method: Fitted method.
        alarm: Threshold, with what it promises.
        backbone: Frozen network from inputs to maps.
    """

    monitor: ClassVar[None] = None  # one step: the last checkpoint is the only one
    constant_buffers: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        method: AnomalyMethod | None = None,
        backbone: str = "resnet18",
        input_spec: InputSpec | Mapping[str, Any] | Sequence[int] | None = None,
        weights: str = "none",
        mean: float | list[float] | None = None,
        std: float | list[float] | None = None,
        strides: list[int] | None = None,
        false_alarm_rate: float = 0.05,
    ) -> None:
        """Build the backbone and load its weights.

        Args:
            method: `PatchCore`, `PaDiM` or a class of your own; null for `PatchCore`.
            backbone: Network with maps of features: a torchvision or timm name, `resnet8`, `wrn_28_2`, `conv`, or the
                class path of an `Encoder`.
            input_spec: Specification of the inputs: `input_spec` of the data, or (C, H, W) of images, by default
                (3, 224, 224). The command line takes it from the data.
            weights: `none`, `default` (published, downloaded), or the path of a `.safetensors`, checkpoint or run.
            mean: Mean of the pixels for normalization; null for that of the weights.
            std: Standard deviation of the pixels for normalization; null for that of the weights.
            strides: Strides of the maps that are compared, such as [8, 16]; null for those of the method. Small ones
                show small defects, and large ones those of larger structures. A plain transformer has one stride.
            false_alarm_rate: Largest expected share of normal examples above the threshold, which `predict`,
                `validate` and `test` may set anew; 0.05 needs at least 19 held-out normal examples, and 0.01 needs 99.

        Raises:
            InputError: A setting is out of its range, the backbone is unknown, or the weights do not fit.
        """
        super().__init__(optimizer=None, lr_scheduler=None)
        if not isinstance(method, AnomalyMethod | None):
            raise InputError(f"method is {method!r:.60}: give an object such as PatchCore() (in YAML, a class_path)")
        self.method = method or PatchCore()
        self.alarm = AlarmThreshold(false_alarm_rate)
        self.save_hyperparameters(ignore=["method"])
        spec = resolve_input_spec(input_spec, None, (3, 224, 224))
        self.hparams["input_spec"] = spec.to_dict()
        self.backbone, _ = build_encoder(backbone, spec, weights, mean, std)
        self.backbone.select_maps(strides or self.method.strides)
        self.backbone.requires_grad_(False)
        self._has_weights = weights != "none"
        self._metrics = {stage: AnomalyMetrics() for stage in ("val", "test")}
        self._held_out: list[Tensor] = []  # scores and highest places of normal validation examples, (B, 2)

    # --- fitting

    def setup(self, stage: str) -> None:
        """Let training be one step, and give DDP the parameter that it asks for."""
        super().setup(stage)
        if stage == "fit" and self.trainer.world_size > 1:
            self._anchor = _Anchor()

    def on_fit_start(self) -> None:
        """Learn the normal examples, unless the state comes from a checkpoint.

        Raises:
            InputError: The data says not which examples are normal, or holds out none for the threshold, or the method
                takes too much memory.
        """
        data = self._find_data()
        if self.trainer.ckpt_path is not None:
            return
        if not self.trainer.limit_val_batches:
            raise InputError("limit_val_batches is 0, and the threshold comes from validation examples: leave it out")
        _check_held_out(int((data.splits["val"].labels == 0).sum()))
        self._fit(data)

    def _find_data(self) -> FewLabelData:
        data = few_label_data(self.trainer)
        if data is None or data.target != "defect":
            given = "plain loaders" if data is None else type(data).__name__
            raise InputError(
                f"{type(self).__name__} learns from normal examples, which {given} does not tell from others: set data "
                "to AnomalyDataModule"
            )
        return data

    @torch.no_grad()
    def _fit(self, data: FewLabelData) -> None:
        begin, count = time.monotonic(), sum(len(data.splits[name]) for name in data.normal_splits)
        if not len(data.splits["labeled"]):
            raise InputError(
                f"{type(data).__name__} gives no normal training example: lower val_size and test_size, or add some"
            )
        if not self._has_weights:
            rank_zero_info(
                "The backbone has random weights, whose maps say little: set weights to default, a file or a run."
            )
        kept = self.method.fit(self._compute_maps(data), count, data.request.seed)
        rank_zero_info(
            f"{type(self.method).__name__} {kept}, of {count:,} normal examples, in {time.monotonic() - begin:.1f} s."
        )

    def _compute_maps(self, data: FewLabelData) -> Iterator[MapBatch]:
        """Yield the maps of the normal training examples that are the share of this process."""
        rank, world = self.trainer.global_rank, self.trainer.world_size
        before = 0
        for name in data.normal_splits:
            whole = data.splits[name]
            data.splits[_SHARE] = Split(whole.part, [*whole.indices][rank::world])
            try:
                with eval_mode(self.backbone), self.trainer.precision_plugin.forward_context():
                    for batch in data.batches_of(_SHARE, self.device):
                        positions = before + rank + world * batch.indices
                        yield MapBatch(positions, self.backbone.forward_maps(batch.x))
            finally:
                del data.splits[_SHARE]
            before += len(whole)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:  # type: ignore[override] # no loss
        """Do nothing; of several processes, Lightning wants a loss."""
        return self._anchor.unused * 0.0 if self.trainer.world_size > 1 else None

    # --- scores

    def forward(self, x: Inputs) -> Scores:
        """Return the scores of examples and of their places.

        Args:
            x: Inputs as the data module gives them, such as images in [0, 1], (B, C, H, W).

        Raises:
            InputError: The method is not fitted.
        """
        if not self.method.is_fitted:
            raise InputError(f"{type(self.method).__name__} is not fitted: call `fit`, or load a checkpoint")
        maps = self.backbone.forward_maps(x)
        height, width = self.backbone.input_spec.shape[-2:]
        with torch.autocast(maps[0].device.type, enabled=False):
            return self.method.score(maps, (height, width))

    def _evaluation_step(self, stage: str, batch: Any) -> Scores:
        scores = self(batch.x)
        self._metrics[stage].update(scores.example, batch.y, scores.map, batch.mask)
        return scores

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the validation metrics, and its normal examples to those of the threshold."""
        scores = self._evaluation_step("val", batch)
        both = torch.stack([scores.example, scores.map.flatten(1).amax(1)], 1).double()
        self._held_out.append(both[batch.y.to(both.device) == 0])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the test metrics."""
        self._evaluation_step("test", batch)

    def on_validation_start(self) -> None:
        """Check the data, and start without scores."""
        self._find_data()
        self._held_out = []

    def on_test_start(self) -> None:
        """Check the data."""
        self._find_data()

    def on_validation_epoch_end(self) -> None:
        """Set the threshold if this is the validation of a training, and log the metrics."""
        if self.trainer.state.fn == "fit":
            self._set_threshold()
        super().on_validation_epoch_end()

    def _set_threshold(self) -> None:
        scores, peaks = all_gather_cat(torch.cat(self._held_out)).T
        _check_held_out(len(scores))
        self.alarm.fit(scores, peaks)
        promise = self.alarm.promise
        rank_zero_info(f"Alarm: {promise}.")
        if promise.count < self.alarm.needed:
            rank_zero_info(
                f"Alarm: {promise.count:,} held-out normal examples cannot keep a rate of {self.alarm.rate:g}, so that "
                f"the threshold is their largest score: hold out at least {self.alarm.needed:,} (val_size), or set a "
                "larger false_alarm_rate."
            )

    def evaluate(self, stage: str) -> dict[str, Tensor]:
        """Return the metrics, and of the threshold what it promises."""
        promise, data = self.alarm.promise, self._find_data()
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
        scores, threshold = self(batch.x), self.alarm.promise.threshold
        peak = self.alarm.normal_peaks.median().clamp_min(1e-12)
        return {
            "indices": batch.indices,
            "score": scores.example.double(),
            "is_defect": scores.example.double() > threshold,
            "threshold": torch.full((len(scores.example),), threshold, dtype=torch.float64),
            "map": scores.map / peak.to(scores.map),
        }


def _check_held_out(count: int) -> None:
    """Check that validation has normal examples, from which the threshold comes."""
    if not count:
        raise InputError("validation has no normal example, from which the threshold comes: set a larger val_size")

"""Anomaly detection: what normal examples look like, learned in one pass, and how far others are from that."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from sft_lightning.anomaly import AnomalyMethod, PatchCore
from sft_lightning.anomaly.base import MapBatch, Scores
from sft_lightning.data.contract import FewLabelData
from sft_lightning.data.splits import Split
from sft_lightning.networks.build import build_encoder
from sft_lightning.networks.modes import eval_mode
from sft_lightning.paradigms.base import resolve_input_spec
from sft_lightning.paradigms.defect_detector import DefectDetector
from sft_lightning.paradigms.without_steps import WithoutSteps
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


class AnomalyDetector(WithoutSteps, DefectDetector):
    """Detector of defects whose method is fitted in one pass over normal examples, followed by an empty step.

    Several processes share the pass, and learn what one process learns.

    Attributes:
        method: Fitted method.
    """

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
        super().__init__(false_alarm_rate, optimizer=None, lr_scheduler=None)
        if not isinstance(method, AnomalyMethod | None):
            raise InputError(f"method is {method!r:.60}: give an object such as PatchCore() (in YAML, a class_path)")
        self.method = method or PatchCore()
        self.save_hyperparameters(ignore=["method"])
        spec = resolve_input_spec(input_spec, None, (3, 224, 224))
        self.hparams["input_spec"] = spec.to_dict()
        self.backbone, _ = build_encoder(backbone, spec, weights, mean, std)
        self.backbone.select_maps(strides or self.method.strides)
        self.backbone.requires_grad_(False)
        self._weights = weights

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
        data = self.find_data()
        if self.trainer.ckpt_path is None:
            self.check_normal(data)
            self._fit(data)

    @torch.no_grad()
    def _fit(self, data: FewLabelData) -> None:
        begin, count = time.monotonic(), sum(len(data.splits[name]) for name in data.normal_splits)
        self.warn_without_weights(self._weights)
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
                for batch in data.batches_of(_SHARE, self.device):
                    # Left before each yield: the method computes in full precision.
                    with eval_mode(self.backbone), self.trainer.precision_plugin.forward_context():
                        maps = self.backbone.forward_maps(batch.x)
                    yield MapBatch(before + rank + world * batch.indices, maps)
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
        with torch.autocast(maps[0].device.type, enabled=False):
            return self.method.score(maps, self.map_size)

"""Metrics of pseudo-labels: how many are accepted, how many of those are right, and whether they collapse."""

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from sft_lightning.data.contract import few_label_data, known_splits
from sft_lightning.training.epochs import is_last_epoch
from sft_lightning.training.module_interfaces import MakesPseudoLabels, MayHaveTrainedHead
from sft_lightning.utils.transfer import to_device

_COLLAPSED = 0.5  # effective number of predicted classes relative to that of the labels
_PATIENCE = 500  # steps without an accepted pseudo-label, or of collapse, before a warning
_EARLY = 20  # least number of first steps in which a new head should not have nearly all of its answers accepted
_NEARLY_ALL = 0.95  # share of accepted pseudo-labels in those steps above which there is a warning


class PseudoLabelHealth(Callback):
    """Logs metrics of pseudo-labels under `pseudo_labels/` and warns when they degenerate.

    `accepted` is the share of accepted pseudo-labels, `accuracy` the share of correct ones among those, `classes` the
    effective number of predicted classes (exp of the entropy), `distance` the total variation between their
    distribution and that of the labels (0 to 1). `accepted_class_K` and `share_class_K` are values by class, for up to
    20 classes. Hidden labels of the split are read here, after the step, only to measure: no batch contains them.
    """

    def __init__(self) -> None:
        """Start without counts."""
        self._counts: Tensor | None = None
        self._last: object = None
        self._logged, self._idle, self._collapsed, self._warned = 0, 0, 0, set[str]()
        self._is_first, self._watches_start = True, False
        self._start = torch.zeros(3)  # steps, pseudo-labels and accepted ones that a new head has made

    @property
    def state_key(self) -> str:
        """Constant key, which Lightning reads in each step."""
        return "PseudoLabelHealth"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the hidden labels and the distribution of the labels.

        Args:
            trainer: Trainer with its data module.
            pl_module: Any module; those without pseudo-labels are ignored.
        """
        data, splits = few_label_data(trainer), known_splits(trainer)
        self._hidden: Tensor | None = splits["unlabeled"].labels if "unlabeled" in splits else None
        self._labels = data.labeled_counts().float() if data is not None and splits else None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the pseudo-labels of the step, and log when it is due.

        Args:
            trainer: Trainer in training.
            pl_module: Module that may have `pseudo_labels`.
            outputs: Unused.
            batch: Unused.
            batch_idx: Unused.
        """
        if not isinstance(pl_module, MakesPseudoLabels) or pl_module.pseudo_labels is None:
            return
        pseudo_labels = pl_module.pseudo_labels
        if pseudo_labels is not self._last:
            self._last = pseudo_labels
            self._count(pseudo_labels, pl_module.num_classes)
            if self._is_first:
                is_new = isinstance(pl_module, MayHaveTrainedHead) and not pl_module.has_trained_head
                is_early = trainer.global_step <= _EARLY  # else the head has learned from labels by now
                self._watches_start = is_new and is_early and pseudo_labels.weight is not None
                self._is_first = False
        step, interval = trainer.global_step, int(trainer.log_every_n_steps)  # type: ignore[attr-defined]
        if self._counts is not None and interval and step % interval == 0 and step != self._logged:
            self._logged = step
            self._log_counts(pl_module, interval)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the remaining counts at the end of training, however short it was.

        Args:
            trainer: Trainer in training.
            pl_module: Module that may have `pseudo_labels`.
        """
        interval = int(trainer.log_every_n_steps)  # type: ignore[attr-defined]
        if self._counts is not None and interval and is_last_epoch(trainer):
            self._log_counts(pl_module, trainer.global_step % interval or interval)
            if self._watches_start:
                self._judge_start()

    def _judge_start(self) -> None:
        """Warn if nearly all pseudo-labels of a new head were accepted."""
        self._watches_start = False
        steps, predicted, accepted = self._start.tolist()
        if accepted > _NEARLY_ALL * predicted:
            self._warn(
                "start", f"{accepted / predicted:.0%} of the pseudo-labels of the first {steps:.0f} steps were "
                "accepted, although the head had just started from random weights, so that most of them are guesses: "
                "set warmup_steps, let lambda_u rise (lambda_ramp, ramp_steps), or raise the strategy's threshold"
            )  # fmt: skip

    def _count(self, pseudo_labels: Any, num_classes: int) -> None:
        """Count by class on the device: predicted, accepted, accepted with a hidden label, and correct among those."""
        classes, weight = pseudo_labels.classes, pseudo_labels.weight
        is_dense = classes.ndim > 1  # a pseudo-label for each pixel, whose true class is not known here
        classes, weight = classes.flatten(), None if weight is None else weight.flatten()
        if self._counts is None:
            self._counts = torch.zeros(4, num_classes, device=classes.device)
        weight = torch.ones_like(classes) if weight is None else weight
        weight = weight.to(self._counts.dtype)
        # Indices of examples and hidden labels are on the CPU.
        indices = pseudo_labels.indices
        if self._hidden is None or is_dense:
            labels = torch.full_like(classes, -1)
        else:
            labels = to_device(self._hidden[indices], classes.device)
        verifiable = weight * (labels >= 0)
        amounts = torch.stack([torch.ones_like(weight), weight, verifiable, verifiable * (labels == classes)])
        self._counts.index_add_(1, classes, amounts)

    def _log_counts(self, module: LightningModule, steps: int) -> None:
        assert self._counts is not None
        counts: Tensor = module.trainer.strategy.reduce(self._counts, reduce_op="sum")
        predicted, accepted, verifiable, correct = counts.cpu()
        self._counts = None
        if self._watches_start:
            self._start += torch.tensor([steps, predicted.sum(), accepted.sum()])
            if self._start[0] >= _EARLY:
                self._judge_start()
        logs = {"accepted": accepted.sum() / predicted.sum()}
        if verifiable.sum() > 0:
            logs["accuracy"] = correct.sum() / verifiable.sum()
        logs["classes"] = torch.tensor(_count_effective_classes(predicted))
        if self._labels is not None and self._labels.sum() > 0:
            logs["distance"] = (predicted / predicted.sum() - self._labels / self._labels.sum()).abs().sum() / 2
        for c in range(len(predicted)) if len(predicted) <= 20 else ():
            logs[f"accepted_class_{c}"] = accepted[c] / predicted[c].clamp_min(1)
            logs[f"share_class_{c}"] = predicted[c] / predicted.sum()
        module.log_dict({f"pseudo_labels/{name}": value for name, value in logs.items()})
        self._idle = 0 if accepted.sum() > 0 else self._idle + steps
        if self._idle >= _PATIENCE:
            self._warn(
                "nothing", f"no pseudo-label was accepted in {self._idle} steps: lower the strategy's threshold, raise "
                "warmup_steps, or use a strategy that adapts its threshold (FreeMatch, SoftMatch)"
            )  # fmt: skip
        expected = _count_effective_classes(self._labels) if self._labels is not None else float(len(predicted))
        if logs["classes"] < _COLLAPSED * expected:
            largest = int(predicted.argmax())
            self._collapsed += steps
            if self._collapsed >= _PATIENCE:
                self._warn(
                    "collapse", f"predictions on unlabeled examples have collapsed for {self._collapsed} steps: "
                    f"{predicted[largest] / predicted.sum():.0%} are class {largest}, where the labels are spread over "
                    f"{expected:.1f} classes; lower lambda_u or the learning rate, raise warmup_steps, or use "
                    "AdaMatch, FreeMatch or SoftMatch"
                )  # fmt: skip
        else:
            self._collapsed = 0

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            rank_zero_info(f"Warning: {message}.")


def _count_effective_classes(counts: Tensor) -> float:
    """Compute the effective number of classes of a distribution: exp of its entropy."""
    p = counts[counts > 0] / counts.sum()
    return math.exp(float(-(p * p.log()).sum()))

"""The health of pseudo-labels: how many are accepted, how many of them are right, and whether they collapse."""

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from sft_lightning.data.contract import few_label_data, known_splits
from sft_lightning.utils.transfer import to_device

_COLLAPSED = 0.5  # effective number of predicted classes as a share of that of the labels
_LONG = 500  # steps of no accepted pseudo-label, or of collapse, before a word is said


class PseudoLabelHealth(Callback):
    """Logs the health of pseudo-labels under `pseudo_labels/` and warns in words.

    `accepted` is the share of guesses that count, `accuracy` that of the right ones among them, `classes` over how many
    classes the guesses are spread (exp of the entropy), `distance` how far their distribution is from that of the
    labels (total variation, 0 to 1), `accepted_class_K` and `share_class_K` the same by class, up to 20 classes.
    Labels that the split hides are looked up here, after the step, and only to measure: no batch carries them.
    """

    def __init__(self) -> None:
        """Starts with nothing seen."""
        self._seen: Tensor | None = None
        self._last: object = None
        self._logged, self._idle, self._collapsed, self._warned = 0, 0, 0, set[str]()

    @property
    def state_key(self) -> str:
        """A constant: Lightning asks for it in each step."""
        return "PseudoLabelHealth"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks for the hidden labels and the labels' distribution.

        Args:
            trainer: With its data module.
            pl_module: A semi-supervised one, or any other, which is left alone.
        """
        data, splits = few_label_data(trainer), known_splits(trainer)
        self._hidden: Tensor | None = splits["unlabeled"].labels if "unlabeled" in splits else None
        self._labels = data.labeled_counts().float() if data is not None and splits else None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts what the step guessed.

        Args:
            trainer: In training.
            pl_module: Has `guessed`.
            outputs: Unused.
            batch: Unused.
            batch_idx: Unused.
        """
        guessed: Any = getattr(pl_module, "pseudo_labels", None)
        if guessed is None:
            return
        if guessed is not self._last:
            self._last = guessed
            self._count(guessed, int(pl_module.num_classes))  # type: ignore[arg-type]
        step, every = trainer.global_step, int(trainer.log_every_n_steps)  # type: ignore[attr-defined]
        if self._seen is not None and every and step % every == 0 and step != self._logged:
            self._logged = step
            self._tell(pl_module, every)

    def _count(self, guessed: Any, classes: int) -> None:
        """Per class, on the device: guessed, accepted, accepted with a hidden label, of these right."""
        if self._seen is None:
            self._seen = torch.zeros(4, classes, device=guessed.classes.device)
        weight = torch.ones_like(guessed.classes) if guessed.weight is None else guessed.weight
        weight = weight.to(self._seen.dtype)
        # Positions of examples are on the CPU, and so are the hidden labels.
        hidden = torch.full_like(guessed.indices, -1) if self._hidden is None else self._hidden[guessed.indices]
        hidden = to_device(hidden, guessed.classes.device)
        known = weight * (hidden >= 0)
        amounts = torch.stack([torch.ones_like(weight), weight, known, known * (hidden == guessed.classes)])
        self._seen.index_add_(1, guessed.classes, amounts)

    def _tell(self, module: LightningModule, steps: int) -> None:
        assert self._seen is not None
        seen: Tensor = module.trainer.strategy.reduce(self._seen, reduce_op="sum")
        guessed, accepted, known, right = seen.cpu()
        self._seen = None
        logs = {"accepted": accepted.sum() / guessed.sum()}
        if known.sum() > 0:
            logs["accuracy"] = right.sum() / known.sum()
        logs["classes"] = torch.tensor(_effective(guessed))
        if self._labels is not None and self._labels.sum() > 0:
            logs["distance"] = (guessed / guessed.sum() - self._labels / self._labels.sum()).abs().sum() / 2
        for c in range(len(guessed)) if len(guessed) <= 20 else ():
            logs[f"accepted_class_{c}"] = accepted[c] / guessed[c].clamp_min(1)
            logs[f"share_class_{c}"] = guessed[c] / guessed.sum()
        module.log_dict({f"pseudo_labels/{name}": value for name, value in logs.items()})
        self._idle = 0 if accepted.sum() > 0 else self._idle + steps
        if self._idle >= _LONG:
            self._warn(
                "nothing", f"no pseudo-label was accepted in {self._idle} steps: lower the strategy's threshold, raise "
                "warmup_steps, or use a strategy that adapts its threshold (FreeMatch, SoftMatch)"
            )  # fmt: skip
        wanted = _effective(self._labels) if self._labels is not None else float(len(guessed))
        if logs["classes"] < _COLLAPSED * wanted:
            most = int(guessed.argmax())
            self._collapsed += steps
            if self._collapsed >= _LONG:
                self._warn(
                    "collapse", f"predictions on unlabeled examples have collapsed for {self._collapsed} steps: "
                    f"{guessed[most] / guessed.sum():.0%} are class {most}, where the labels are spread over "
                    f"{wanted:.1f} classes; lower lambda_u or the learning rate, raise warmup_steps, or use AdaMatch, "
                    "FreeMatch or SoftMatch"
                )  # fmt: skip
        else:
            self._collapsed = 0

    def _warn(self, kind: str, sentence: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            rank_zero_info(f"Warning: {sentence}.")


def _effective(counts: Tensor) -> float:
    """Over how many classes a distribution is spread: exp of its entropy."""
    p = counts[counts > 0] / counts.sum()
    return math.exp(float(-(p * p.log()).sum()))

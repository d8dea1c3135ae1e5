"""Calibration of predictions: a temperature for probabilities, and the distance of an input to the training data.

Guo et al. 2017, "On Calibration of Modern Neural Networks": one temperature, fitted on the validation split, or by
cross-fitting where all labels are for training (`runs/temperature.py`). Sun et al. 2022, "Out-of-Distribution Detection
with Deep Nearest Neighbors": the distance of the features, at length 1, to the k-th nearest of the training examples.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.data.contract import few_label_data
from sft_lightning.networks.weights import read_weights, write_weights
from sft_lightning.runs.lineage import find_run, hash_file
from sft_lightning.runs.temperature import read_temperature
from sft_lightning.tasks.base import Task
from sft_lightning.utils.errors import InputError

FILE = "calibration.safetensors"
REMEMBERED = 5000  # training examples at most whose features are kept
NEIGHBOR = 10  # k; one hundredth of the remembered examples where that is fewer
UNLIKE = 0.99  # percentile above which an input is marked
_ROUNDED = 1e-3  # tolerance for rounding errors of lengths and distances
_NONE = torch.empty(0)
_PAIRS = 2**17  # pairs of an input and a remembered example that are compared at a time


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Fit the temperature T that maximizes the likelihood of the probabilities of logits / T (Guo et al. 2017).

    Args:
        logits: Logits of a validation split, (N, C).
        labels: Labels, int64, (N,), or 1 for each class of an example and 0 for the others, (N, C).
    """
    from scipy.optimize import minimize_scalar

    x = logits.double()

    def loss(log_t: float) -> float:
        scaled = x / math.exp(log_t)
        if labels.ndim == 2:
            return float(F.binary_cross_entropy_with_logits(scaled, labels.double()))
        return float(F.cross_entropy(scaled, labels))

    return math.exp(float(minimize_scalar(loss, bounds=(-4, 4), method="bounded").x))


def neighbor_distance(features: Tensor, bank: Tensor, among_themselves: bool = False) -> Tensor:
    """Compute the Euclidean distance of normalized features to the k-th nearest remembered example, from 0 to 2.

    Args:
        features: Features of any length, (N, F).
        bank: Features of the remembered examples, of length 1, (M, F).
        among_themselves: Whether the features are those of the bank; each example then ignores itself.

    Returns:
        Distances, (N,).
    """
    k = min(max(1, min(NEIGHBOR, len(bank) // 100)) + among_themselves, len(bank))
    with torch.autocast(features.device.type, enabled=False):
        # In pieces: allocating and freeing many megabytes in each batch would fragment the memory of the process.
        pieces = F.normalize(features.float(), dim=1).split(max(1, _PAIRS // len(bank)))
        cosine = torch.cat([(piece @ bank.T).topk(k, 1).values[:, -1] for piece in pieces])
        return (2 - 2 * cosine).clamp_min(0).sqrt()


@dataclass(eq=False)
class Calibration:
    """Calibration of a trained classifier; the default leaves probabilities as the network gives them.

    Attributes:
        temperature: Divisor of the logits; 1 leaves them as they are.
        calibrated_on: Number of validation examples, or of labels that were held out in turn, that the temperature
            fits best; 0 where there is none.
        bank: Features of training examples, float32, (M, F), of length 1; (0,) where none are known.
        reference_distances: Distances of examples that were not trained on, float32, sorted, (V,).
        held_out: Whether these are validation examples; otherwise those of the bank, each without itself.
        uncalibrated_reason: Reason for the lack of a temperature; empty where there is one.
        cross_fitted: Whether the temperature is that of labels that were held out in turn.
        thresholds: Probability of each class from which it is predicted where examples have several, float32, (C,);
            (0,) for 0.5.
    """

    temperature: float = 1.0
    calibrated_on: int = 0
    bank: Tensor = _NONE
    reference_distances: Tensor = _NONE
    held_out: bool = False
    uncalibrated_reason: str = ""
    cross_fitted: bool = False
    thresholds: Tensor = _NONE

    def of(self, features: Tensor, logits: Tensor, task: Task | None = None) -> dict[str, Tensor]:
        """Compute calibrated probabilities and distances for a batch.

        Args:
            features: Features, float32, (B, F).
            logits: Logits, float32, (B, C).
            task: Kind of target; None for one class of several.

        Returns:
            `probabilities` (B, C); where examples have several classes also `predicted` (B, C), bool; where training
            examples are known also `distance_percentile` (B,), the share of ordinary examples that lie as near to the
            training data or nearer, and `unlike_training` (B,), bool: it is above 0.99. So about 1 in 100 ordinary
            examples is marked, too; with V < 100 validation examples about 1 in V + 1. Where the bank itself stands in
            for a validation split more are: it lies closer than new examples do.
        """
        logits = logits / self.temperature
        probabilities = logits.softmax(1) if task is None else task.probabilities(logits)
        outputs = {"probabilities": probabilities}
        if task is not None and task.name == "multi_label":
            outputs["predicted"] = task.decide(logits, self.thresholds).bool()
        if len(self.reference_distances):
            distance = neighbor_distance(features, self.bank)
            share = torch.searchsorted(self.reference_distances, distance, right=True) / len(self.reference_distances)
            outputs.update({"distance_percentile": share, "unlike_training": share > UNLIKE})
        return outputs

    def check(self, num_features: int) -> None:
        """Check values that were read from a file.

        Args:
            num_features: Number of features of the backbone.

        Raises:
            ValueError: A value has the wrong type or shape, or is out of its range.
        """
        kinds = {"temperature": float, "calibrated_on": int, "held_out": bool, "uncalibrated_reason": str}
        kinds["cross_fitted"] = bool
        wrong = [name for name, kind in kinds.items() if type(getattr(self, name)) is not kind]
        if not wrong and not 0 < self.temperature < math.inf:
            wrong.append("temperature")
        if not wrong and self.calibrated_on < 0:
            wrong.append("calibrated_on")
        bank, ordinary = self.bank, self.reference_distances
        shaped = bank.ndim == 2 and bank.shape[1] == num_features and bank.dtype == torch.float32
        if not shaped or not bool((bank.norm(dim=1) < 1 + _ROUNDED).all()):  # false for NaN and infinity, too
            wrong.append("bank")
        shaped = ordinary.ndim == 1 and ordinary.dtype == torch.float32
        if not shaped or not bool(((ordinary >= 0) & (ordinary < 2 + _ROUNDED)).all() and (ordinary.diff() >= 0).all()):
            wrong.append("reference_distances")
        limits = self.thresholds
        if limits.ndim != 1 or limits.dtype != torch.float32 or not bool(((limits >= 0) & (limits <= 1)).all()):
            wrong.append("thresholds")
        if wrong:
            raise ValueError(f"invalid values of {', '.join(wrong)}")

    def __str__(self) -> str:
        said = f"Not calibrated: {self.uncalibrated_reason}."
        if self.calibrated_on:
            kind = "labels that were held out in turn" if self.cross_fitted else "validation examples"
            said = f"Calibrated on {self.calibrated_on:,} {kind}: temperature {self.temperature:.2f}."
        if not len(self.reference_distances):
            return said
        than = f"{len(self.reference_distances):,} validation examples" if self.held_out else "these from each other"
        return f"{said} Marked: farther from {len(self.bank):,} training examples than 99 % of {than}."


@torch.no_grad()
def fit_calibration(module: Any, training: Iterable[Any], held_out: Iterable[Any], plugin: Any) -> Calibration:
    """Fit a calibration on training and validation examples of a trained classifier.

    Args:
        module: Classifier with a method `evaluated`; in eval mode.
        training: Batches of examples it was trained on, without random changes.
        held_out: Labeled batches that it was not trained on.
        plugin: Precision plugin of the trainer.

    Returns:
        Calibration, whose `uncalibrated_reason` says why a temperature is missing, if it is.
    """

    def collect(batches: Iterable[Any]) -> tuple[Tensor, Tensor, Tensor]:
        outputs = []
        for batch in batches:
            with plugin.forward_context():
                features, logits = module.evaluated(plugin.convert_input(batch.x))
            # Copies: a compiled backbone may give the same memory again.
            outputs.append((features.float().clone(), logits.float().cpu(), batch.y.cpu()))
        if not outputs:
            return _NONE, _NONE, _NONE
        features, logits, labels = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        return features, logits, labels

    known = collect(training)[0]
    bank = F.normalize(known, dim=1) if len(known) else known
    features, logits, labels = collect(held_out)
    is_known = module.task.is_known(labels) if len(labels) else labels >= 0
    logits, labels = logits[is_known], labels[is_known]
    trust = Calibration(bank=bank, held_out=len(features) > 0)
    if len(bank) > 1:
        ordinary = features if trust.held_out else known
        trust.reference_distances = neighbor_distance(ordinary, bank, among_themselves=not trust.held_out).sort().values
    if not len(labels):
        trust.uncalibrated_reason = "the run has no validation example"
    elif bool(module.task.is_right(logits, labels).all()):
        trust.uncalibrated_reason = (
            f"all of its {len(labels):,} validation examples are right, which no temperature fits best"
        )
    else:
        trust.temperature, trust.calibrated_on = fit_temperature(logits, labels), len(labels)
        trust.thresholds = module.task.fit_thresholds(logits / trust.temperature, labels)
    return trust


def use_calibration(trainer: Any, module: Any) -> Calibration:
    """Return the calibration of the checkpoint that predicts, from the folder of its run, or fitted and saved there.

    Args:
        trainer: Trainer that is about to predict.
        module: Classifier with a method `evaluated`.

    Returns:
        Calibration; the default one where the weights do not come from a checkpoint.
    """
    if trainer.ckpt_path is None:
        return Calibration()
    checkpoint = Path(trainer.ckpt_path)
    run = find_run(checkpoint)
    data = few_label_data(trainer)
    trust = Calibration()
    if run is None:
        trust.uncalibrated_reason = f"checkpoint {str(checkpoint)!r} does not lie in the folder of its run"
    elif data is None:
        trust.uncalibrated_reason = (
            f"data of {type(trainer.datamodule).__name__} cannot be read in the splits of the run"
        )
    else:
        # Everything the calibration depends on, except the data, which the run records itself.
        key = {"checkpoint_sha256": hash_file(checkpoint), "precision": str(trainer.precision)}
        key["geometry"] = data.reading_key
        for first in (True, False):  # one process fits, then the others read
            if trainer.is_global_zero == first:
                trust = _read(run / FILE, key, module.backbone.num_features) or _fit(trainer, module, data, run)
                if first and len(trust.bank) and bool(trust.bank.isfinite().all()):
                    _write(run / FILE, key, trust)
            trainer.strategy.barrier()
        trust.bank, trust.reference_distances = (
            trust.bank.to(module.device),
            trust.reference_distances.to(module.device),
        )
    rank_zero_info(str(trust))
    return trust


def _fit(trainer: Any, module: Any, data: Any, run: Path) -> Calibration:
    try:
        run_data = data.as_trained(run, module.hparams.get("class_names"))
        batches = run_data.training_batches(REMEMBERED, module.device), run_data.batches_of("val", module.device)
        trust = fit_calibration(module, *batches, trainer.precision_plugin)
    except InputError as error:
        reason = f"the data of the run cannot be read ({str(error).partition('; ')[0]})"
        trust = Calibration(uncalibrated_reason=reason)
    known = None if trust.calibrated_on else read_temperature(Path(trainer.ckpt_path))
    if known is not None:
        trust.temperature, trust.calibrated_on = known.value, known.labels
        trust.thresholds = torch.tensor(known.thresholds, dtype=torch.float32)
        trust.cross_fitted, trust.uncalibrated_reason = True, ""
    return trust


def _write(path: Path, key: dict[str, Any], trust: Calibration) -> None:
    values = {name: getattr(trust, name) for name in ("temperature", "calibrated_on", "held_out", "cross_fitted")}
    values["because"] = trust.uncalibrated_reason  # the name of earlier versions
    tensors = {"bank": trust.bank, "ordinary": trust.reference_distances, "thresholds": trust.thresholds}
    write_weights(path, tensors, {**key, **values})


def _read(path: Path, key: dict[str, Any], num_features: int) -> Calibration | None:
    """Return the saved calibration; None where it is missing, of another checkpoint, or damaged, which is logged."""
    if not path.is_file():
        return None
    try:
        tensors, values = read_weights(path)
        if {name: values.pop(name) for name in key} != key:
            return None
        values["uncalibrated_reason"] = values.pop("because")
        thresholds = tensors.get("thresholds", _NONE)  # files of version 0.2 have none
        trust = Calibration(
            bank=tensors["bank"], reference_distances=tensors["ordinary"], thresholds=thresholds, **values
        )
        trust.check(num_features)
    except InputError as error:
        rank_zero_warn(f"The saved calibration is not used and is fitted again: {error}")
        return None
    except (KeyError, TypeError, ValueError) as error:
        rank_zero_warn(
            f"The saved calibration is not used and is fitted again: {str(path)!r} is not as `predict` writes it "
            f"({error})."
        )
        return None
    return trust

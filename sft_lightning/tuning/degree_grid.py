"""Settings that `degree` compares, and the rule that chooses one: depths, learning rates, regularizer weights."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from statistics import fmean, stdev
from typing import Any, NamedTuple

from sft_lightning.utils.errors import InputError, check_min, did_you_mean

_DEPTHS: dict[int | str, float] = {"head": 0.0, "all": math.inf}  # the others are numbers of blocks
Accuracies = Sequence[float | None]  # of the folds, None where the run failed


class DegreeSetting(NamedTuple):
    """How far to fine-tune; None keeps the config's value.

    Attributes:
        depth: `head`, a number of last blocks, or `all`.
        backbone_lr_scale: Learning rate of the backbone as a share of the head's.
        regularizer_weight: Weight (lambda) of the regularizer.
    """

    depth: int | str
    backbone_lr_scale: float | None = None
    regularizer_weight: float | None = None

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self._asdict().items() if value is not None)

    @property
    def change(self) -> tuple[float, float, float]:
        """How far it moves from the start: the depth counts first, then the learning rate, then the regularizer."""
        depth = float(_DEPTHS.get(self.depth, self.depth))
        return depth, self.backbone_lr_scale or 0.0, -(self.regularizer_weight or 0.0)

    def to_options(self) -> dict[str, Any]:
        """Return the settings of a config that it replaces, by their full names."""
        options: dict[str, Any] = {"tune": self.depth}
        if self.depth not in _DEPTHS:
            options = {"tune": "last_k_blocks", "last_k_blocks": self.depth}
        if self.backbone_lr_scale is not None:
            options["backbone_lr_scale"] = self.backbone_lr_scale
        if self.regularizer_weight is not None:
            options["regularizer.init_args.weight"] = self.regularizer_weight
        return {f"model.init_args.{name}": value for name, value in options.items()}


@dataclass
class DegreeGrid:
    """Settings to compare by cross-validation on the labeled examples alone.

    Args:
        depth: Parameters to train: `head`, a number of last blocks and the head, or `all`.
        backbone_lr_scale: Learning rates of the backbone as shares of the head's.
        regularizer_weight: Weights (lambda) of the config's regularizer; null for the one that it has.
        folds: Number of folds of the labeled examples, each held out once.
    """

    depth: list[int | str] = field(default_factory=lambda: ["head", 1, "all"])
    backbone_lr_scale: list[float] = field(default_factory=lambda: [0.1, 1.0])
    regularizer_weight: list[float] | None = None
    folds: int = 5

    def list_settings(self, head_is_regularized: bool) -> list[DegreeSetting]:
        """List all distinct combinations, the smallest change first; the head alone has no backbone learning rate.

        Args:
            head_is_regularized: Whether the regularizer's weight matters while the backbone is frozen.

        Raises:
            InputError: A value cannot be compared.
        """
        check_min(2, **{"degree.folds": self.folds})
        for name in ("depth", "backbone_lr_scale", "regularizer_weight"):
            if getattr(self, name) == []:
                raise InputError(f"degree.{name} is an empty list: give the values to compare")
        for depth in self.depth:
            if isinstance(depth, str) and depth not in _DEPTHS:
                hint = did_you_mean(depth, list(map(str, _DEPTHS)))
                raise InputError(f"degree.depth has {depth!r}{hint}: give head, all or numbers of last blocks")
        settings = set()
        weights: Sequence[float | None] = self.regularizer_weight or [None]
        for depth, scale, weight in product(self.depth, self.backbone_lr_scale, weights):
            if depth == "head":
                settings.add(DegreeSetting(depth, None, weight if head_is_regularized else None))
            else:
                settings.add(DegreeSetting(depth, scale, weight))
        return sorted(settings, key=lambda setting: setting.change)


def compute_standard_error(accuracies: Sequence[float]) -> float:
    """Compute the standard error of the mean over folds, as if they were independent.

    Args:
        accuracies: Accuracies of at least two folds.
    """
    return stdev(accuracies) / math.sqrt(len(accuracies))


def choose_setting(results: Mapping[DegreeSetting, Accuracies]) -> tuple[DegreeSetting, DegreeSetting]:
    """Find the best setting, and choose the smallest change within one standard error of it.

    The rule is that of Breiman et al. 1984, "Classification and Regression Trees". Settings with a failed fold are
    excluded.

    Args:
        results: Accuracies on the folds by setting.

    Returns:
        Best and chosen setting, often the same.

    Raises:
        InputError: No setting finished all folds.
    """
    complete = {setting: accuracies for setting in results if None not in (accuracies := results[setting])}
    finished = {setting: [a for a in accuracies if a is not None] for setting, accuracies in complete.items()}
    if not finished:
        raise InputError("no setting of degree finished all its folds: see the reasons above")
    best = min(finished, key=lambda setting: (-fmean(finished[setting]), setting.change))
    least = fmean(finished[best]) - compute_standard_error(finished[best])
    chosen = min((s for s in finished if fmean(finished[s]) >= least), key=lambda setting: setting.change)
    return best, chosen


def tabulate_results(
    results: Mapping[DegreeSetting, Accuracies], best: DegreeSetting, chosen: DegreeSetting, metric: str = "accuracy"
) -> list[list[str]]:
    """Tabulate the results, header first; settings that are never set have no column.

    Args:
        results: Accuracies on the folds by setting.
        best: Setting to mark as best.
        chosen: Setting to mark as chosen.
        metric: Name of the metric.
    """
    names = [name for k, name in enumerate(DegreeSetting._fields) if any(setting[k] is not None for setting in results)]
    number = len(next(iter(results.values())))
    lines = [[*names, metric, "std_error", *(f"fold_{k}" for k in range(number)), "mark"]]
    for setting, accuracies in results.items():
        known = [a for a in accuracies if a is not None]
        summary = [fmean(known), compute_standard_error(known)] if len(known) == number else ["failed", "-"]
        marks = [mark for mark, marked in (("best", best), ("chosen", chosen)) if marked == setting]
        values = [getattr(setting, name) for name in names]
        folds = ["failed" if a is None else a for a in accuracies]
        line = ["-" if v is None else str(v) for v in values]
        line += [v if isinstance(v, str) else f"{v:.4f}" for v in (*summary, *folds)]
        lines.append([*line, ", ".join(marks)])
    return lines

"""Find labels that are probably wrong: confident learning (Northcutt et al. 2021) on a simple classifier.

Each label is judged by a logistic regression that has not learned from it (cross-validation). An example votes for
class k if its probability of k is at least the mean that examples labeled k have; an example that votes for another
class than its label is a suspect. With cleanlab (extra `cleanlab`), its `find_label_issues` chooses the suspects: the
same idea, with the number of suspects per class matched to the estimated noise.

A classifier that is often wrong doubts correct labels, and no choice among its doubts fixes that. Labels are therefore
doubted only if the classifier makes at most half as many errors as always guessing the most frequent class, and beats
that guess by more than chance.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sft_lightning.audit.findings import CheckResult, CheckRow
from sft_lightning.audit.modality_checks import ModalityChecks, Places
from sft_lightning.data.copies import get_groups
from sft_lightning.data.split_stats import SplitStats
from sft_lightning.networks.encoder import Encoder
from sft_lightning.paradigms.feature_cache import features
from sft_lightning.transfer.scores import find_fewest_groups, split_into_folds
from sft_lightning.utils.errors import InputError

FOLDS = 5
MAX_EXAMPLES = 100_000  # the regression takes a minute or two for this number
CHANCE = 0.05  # highest probability that guessing the most frequent class is right as often

Matrix = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass
class LabelCheck:
    """Result of a check of labels.

    Attributes:
        examples: Split and position of each checked example.
        labels: Class of each example, (N,).
        probabilities: Out-of-fold probabilities, (N, C); 0 for classes that were left out.
        suspects: Positions in the above, the least likely label first.
        summary: Sentence on the classifier and its accuracy, or why nothing was checked.
        is_decided: Whether labels were judged; if so, no suspects means that none was found.
    """

    examples: list[tuple[SplitStats[Any], int]]
    labels: IntArray
    probabilities: Matrix
    suspects: list[int]
    summary: str
    is_decided: bool = True


def check_labels(
    stats: Sequence[SplitStats[Any]], checks: ModalityChecks, backbone: Encoder | None, seed: int
) -> LabelCheck:
    """Check the labels of all labeled splits together.

    Args:
        stats: Statistics of the splits.
        checks: What knows the modality of the examples.
        backbone: Pre-trained backbone whose features are classified; None for features without a network.
        seed: Seed of the folds, and of the choice among more than 100,000 examples.
    """
    num_classes = checks.data.num_classes
    examples = [(one, i) for one in stats for i, _ in one.readable if one.label(i) >= 0]
    if len(examples) > MAX_EXAMPLES:
        chosen = (
            torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))[:MAX_EXAMPLES].sort().values
        )
        examples = [examples[k] for k in chosen.tolist()]
    y = np.array([one.label(i) for one, i in examples], dtype=np.int64)
    copies = checks.find_copies(examples)
    groups = copies.join_groups(get_groups([(one.split.part, one.split.indices[i]) for one, i in examples]))
    classes, counts = np.unique(y, return_counts=True)
    # A class in one group is never both learned from and held out.
    kept = classes[(counts >= FOLDS) & (_count_groups(y, groups) > 1)]
    required = f"{FOLDS} labels"
    if len(kept) < (counts >= FOLDS).sum():
        required += f" in 2 groups of different {checks.data.input_spec.plural}"
    nothing = np.zeros((0, num_classes))
    if len(kept) < 2:
        summary = f"not looked at: fewer than 2 classes have {required} or more"
        return LabelCheck([], y[:0], nothing, [], summary, is_decided=False)
    distinct = set(copies.pick_representatives(y.tolist()))
    positions = np.flatnonzero(np.isin(y, kept)).tolist()
    examples, y = [examples[k] for k in positions], y[positions]
    groups = None if groups is None else [groups[k] for k in positions]
    x = checks.make_features(examples) if backbone is None else _compute_features(examples, checks, backbone)
    p = np.zeros((len(y), num_classes))
    try:
        p[:, kept] = predict_out_of_fold(x, np.searchsorted(kept, y), groups, seed)
    except InputError as error:  # groups of several classes can leave a fold with one class
        return LabelCheck([], y[:0], nothing, [], f"not looked at: {error}", is_decided=False)
    right = p.argmax(1) == y
    on = checks.data.views.inputs_name if backbone is None else f"features of {backbone.name}"
    left = f"; {copies} among them stay in one fold of the cross-validation" if copies.count else ""
    if len(kept) < len(classes):
        left += f"; left out for fewer than {required}: {len(classes) - len(kept)} of {len(classes)} classes"
    skill = f"logistic regression on the {on} is right in {right.mean():.1%}"
    guess = float(counts.max() / len(y))
    once = right[[position in distinct for position in positions]]  # copies add no evidence
    if not is_skilled(int(once.sum()), len(once), guess):
        other = (
            "a pre-trained backbone"
            if backbone is None
            else f"a backbone that was pre-trained on {checks.data.input_spec.plural} like these"
        )
        summary = (
            f"none is judged: {skill} of {len(y):,}, where the most frequent class alone is {guess:.1%}: too weak to "
            f"doubt a label; set model.init_args.weights to those of {other}"
        )
        return LabelCheck(examples, y, p, [], summary + left, is_decided=False)
    suspects, by = find_suspects(np.searchsorted(kept, y), p[:, kept])
    return LabelCheck(examples, y, p, suspects, f"{len(y):,} looked at with {by}; {skill}{left}")


def skip_labels(num_classes: int, target: str) -> LabelCheck:
    """Return the result for examples of several classes, with masks or with boxes, whose labels are not checked.

    Args:
        num_classes: Number of classes.
        target: What networks learn of an example: `class_set`, `mask` or `boxes`.
    """
    summary = (
        "not looked at: a wrong label is found by comparing the class of an example with the others, and these "
        "examples have several; report lists the worst mistakes of a run, with the classes that each of them lacks"
    )
    if target == "mask":
        summary = (
            "of pixels are not judged, as no class of an example can be compared with the others; report shows the "
            "masks that a run contradicts most"
        )
    if target == "boxes":
        summary = (
            "of boxes are not judged, as no class of an example can be compared with the others; report shows the "
            "boxes that a run contradicts most"
        )
    return LabelCheck([], np.zeros(0, dtype=np.int64), np.zeros((0, num_classes)), [], summary, is_decided=False)


def is_skilled(right: int, count: int, guess: float) -> bool:
    """Return whether a classifier is accurate enough for its doubts about labels to mean something.

    Args:
        right: Number of correct out-of-fold predictions.
        count: Number of all examples.
        guess: Share of the most frequent class.
    """
    from scipy.stats import binom

    halves_errors = right / count >= (1 + guess) / 2
    return bool(halves_errors and binom.sf(right - 1, count, guess) < CHANCE)


def _count_groups(y: IntArray, groups: Sequence[str] | None) -> IntArray:
    """Count the groups of each class that occurs, or its examples where there are no groups."""
    if groups is None:
        return np.unique(y, return_counts=True)[1]
    pairs = sorted({(int(c), group) for c, group in zip(y, groups, strict=True)})
    return np.unique(np.array([c for c, _ in pairs], np.int64), return_counts=True)[1]


def predict_out_of_fold(x: Any, y: IntArray, groups: Sequence[str] | None, seed: int) -> Matrix:
    """Predict the class of each example with classifiers that saw neither it nor others of its group.

    Args:
        x: Features, (N, F): an array, whose columns are standardized, or a sparse matrix, which is taken as it is.
        y: Classes from 0, (N,), each at least five times.
        groups: Group of each example, or None. A class with fewer groups than folds lowers the number of folds.
        seed: Seed of the folds.

    Returns:
        Probabilities, (N, C).

    Raises:
        InputError: The groups leave a fold with a single class.
    """
    from sklearn.linear_model import LogisticRegression

    if isinstance(x, np.ndarray):
        x = (x - x.mean(0)) / np.maximum(x.std(0), 1e-6)
    labels = torch.from_numpy(y)
    folds = min(FOLDS, find_fewest_groups(labels, groups).groups)
    probabilities = np.zeros((len(y), y.max() + 1))
    with warnings.catch_warnings():
        # A probe that has not converged in 100 steps judges as well; groups may keep a class out of a fold.
        warnings.simplefilter("ignore")
        for train, held in split_into_folds(labels, folds, seed, groups):
            model = LogisticRegression(max_iter=100).fit(x[train], y[train])
            probabilities[np.ix_(held, model.classes_)] = model.predict_proba(x[held])
    return probabilities


def find_suspects(y: IntArray, p: Matrix) -> tuple[list[int], str]:
    """Find suspects with cleanlab where it is installed, otherwise with confident learning.

    Args:
        y: Classes from 0, (N,).
        p: Out-of-fold probabilities, (N, C).

    Returns:
        Positions, the least likely label first, and the name of the method.
    """
    try:
        from cleanlab.filter import find_label_issues
    except ImportError:
        return apply_confident_learning(y, p), "confident learning"
    suspects = find_label_issues(y, p, return_indices_ranked_by="self_confidence", n_jobs=1)
    return [int(i) for i in suspects], "cleanlab"


def apply_confident_learning(y: IntArray, p: Matrix) -> list[int]:
    """Find the examples off the diagonal of the confident joint (Northcutt et al. 2021, equation 1).

    Args:
        y: Classes from 0, (N,), each at least once.
        p: Out-of-fold probabilities, (N, C).

    Returns:
        Positions, the least likely label first.
    """
    thresholds = np.array([p[y == c, c].mean() for c in range(p.shape[1])])
    sure = np.where(p >= thresholds, p, -1.0)
    suspects = np.flatnonzero((sure.max(1) >= 0) & (sure.argmax(1) != y))
    self_confidence = p[suspects, y[suspects]]
    return [int(i) for i in suspects[self_confidence.argsort(kind="stable")]]


def make_result(check: LabelCheck, names: Sequence[str]) -> CheckResult:
    """Convert a check of labels to a result.

    Args:
        check: Result of `check_labels`.
        names: Class names.
    """
    rows = []
    for k in check.suspects:
        one, i = check.examples[k]
        p, label = check.probabilities[k], check.labels[k]
        other = int(np.where(np.arange(len(p)) == label, -1, p).argmax())
        detail = f"{names[label]!r}, looks like {names[other]!r}, p {p[label]:.2f} and {p[other]:.2f}"
        rows.append(CheckRow(one.name, one.id(i), detail))
    return CheckResult(
        "wrong_label",
        "labels that may be wrong",
        "Many are only hard: look at them, the first ones first, and correct what is wrong",
        rows,
    )


def _compute_features(places: Places, checks: ModalityChecks, backbone: Encoder) -> NDArray[np.float32]:
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    pieces: list[Tensor] = []
    for name in checks.add_splits(places):
        computed = features(backbone.to(device), checks.data, name, write=False)
        assert computed is not None  # those that cannot be read are not among the places
        pieces.append(computed.float())
    x: NDArray[np.float32] = torch.cat(pieces).numpy()
    return x

"""Transferability scores: how well features or predictions of a model suit a task, without training the model.

Higher is better for each. All are computed in float64.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.classifiers import LogisticRegression
from sft_lightning.data.set_folds import UNJUDGED, make_set_folds
from sft_lightning.tasks.held_out import score_folds
from sft_lightning.tasks.multi_label import MultiLabel
from sft_lightning.utils.errors import InputError, check_min

_NOISE = 1e-8  # least variance of the labels around a fit: a deviation of 1e-4 where they are 0 or 1
_ROUNDING = 1e-6  # what is smaller than this share of the features' length may be float32's rounding
_NEIGHBORS = 5
_TEMPERATURE = 0.07  # of the neighbors' votes


def logme(features: Tensor, labels: Tensor, num_classes: int) -> float:
    """Compute LogME: the log evidence of Bayesian linear regression from features to labels (You et al. 2021).

    Each class is a regression to 0 or 1 without an intercept. Its weights have the prior N(0, 1/alpha), its labels the
    noise N(0, 1/beta), with the alpha and beta of the largest evidence. For each alpha/beta the best beta has a closed
    form, which leaves a search along one line. The maximum is a fixed point of the paper's iteration, too, but that can
    stop at a lower one, depending on the features' scale. Features may have any scale and rank, and N may be below F.

    Where features of a rank below N fit the labels exactly, the evidence grows with beta without bound: 1/beta is
    never below 1e-8, so that such features score high, yet finitely.

    Args:
        features: Features, (N, F).
        labels: Classes, int64, (N,), or 1 for each class of an example and 0 for the others, (N, C).
        num_classes: Number of classes C.

    Returns:
        Natural logarithm of the evidence per example, averaged over the classes. A class without an example is left
        out, since weights of 0 fit it exactly.

    Raises:
        InputError: There is no example, or a feature is not finite.
    """
    x = _check_features(features)
    y = (labels.cpu() if labels.ndim == 2 else F.one_hot(labels.cpu(), num_classes)).to(x)
    y = y[:, y.any(0)]
    u, singular, _ = torch.linalg.svd(x, full_matrices=False)
    power = (singular / singular.max().clamp_min(1e-300)).square()[:, None]  # alpha makes up for the scale
    within = u.T @ y
    beyond = (y - u @ within).square().sum(0)

    def evidence(ratio: Tensor) -> Tensor:
        """Of each class (C,), twice and of all examples, with the best beta for alpha = ratio * beta."""
        variance = 1 + power / ratio  # of the labels along u, in units of 1/beta; it is 1 in the other directions
        error = (within.square() / variance).sum(0) + beyond
        beta = (len(x) / error).clamp_max(1 / _NOISE)
        total: Tensor = len(x) * (beta / (2 * torch.pi)).log() - variance.log().sum(0) - beta * error
        return total

    center, reach = torch.full_like(beyond, -8), 16.0  # log10 of the ratio, from 1e-24 to 1e8
    for _ in range(5):
        grid = center + torch.linspace(-reach, reach, 65, dtype=torch.float64)[:, None]
        best, where = torch.stack([evidence(10**row) for row in grid]).max(0)
        center, reach = grid.gather(0, where[None])[0], reach / 16
    return float(best.mean()) / 2 / len(x)


def h_score(features: Tensor, labels: Tensor) -> float:
    """Compute the H-score: the share of the features' variance that lies between classes, summed over directions.

    Bao et al. 2019 ("An Information-Theoretic Approach to Transferability ..."): trace(pinv(cov(F)) cov(E[F|Y])).
    Directions in which the features vary by less than 1e-6 of their length count as constant.

    Args:
        features: Features, (N, F).
        labels: Classes, int64, (N,), or 1 for each class of an example and 0 for the others, (N, C).

    Returns:
        Score from 0 to the smaller of C - 1 and the features' rank. With N <= F it tends to C - 1 whatever the
        features, and ranks nothing.

    Raises:
        InputError: There is no example, or a feature is not finite.
    """
    if labels.ndim == 2:
        return _average_classes(h_score, features, labels)
    x = _check_features(features)
    _, hot = _encode_one_hot(labels)
    u, singular, _ = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    u = u[:, singular > _ROUNDING * x.norm()]  # the whitened features; N cancels
    return float(((u.T @ hot).square() / hot.sum(0)).sum())


def regularized_h_score(features: Tensor, labels: Tensor) -> float:
    """Compute the H-score with a shrunk covariance, which also ranks where features outnumber examples.

    Ibrahim et al. 2022 ("Newer is not always better: Rethinking transferability metrics ..."):
    (1 - a) trace(inv(S) cov(E[F|Y])), where S = (1 - a) cov(F) + a s I is the shrinkage estimate of Ledoit and Wolf
    2004 with the mean variance s. The factor 1 - a scales the covariance of the class means down like that of the
    features. Covariances divide by N, as in that estimate.

    Args:
        features: Features, (N, F).
        labels: Classes, int64, (N,), or 1 for each class of an example and 0 for the others, (N, C).

    Returns:
        Score from 0 to C - 1; 0 where the features are constant.

    Raises:
        InputError: There is no example, or a feature is not finite.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage

    if labels.ndim == 2:
        return _average_classes(regularized_h_score, features, labels)
    x = _check_features(features)
    _, hot = _encode_one_hot(labels)
    centered = x - x.mean(0)
    u, singular, _ = torch.linalg.svd(centered, full_matrices=False)
    power = singular.square() / len(x)  # eigenvalues of the covariance
    if float(singular.max()) <= _ROUNDING * float(x.norm()):
        return 0.0
    shrinkage = float(ledoit_wolf_shrinkage(centered.numpy(), assume_centered=True))
    shrunk = (1 - shrinkage) * power + shrinkage * power.sum() / x.shape[1]
    between = (u.T @ hot).square() / hot.sum(0)  # of whitened features; the class means lie in the span of u
    return (1 - shrinkage) * float((between.sum(1) * power / shrunk.clamp_min(1e-300)).sum())


def _average_classes(score: Callable[[Tensor, Tensor], float], features: Tensor, targets: Tensor) -> float:
    """Return the mean score of telling each class from its absence, of the classes that only some examples have."""
    columns = [own for own in targets.T if 0 < int(own.sum()) < len(own)]
    return sum(score(features, own) for own in columns) / len(columns) if columns else 0.0


def leep(source_probabilities: Tensor, labels: Tensor, num_classes: int) -> float:
    """Compute LEEP, the log expected empirical prediction (Nguyen et al. 2020).

    Args:
        source_probabilities: Softmax of the model over its own S classes, (N, S).
        labels: Classes, int64, (N,).
        num_classes: Number of classes C.

    Returns:
        Mean natural logarithm of the label's probability given the source class alone; at most 0.

    Raises:
        InputError: There is no example, or a probability is not finite.
    """
    theta = _check_features(source_probabilities)
    joint = theta.T @ F.one_hot(labels.cpu(), num_classes).to(theta)
    given = joint / joint.sum(1, keepdim=True).clamp_min(1e-300)  # a source class that nothing is taken for adds 0
    return float((theta @ given).gather(1, labels.cpu()[:, None]).log().mean())


def nce(source_labels: Tensor, labels: Tensor) -> float:
    """Compute NCE, the negative conditional entropy -H(Y|Z) of labels given the source's (Tran et al. 2019).

    Args:
        source_labels: Classes predicted by the source Z, int64, (N,).
        labels: Classes Y, int64, (N,).

    Returns:
        Score in nats; at most 0.

    Raises:
        InputError: There is no example.
    """
    joint = _encode_one_hot(source_labels)[1].T @ _encode_one_hot(labels)[1]
    return float(torch.xlogy(joint, joint / joint.sum(1, keepdim=True)).sum() / joint.sum())


class FewestGroups(NamedTuple):
    """Class with the fewest groups of examples.

    Attributes:
        label: Number of the class.
        groups: Number of its groups, or of its examples where nothing is grouped.
    """

    label: int
    groups: int


def find_fewest_groups(labels: Tensor, groups: Sequence[str] | None) -> FewestGroups:
    """Find the class that limits the number of folds.

    Args:
        labels: Classes, int64, (N,).
        groups: Name of each example's group, or None where each stands alone.

    Raises:
        InputError: There is no example.
    """
    classes, hot = _encode_one_hot(labels)
    members = [{i if groups is None else groups[i] for i in column.nonzero()[:, 0].tolist()} for column in hot.T]
    least = min(range(len(members)), key=lambda k: len(members[k]))
    return FewestGroups(int(classes[least]), len(members[least]))


def split_into_folds(
    labels: Tensor,
    folds: int = 5,
    seed: int = 0,
    groups: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
) -> list[tuple[list[int], list[int]]]:
    """Divide examples into stratified folds, each example held out once.

    Of examples with several classes, those with a class that is in a single one, or group, are never held out.

    Args:
        labels: Classes, int64, (N,), or 1 for each class of an example and 0 for the others, (N, C).
        folds: Number of folds, at least 2 and, of examples with one class each, at most the examples, or groups, of the
            smallest class.
        seed: Seed of the shuffle.
        groups: Name of each example's group; examples of one group stay in one fold.
        class_names: Class names for messages, which otherwise give the class's number.

    Returns:
        For each fold the positions to learn from, and those that are held out.

    Raises:
        InputError: Too few folds, examples, groups or classes.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    check_min(2, folds=folds)
    y = labels.cpu()
    if y.ndim == 2:
        fold = make_set_folds(y.numpy(), groups, folds, seed)[0]
        return [((fold != k).nonzero()[0].tolist(), (fold == k).nonzero()[0].tolist()) for k in range(folds)]
    _check_folds(y, folds, groups, class_names)
    splitter = StratifiedKFold if groups is None else StratifiedGroupKFold
    splits = []
    for train, test in splitter(folds, shuffle=True, random_state=seed).split(y, y, groups and list(groups)):
        left = y[train].unique()
        if len(left) < 2:  # groups of several classes can do this
            only = f"class {_name_class(int(left[0]), class_names)} alone" if len(left) else "nothing"
            raise InputError(f"a fold would learn from {only}: use another seed or smaller groups")
        if not len(test):
            raise InputError("a fold would hold nothing out: use fewer folds, another seed or smaller groups")
        splits.append((train.tolist(), test.tolist()))
    return splits


def cross_validate(
    features: Tensor,
    labels: Tensor,
    folds: int = 5,
    seed: int = 0,
    groups: Sequence[str] | None = None,
    *,
    kind: Literal["knn", "linear"],
) -> tuple[float, float]:
    """Compute the accuracy of a simple classifier on the features by stratified cross-validation.

    Of examples with several classes, it is the mean F1 of an example, at one threshold that is best on the other folds.

    "knn": neighbors by cosine vote with exp(cos / 0.07), as in Wu et al. 2018. There are 5, or as many as the smallest
    class has examples in the training folds: more would outvote it even among its own.
    "linear": scikit-learn's logistic regression on features standardized by the training folds.

    Args:
        features: Features, (N, F).
        labels: Classes, int64, (N,), or 1 for each class of an example and 0 for the others, (N, C).
        folds: Number of folds, as in `split_into_folds`.
        seed: Seed of the shuffle.
        groups: Name of each example's group; examples of one group stay in one fold.
        kind: Type of the classifier.

    Returns:
        Mean accuracy over the folds and its standard error, as if folds were independent.

    Raises:
        InputError: Too few folds, examples, groups or classes, or a feature that is not finite.
    """
    x, y = _check_features(features), labels.cpu()
    if y.ndim == 2:
        return _cross_validate_sets(x, y, split_into_folds(y, folds, seed, groups), kind)
    predict = _predict_knn if kind == "knn" else _predict_linear
    accuracies = [
        (predict(x[train], y[train], x[test]) == y[test]).double().mean()
        for train, test in split_into_folds(y, folds, seed, groups)
    ]
    stacked = torch.stack(accuracies)
    return float(stacked.mean()), float(stacked.std() / folds**0.5)


def _cross_validate_sets(
    x: Tensor, y: Tensor, splits: list[tuple[list[int], list[int]]], kind: Literal["knn", "linear"]
) -> tuple[float, float]:
    predict, task = _predict_knn_sets if kind == "knn" else _predict_linear_sets, MultiLabel(y.shape[1])
    fold, p = np.full(len(y), UNJUDGED), torch.zeros(y.shape, dtype=torch.float64)
    for k, (train, test) in enumerate(splits):
        fold[test], p[test] = k, predict(x[train], y[train], x[test])
    judged = fold != UNJUDGED
    scores = score_folds(task, task.invert_probabilities(p[judged]), y[judged], fold[judged])
    means = np.array([scores[fold[judged] == k].mean() for k in range(len(splits))])
    return float(means.mean()), float(means.std(ddof=1) / len(splits) ** 0.5)


def weighted_kendall(scores: Sequence[float], accuracies: Sequence[float]) -> float:
    """Compute the rank correlation in which exchanges at the top weigh most (hyperbolically), as in You et al. 2021.

    Args:
        scores: Score of each model.
        accuracies: Accuracy of each model.

    Returns:
        Correlation from -1 to 1; 0 where it is undefined: fewer than 2 models, or all scores or all accuracies equal.
    """
    from scipy.stats import weightedtau

    if len(scores) < 2:
        return 0.0
    tau = float(weightedtau(scores, accuracies).statistic)
    return 0.0 if tau != tau else tau


def _check_features(features: Tensor) -> Tensor:
    if not len(features):
        raise InputError("there is no labeled example to score with: add labels")
    x = features.detach().cpu().double()
    if not bool(x.isfinite().all()):
        raise InputError("features hold NaN or infinity: choose a model whose training did not diverge")
    return x


def _encode_one_hot(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the classes that have an example, (K,), and one-hot labels, float64, (N, K)."""
    if not len(labels):
        raise InputError("there is no labeled example to score with: add labels")
    classes, index = labels.cpu().unique(return_inverse=True)
    return classes, F.one_hot(index).double()


def _check_folds(labels: Tensor, folds: int, groups: Sequence[str] | None, class_names: Sequence[str] | None) -> None:
    label, number = find_fewest_groups(labels, groups)
    name = _name_class(label, class_names)
    if len(labels.unique()) < 2:
        raise InputError(f"all {len(labels)} labeled examples are of class {name}: add labels of another class")
    unit = "labeled example(s)" if groups is None else "group(s) of labeled examples"
    if number == 1:
        raise InputError(f"class {name} has 1 {unit}, and no cross-validation works with fewer than 2: add labels")
    if number < folds:
        raise InputError(
            f"class {name} has {number} {unit}, fewer than the {folds} folds: set folds to {number} or add labels"
        )


def _name_class(label: int, class_names: Sequence[str] | None) -> str:
    return str(label) if class_names is None else repr(class_names[label])


def _predict_knn(known: Tensor, known_labels: Tensor, features: Tensor) -> Tensor:
    smallest = int(_encode_one_hot(known_labels)[1].sum(0).min())
    nearest = (F.normalize(features, dim=1) @ F.normalize(known, dim=1).T).topk(min(_NEIGHBORS, smallest), 1)
    votes = torch.zeros(len(features), int(known_labels.max()) + 1, dtype=torch.float64)
    votes.scatter_add_(1, known_labels[nearest.indices], (nearest.values / _TEMPERATURE).exp())
    return votes.argmax(1)


def _predict_knn_sets(known: Tensor, known_labels: Tensor, features: Tensor) -> Tensor:
    """Return the share of each class in the votes, (N, C)."""
    cosine = F.normalize(features, dim=1) @ F.normalize(known, dim=1).T
    nearest = cosine.topk(min(_NEIGHBORS, len(known)), 1)
    votes = (nearest.values / _TEMPERATURE).softmax(1)
    return (votes[..., None] * known_labels[nearest.indices]).sum(1)


def _predict_linear_sets(known: Tensor, known_labels: Tensor, features: Tensor) -> Tensor:
    """Return the probability of each class against its absence, (N, C)."""
    classifier = LogisticRegression(strength=1.0).fit(known, known_labels)
    return classifier.predict_proba(features).double()


def _predict_linear(known: Tensor, known_labels: Tensor, features: Tensor) -> Tensor:
    from sklearn.linear_model import LogisticRegression as Plain
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), Plain(max_iter=1000))
    return torch.from_numpy(model.fit(known.numpy(), known_labels.numpy()).predict(features.numpy()))

"""Label spreading: Zhou et al. 2004, "Learning with Local and Global Consistency"."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning.classifiers.neighbor_average import AverageLayer, Metric, NeighborAverage
from sft_lightning.classifiers.neighbors import find_neighbors
from sft_lightning.utils.errors import InputError, check_decay

Array = np.ndarray[Any, np.dtype[Any]]
_TOLERANCE, _MAX_ITERATIONS = 1e-12, 2000
_VALUES = 20_000_000  # scores that are solved for at a time


class LabelSpreading(NeighborAverage):
    """Spread labels over the graph of nearest neighbors of all examples, labeled and unlabeled.

    Each class starts with a total of one, divided among its labels (`class_weight`), as in Wang et al. 2008, "Graph
    Transduction via Alternating Minimization". Otherwise a class with more labels takes in examples of the others,
    which costs 4 to 25 points (`scripts/bench/class_weight.py`).

    W joins each example with its k nearest neighbors in both directions, with weight 1 where one is a neighbor of the
    other. With S = D^-1/2 W D^-1/2 and one-hot labels Y, the scores F = (1 - alpha) (I - alpha S)^-1 Y are the limit of
    the paper's iteration F <- alpha S F + (1 - alpha) Y. Conjugate gradients solve for them, as in Iscen et al. 2019,
    "Label Propagation for Deep Semi-supervised Learning". They are float64: the system's condition is up to
    (1 + alpha) / (1 - alpha), 199 at the default. The search for neighbors, most of the work, is float32.

    Where examples have several classes, each class is spread by itself: its probability is the score of the labels that
    have it as a share of the score of all labels. Each label then has the same weight, so that the share of a class
    among the labels takes part; an example that none reaches gets this share.

    An example outside the graph gets the mean of its k nearest neighbors' probabilities. An example that no label
    reaches, with scores below 1e-12, has equal probabilities.

    Memory for N examples, F features and C classes: 4 N F + 4 N C bytes that are kept, and some 850 N bytes in `fit`
    besides. The exact search takes N^2 F multiplications: 20 seconds of one core for 60,000 examples with 64 features,
    1.5 hours for 10^6, where `approximate` takes 18 minutes (`scripts/bench/results/graph_memory.json`).
    """

    def __init__(
        self,
        neighbors: int | None = None,
        alpha: float = 0.99,
        balance: Literal["none", "uniform", "labeled"] = "none",
        class_weight: Literal["none", "balanced"] | None = None,
        metric: Metric = "cosine",
        approximate: bool = False,
    ) -> None:
        """Check and store the settings.

        Args:
            neighbors: Number k of neighbors of each example; null for 15, or less where classes are small.
            alpha: Share of an example's scores that comes from its neighbors.
            balance: Shares of the classes that the probabilities of all unlabeled examples are scaled to: `uniform`,
                those of the labels (`labeled`), or `none`. Few labels do not tell the shares well enough for `labeled`.
            class_weight: `balanced` gives each class the same total weight, `none` each label; null for `balanced`, or
                for `none` where examples have several classes.
            metric: Distance: `cosine`, which suits features of networks and whitened components, or `euclidean`.
            approximate: Whether to search neighbors approximately with faiss (extra `graph`), for more than some
                200,000 examples.

        Raises:
            InputError: A setting is out of range.
        """
        super().__init__(neighbors, metric, approximate)
        check_decay(alpha=alpha)
        self.alpha, self.balance, self.class_weight = alpha, balance, class_weight

    def _fit(self, x: Tensor, y: Tensor, unlabeled: Tensor) -> None:
        self.features = self._scale(torch.cat([x.float(), unlabeled.float()]))
        nearest = find_neighbors(
            self.features, self.features, self.num_neighbors, exclude_self=True, approximate=self.approximate
        )
        count = len(x)
        graph, weighs = normalize_graph(nearest), self.class_weight == "balanced"
        if self.has_sets:
            if self.balance != "none":
                raise InputError(f"balance is {self.balance!r}, and the examples have several classes: leave it out")
            self.probabilities = spread_sets(graph, torch.arange(count), y, self.alpha, weighs)
            return
        weighs = weighs or self.class_weight is None
        shares = spread_labels(graph, torch.arange(count), y, self.num_classes, self.alpha, weighs)
        if self.balance != "none" and len(unlabeled):
            present = F.one_hot(y, self.num_classes).double().mean(0)
            uniform = (present > 0).double() / (present > 0).sum()
            shares[count:] = balance_classes(shares[count:], uniform if self.balance == "uniform" else present)
        self.probabilities = shares

    def predict_proba(self, x: Tensor) -> Tensor:
        """Return the mean probabilities of the k nearest examples of the graph, float32, (N, C)."""
        return self.average_neighbors(x)

    def make_layer(self) -> nn.Module:
        """Return the same as one product with all examples of the graph."""
        return AverageLayer(self)

    def choose_neighbors(self) -> int:
        """Return 15, or less where classes are small."""
        return choose_neighbors(len(self.features), count_effective_classes(self.class_counts))


def spread_labels(
    graph: Any, positions: Tensor, labels: Tensor, num_classes: int, alpha: float = 0.99, weighs_classes: bool = True
) -> Tensor:
    """Return the class probabilities of all examples of a graph, float32, (N, C), solving for some classes at a time.

    Args:
        graph: Matrix S of `normalize_graph`, (N, N).
        positions: Positions of the labeled examples, int64, (L,).
        labels: Classes of the labeled examples, int64, (L,).
        num_classes: Number of classes C.
        alpha: Share of an example's scores that comes from its neighbors.
        weighs_classes: Whether all classes have the same total weight, instead of all labels.
    """
    classes = labels.numpy()
    weights = (1 - alpha) / (np.bincount(classes)[classes] if weighs_classes else np.ones(len(classes)))

    def make_columns(start: int, stop: int) -> Array:
        columns: Array = weights[:, None] * (classes[:, None] == np.arange(start, stop))
        return columns

    scores = _solve_scores(graph, positions, num_classes, make_columns, alpha)
    total = scores.sum(1, keepdim=True)
    present = F.one_hot(labels, num_classes).any(0).float()
    shares = scores / total.clamp_min(torch.finfo(torch.float32).tiny)
    return torch.where(total > 0, shares, present / present.sum())


def spread_sets(
    graph: Any, positions: Tensor, targets: Tensor, alpha: float = 0.99, weighs_classes: bool = False
) -> Tensor:
    """Return the probability of each class for all examples of a graph, float32, (N, C).

    Args:
        graph: Matrix S of `normalize_graph`, (N, N).
        positions: Positions of the labeled examples, int64, (L,).
        targets: 1 for each class of a labeled example and 0 for the others, int64, (L, C).
        alpha: Share of an example's scores that comes from its neighbors.
        weighs_classes: Whether the labels with a class and those without have the same total weight, instead of all
            labels.
    """
    values = (1 - alpha) * targets.numpy()
    scores = _solve_scores(graph, positions, targets.shape[1], lambda start, stop: values[:, start:stop], alpha)
    every = np.full((len(positions), 1), 1 - alpha)
    total = _solve_scores(graph, positions, 1, lambda start, stop: every, alpha)
    share = targets.float().mean(0)
    probabilities = (scores / total.clamp_min(torch.finfo(torch.float32).tiny)).clamp_max(1)
    probabilities = torch.where(total > 0, probabilities, share)
    if not weighs_classes:
        return probabilities
    having, lacking = probabilities * (1 - share), (1 - probabilities) * share  # over their totals
    both = having + lacking
    return torch.where(both > 0, having / both.clamp_min(torch.finfo(torch.float32).tiny), probabilities)


def _solve_scores(
    graph: Any, positions: Tensor, number: int, make_columns: Callable[[int, int], Array], alpha: float
) -> Tensor:
    """Return the scores of all examples, float32, (N, number), solving for some columns at a time.

    Args:
        graph: Matrix S of `normalize_graph`, (N, N).
        positions: Positions of the labeled examples, int64, (L,).
        number: Number of columns.
        make_columns: Function from the first and the last column, exclusive, to the weights of the labels, (L, K).
        alpha: Share of an example's scores that comes from its neighbors.
    """
    count = graph.shape[0]
    scores = torch.zeros(count, number)
    size = max(1, _VALUES // count)
    for start in range(0, number, size):
        stop = min(start + size, number)
        hot = np.zeros((count, stop - start))
        hot[positions.numpy()] = make_columns(start, stop)
        solved = solve_spreading(graph, hot, alpha)
        solved[solved <= _TOLERANCE / (1 - alpha) * np.linalg.norm(hot, axis=0)] = 0  # within the error
        scores[:, start:stop] = torch.from_numpy(solved)
    return scores


def count_effective_classes(class_counts: Tensor) -> float:
    """Return how many classes of the average size would hold all examples once.

    Args:
        class_counts: Number of labels of each class, (C,), or how many lack and have each, (C, 2).
    """
    if class_counts.ndim == 1:
        return len(class_counts)
    return len(class_counts) / max(1.0, float(class_counts[:, 1].sum() / class_counts[0].sum()))


def choose_neighbors(count: int, num_classes: float) -> int:
    """Return a number of neighbors for a graph: 15, but no more than a quarter of an average class, and at least 3.

    Args:
        count: Number of examples, above 3.
        num_classes: Number of classes.
    """
    return min(max(3, min(15, int(count / (4 * num_classes)))), count - 1)


def normalize_graph(nearest: Tensor) -> Any:
    """Return S = D^-1/2 W D^-1/2 of a graph of neighbors.

    Args:
        nearest: Positions of each example's neighbors without itself, int64, (N, k).

    Returns:
        Symmetric sparse matrix, float64, (N, N).
    """
    from scipy.sparse import csr_array

    count, k = nearest.shape
    starts = np.arange(0, count * k + 1, k)
    weights = csr_array((np.ones(count * k), nearest.numpy().ravel(), starts), shape=(count, count))
    weights = weights.maximum(weights.T.tocsr()).tocsr()
    scale = 1 / np.sqrt(weights.sum(1))
    weights.data *= scale.repeat(np.diff(weights.indptr)) * scale[weights.indices]
    return weights


def solve_spreading(graph: Any, target: Array, alpha: float) -> Array:
    """Solve (I - alpha S) F = B by conjugate gradients, all columns at a time.

    Args:
        graph: Symmetric S with eigenvalues from -1 to 1, (N, N).
        target: Right-hand sides B, (N, C).
        alpha: Factor of S, below 1.

    Returns:
        F, (N, C), with a residual of at most 1e-12 of B's norm in each column.

    Raises:
        InputError: 2,000 iterations do not reach that.
    """
    solution, residual = np.zeros_like(target), target.copy()
    direction, power = residual.copy(), np.square(target).sum(0)
    enough = _TOLERANCE**2 * power
    for _ in range(_MAX_ITERATIONS):
        open_columns = power > enough
        if not open_columns.any():
            return solution
        product = direction - alpha * (graph @ direction)
        step = np.where(open_columns, power / np.where(open_columns, (direction * product).sum(0), 1), 0)
        solution += step * direction
        residual -= step * product
        new = np.square(residual).sum(0)
        direction = residual + np.where(open_columns, new / np.where(open_columns, power, 1), 0) * direction
        power = np.where(open_columns, new, power)
    raise InputError(f"alpha is {alpha}, so close to 1 that label spreading does not converge: lower it")


def balance_classes(probabilities: Tensor, shares: Tensor, iterations: int = 100) -> Tensor:
    """Scale classes and examples in turn, so that classes have given shares and each example sums to 1 (Sinkhorn).

    Args:
        probabilities: Class probabilities, (N, C).
        shares: Share of each class, (C,), which sum to 1; a class of share 0 gets nothing.
        iterations: Number of rounds.

    Returns:
        Class probabilities, float32, (N, C); an example that would be left with no class keeps its old ones.
    """
    scale = torch.ones(probabilities.shape[1], dtype=torch.float64)
    wanted = shares.double() * len(probabilities)
    for _ in range(iterations):
        rows = (probabilities @ scale.float()).clamp_min(1e-30)
        columns = (probabilities.T @ (1 / rows)).double() * scale
        scale = scale * wanted / columns.clamp_min(1e-30)
        scale = scale / scale.max()
    balanced = probabilities * scale.float()
    total = balanced.sum(1, keepdim=True)
    return torch.where(total > 0, balanced / total.clamp_min(torch.finfo(torch.float32).tiny), probabilities)

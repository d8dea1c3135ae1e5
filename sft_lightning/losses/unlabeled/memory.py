"""Memories of strategies: recent rows, and a row for each labeled example. Both are in checkpoints."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning.losses.unlabeled.base import align_distribution, at_least_float32
from sft_lightning.utils.distributed import mean_over_ranks


class Queue(nn.Module):
    """The rows that were pushed last; a new row takes the place of the oldest.

    Attributes:
        rows: Rows, (S, D); zeros where none was pushed yet.
        pushed: Number of rows pushed so far.
    """

    rows: Tensor
    pushed: Tensor

    def __init__(self, size: int, width: int) -> None:
        """Register an empty queue.

        Args:
            size: Number S of rows.
            width: Number D of columns.
        """
        super().__init__()
        self.register_buffer("rows", torch.zeros(size, width))
        self.register_buffer("pushed", torch.tensor(0))

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """Append rows, which must be the same on all processes.

        Args:
            rows: Rows, (B, D); of more than S, the last S are kept.
        """
        size = len(self.rows)
        last = rows[-size:].to(self.rows.dtype)
        places = (self.pushed + torch.arange(len(last), device=self.rows.device)) % size
        self.rows.index_copy_(0, places, last)  # in place, so that a skipped step can restore it
        self.pushed += len(last)

    def is_full(self) -> Tensor:
        """Return whether every row was pushed, a boolean scalar on the device."""
        return self.pushed >= len(self.rows)

    def mean(self) -> Tensor:
        """Return the mean of the rows pushed so far, (D,)."""
        return self.rows.sum(0) / self.pushed.clamp(1, len(self.rows))


def align_with_recent(probabilities: Tensor, recent: Queue) -> Tensor:
    """Divide predictions by their mean over recent batches of all processes, normalized; the batch counts as recent.

    Args:
        probabilities: Predicted probabilities, (B, C).
        recent: Means of recent batches.
    """
    recent.push(mean_over_ranks(probabilities)[None])
    running = recent.mean().to(probabilities.dtype)
    return align_distribution(probabilities, torch.full_like(running, 1 / len(running)), running)


def normalize_projected(projected: Tensor) -> Tensor:
    """Scale projected features to length 1, at least in float32.

    Args:
        projected: Outputs of a projector, (B, D).
    """
    return F.normalize(at_least_float32(projected), dim=1)


class LabeledBank(nn.Module):
    """A feature of length 1 and the label of each labeled example, filled as batches come.

    Attributes:
        features: Normalized features, (N, D); zeros where none came yet.
        labels: Labels, int64, (N,); -1 where none came yet.
    """

    features: Tensor
    labels: Tensor

    def __init__(self, width: int, momentum: float) -> None:
        """Register a bank without rows.

        Args:
            width: Number D of features.
            momentum: Share of the old feature that an update keeps.
        """
        super().__init__()
        self.momentum = momentum
        self.register_buffer("features", torch.empty(0, width), persistent=False)
        self.register_buffer("labels", torch.empty(0, dtype=torch.long), persistent=False)

    def start(self, count: int) -> None:
        """Make room for the examples, unless a checkpoint has filled the bank.

        Args:
            count: Number N of labeled examples.
        """
        if len(self.labels) != count:
            self.features = self.features.new_zeros(count, self.features.shape[1])
            self.labels = self.labels.new_full((count,), -1)

    def get_extra_state(self) -> Tensor:
        """Return features and labels for the checkpoint; buffers would need their size before the data is known."""
        return torch.cat([at_least_float32(self.features), self.labels[:, None]], 1)

    def set_extra_state(self, state: Tensor) -> None:
        """Load features and labels from a checkpoint.

        Args:
            state: Value of `get_extra_state`.
        """
        self.features, self.labels = state[:, :-1].to(self.features), state[:, -1].to(self.labels)

    @torch.no_grad()
    def update(self, positions: Tensor, labels: Tensor, features: Tensor) -> None:
        """Store the features of a batch, which must be that of all processes.

        Examples that the batch holds more than once, with few labels, count by the mean of their features.

        Args:
            positions: Positions of the examples, int64, (B,).
            labels: Labels, int64, (B,).
            features: Normalized features, (B, D).
        """
        # Products with indicators: adding to rows by index would depend on the order on a GPU.
        holds = F.one_hot(positions, len(self.labels)).to(features.dtype)
        counts = holds.sum(0)[:, None]
        old, new = self.features.to(features.dtype), holds.T @ features / counts.clamp_min(1)
        smoothed = torch.lerp(new, old, self.momentum)  # old is 0 at first, so that the first direction counts alone
        self.features.copy_(torch.where(counts > 0, F.normalize(smoothed, dim=1), old))
        self.labels[positions] = labels

    def similarities(self, features: Tensor, temperature: float) -> Tensor:
        """Compute cosine similarities over the temperature, (B, N); very negative where no feature came yet.

        Args:
            features: Normalized features, (B, D).
            temperature: Temperature above 0.
        """
        similarities = features @ self.features.to(features.dtype).T / temperature
        # Not minus infinity, whose product with a target of 0 would be NaN.
        return similarities.masked_fill(self.labels < 0, torch.finfo(features.dtype).min / 2)

    def class_indicators(self, num_classes: int) -> Tensor:
        """Return which class each row belongs to, as zeros and ones, (N, C); class 0 where no feature came yet.

        Args:
            num_classes: Number C of classes.
        """
        return F.one_hot(self.labels.clamp_min(0), num_classes)

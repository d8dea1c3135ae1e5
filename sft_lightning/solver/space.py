"""Vectors of all examples of a source, as a network or their inputs give them."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sft_lightning.classifiers.co_trained_regression import SecondView
from sft_lightning.data.eval_batches import choose_at_random
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.data.splits import Split
from sft_lightning.networks.encoder import Encoder
from sft_lightning.paradigms.feature_cache import features
from sft_lightning.solver.labels import LabeledSource
from sft_lightning.transfer.candidates import Candidate
from sft_lightning.transfer.vectors import choose_device, stack_vectors

_CHOSEN = "chosen"  # name of a split whose vectors are computed
MAX_GRAPH = 20_000  # examples of a graph, labeled ones first


@dataclass
class Space:
    """Vectors of all examples of a source.

    Attributes:
        name: Name for readers, such as `pixels`.
        argv: Options of a model that takes the same features.
        components: Number of whitened principal components of a graph.
        backbone: Network, or None for pixels.
        saw_pool: Whether the network has learned from the unlabeled examples.
        is_large: Whether the network is one of a library.
        is_random: Whether the network has random weights, which trainings alone start from.
        digest: SHA-256 of the file of weights; empty for published ones and pixels.
        shrinks: Start with its size where trainings may see smaller examples; None where they may not.
        second_view: Backbone of a second view to co-train with; None without one.
        has_counts: Whether the vectors are counts or weights of what the inputs consist of, such as words.
        source: Source as the network sees it, after `read`.
        labeled: Vectors of the labeled examples, (N, F).
        pool: Vectors of unlabeled examples, (M, F).
        pool_positions: Their positions in the unlabeled split, int64, (M,).
        second: Second view of both, if there is one, after `read`.
    """

    name: str
    argv: tuple[str, ...]
    components: int
    backbone: Encoder | None = None
    saw_pool: bool = False
    is_large: bool = False
    digest: str = ""
    shrinks: Candidate | None = None
    is_random: bool = False
    second_view: Encoder | None = None
    has_counts: bool = False
    source: LabeledSource | None = None
    labeled: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    pool: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    pool_positions: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    second: SecondView | None = None

    @property
    def is_network(self) -> bool:
        """Whether a network gives the vectors, which can be trained further."""
        return self.backbone is not None and not self.has_counts

    def read(self, source: LabeledSource) -> None:
        """Compute the vectors, of at most 20,000 examples.

        Args:
            source: Source whose examples to read, as the network sees them.
        """
        self.source, data = source, source.data
        count, most = len(source.labels), max(MAX_GRAPH, len(source.labels))
        device = torch.device("cpu") if self.backbone is None else choose_device()
        if self.backbone is not None:
            self.backbone.to(device)
            self.backbone.fit_inputs(batch.x for batch in data.training_batches(most, device))
        unlabeled = data.splits["unlabeled"]
        position = {index: i for i, index in enumerate(unlabeled.indices)}
        chosen = choose_at_random(unlabeled, most - count, data.request.seed)
        self.labeled, _ = self._compute(self.backbone, data.splits["labeled"], data, device)
        self.pool, at = self._compute(self.backbone, chosen, data, device)
        self.pool_positions = torch.tensor([position[chosen.indices[i]] for i in at.tolist()], dtype=torch.int64)
        if self.second_view is not None and len(self.pool):
            self.second_view.to(device)
            self.second_view.fit_inputs(batch.x for batch in data.training_batches(most, device))
            views = [
                self._compute(self.second_view, split, data, device)[0] for split in (data.splits["labeled"], chosen)
            ]
            self.second = SecondView(views[0], views[1], self.second_view.gives_counts)

    def _compute(
        self, encoder: Encoder | None, split: Split, data: FewLabelDataModule, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Return the vectors of a split, (N, F), and their positions in it, (N,); features are kept on the disk."""
        if not len(split):
            return torch.empty(0, self.labeled.shape[1]), torch.empty(0, dtype=torch.int64)
        data.splits[_CHOSEN] = split
        try:
            if self.is_network and encoder is not None and encoder is self.backbone:
                made = features(encoder, data, _CHOSEN)
                if made is not None:
                    return made.float(), torch.arange(len(made))
            x, _, at = stack_vectors(data.batches_of(_CHOSEN, device), data, encoder)
        finally:
            del data.splits[_CHOSEN]
        return x, at

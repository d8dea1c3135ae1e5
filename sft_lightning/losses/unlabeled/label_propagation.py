"""Label propagation: Iscen et al. 2019, "Label Propagation for Deep Semi-supervised Learning"."""

from typing import Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from sft_lightning.classifiers.label_spreading import LabelSpreading, choose_neighbors
from sft_lightning.classifiers.whitening import WhitenedPCA
from sft_lightning.data.contract import FewLabelData
from sft_lightning.losses.unlabeled.pool_targets import PoolTargets, read_pool
from sft_lightning.utils.errors import InputError, check_min

_WHITENED = 20_000  # examples that the principal components are computed from


class LabelPropagation(PoolTargets):
    """Targets by label spreading on a graph of the network's own features, before the first epoch or each few epochs.

    The network is to start from features that mean something: of a self-supervised or published start. The graph joins
    nearest neighbors by the cosine of whitened principal components, which suit graphs better than the features
    themselves (docs/benchmarks.md).

    Reference setting: 50 neighbors, alpha .99, new targets before each epoch. The paper takes hard targets, weighed by
    their certainty and the size of their class; here they are soft and sharpened, and classes weigh the same.
    """

    def __init__(
        self,
        refresh_epochs: int = 0,
        temperature: float = 0.5,
        alpha: float = 0.99,
        balance: Literal["none", "uniform", "labeled"] = "none",
        components: int = 128,
        max_examples: int = 60_000,
    ) -> None:
        """Check and store the settings.

        Args:
            refresh_epochs: Number of epochs after which the targets are computed anew; 0 to keep the first ones.
            temperature: Temperature T of the targets; values below 1 sharpen them.
            alpha: Share of an example's scores that comes from its neighbors.
            balance: Shares of the classes that the targets are scaled to: `uniform`, those of the labels (`labeled`),
                or `none`.
            components: Number of whitened principal components of the features, at most.
            max_examples: Maximum number of unlabeled examples in the graph; the others take the mean of their
                neighbors in it.

        Raises:
            InputError: A setting is out of range.
        """
        super().__init__(temperature)
        check_min(0, refresh_epochs=refresh_epochs)
        check_min(1, components=components, max_examples=max_examples)
        self.refresh_epochs, self.components, self.max_examples = refresh_epochs, components, max_examples
        self.alpha, self.balance = alpha, balance
        self._make_graph(15)  # reports settings out of range before the training

    def is_due(self, epoch: int) -> bool:
        """Return whether new targets are computed before an epoch."""
        return epoch % self.refresh_epochs == 0 if self.refresh_epochs else epoch == 0

    def compute_targets(self, network: LightningModule, data: FewLabelData) -> Tensor:
        """Spread the labels over the graph.

        Raises:
            InputError: The data gives labels of one class alone.
        """
        batches = data.batches_of("labeled", network.device)
        pairs = [(network.features(batch.x).float().cpu(), batch.y.cpu()) for batch in batches]  # type: ignore[operator]
        x, y = (torch.cat(part) for part in zip(*pairs, strict=True))
        pool, positions = read_pool(network, data)
        every = torch.cat([x, pool])
        components = WhitenedPCA(self.components).fit([every[:: -(-len(every) // _WHITENED)]])
        x, pool = components.transform(x), components.transform(pool)
        step = -(-len(pool) // self.max_examples)
        num_classes = len(data.class_names)
        graph = self._make_graph(choose_neighbors(len(x) + len(pool[::step]), num_classes))
        try:
            graph.fit(x, y, pool[::step], num_classes)
        except InputError as error:
            raise InputError(f"strategy LabelPropagation cannot start: {error}") from error
        targets = torch.zeros(len(data.splits["unlabeled"]), num_classes)
        targets[positions] = graph.predict_proba(pool) if step > 1 else graph.unlabeled_proba
        targets[positions[::step]] = graph.unlabeled_proba
        return targets

    def _make_graph(self, neighbors: int) -> LabelSpreading:
        return LabelSpreading(neighbors, self.alpha, self.balance, metric="cosine")

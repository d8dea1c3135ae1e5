"""Base of strategies whose targets are computed for the whole pool ahead of the steps, not batch by batch."""

from abc import abstractmethod
from typing import ClassVar

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, distributed
from torch.nn import functional as F

from sft_lightning.data.contract import FewLabelData
from sft_lightning.losses.unlabeled.base import Strategy, StrategyInputs, StrategyOutput, sharpen
from sft_lightning.networks.modes import eval_mode
from sft_lightning.utils.distributed import is_distributed
from sft_lightning.utils.errors import check_positive
from sft_lightning.utils.transfer import to_device


class PoolTargets(Strategy):
    """Cross-entropy of the strong view with soft targets that all unlabeled examples got ahead of the steps.

    Targets take 2 N C bytes for N unlabeled examples and C classes, in memory and in each checkpoint, from which a
    resumed run takes them. An example without a target (one that cannot be read) teaches nothing.
    """

    computed_epoch: Tensor

    views: ClassVar[tuple[str, ...]] = ("strong",)
    student: ClassVar[str | None] = "strong"

    def __init__(self, temperature: float) -> None:
        """Check and store the setting, and start without targets.

        Args:
            temperature: Temperature T of the targets, q^(1/T) normalized; values below 1 sharpen them.

        Raises:
            InputError: The temperature is not above 0.
        """
        super().__init__()
        check_positive(temperature=temperature)
        self.temperature = temperature
        self._targets = torch.empty(0, 0, dtype=torch.float16)
        self.register_buffer("computed_epoch", torch.tensor(-1))  # for which the targets were computed

    def get_extra_state(self) -> Tensor:
        """Return the targets for the checkpoint; a buffer would need its size before the data is known."""
        return self._targets

    def set_extra_state(self, state: Tensor) -> None:
        """Load the targets from a checkpoint.

        Args:
            state: Value of `get_extra_state`.
        """
        self._targets = state.to(self.computed_epoch.device)

    def is_due(self, epoch: int) -> bool:
        """Return whether new targets are computed before an epoch; by default before the first one only.

        Args:
            epoch: Number of the epoch, counted from 0.
        """
        return epoch == 0

    def begin_epoch(self, network: LightningModule, data: FewLabelData, epoch: int) -> None:
        """Compute the targets if they are due and no checkpoint has them; all processes use those of the first one."""
        if epoch <= int(self.computed_epoch) or not self.is_due(epoch):
            return
        with torch.no_grad(), eval_mode(network), network.trainer.precision_plugin.forward_context():
            targets = sharpen(self.compute_targets(network, data), self.temperature)
        self._targets = to_device(targets.half(), network.device)
        if is_distributed():
            distributed.broadcast(self._targets, 0)
        self.computed_epoch.fill_(epoch)

    @abstractmethod
    def compute_targets(self, network: LightningModule, data: FewLabelData) -> Tensor:
        """Return class probabilities of all unlabeled examples in their order, float32, (N, C), on the CPU.

        Args:
            network: The paradigm in eval mode, whose `features` are those of the averaged weights.
            data: Data module after its setup.

        Returns:
            Probabilities; rows of zeros for examples that cannot be read.
        """

    def loss(self, step: StrategyInputs) -> StrategyOutput:
        """Compute the cross-entropy of the strong view with the targets, averaged over the batch."""
        logits = step.student.logits
        self._targets = self._targets.to(logits.device)  # those of a checkpoint, once
        target = self._targets[to_device(step.unlabeled.indices, logits.device)].to(logits.dtype)
        return StrategyOutput(F.cross_entropy(logits, target), target.argmax(1))


def read_pool(network: LightningModule, data: FewLabelData) -> tuple[Tensor, Tensor]:
    """Compute the features of all unlabeled examples without random changes.

    Args:
        network: The paradigm in eval mode.
        data: Data module after its setup.

    Returns:
        Features, float32 (M, F), and positions in the unlabeled split, int64 (M,), on the CPU; examples that cannot be
        read are left out.
    """
    batches = data.batches_of("unlabeled", network.device)
    pairs = [(network.features(batch.x).float().cpu(), batch.indices.cpu()) for batch in batches]  # type: ignore[operator]
    features, positions = zip(*pairs, strict=True)
    return torch.cat(features), torch.cat(positions)

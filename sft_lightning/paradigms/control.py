"""A control: a second copy of a network that learns from the labels alone, beside the semi-supervised one."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from copy import deepcopy

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torchmetrics import MeanMetric

from sft_lightning.data.contract import known_splits
from sft_lightning.tasks.base import Task
from sft_lightning.tasks.classification_metrics import restart
from sft_lightning.training.ema import EMA
from sft_lightning.training.optimizers import Group
from sft_lightning.utils.inputs import Inputs

_PARTS = ("backbone", "head")


class Control(nn.Module):
    """Copy of a backbone and a head that shares the labeled batches and the optimizer of the original, but no tensor.

    Its parameters are further groups of the same optimizer, so that precision, accumulation, DDP and resuming treat
    both networks alike. Its random numbers (dropout) leave those of the original as they are.

    Attributes:
        backbone: Copy of the backbone.
        head: Copy of the head.
        average: Average of both, with the decay of the original's average, or None.
    """

    def __init__(self, network: nn.Module, ema_decay: float) -> None:
        """Copy the network as it is.

        Args:
            network: Module with the submodules `backbone` and `head`.
            ema_decay: Decay of the average; 0 for none.
        """
        super().__init__()
        self.backbone, self.head = (deepcopy(network.get_submodule(part)) for part in _PARTS)
        self.average = EMA({"backbone": self.backbone, "head": self.head}, ema_decay) if ema_decay else None

    def follow(self, network: nn.Module) -> None:
        """Freeze and release what is frozen and released in the original.

        Args:
            network: Module that was copied.
        """
        for own, original in self._pair_parameters(network):
            own.requires_grad_(original.requires_grad)
        for part in _PARTS:
            pairs = zip(self.get_submodule(part).modules(), network.get_submodule(part).modules(), strict=True)
            for own_module, original_module in pairs:
                own_module.training = original_module.training

    def groups(self, groups: Sequence[Group], network: nn.Module) -> list[Group]:
        """Return groups with the learning rates of the original's.

        Args:
            groups: Groups of the original.
            network: Module that was copied.
        """
        twins = {id(original): own for own, original in self._pair_parameters(network)}
        return [Group(f"control_{name}", [twins[id(p)] for p in group], scale) for name, group, scale in groups]

    def isolate_rng(self) -> AbstractContextManager[None]:
        """Return a context that leaves the global random numbers as they were."""
        device = next(self.head.parameters()).device
        devices = [] if device.type == "cpu" else [device]
        return torch.random.fork_rng(devices, device_type="cuda" if device.type == "cpu" else device.type)

    def update_average(self) -> None:
        """Move the average, if any, one step toward the network."""
        if self.average is not None:
            self.average.update(self)

    def _pair_parameters(self, network: nn.Module) -> list[tuple[nn.Parameter, nn.Parameter]]:
        return [
            pair
            for part in _PARTS
            for pair in zip(
                self.get_submodule(part).parameters(), network.get_submodule(part).parameters(), strict=True
            )
        ]


class ClassifierControl(Control):
    """Copy of a classifier, of examples or pixels."""

    def __init__(self, network: nn.Module, task: Task, ema_decay: float) -> None:
        """Copy the network as it is.

        Args:
            network: Module with the submodules `backbone` and `head`.
            task: Kind of target.
            ema_decay: Decay of the average; 0 for none.
        """
        super().__init__(network, ema_decay)
        self._task = task
        self._accuracy = MeanMetric()

    def forward(self, x: Inputs) -> Tensor:
        """Compute logits, and leave the global random numbers as they were.

        Args:
            x: Inputs as the data module gives them, such as images in [0, 1], (B, C, H, W).
        """
        with self.isolate_rng():
            logits: Tensor = self.head(self.backbone(x))
        return logits

    def evaluated(self, x: Inputs) -> tuple[Tensor, Tensor]:
        """Return features (B, F) and logits (B, C) of the network that is evaluated: the average, if any.

        Args:
            x: Inputs as the data module gives them, such as images in [0, 1], (B, C, H, W).
        """
        if self.average is not None:
            return self.average.outputs(x)
        features = self.backbone(x)
        return features, self.head(features)

    def validate(self, x: Inputs, y: Tensor) -> None:
        """Add a validation batch to the accuracy, of pixels to the mean score.

        Args:
            x: Inputs as the data module gives them, such as images in [0, 1], (B, C, H, W).
            y: Targets, (B, ...).
        """
        self._accuracy.update(self._task.judge(self.evaluated(x)[1], y))

    def compute_accuracy(self) -> Tensor:
        """Return the accuracy over all batches and processes, and reset it."""
        accuracy: Tensor = self._accuracy.compute()
        restart(self._accuracy)
        return accuracy


def find_obstacle(module: LightningModule) -> str:
    """Return why a control would be of no use in a training, as a clause; empty if it is.

    Args:
        module: Module that learns from unlabeled examples, attached to its trainer.
    """
    trainer = module.trainer
    if not len(known_splits(trainer).get("val", ())):
        return "the data holds out no validation example to compare the two networks on (val_size)"
    if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
        return f"one process of {type(trainer.strategy).__name__} cannot run a whole network"
    if getattr(module, "regularizer", None) is not None:
        return "the regularizer belongs to one network"
    if trainer.gradient_clip_val is not None and str(trainer.gradient_clip_algorithm or "norm").endswith("norm"):
        return "gradient_clip_val would count the gradients of both networks together"
    return ""

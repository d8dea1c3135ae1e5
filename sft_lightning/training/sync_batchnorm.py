"""Batch normalization over the batch of all processes (`sync_batchnorm: true`), on any device.

torch's own refuses the CPU, so that nobody could see two processes learn what one does before having two GPUs.
"""

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.layer_sync import LayerSync
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sft_lightning.training.lightning_patches import replace_layer_sync
from sft_lightning.utils.distributed import is_distributed, sum_over_ranks


class SyncBatchNormOnCPU(_BatchNorm):
    """Ioffe & Szegedy (2015), algorithm 1, with the sums taken over all processes."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any shape, as torch's own."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalizes each channel by mean and variance of the examples of all processes.

        Args:
            input: (B, C, ...); B may differ between processes.

        Returns:
            The same shape.
        """
        if not self.training or not is_distributed():
            return super().forward(input)
        values = input if input.dtype == torch.float64 else input.float()  # half precision cannot count that far
        others = [d for d in range(input.ndim) if d != 1]
        shape = [1, -1] + [1] * (input.ndim - 2)
        count = sum_over_ranks(values.new_full((), values.numel() // values.shape[1]))
        mean = sum_over_ranks(values.sum(others)) / count
        centered = values - mean.view(shape)
        variance = sum_over_ranks(centered.square().sum(others)) / count
        self._remember(mean.detach(), variance.detach(), count)
        made = centered * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            made = made * self.weight.view(shape) + self.bias.view(shape)
        return made.to(input.dtype)

    def _remember(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """The running statistics; their variance is the unbiased one, as torch has it."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), share)


class SyncBatchNormsOnCPU(LayerSync):
    """The plugin that puts them into a model for a training, and takes them out at its end."""

    def __init__(self) -> None:
        """Remembers nothing yet."""
        self._before: list[tuple[nn.Module, type[nn.Module]]] = []

    @classmethod
    def install(cls, trainer: Trainer) -> None:
        """Takes the place of Lightning's where a trainer with `sync_batchnorm: true` is on the CPU.

        Args:
            trainer: The trainer; before its training.
        """
        if trainer.strategy.root_device.type == "cpu":
            replace_layer_sync(trainer, cls())

    def apply(self, model: nn.Module) -> nn.Module:
        """Replaces the layers of batch normalization.

        Args:
            model: Whose; nothing but their class changes, so that hooks and references stay.
        """
        self._before = [(module, type(module)) for module in model.modules() if isinstance(module, _BatchNorm)]
        for module, _ in self._before:
            module.__class__ = SyncBatchNormOnCPU
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Undoes it.

        Args:
            model: Whose.
        """
        for module, kind in self._before:
            module.__class__ = kind
        return model

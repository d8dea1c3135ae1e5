"""Batch normalization over the batches of all processes (`sync_batchnorm: true`) on the CPU.

torch's own `SyncBatchNorm` refuses the CPU, so that without two GPUs nobody could check that two processes learn what
one process learns.
"""

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.layer_sync import LayerSync
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sft_lightning.utils.distributed import is_distributed, sum_over_ranks
from sft_lightning.utils.lightning_patches import replace_layer_sync


class SyncBatchNormOnCPU(_BatchNorm):
    """Batch normalization with sums over all processes (Ioffe & Szegedy 2015, algorithm 1)."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any shape, as torch's `SyncBatchNorm` does."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalize each channel by mean and variance over the examples of all processes.

        Args:
            input: Activations, (B, C, ...); B may differ between processes.

        Returns:
            Normalized activations, (B, C, ...).
        """
        if not self.training or not is_distributed():
            return super().forward(input)
        values = input if input.dtype == torch.float64 else input.float()  # half precision cannot count far
        others = [d for d in range(input.ndim) if d != 1]
        shape = [1, -1] + [1] * (input.ndim - 2)
        count = sum_over_ranks(values.new_full((), values.numel() // values.shape[1]))
        mean = sum_over_ranks(values.sum(others)) / count
        centered = values - mean.view(shape)
        variance = sum_over_ranks(centered.square().sum(others)) / count
        self._update_statistics(mean.detach(), variance.detach(), count)
        output = centered * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            output = output * self.weight.view(shape) + self.bias.view(shape)
        return output.to(input.dtype)

    def _update_statistics(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Update the running statistics; as in torch, their variance is the unbiased one."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
        self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), weight)


class SyncBatchNormsOnCPU(LayerSync):
    """Lightning plugin that converts a model for a training and restores it at the end."""

    def __init__(self) -> None:
        """Start without converted layers."""
        self._before: list[tuple[nn.Module, type[nn.Module]]] = []

    @classmethod
    def install(cls, trainer: Trainer) -> None:
        """Replace Lightning's plugin if a trainer with `sync_batchnorm: true` is on the CPU.

        Args:
            trainer: Trainer before its training.
        """
        if trainer.strategy.root_device.type == "cpu":
            replace_layer_sync(trainer, cls())

    def apply(self, model: nn.Module) -> nn.Module:
        """Convert all batch normalization layers by changing their class, which keeps hooks and references.

        Args:
            model: Model to convert in place.
        """
        self._before = [(module, type(module)) for module in model.modules() if isinstance(module, _BatchNorm)]
        for module, _ in self._before:
            module.__class__ = SyncBatchNormOnCPU
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Restore the classes of all converted layers.

        Args:
            model: Converted model.
        """
        for module, kind in self._before:
            module.__class__ = kind
        return model

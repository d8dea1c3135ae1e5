"""Momentum network: the slowly following copy of a network that gives BYOL (Grill et al. 2020) and MoCo v3 targets."""

import math
from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from sft_lightning.utils.inputs import Inputs


class MomentumNetwork(nn.Module):
    """Moving average of a network's parameters, part of checkpoints, that never gets a gradient.

    In contrast to `EMA`, which is evaluated, its batch normalization uses the statistics of each batch, and its decay
    rises to 1 at the end of training by half a cosine.
    """

    followed: Tensor

    def __init__(self, parts: Mapping[str, nn.Module], decay: float) -> None:
        """Copy the network.

        Args:
            parts: Submodules by name that make up the network when applied in turn; the copies keep the names.
            decay: Share of the old average that the first update keeps.
        """
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, deepcopy(part))
        self.requires_grad_(False)
        self._names, self.decay = tuple(parts), decay
        self._followed: int | None = None  # value of `followed`, if known without waiting for the device
        self.register_buffer("followed", torch.tensor(0))

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        self._followed = None
        super()._load_from_state_dict(*args, **kwargs)

    @torch.no_grad()
    def follow(self, parts: Mapping[str, nn.Module], global_step: int, total_steps: int | None) -> None:
        """Average the parameters if an optimizer step was taken since the last call; called before each use.

        Args:
            parts: Submodules of the trained network by the names of their copies.
            global_step: Number of optimizer steps so far.
            total_steps: Number of optimizer steps of the training, or None for a constant decay.
        """
        followed = int(self.followed) if self._followed is None else self._followed
        if global_step > followed:
            averages = [p.detach() for name in self._names for p in self.get_submodule(name).parameters()]
            values = [p.detach() for name in self._names for p in parts[name].parameters()]
            torch._foreach_lerp_(averages, values, 1 - self.decay_at(global_step - 1, total_steps))
        if global_step != followed:  # smaller where a module is trained a second time
            self.followed.fill_(global_step)
        self._followed = global_step

    def decay_at(self, update: int, total_steps: int | None) -> float:
        """Return the decay of an update.

        Args:
            update: Number of updates before it.
            total_steps: Number of updates of the training, or None for a constant decay.
        """
        if total_steps is None:
            return self.decay
        progress = min(1.0, update / max(1, total_steps))
        return 1 - (1 - self.decay) * (1 + math.cos(math.pi * progress)) / 2

    @torch.no_grad()
    def forward(self, x: Inputs) -> Tensor:
        """Compute the output of the last submodule, without gradient.

        Args:
            x: Inputs of the network, (B, ...) each.
        """
        for name in self._names:
            x = self.get_submodule(name)(x)
        outputs: Tensor = x
        return outputs

"""Moving average of a network's weights, for evaluation and as a teacher (Tarvainen & Valpola 2017)."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class _TensorPairs(NamedTuple):
    """Tensors of the average and of the network, cached since finding them takes longer than an update."""

    parts: list[nn.Module]
    averages: list[Tensor]
    values: list[Tensor]
    average_counts: list[Tensor]
    counts: list[Tensor]


class EMA(nn.Module):
    """Averaged copy of a network; it is part of checkpoints, always in eval mode, and never gets a gradient."""

    steps: Tensor

    def __init__(self, parts: Mapping[str, nn.Module], decay: float) -> None:
        """Copy the network.

        Args:
            parts: Submodules by name that make up the network when applied in turn; the copies keep the names.
            decay: Weight of the old average in each update. Early updates use (1 + t) / (10 + t), so that the average
                is useful from the first evaluation on.
        """
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, deepcopy(part))
        self.requires_grad_(False).eval()
        self._names, self.decay = tuple(parts), decay
        self._num_updates: int | None = None  # value of `steps`, if known without waiting for the device
        self._pairs: _TensorPairs | None = None
        self.register_buffer("steps", torch.tensor(0))

    def train(self, mode: bool = True) -> "EMA":
        """Stay in eval mode."""
        return super().train(False)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._num_updates = self._pairs = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Drop the cached tensors, so that a copy finds its own."""
        return {**self.__dict__, "_pairs": None}

    @torch.no_grad()
    def update(self, network: nn.Module) -> float:
        """Move one step toward the network; running statistics are averaged, too.

        Args:
            network: Module with the submodules of the same names.

        Returns:
            Weight of the old average in this update.
        """
        t = int(self.steps) if self._num_updates is None else self._num_updates
        self._num_updates = t + 1
        decay = min(self.decay, (1 + t) / (10 + t))
        self.steps += 1
        parts = [network.get_submodule(name) for name in self._names]
        if self._pairs is None or any(a is not b for a, b in zip(self._pairs.parts, parts, strict=True)):
            self._pairs = self._find_pairs(parts)
        torch._foreach_lerp_(self._pairs.averages, self._pairs.values, 1 - decay)
        if self._pairs.average_counts:
            torch._foreach_copy_(self._pairs.average_counts, self._pairs.counts)
        return decay

    def _find_pairs(self, parts: list[nn.Module]) -> _TensorPairs:
        pairs = [
            pair
            for name, part in zip(self._names, parts, strict=True)
            for pair in zip(_tensors(self.get_submodule(name)), _tensors(part), strict=True)
        ]
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        counts = [pair for pair in pairs if not pair[0].is_floating_point()]
        return _TensorPairs(
            parts, [a for a, _ in floats], [b for _, b in floats], [a for a, _ in counts], [b for _, b in counts]
        )

    def _apply(self, *args: Any, **kwargs: Any) -> "EMA":
        """Drop the cached tensors, since a conversion replaces them."""
        self._pairs = None
        super()._apply(*args, **kwargs)
        return self

    @torch.no_grad()
    def outputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute features and logits of the average: the input and output of the last submodule.

        Args:
            x: Inputs of the network.
        """
        before = x
        for name in self._names:
            before, x = x, self.get_submodule(name)(x)
        return before, x

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits of the average.

        Args:
            x: Inputs of the network.
        """
        return self.outputs(x)[1]


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*(p.detach() for p in module.parameters()), *module.buffers()]

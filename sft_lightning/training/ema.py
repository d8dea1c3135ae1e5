"""A moving average of a network's weights, for evaluation and as a teacher (Tarvainen & Valpola 2017)."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class _Found(NamedTuple):
    """The tensors of the average and of the network that it follows; to look for them takes longer than a step."""

    parts: list[nn.Module]
    mine: list[Tensor]
    now: list[Tensor]
    my_counts: list[Tensor]
    counts_now: list[Tensor]


class EMA(nn.Module):
    """A copy of a network that follows it. It is in the checkpoint, always in eval mode, and has no gradient."""

    steps: Tensor

    def __init__(self, parts: Mapping[str, nn.Module], decay: float) -> None:
        """Copies.

        Args:
            parts: One after the other they are the network; the copies have the same names.
            decay: Share of the old average that each step keeps. Early steps keep less, (1 + t) / (10 + t), so that
                the average is right from the first evaluation on.
        """
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, deepcopy(part))
        self.requires_grad_(False).eval()
        self._names, self.decay = tuple(parts), decay
        self._taken: int | None = None  # what `steps` holds, where it is known without waiting for the device
        self._found: _Found | None = None
        self.register_buffer("steps", torch.tensor(0))

    def train(self, mode: bool = True) -> "EMA":
        """Stays in eval mode."""
        return super().train(False)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._taken = self._found = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """A copy looks for its own tensors."""
        return {**self.__dict__, "_found": None}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """One step toward the network; running statistics are averaged, too.

        Args:
            network: Has the parts.
        """
        t = int(self.steps) if self._taken is None else self._taken
        self._taken = t + 1
        decay = min(self.decay, (1 + t) / (10 + t))
        self.steps += 1
        parts = [network.get_submodule(name) for name in self._names]
        if self._found is None or any(a is not b for a, b in zip(self._found.parts, parts, strict=True)):
            self._found = self._find(parts)
        torch._foreach_lerp_(self._found.mine, self._found.now, 1 - decay)
        if self._found.my_counts:
            torch._foreach_copy_(self._found.my_counts, self._found.counts_now)

    def _find(self, parts: list[nn.Module]) -> "_Found":
        pairs = [
            pair
            for name, part in zip(self._names, parts, strict=True)
            for pair in zip(_tensors(self.get_submodule(name)), _tensors(part), strict=True)
        ]
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        counts = [pair for pair in pairs if not pair[0].is_floating_point()]
        return _Found(
            parts, [a for a, _ in floats], [b for _, b in floats], [a for a, _ in counts], [b for _, b in counts]
        )

    def _apply(self, *args: Any, **kwargs: Any) -> "EMA":
        """Forgets the tensors, which other ones take the place of."""
        self._found = None
        super()._apply(*args, **kwargs)
        return self

    @torch.no_grad()
    def outputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What goes into the last part of the average, and what comes out: features and logits.

        Args:
            x: What the network takes.
        """
        before = x
        for name in self._names:
            before, x = x, self.get_submodule(name)(x)
        return before, x

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the average.

        Args:
            x: What the network takes.
        """
        return self.outputs(x)[1]


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*(p.detach() for p in module.parameters()), *module.buffers()]

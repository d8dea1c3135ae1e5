"""Interface of the views of a modality: unaugmented, weak, strong and mixed network inputs."""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from sft_lightning.utils.inputs import Inputs, map_inputs

_APART = 0x632BE59B  # distance between the seeds of further strong views of a batch
_MOST_SHOWN = 8  # numbers of an example that stand in for it where a modality shows nothing better


class MixedFeatures(NamedTuple):
    """Inputs whose features a network mixes, as in the senMixup of Guo et al. 2019 (arXiv 1905.08941).

    Attributes:
        x: Network inputs, (B, ...) each.
        order: Positions of the partners, int64 (B,).
        share: Shares of the examples themselves, (B,) in [0, 1].
    """

    x: Inputs
    order: Tensor
    share: Tensor


def mix_inputs(x: Inputs, order: Tensor, share: Tensor) -> Inputs | MixedFeatures:
    """Mix each example with a partner, number by number.

    The mean of two numbers of a list, such as those of words, stands for a third entry: such examples are mixed where
    they are measured on a scale, which their features are.

    Args:
        x: Inputs, (B, ...) each.
        order: Positions of the partners, int64 (B,).
        share: Shares of the examples themselves, (B,) in [0, 1].

    Returns:
        Floating-point inputs of the form of `x`, or `MixedFeatures` of others.
    """
    if not all(part.is_floating_point() for part in ([x] if isinstance(x, Tensor) else x.values())):
        return MixedFeatures(x, order, share)
    return map_inputs(lambda t: torch.lerp(t[order], t, share.to(t.dtype).view(-1, *[1] * (t.ndim - 1))), x)


def seed_view(seed: int, number: int) -> int:
    """Return the seed of a further strong view of a batch, so that each has its own random stream.

    Args:
        seed: Seed of the batch.
        number: Number of the view in the batch; that of number 0 is the seed itself.
    """
    return (seed + number * _APART) % 2**32


class Clip(NamedTuple):
    """A short file that a page plays beside an example.

    Attributes:
        content: Bytes of the file.
        media_type: What it is, such as `audio/flac`.
    """

    content: bytes
    media_type: str


class Views(ABC):
    """Views of a modality, made for a batch at once, on its device.

    Attributes:
        inputs_name: Name of the inputs for readers, in the plural.
    """

    inputs_name: ClassVar[str] = "inputs"

    @abstractmethod
    def prepare(self, raw: Inputs) -> Inputs:
        """Convert stored examples to network inputs, without random changes.

        Args:
            raw: Examples from a loader, (B, ...) each.
        """

    @abstractmethod
    def weak(self, x: Inputs, seed: int | None, number: int = 0) -> Inputs:
        """Change prepared examples slightly, keeping their class.

        Args:
            x: Prepared examples, (B, ...) each.
            seed: Seed of the batch; None for no change.
            number: Number of this view in the batch; each has its own random stream.
        """

    @abstractmethod
    def strong(self, x: Inputs, seed: int) -> Inputs:
        """Change prepared examples strongly.

        Args:
            x: Prepared examples, (B, ...) each.
            seed: Seed of the batch.
        """

    @property
    def has_strong(self) -> bool:
        """Whether the strong view changes more than the weak one."""
        return True

    def pretrain(self, x: Inputs, seed: int, number: int) -> Inputs:
        """Make a view for self-supervised pre-training, by default a strong view with a random stream of its own.

        Args:
            x: Prepared examples, (B, ...) each.
            seed: Seed of the batch.
            number: Number of this view in the batch.
        """
        return self.strong(x, seed_view(seed, number + 1))

    def pretrain_local(self, x: Inputs, seed: int, number: int) -> Inputs:
        """Make a local view for self-supervised pre-training, which shows less of an example; by default like others.

        Args:
            x: Prepared examples, (B, ...) each.
            seed: Seed of the batch.
            number: Number of this view in the batch, after those of the views that are not local.
        """
        return self.pretrain(x, seed, number)

    def mix(self, x: Inputs, order: Tensor, share: Tensor) -> Inputs | MixedFeatures:
        """Mix each example with a partner, as `mix_inputs` does.

        Args:
            x: Network inputs, (B, ...) each.
            order: Positions of the partners, int64 (B,).
            share: Shares of the examples themselves, (B,) in [0, 1].
        """
        return mix_inputs(x, order, share)

    def flatten(self, x: Inputs) -> Tensor:
        """Return one vector for each example, (B, D), for classifiers without a network.

        Args:
            x: Network inputs, (B, ...) each.
        """
        parts = [x] if isinstance(x, Tensor) else [*x.values()]
        return torch.cat([part.flatten(1).float() for part in parts], 1)

    def show(self, x: Inputs) -> Tensor | list[str]:
        """Return examples as people look at them: images in [0, 1], (B, C, H, W), or a text for each.

        Args:
            x: Network inputs, (B, ...) each.
        """
        return [", ".join(f"{value:.3g}" for value in row[:_MOST_SHOWN]) for row in self.flatten(x).tolist()]

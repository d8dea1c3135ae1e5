"""Batches as a paradigm receives them, and the views that turn a loader's raw batch into one on the device."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sft_lightning.data.loaders import RawBatch
from sft_lightning.data.modality import Views, seed_view
from sft_lightning.utils.inputs import Inputs, concatenate_inputs, map_inputs
from sft_lightning.utils.renamed import warn_renamed
from sft_lightning.utils.transfer import to_device


class Labeled(NamedTuple):
    """Examples with labels.

    Attributes:
        x: Inputs, such as float32 images in [0, 1], (B, C, H, W); features, (B, F), after `use_features`.
        y: Labels, int64 of shape (B,), or (B, C) with 1 for each class of an example and 0 for the others where
            examples have several; -1 where unknown.
        indices: Positions in the split, int64 of shape (B,).
        num_weak: Number of weak views, which come first and are followed by strong ones; None if all are of one kind.
        names: Names of the examples, in prediction only.
        is_features: Whether `x` holds features, (B, F), in place of the examples.
        mask: 1 for defective places of examples, 0 for normal ones and -1 where it is not known, (B, H, W); None where
            examples have labels alone.
    """

    x: Inputs
    y: Tensor
    indices: Tensor
    num_weak: int | None = None
    names: list[str] | None = None
    is_features: bool = False
    mask: Tensor | None = None


def holds_features(batch: object) -> bool:
    """Return whether a batch holds features in place of examples; plain loaders give examples.

    Args:
        batch: Labeled batch, or a tuple of a plain loader.
    """
    return isinstance(batch, Labeled) and batch.is_features


class Cut(NamedTuple):
    """Rectangles of images that a strong view takes from partners in its batch (CutMix).

    Attributes:
        order: Positions of the partners, int64, (B,).
        inside: Pixels that come from the partner, boolean, (B, H, W).
    """

    order: Tensor
    inside: Tensor

    def paste(self, maps: Tensor) -> Tensor:
        """Put the rectangles of the partners in their places.

        Args:
            maps: Images or what was computed for each of their pixels, (B, C, H, W) or (B, H, W).
        """
        inside = self.inside if maps.ndim == 3 else self.inside[:, None]
        return torch.where(inside, maps[self.order], maps)


class Unlabeled(NamedTuple):
    """Examples without labels.

    Attributes:
        weak: Weak view, such as float32 images in [0, 1], (B, C, H, W); the first of `crops` where those alone are
            requested.
        indices: Positions in the split, int64 of shape (B,).
        seed: Seed of all other randomness of this batch, so that a resumed run repeats it.
        weak_2: Second weak view with its own randomness, if the paradigm requests it.
        strong: Strong view, if the paradigm requests it.
        strong_2: Second strong view with its own randomness, if the paradigm requests it.
        crops: Views for self-supervised pre-training, if the paradigm requests them; local ones last.
        outside: Pixels of the weak view from outside of the image, boolean, (B, H, W), where pixels are learned.
        cut: Rectangles that the strong view takes from partners, where pixels are learned; None for none.
        cut_2: Rectangles of the second strong view.
    """

    weak: Inputs
    indices: Tensor
    seed: int = 0
    weak_2: Inputs | None = None
    strong: Inputs | None = None
    strong_2: Inputs | None = None
    crops: tuple[Inputs, ...] = ()
    outside: Tensor | None = None
    cut: Cut | None = None
    cut_2: Cut | None = None

    def align_pixels(self, target: Tensor, weight: Tensor, cut: Cut | None) -> tuple[Tensor, Tensor]:
        """Move targets of the pixels of the weak view to where a strong view has these; those outside weigh nothing.

        Args:
            target: Targets of pixels, (B, H, W) or (B, C, H, W).
            weight: Weights of pixels, (B, H, W).
            cut: Rectangles of the strong view: `cut` or `cut_2`; None for a view without any.
        """
        if self.outside is not None:
            weight = weight * ~self.outside
        return (target, weight) if cut is None else (cut.paste(target), cut.paste(weight))

    @property
    def draw(self) -> int:
        """Former name of `seed`."""
        warn_renamed("Unlabeled.draw", "seed")
        return self.seed


class BatchViews:
    """Maker of the views that a paradigm requests from the stored examples of a batch."""

    def __init__(self, views: Views, labeled_views: Sequence[str] = ("weak",)) -> None:
        """Keep the settings.

        Args:
            views: Views of the modality.
            labeled_views: Views of a labeled training example: `weak`, `strong` or both.
        """
        self._views, self._labeled = views, labeled_views

    def labeled(self, raw: RawBatch) -> Labeled:
        """Make the views of labeled examples: in training the requested ones, concatenated, else no random ones.

        Args:
            raw: Batch with labels.
        """
        assert raw.labels is not None
        if raw.is_features:
            return Labeled(raw.inputs, raw.labels, raw.indices, is_features=True)
        x = self._views.prepare(raw.inputs)
        if raw.seed is None:
            return Labeled(x, raw.labels, raw.indices, names=raw.names)
        views = [self._views.weak(x, raw.seed)] if "weak" in self._labeled else []
        views += [self._views.strong(x, raw.seed)] if "strong" in self._labeled else []
        if len(views) == 1:
            return Labeled(views[0], raw.labels, raw.indices)
        return Labeled(concatenate_inputs(views), torch.cat([raw.labels] * 2), raw.indices.repeat(2), len(raw.labels))

    def unlabeled(self, raw: RawBatch, wanted: Sequence[str]) -> Unlabeled:
        """Make the views of unlabeled examples, each with its own randomness.

        Args:
            raw: Batch of a training split.
            wanted: Views to make: `weak_2`, `strong`, `strong_2`, and `pretrain` and `pretrain_local` once for each
                view of that kind. `weak` is made unless these alone are wanted.
        """
        x, seed = self._views.prepare(raw.inputs), raw.seed or 0
        count = wanted.count("pretrain")
        crops = tuple(self._views.pretrain(x, seed, number) for number in range(count))
        numbers = range(count, count + wanted.count("pretrain_local"))
        crops += tuple(self._views.pretrain_local(x, seed, number) for number in numbers)
        if crops and set(wanted) <= {"pretrain", "pretrain_local"}:
            return Unlabeled(crops[0], raw.indices, seed, crops=crops)
        return Unlabeled(
            self._views.weak(x, raw.seed),
            raw.indices,
            seed,
            self._views.weak(x, seed, 1) if "weak_2" in wanted else None,
            self._views.strong(x, seed) if "strong" in wanted else None,
            self._views.strong(x, seed_view(seed, 1)) if "strong_2" in wanted else None,
            crops,
        )


def moved(raw: RawBatch, device: torch.device) -> RawBatch:
    """Move inputs and labels to a device; positions stay on the CPU.

    Args:
        raw: Batch of a loader.
        device: Device to move to.
    """
    labels = None if raw.labels is None else to_device(raw.labels, device)
    return raw._replace(inputs=map_inputs(lambda x: to_device(x, device), raw.inputs), labels=labels)

"""What a paradigm gets of a batch, and how it is made of what a loader yields: views, on the device."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sft_lightning.data.loaders import RawBatch
from sft_lightning.data.vision.views import StrongView, WeakView, strong, to_float, weak
from sft_lightning.utils.transfer import to_device


class Labeled(NamedTuple):
    """Pictures with labels.

    Attributes:
        x: float32 in [0, 1], (B, C, H, W); features (B, F) where the data module was given them (`use_features`).
        y: int64, (B,); -1 where a label is unknown.
        indices: int64, (B,): positions in the split.
        num_weak: So many of them, the first ones, are weak views and the others strong; None where all are alike.
        names: Of the examples, where they are to be predicted.
    """

    x: Tensor
    y: Tensor
    indices: Tensor
    num_weak: int | None = None
    names: list[str] | None = None


class Unlabeled(NamedTuple):
    """Pictures without labels.

    Attributes:
        weak: float32 in [0, 1], (B, C, H, W): the weak view.
        indices: int64, (B,): positions in the split.
        draw: Seed of what else is random about this batch, so that a resumed run sees the same.
        weak_2: A second weak view of its own draw, where the paradigm asks for it.
        strong: The strong view, where the paradigm asks for it.
    """

    weak: Tensor
    indices: Tensor
    draw: int = 0
    weak_2: Tensor | None = None
    strong: Tensor | None = None


class ViewMaker:
    """From uint8 pictures to the views of one split."""

    def __init__(
        self,
        image_shape: Sequence[int],
        weak_view: WeakView,
        strong_view: StrongView,
        labeled_views: Sequence[str] = ("weak",),
    ) -> None:
        """Keeps the settings.

        Args:
            image_shape: (C, H, W) of what comes out.
            weak_view: Random changes.
            strong_view: What a strong view adds.
            labeled_views: `weak`, `strong` or both: what becomes of a labeled picture in training.
        """
        self._labeled = labeled_views
        self._channels, self._side = image_shape[0], image_shape[1]
        self._weak, self._strong = weak_view, strong_view

    def labeled(self, raw: RawBatch) -> Labeled:
        """The wanted views in training, one after the other, the pictures as they are in evaluation.

        Args:
            raw: With labels.
        """
        assert raw.labels is not None
        if raw.images.ndim == 2:  # features
            return Labeled(raw.images, raw.labels, raw.indices)
        x = self._float(raw)
        if raw.draw is None:
            return Labeled(x, raw.labels, raw.indices, names=raw.names)
        views = [weak(x, self._weak, raw.draw)] if "weak" in self._labeled else []
        views += [strong(x, self._weak, self._strong, raw.draw)] if "strong" in self._labeled else []
        if len(views) == 1:
            return Labeled(views[0], raw.labels, raw.indices)
        return Labeled(torch.cat(views), raw.labels.repeat(2), raw.indices.repeat(2), len(x))

    def unlabeled(self, raw: RawBatch, wanted: Sequence[str]) -> Unlabeled:
        """The views that a paradigm wants, each of its own draw.

        Args:
            raw: Of a training split.
            wanted: `weak_2`, `strong`; `weak` is always there.
        """
        x, draw = self._float(raw), raw.draw or 0
        return Unlabeled(
            weak(x, self._weak, raw.draw),
            raw.indices,
            draw,
            weak(x, self._weak, draw, 1) if "weak_2" in wanted else None,
            strong(x, self._weak, self._strong, draw) if "strong" in wanted else None,
        )

    def _float(self, raw: RawBatch) -> Tensor:
        return to_float(raw.images, self._channels, self._side)


def moved(raw: RawBatch, device: torch.device) -> RawBatch:
    """The uint8 pictures and labels on a device; positions stay on the CPU.

    Args:
        raw: From a loader.
        device: Where to.
    """
    labels = None if raw.labels is None else to_device(raw.labels, device)
    return raw._replace(images=to_device(raw.images, device), labels=labels)

"""Data modules of images of which some have annotations that lie in places of the image, such as masks or boxes."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from sft_lightning.data.batches import BatchViews, Labeled, Unlabeled
from sft_lightning.data.loaders import RawBatch, TrainLoader
from sft_lightning.data.source import Examples, take_unlabeled
from sft_lightning.data.splits import Split
from sft_lightning.data.vision.color_views import ColoredViews
from sft_lightning.data.vision.datamodule import ImageDataModule
from sft_lightning.data.vision.images import Geometry
from sft_lightning.data.vision.prediction import read_files
from sft_lightning.data.vision.sources import open_unlabeled
from sft_lightning.data.vision.views import WeakView
from sft_lightning.utils.errors import InputError

_IMAGES = ("images", "JPEGImages")  # folders of images inside of sources with annotations


class AnnotatedImageDataModule(ImageDataModule):
    """Images of which some have annotations, which move with them; the annotations are the targets of batches.

    Attributes:
        annotation: Name of the annotations in what is read beside the images.
        strong_settings: Settings of the strong view, for messages.
    """

    annotation: ClassVar[str]
    strong_settings: ClassVar[str]
    views: ColoredViews

    # --- what a kind of annotation adds

    @abstractmethod
    def with_annotations(self, geometry: Geometry) -> Geometry:
        """Return the geometry with which annotations are read, too.

        Args:
            geometry: Geometry of images alone.
        """

    @abstractmethod
    def make_views(self, weak_view: WeakView) -> ColoredViews:
        """Make the views of images and annotations.

        Args:
            weak_view: Movements.
        """

    # --- sources

    def open_unlabeled(self, name: str) -> Examples:
        """Open another source and return its training images: one with annotations, or any other of images."""
        path = Path(name)
        if path.suffix.lower() == ".json" or any(
            folder.is_dir() for one in _IMAGES for folder in (path / one, *path.glob(f"*/{one}"))
        ):
            return take_unlabeled(self.open_to_predict(name))
        return open_unlabeled(name, self.root, skip=self.bad.policy == "skip")

    def make_targets(self, labels: Tensor) -> Tensor:
        """Return the labels, which say whether there is an annotation; the annotations come with the images."""
        return labels

    # --- how files are read

    @property
    def read_settings(self) -> Geometry:
        """Size, channels and scale of images, which are read with their annotations."""
        return self.with_annotations(self.geometry)

    def prepare_reading(self, name: str, split: Split, train: bool) -> tuple[Split, Geometry, int]:
        """Return the split, how it is read, and the number of workers; unlabeled images are read alone."""
        split, geometry, workers = super().prepare_reading(name, split, train)
        return split, geometry if name in ("unlabeled", "predict") else self.with_annotations(geometry), workers

    def read_pair(self, name: str, position: int) -> tuple[Tensor, Tensor]:
        """Return an image as networks see it, (C, H, W) in [0, 1], and its target as batches have it.

        Args:
            name: Name of the split.
            position: Position in the split.
        """
        split = self.splits[name]
        (batch,) = self._unaugmented(Split(split.part, [split.indices[position]]), torch.device("cpu"), 0)
        assert isinstance(batch.x, Tensor)
        return batch.x[0], batch.y[0]

    # --- views

    def views_of(self, name: str) -> ColoredViews:
        """Return the views of a training split, without the crop if a worker has cropped."""
        view = self.weak_view
        if view.crop_scale is not None and self._crops_once(name):
            view = replace(view, crop_scale=None)
        return self.make_views(view)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Make the views on the device, and give annotations as targets."""
        if isinstance(batch, RawBatch):
            return self._with_annotations(BatchViews(self.views).labeled(batch))
        made: dict[str, Labeled | Unlabeled] = {}
        if "labeled" in batch:
            views = BatchViews(self.views_of("labeled"), self.labeled_views)
            made["labeled"] = self._with_annotations(views.labeled(batch["labeled"]))
        if "unlabeled" in batch:
            made["unlabeled"] = self.views_of("unlabeled").make_unlabeled(batch["unlabeled"], self._request.views)
        return made

    def _with_annotations(self, batch: Labeled) -> Labeled:
        """Return a batch with the annotations of its images as targets."""
        if not isinstance(batch.x, Mapping):
            return batch
        return batch._replace(x=batch.x["image"], y=batch.x[self.annotation])

    def train_dataloader(self) -> TrainLoader:
        """Return the parts that the paradigm requests, side by side.

        Raises:
            InputError: A part has no image, strong views change nothing, or views for pre-training are requested.
        """
        if {"pretrain", "pretrain_local"} & {*self._request.views}:
            raise InputError(
                f"{type(self).__name__} gives no views for pre-training: give the images to ImageDataModule, and start "
                "from that run by model.weights"
            )
        if {"strong", "strong_2"} & {*self._request.views, *self.labeled_views} and not self.views.has_strong:
            raise InputError(
                f"strong_view changes nothing, but strong views are to be learned from: set {self.strong_settings}"
            )
        return super().train_dataloader()

    # --- prediction

    def read_predicted(self, name: str) -> Split:
        """Return the images of a folder, table or file, or of the test split of a source.

        Raises:
            InputError: The data does not exist or is empty.
        """
        path = Path(name)
        inside = next((path / one for one in _IMAGES if (path / one).is_dir()), path)
        return read_files(str(inside), self.root, self.bad)


def check_resize(resize: str) -> None:
    """Refuse a way to make images square under which parts of them are not seen.

    Args:
        resize: Setting of the user.

    Raises:
        InputError: It is neither `pad` nor `squash`.
    """
    if resize not in ("pad", "squash"):
        raise InputError(f"resize is {resize!r}: give pad or squash, under which all of an image is seen")

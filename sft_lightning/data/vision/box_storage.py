"""Storage of image files some of which have annotated objects."""

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sft_lightning.data.bad_examples import UNREADABLE
from sft_lightning.data.digests import combine_digests
from sft_lightning.data.file_storage import FileStorage
from sft_lightning.data.storage import Storage
from sft_lightning.data.vision.boxes import FIELDS, mark_unknown
from sft_lightning.data.vision.images import FileImages, Geometry, decode
from sft_lightning.data.vision.masks import upright_size
from sft_lightning.data.vision.objects import Objects
from sft_lightning.utils.inputs import Inputs

_THREADS = 8


@dataclass
class BoxGeometry(Geometry):
    """Geometry of images that are read with their boxes.

    Attributes:
        min_visible: Smallest share of the area of an object that has to be seen in a crop.
    """

    min_visible: float = 0.0
    __repr__ = Geometry.__repr__

    @classmethod
    def of(cls, geometry: Geometry, min_visible: float) -> "BoxGeometry":
        """Return the same geometry, with boxes.

        Args:
            geometry: Geometry of images alone.
            min_visible: Smallest share of the area of an object that has to be seen in a crop.
        """
        return cls(**{one.name: getattr(geometry, one.name) for one in fields(Geometry)}, min_visible=min_visible)


class BoxedImages(FileImages):
    """Storage of images as files, each with its objects or without an annotation.

    Attributes:
        objects: Objects of each image, or None for one without an annotation.
        class_names: Names of the classes, in the order of their numbers.
        sides: Width and height of each image in pixels; None before they are read.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        ids: Sequence[str],
        objects: Sequence[Objects | None],
        class_names: Sequence[str],
        sides: Sequence[tuple[int, int] | None] | None = None,
    ) -> None:
        """Keep the lists; no image is read.

        Args:
            paths: Paths of the images.
            ids: Name of each image in manifests and messages, the same on every machine.
            objects: Objects of each image, or None.
            class_names: Names of the classes, in the order of their numbers.
            sides: Width and height of each image in pixels, as far as they are known.
        """
        super().__init__(paths, ids)
        self.objects, self.class_names = list(objects), tuple(class_names)
        self.sides: list[tuple[int, int] | None] = [None] * len(self.paths) if sides is None else list(sides)
        self._rows = max([1, *(len(one) for one in self.objects if one is not None)])

    def sides_of(self, index: int) -> tuple[int, int]:
        """Return width and height of an upright image in pixels.

        Args:
            index: Position of the image.

        Raises:
            OSError: It is not an image.
        """
        known = self.sides[index]
        if known is None:
            known = self.sides[index] = upright_size(self.paths[index])
        return known

    def read(self, index: int, geometry: Geometry, seed: int | None) -> Inputs:
        """Decode one image, with its boxes if the geometry is a `BoxGeometry`.

        Args:
            index: Position of the image.
            geometry: Size, channels and crop.
            seed: Seed of the random crop, which the boxes follow; None for the central one.

        Returns:
            uint8 (C, size, size), or a mapping of it as `image`, and of the targets (M, 6) as `boxes`, where M is the
            most objects of an image of the storage.

        Raises:
            OSError: The file cannot be decoded.
        """
        image = decode(self.paths[index], geometry, seed)
        if not isinstance(geometry, BoxGeometry):
            return image
        if self.objects[index] is None:
            return {"image": image, "boxes": mark_unknown(self._rows)}
        return {"image": image, "boxes": self.place_objects(index, geometry, seed, self._rows)}

    def place_objects(self, index: int, geometry: BoxGeometry, seed: int | None, rows: int | None = None) -> Tensor:
        """Return the objects of an image in the network's image, (M, 6); none of an image without an annotation.

        Args:
            index: Position of the image.
            geometry: Size, channels and crop.
            seed: Seed of the random crop; None for the central one.
            rows: Number of rows M, which padding fills up; None for the number of the objects.
        """
        objects = self.objects[index]
        if objects is None:
            return torch.zeros(0, FIELDS)
        sides = self.sides_of(index)
        crop = geometry.box(*sides, seed)
        return objects.place(sides, geometry.size, crop, geometry.min_visible, rows)

    @classmethod
    def joined(cls, pieces: Sequence[tuple[Storage, Sequence[int]]], ids: Sequence[str]) -> "BoxedImages":
        """Join some images of several lists, those without objects included."""
        paths: list[Path] = []
        objects: list[Objects | None] = []
        sides: list[tuple[int, int] | None] = []
        names = [images.class_names for images, _ in pieces if isinstance(images, BoxedImages)]
        for images, chosen in pieces:
            assert isinstance(images, FileStorage)
            paths += [images.paths[i] for i in chosen]
            is_boxed = isinstance(images, BoxedImages)
            objects += [images.objects[i] if is_boxed else None for i in chosen]  # type: ignore[attr-defined]
            sides += [images.sides[i] if is_boxed else None for i in chosen]  # type: ignore[attr-defined]
        return cls(paths, ids, objects, names[0], sides)

    def digest(self) -> str:
        """Compute the SHA-256 of names and contents of images and objects, and of the names of the classes."""
        objects = combine_digests(
            sorted((name, one.content) for name, one in zip(self.ids, self.objects, strict=True) if one is not None)
        )
        pieces = {"images": super().digest(), "objects": objects, "classes": repr(self.class_names)}
        return combine_digests([(name, content.encode()) for name, content in pieces.items()])

    def contents(self, indices: Iterable[int]) -> list[bytes]:
        """Compute the SHA-256 of each image with its objects; `fingerprints` are of the images alone."""
        chosen = list(indices)
        return [
            image if one is None else hashlib.sha256(image + one.content).digest()
            for one, image in zip((self.objects[i] for i in chosen), self.fingerprints(chosen), strict=True)
        ]

    def unreadable(self, indices: Iterable[int], measures: bool = True) -> dict[int, str]:
        """Inspect each image, read its sides, and check its boxes against them."""
        order = list(indices)
        reasons = super().unreadable(order, measures)

        def check(i: int) -> str | None:
            objects = self.objects[i]
            if objects is None or i in reasons:
                return None
            try:
                return objects.find_problem(self.sides_of(i))
            except UNREADABLE as error:  # whose header is read again, in another way
                return str(error)

        with ThreadPoolExecutor(max_workers=_THREADS) as pool:
            found = dict(zip(order, pool.map(check, order), strict=True))
        return reasons | {i: reason for i, reason in found.items() if reason is not None}

    def count_classes(self, indices: Sequence[int]) -> Tensor:
        """Count the objects of each class in some images, int64, (N, num_classes), without those to be ignored.

        Args:
            indices: Positions of the images; those without an annotation or with a refused one have no objects.
        """
        count = len(self.class_names)
        counts = np.zeros((len(indices), count), dtype=np.int64)
        for row, i in zip(counts, indices, strict=True):
            if (objects := self.objects[i]) is not None:
                row += np.bincount(objects.classes[~objects.ignored], minlength=count)
        return torch.from_numpy(counts)

    def count_clipped(self) -> dict[int, int]:
        """Count the boxes that reach beyond their image, by the position of the image; images with some alone."""
        counts = {
            i: one.count_clipped(sides)
            for i, (one, sides) in enumerate(zip(self.objects, self.sides, strict=True))
            if one is not None and sides is not None and not one.problem
        }
        return {i: count for i, count in counts.items() if count}

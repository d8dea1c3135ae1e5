"""Storage of image files some of which have a mask."""

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sft_lightning.data.digests import combine_digests, digest_files
from sft_lightning.data.file_storage import FileStorage
from sft_lightning.data.storage import Storage
from sft_lightning.data.vision.images import FileImages, Geometry, decode
from sft_lightning.data.vision.masks import IGNORED, MaskCoding, cut_mask, find_mask_problem
from sft_lightning.utils.inputs import Inputs

_THREADS = 8


@dataclass
class MaskGeometry(Geometry):
    """Geometry of images that are read with their masks."""

    __repr__ = Geometry.__repr__

    @classmethod
    def of(cls, geometry: Geometry) -> "MaskGeometry":
        """Return the same geometry, with masks.

        Args:
            geometry: Geometry of images alone.
        """
        return cls(**{one.name: getattr(geometry, one.name) for one in fields(geometry)})


class MaskedImages(FileImages):
    """Storage of images as files, each with the file of its mask or without.

    Attributes:
        masks: Path of each mask, or None.
        coding: Meaning of the values of the masks.
    """

    def __init__(
        self, paths: Sequence[Path], ids: Sequence[str], masks: Sequence[Path | None], coding: MaskCoding
    ) -> None:
        """Keep the lists; nothing is read.

        Args:
            paths: Paths of the images.
            ids: Name of each image in manifests and messages, the same on every machine.
            masks: Path of each mask, or None.
            coding: Meaning of the values of the masks.
        """
        super().__init__(paths, ids)
        self.masks, self.coding = list(masks), coding

    def read(self, index: int, geometry: Geometry, seed: int | None) -> Inputs:
        """Decode one image, with its mask if the geometry is a `MaskGeometry`.

        Args:
            index: Position of the image.
            geometry: Size, channels and crop.
            seed: Seed of the random crop, which the mask follows; None for the central one.

        Returns:
            uint8 (C, size, size), or a mapping of it as `image`, and of int16 (size, size) as `mask`.

        Raises:
            OSError: One of the files cannot be decoded.
        """
        image = decode(self.paths[index], geometry, seed)
        if not isinstance(geometry, MaskGeometry):
            return image
        size, mask = geometry.size, self.read_mask(index)
        if mask is None:
            return {"image": image, "mask": torch.full((size, size), IGNORED, dtype=torch.int16)}
        box = geometry.box(mask.shape[1], mask.shape[0], seed)
        return {"image": image, "mask": torch.from_numpy(cut_mask(mask, size, box))}

    def read_mask(self, index: int) -> npt.NDArray[np.int16] | None:
        """Read the mask of an image as numbers of classes, int16, (H, W), -1 is not counted; None where it has none.

        Args:
            index: Position of the image.

        Raises:
            OSError: It cannot be read, or has a value that no class has.
        """
        path = self.masks[index]
        return None if path is None else self.coding.read(path)

    @classmethod
    def joined(cls, pieces: Sequence[tuple[Storage, Sequence[int]]], ids: Sequence[str]) -> "MaskedImages":
        """Join some images of several lists, those without masks included."""
        paths: list[Path] = []
        masks: list[Path | None] = []
        codings = [images.coding for images, _ in pieces if isinstance(images, MaskedImages)]
        for images, chosen in pieces:
            assert isinstance(images, FileStorage)
            paths += [images.paths[i] for i in chosen]
            masks += [images.masks[i] if isinstance(images, MaskedImages) else None for i in chosen]
        return cls(paths, ids, masks, codings[0])

    def digest(self) -> str:
        """Compute the SHA-256 of names and contents of images and masks, and of what the masks mean."""
        meaning = repr((self.coding.class_names, sorted(self.coding.numbers.items()), self.coding.ignore_index))
        pieces = {"images": super().digest(), "masks": self._digest_masks(), "classes": meaning}
        return combine_digests([(name, content.encode()) for name, content in pieces.items()])

    def _digest_masks(self) -> str:
        with_mask = [i for i, mask in enumerate(self.masks) if mask is not None]
        return combine_digests(sorted(zip([self.ids[i] for i in with_mask], self.digest_each(with_mask), strict=True)))

    def find_problem(self, index: int) -> str | None:
        """Return why the mask of an image that has one cannot be used, as a clause that names it, or None.

        Args:
            index: Position of the image.
        """
        path = self.masks[index]
        assert path is not None
        return find_mask_problem(self.paths[index], path, self.coding)

    def digest_each(self, indices: Sequence[int]) -> list[bytes | None]:
        """Compute the SHA-256 of the masks of images that have one; None for one that is gone.

        Args:
            indices: Positions of the images.
        """
        return digest_files([mask for i in indices if (mask := self.masks[i]) is not None])

    def contents(self, indices: Iterable[int]) -> list[bytes]:
        """Compute the SHA-256 of each image with its mask; `fingerprints` are of the images alone."""
        chosen = list(indices)
        found = iter(self.digest_each([i for i in chosen if self.masks[i] is not None]))
        return [
            hashlib.sha256(image + (next(found) or b"")).digest() if self.masks[i] is not None else image
            for i, image in zip(chosen, self.fingerprints(chosen), strict=True)
        ]

    def unreadable(self, indices: Iterable[int], measures: bool = True) -> dict[int, str]:
        """Inspect each image, and decode each mask and compare its size and its values."""
        order = list(indices)
        reasons = super().unreadable(order, measures)

        def check(i: int) -> str | None:
            return None if self.masks[i] is None or i in reasons else self.find_problem(i)

        with ThreadPoolExecutor(max_workers=_THREADS) as pool:
            found = dict(zip(order, pool.map(check, order), strict=True))
        return reasons | {i: reason for i, reason in found.items() if reason is not None}

    def count_classes(self, indices: Sequence[int]) -> Tensor:
        """Count the pixels of each class in some masks, as the files have them, int64, (N, num_classes).

        Args:
            indices: Positions of the images; those without a mask or with an unreadable one have no pixels.
        """
        count = len(self.coding.class_names)

        def of_one(i: int) -> npt.NDArray[np.int64]:
            try:
                mask = self.read_mask(i)
            except OSError:
                mask = None
            return np.bincount([] if mask is None else mask[mask >= 0].ravel(), minlength=count)

        with ThreadPoolExecutor(max_workers=_THREADS) as pool:
            counts = [*pool.map(of_one, indices)]
        return torch.from_numpy(np.array(counts, dtype=np.int64).reshape(len(indices), count))

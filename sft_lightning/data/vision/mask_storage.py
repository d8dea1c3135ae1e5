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
        """Read the mask of an image as numbers of classes, int16, (H, W); None where it has none.

        Args:
            index: Position of the image.

        Raises:
            OSError: It cannot be decoded.
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
        """Compute the SHA-256 of names and contents of images and masks."""
        return combine_digests([("images", super().digest().encode()), ("masks", self._digest_masks().encode())])

    def _digest_masks(self) -> str:
        with_mask = [i for i, mask in enumerate(self.masks) if mask is not None]
        digests = digest_files([mask for mask in self.masks if mask is not None])
        return combine_digests(sorted(zip([self.ids[i] for i in with_mask], digests, strict=True)))

    def contents(self, indices: Iterable[int]) -> list[bytes]:
        """Compute the SHA-256 of each image with its mask; `fingerprints` are of the images alone."""
        chosen = list(indices)
        masks = digest_files([mask for i in chosen if (mask := self.masks[i]) is not None])
        found = iter(masks)
        return [
            hashlib.sha256(image + (next(found) or b"")).digest() if self.masks[i] is not None else image
            for i, image in zip(chosen, self.fingerprints(chosen), strict=True)
        ]

    def unreadable(self, indices: Iterable[int], measures: bool = True) -> dict[int, str]:
        """Inspect each image, and decode each mask and compare its size and its values."""
        order = list(indices)
        reasons = super().unreadable(order, measures)

        def check(i: int) -> str | None:
            mask = self.masks[i]
            return None if mask is None or i in reasons else find_mask_problem(self.paths[i], mask, self.coding)

        with ThreadPoolExecutor(max_workers=_THREADS) as pool:
            found = dict(zip(order, pool.map(check, order), strict=True))
        return reasons | {i: reason for i, reason in found.items() if reason is not None}

    def count_pixels(self, indices: Iterable[int]) -> Tensor:
        """Count the pixels of each class in some masks, as the files have them, int64, (num_classes,).

        Args:
            indices: Positions of the images; those without a mask or with an unreadable one count for nothing.
        """
        paths = [mask for i in indices if (mask := self.masks[i]) is not None]
        count = len(self.coding.class_names)

        def of_one(path: Path) -> npt.NDArray[np.int64]:
            try:
                mask = self.coding.read(path)
            except OSError:
                return np.zeros(count, dtype=np.int64)
            return np.bincount(mask[mask >= 0].ravel(), minlength=count)

        with ThreadPoolExecutor(max_workers=_THREADS) as pool:
            return torch.from_numpy(sum(pool.map(of_one, paths), np.zeros(count, dtype=np.int64)))

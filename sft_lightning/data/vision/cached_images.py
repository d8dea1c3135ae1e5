"""Splits whose images come from a cache on disk (`image_cache.py`)."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sft_lightning.data.bad_examples import BadFiles
from sft_lightning.data.source import Examples
from sft_lightning.data.splits import Split
from sft_lightning.data.vision.image_cache import ImageCache
from sft_lightning.data.vision.images import FileImages, Geometry, cut_out


class CachedImages(FileImages):
    """Storage of files whose decoded images come from a cache; images that are not in it are decoded."""

    def __init__(self, files: FileImages, cache: ImageCache, rows: NDArray[np.int64]) -> None:
        """Join files and cache.

        Args:
            files: Files of a collection.
            cache: Cache of its source.
            rows: Row of each file in the cache, int64 of shape (N,).
        """
        super().__init__(files.paths, files.ids)
        self._cache, self._rows = cache, rows
        self.is_decoded = not cache.whole

    def read_batch(self, indices: Sequence[int], pinned: bool = False) -> Tensor | None:
        """Read several images from the cache at once; None if one is missing, or if rows hold whole images to crop."""
        return self._cache.read_batch(self._rows[list(indices)], pinned) if self.is_decoded else None

    def read(self, index: int, geometry: Geometry, seed: int | None) -> Tensor:
        """Read one image from the cache, or decode its file if it is not stored.

        Args:
            index: Position of the image.
            geometry: Geometry of the cache.
            seed: Seed of the random crop; None for the central one.

        Raises:
            OSError: The image is not in the cache, and its file cannot be decoded.
        """
        found = self._cache.row(int(self._rows[index]))
        if found is None or (self._cache.whole and seed is None):
            return super().read(index, geometry, seed)
        pixels, width, height = found
        if not self._cache.whole:
            return pixels
        left, top, right, bottom = geometry.box(width, height, seed)
        side = self._cache.geometry.size
        box = left * side / width, top * side / height, right * side / width, bottom * side / height
        return cut_out(Image.fromarray(pixels.numpy()), geometry.size, box, geometry.background)


class ImageCaches:
    """Caches of a data module, one for each geometry."""

    def __init__(self, folder: Path, parts: Sequence[Examples]) -> None:
        """Keep the folder and the files; nothing is read.

        Args:
            folder: Folder of the caches.
            parts: All collections of the data module, including those in memory.
        """
        self._folder = folder
        self._sets = [part.storage for part in parts if isinstance(part.storage, FileImages)]
        self._open: dict[str, ImageCache] = {}

    def __bool__(self) -> bool:
        """Return whether any collection consists of files."""
        return bool(self._sets)

    @cached_property
    def _files(self) -> FileImages:
        paths = [path for images in self._sets for path in images.paths]
        return FileImages(paths, [name for images in self._sets for name in images.ids])

    def cached(self, split: Split, geometry: Geometry, workers: int, bad: BadFiles) -> Split:
        """Return the split with images from a cache, after adding those that it lacks.

        Args:
            split: Split of a collection of files.
            geometry: Geometry by which files are decoded.
            workers: Number of processes that decode.
            bad: Record that unreadable files are reported to.

        Raises:
            InputError: The cache cannot be written, or a file cannot be decoded and the policy is `raise`.
        """
        images = split.part.storage
        assert isinstance(images, FileImages)
        if (name := repr(geometry)) not in self._open:
            self._open[name] = ImageCache(self._folder, self._files, geometry)
        cache = self._open[name]
        rows = self._numbers(images)
        cache.fill(rows[split.indices], workers, bad)
        return replace(split, part=replace(split.part, storage=CachedImages(images, cache, rows)))

    def _numbers(self, images: FileImages) -> NDArray[np.int64]:
        """Return the row of each file of a collection, which may have been joined from several."""
        first = 0
        for own in self._sets:
            if own is images:
                return np.arange(first, first + len(images))
            first += len(own)
        number = {path: i for i, path in enumerate(self._files.paths)}
        return np.array([number[path] for path in images.paths], np.int64)

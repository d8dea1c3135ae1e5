"""Batches to predict: files in the order of a listing, or the examples of a split, with their names."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sft_lightning.data.bad_examples import UNREADABLE, BadFiles, describe_read_error, show_path
from sft_lightning.data.loaders import RawBatch
from sft_lightning.data.prepare_splits import readable
from sft_lightning.data.source import Examples
from sft_lightning.data.splits import Split
from sft_lightning.data.storage import collate
from sft_lightning.data.vision.image_files import open_image_file
from sft_lightning.data.vision.image_frames import count_pages, describe_pages
from sft_lightning.data.vision.images import EncodedImages, FileImages, Geometry, decode_open
from sft_lightning.data.vision.prediction_files import Listing, open_prediction_source

_Request = tuple[int, str, str]  # position in the listing, name, path
_Decoded = tuple[
    Tensor | str, int, _Request
]  # the image or why it cannot be read, and the number of images of the file


class _FileDecoder(Dataset[Any]):
    """Data set that decodes one file per request into an image, or the reason why it cannot be read."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry

    def __getitem__(self, request: _Request) -> _Decoded:
        try:
            with open_image_file(request[2]) as file:
                image = decode_open(file, self.geometry, None)
                return image, count_pages(file), request
        except UNREADABLE as error:
            return describe_read_error(error), 1, request


class _Batch(NamedTuple):
    images: Tensor | None
    requests: list[_Request]
    bad: dict[str, str]  # reasons of unreadable files, by path
    paged: list[str]  # paths of files of several images, of which the first is read


def _collate(items: list[_Decoded]) -> _Batch:
    """Stack the images of a batch in the worker."""
    images = [image for image, *_ in items if isinstance(image, Tensor)]
    requests = [request for image, _, request in items if isinstance(image, Tensor)]
    bad = {request[2]: image for image, _, request in items if isinstance(image, str)}
    paged = [show_path(request[2]) for _, pages, request in items if pages > 1]
    return _Batch(collate(images) if images else None, requests, bad, paged)


class _Requests:
    """Batch sampler that lists the files while the `DataLoader` requests them."""

    def __init__(self, listing: Listing, batch_size: int, rank: int, world_size: int) -> None:
        self.listing, self.batch_size, self.rank, self.world_size = listing, batch_size, rank, world_size
        self.listed = 0, 0

    def __iter__(self) -> Iterator[list[_Request]]:
        batch: list[_Request] = []
        count, check = 0, 0
        for position, (name, path) in enumerate(self.listing):
            count, check = position + 1, zlib.crc32(name.encode(), check)
            if position % self.world_size == self.rank:
                batch.append((position, name, path))
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch
        self.listed = count, check


class FileLoader:
    """Batches of the files of a listing; each process reads every `world_size`-th file.

    The loader has no length: files added while it runs are read, too.

    Attributes:
        bad: Record of unreadable files.
        paged: Paths of files of several images, of which the first was read.
    """

    def __init__(
        self, listing: Listing, geometry: Geometry, batch_size: int, workers: int, bad: BadFiles,
        rank: int = 0, world_size: int = 1,
    ) -> None:  # fmt: skip
        """Prepare the loader; nothing is read.

        Args:
            listing: Files to read.
            geometry: Geometry that brings the files to images of one size.
            batch_size: Number of files per batch.
            workers: Number of worker processes that decode; none is started for a single batch.
            bad: Record of unreadable files.
            rank: Rank of this process.
            world_size: Number of processes.
        """
        self.bad = bad
        self.paged: list[str] = []
        self._requests = _Requests(listing, batch_size, rank, world_size)
        self._loader: DataLoader[Any] = DataLoader(
            _FileDecoder(geometry),
            batch_sampler=self._requests,
            num_workers=workers if listing.count > batch_size * world_size else 0,
            collate_fn=_collate,
            generator=torch.Generator(),  # without one, the seed of the workers would advance the global generator
        )

    @property
    def listed(self) -> tuple[int, int]:
        """Number of all files and a checksum of their names; zeros until all are listed.

        Processes compare it to make sure that they read the same list.
        """
        return self._requests.listed

    def __iter__(self) -> Iterator[RawBatch]:
        """Yield batches with names and without labels (-1); unreadable files are left out or refused."""
        self.paged = []
        for images, requests, bad, paged in self._loader:
            self.paged += paged
            for path, reason in bad.items():
                self.bad.report(path, reason)
            if images is not None:
                index = torch.tensor([position for position, _, _ in requests])
                names = [name for _, name, _ in requests]
                yield RawBatch(images, torch.full_like(index, -1), index, None, names)


def read_files(name: str, root: str, bad: BadFiles) -> Split:
    """Return the images to predict as a split, whose files are known before they are read.

    Args:
        name: Folder, table, file or name of a data set.
        root: Folder of data sets, and second folder for the files of a table.
        bad: Record that unreadable files are reported to; its policy may refuse them.

    Raises:
        InputError: The source holds no image.
    """
    opened = open_prediction_source(name, root, bad.policy == "raise")
    if not isinstance(opened, Examples):
        ids, paths = zip(*opened, strict=True)
        opened = Examples(FileImages([Path(one) for one in paths], ids), list(ids), torch.full((len(ids),), -1))
    part = readable(opened, bad)
    if isinstance(part.storage, EncodedImages) and part.storage.facts is not None:
        for finding in describe_pages(part.storage.facts.paged):
            rank_zero_info(f"Data: {finding}.")
    return Split(part, range(len(part)))

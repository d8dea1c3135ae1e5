"""Batches to predict: files in the order of a listing, or the examples of a split, with their names."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sft_lightning.data.loaders import EvalLoader, RawBatch
from sft_lightning.data.prepare_splits import readable
from sft_lightning.data.run_splits import TestOn
from sft_lightning.data.source import Examples
from sft_lightning.data.splits import Split, Splits
from sft_lightning.data.vision.file_checks import UNREADABLE, BadImages, describe_read_error
from sft_lightning.data.vision.images import Geometry, decode, stacked
from sft_lightning.data.vision.prediction_files import Listing, open_prediction_source
from sft_lightning.utils.errors import InputError

_Request = tuple[int, str, str]  # position in the listing, name, path


class _FileDecoder(Dataset[Any]):
    """Data set that decodes one file per request into an image, or the reason why it cannot be read."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry

    def __getitem__(self, request: _Request) -> tuple[Tensor | str, _Request]:
        try:
            return decode(request[2], self.geometry, None), request
        except UNREADABLE as error:
            return describe_read_error(error), request


def _collate(items: list[tuple[Tensor | str, _Request]]) -> tuple[Tensor | None, list[_Request], dict[str, str]]:
    """Stack the images of a batch in the worker, and return the reasons of unreadable ones by path."""
    images = [image for image, _ in items if isinstance(image, Tensor)]
    requests = [request for image, request in items if isinstance(image, Tensor)]
    bad = {request[2]: image for image, request in items if isinstance(image, str)}
    return stacked(images) if images else None, requests, bad


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
    """

    def __init__(
        self, listing: Listing, geometry: Geometry, batch_size: int, workers: int, bad: BadImages,
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
        for images, requests, bad in self._loader:
            for path, reason in bad.items():
                self.bad.report(path, reason)
            if images is not None:
                index = torch.tensor([position for position, _, _ in requests])
                names = [name for _, name, _ in requests]
                yield RawBatch(images, torch.full_like(index, -1), index, None, names)


class NamedBatches:
    """Batches of a split with the names of their examples."""

    def __init__(self, batches: EvalLoader, names: list[str]) -> None:
        """Join batches and names.

        Args:
            batches: Batches of the split.
            names: Names of the examples, in the order of the split.
        """
        self._batches, self._names = batches, names

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[RawBatch]:
        for batch in self._batches:
            yield batch._replace(names=[self._names[i] for i in batch.indices.tolist()])


class PredictionData(ABC):
    """Mixin of `ImageDataModule`: the images to predict."""

    splits: Splits
    _named: str
    predict_source: str | None
    test_on: TestOn
    root: str
    geometry: Geometry
    bad: BadImages
    eval_batch_size: int
    num_workers: int
    trainer: Any
    _predicted: Listing | Split | None = None
    _predict_loader: FileLoader | NamedBatches | None = None

    @abstractmethod
    def _eval(self, name: str, split: Split) -> EvalLoader | list[Any]:
        """Batches of a split in its order."""

    @property
    def predict_name(self) -> str:
        """Name of the images to predict: that of the source, as an absolute path where it is a file or folder."""
        named = self._named if self.predict_source is None else self.predict_source
        full = str(Path(named).resolve()) if Path(named).exists() else named
        if self.predict_source is not None:
            return full
        return f"{'all' if self.test_on == 'all' else 'test split'} of {full}"

    def open_predicted(self) -> Listing | Split:
        """Open the images to predict, once.

        Raises:
            InputError: There are no images.
        """
        if self._predicted is None:
            if self.predict_source is None:
                self._predicted = self.splits["test"]
            else:
                found = open_prediction_source(self.predict_source, self.root, self.bad.policy == "raise")
                if isinstance(found, Examples):
                    part = readable(found, self.bad)
                    self._predicted = Split(part, list(range(len(part))))
                else:
                    self._predicted = found
                    for message in found.messages:
                        rank_zero_info(f"Data: {message}.")
        return self._predicted

    @property
    def predict_count(self) -> int:
        """Number of images to predict, as far as known before they are read."""
        found = self.open_predicted()
        return found.count if isinstance(found, Listing) else len(found)

    @property
    def predict_listed(self) -> tuple[int, int]:
        """Number of all files and a checksum of their names, as in `FileLoader.listed`; zeros for a split."""
        return self._predict_loader.listed if isinstance(self._predict_loader, FileLoader) else (0, 0)

    def predict_dataloader(self) -> FileLoader | NamedBatches:
        """Return the batches to predict.

        Raises:
            InputError: There are no images.
        """
        found = self.open_predicted()
        if isinstance(found, Listing):
            where = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
            settings = self.geometry, self.eval_batch_size, self.num_workers, self.bad
            self._predict_loader = FileLoader(found, *settings, *where)
        else:
            batches = self._eval("predict", found)
            if isinstance(batches, list):
                raise InputError(
                    "the source has no test image to predict: set predict_source to a folder, a manifest or a file"
                )
            self._predict_loader = NamedBatches(batches, found.ids)
        return self._predict_loader

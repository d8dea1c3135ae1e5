"""Pictures of a data module without random changes, for what is made of features."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import PIL
import torch
from PIL import features
from torch import Tensor

from sft_lightning.data.batch_sampling import BatchPlan, once_in_turn
from sft_lightning.data.batches import Labeled
from sft_lightning.data.loaders import EvalLoader, Stream
from sft_lightning.data.source import Examples
from sft_lightning.data.splits import Split, SplitConfig, Splits
from sft_lightning.data.vision.cached_images import ImageCaches
from sft_lightning.data.vision.file_checks import BadImages
from sft_lightning.data.vision.images import DECODING, FileImages, Geometry, MemoryImages
from sft_lightning.data.vision.views import WeakView


class AsTheyAre(ABC):
    """A part of `ImageDataModule`, whose attributes these are."""

    splits: Splits
    request: SplitConfig
    geometry: Geometry
    bad: BadImages
    eval_batch_size: int
    num_workers: int
    weak_view: WeakView
    labeled_views: tuple[str, ...]
    trainer: Any
    _caches: ImageCaches | None
    _features: Splits

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what a network sees."""

    @abstractmethod
    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """As Lightning has it."""

    @abstractmethod
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """As Lightning has it."""

    def labeled_batches(self, most: int, device: torch.device, name: str = "labeled") -> Iterator[Labeled]:
        """Labeled training pictures without random changes, the same on every process, for what is made of features.

        Args:
            most: Of more, so many are drawn, classes in turn: all of a small class, and a part of a large one.
            device: Where to.
            name: Of another split, whose pictures are wanted in their place.
        """
        split = self.splits[name]
        chosen = split
        if len(split) > most:
            order = torch.randperm(len(split), generator=torch.Generator().manual_seed(self.request.seed))
            drawn = once_in_turn(order, split.labels)[:most].sort().values
            chosen = Split(split.part, [split.indices[k] for k in drawn.tolist()])
        return self._as_they_are(chosen, device)

    def training_batches(self, most: int, device: torch.device) -> Iterator[Labeled]:
        """Training pictures without random changes, the same on every process: labeled ones first, then unlabeled.

        Args:
            most: Of more, so many are drawn by the seed.
            device: Where to.
        """
        yield from self.labeled_batches(most, device)
        split, left = self.splits["unlabeled"], most - len(self.splits["labeled"])
        if left > 0 and len(split):
            order = torch.randperm(len(split), generator=torch.Generator().manual_seed(self.request.seed))
            chosen = [split.indices[k] for k in order[:left].sort().values.tolist()]
            yield from self._as_they_are(Split(split.part, chosen), device)

    def batches_of(self, name: str, device: torch.device) -> Iterator[Labeled]:
        """All examples of a split in their order, without random changes, the same on every process.

        Args:
            name: `labeled`, `unlabeled`, `val` or `test`.
            device: Where to.
        """
        return self._as_they_are(self.splits[name], device, cached=True)

    def pictures_of(self, name: str, positions: list[int]) -> Tensor:
        """Some examples of a split as networks see them without random changes, (N, C, H, W) in [0, 1].

        Args:
            name: Of the split.
            positions: In it.
        """
        split = self.splits[name]
        few = Split(split.part, [split.indices[i] for i in positions])
        return torch.cat([batch.x for batch in self._as_they_are(few, torch.device("cpu"))])

    def _as_they_are(self, split: Split, device: torch.device, cached: bool = False) -> Iterator[Labeled]:
        """`cached`: for whole splits, which are worth it; a look at a few pictures writes no cache."""
        plan, workers = BatchPlan(len(split), self.eval_batch_size), self.num_workers
        if cached:
            split, workers = self._opened(split, self.geometry)
        for raw in EvalLoader(Stream(split, plan, self.geometry, workers=workers, bad=self.bad, device=device)):
            yield self.on_after_batch_transfer(self.transfer_batch_to_device(raw, device, 0), 0)

    def _opened(self, split: Split, geometry: Geometry) -> tuple[Split, int]:
        """The split with pictures from the cache, if there is one, and the number of processes to read them with."""
        if self._caches is None or not isinstance(split.part.images, FileImages):
            return split, self.num_workers
        # One process of a machine decodes, with the workers of all that wait for it.
        workers = self.num_workers * (self.trainer.num_devices if self.trainer is not None else 1)
        split = self._caches.cached(split, geometry, workers, self.bad)
        return split, self.num_workers if geometry.scale is not None else 0  # to copy rows takes none

    def fingerprint(self, name: str) -> str:
        """Compute the SHA-256 of what goes into a network of a split without random changes: content and geometry.

        Args:
            name: `labeled`, `unlabeled`, `val` or `test`.
        """
        split = self.splits[name]
        versions = DECODING, PIL.__version__, features.version("jpg")  # other decoders give other pixels
        found = hashlib.sha256(repr((versions, self.geometry, self.image_shape)).encode())
        for content in split.part.images.fingerprints(split.indices):
            found.update(content)
        return found.hexdigest()

    @property
    def size_settings(self) -> dict[str, Any]:
        """The side of the images."""
        return {"image_size": self.image_shape[-1]}

    @property
    def reading_key(self) -> str:
        """How files become images of one size."""
        return repr(self.geometry)

    @property
    def fixed_views(self) -> bool:
        """Whether labeled training pictures are the same in every epoch."""
        return not self.weak_view and self.labeled_views == ("weak",)

    def use_features(self, features: dict[str, Tensor]) -> None:
        """From now on batches of these splits hold features in place of pictures.

        Args:
            features: (N, F) by the name of the split, in its order; nothing to read pictures again.
        """
        self._features = {
            name: Split(
                Examples(MemoryImages(made), self.splits[name].ids, self.splits[name].labels), list(range(len(made)))
            )
            for name, made in features.items()
        }

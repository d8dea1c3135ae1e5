"""Batches: step-bounded, rank-aware, resumable; a slice of a uint8 tensor, or files decoded by workers.

Everything random about batch number g follows from (seed, g): which examples it holds and the seed of its views. A
loader that is told g goes on from there, whatever the number of workers, and no global random state is touched.
"""

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sft_lightning.data.bad_examples import UNREADABLE, BadImages, describe_read_error, show_path
from sft_lightning.data.batch_sampling import PRIME, BatchPlan
from sft_lightning.data.splits import Split
from sft_lightning.data.storage import FeatureStorage, ReadSettings, RecordStorage, TensorStorage, collate
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.transfer import fits_in_memory, prefetch, to_device

_AT_ONCE = 256  # pictures that are copied to a device at a time


class RawBatch(NamedTuple):
    """What a loader yields: pictures before any view is made.

    Attributes:
        images: uint8, (B, C, H, W).
        labels: int64, (B,), or None: labels of unlabeled examples never travel.
        indices: int64, (B,): positions in the split.
        draw: Seed of the random views of this batch, None where views are fixed.
        names: Of the examples, where they are to be predicted.
        is_features: Whether `images` holds features of the examples, (B, F), in place of the examples.
    """

    images: Tensor
    labels: Tensor | None
    indices: Tensor
    draw: int | None
    names: list[str] | None = None
    is_features: bool = False


class _Decoded(Dataset[Any]):
    """Reads one file for a worker: (position, seed or None) to (picture or reason, position)."""

    def __init__(self, images: RecordStorage, indices: Sequence[int], geometry: ReadSettings) -> None:
        self.images, self.indices, self.geometry = images, indices, geometry

    def __getitem__(self, request: tuple[int, int | None, int]) -> tuple[Tensor | str, int, int]:
        position, seed, draw = request
        try:
            return self.images.read(self.indices[position], self.geometry, seed), position, draw
        except UNREADABLE as error:
            return describe_read_error(error), position, draw


class _Requests:
    """The batches that a `DataLoader` asks its workers for; where they start and end is set before each pass."""

    def __init__(self, plan: BatchPlan) -> None:
        self.plan, self.start, self.stop = plan, 0, 0

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int | None, int]]]:
        for g in range(self.start, self.stop):
            indices, draw = self.plan[g]
            crop = [draw * PRIME + k if self.plan.shuffle else None for k in range(len(indices))]
            yield [(i, seed, draw) for i, seed in zip(indices.tolist(), crop, strict=True)]


class _Read(NamedTuple):
    """What a worker hands over at once: pictures as one tensor, where they are in the split, and why others are not."""

    images: Tensor | None
    positions: list[int]
    bad: list[tuple[int, str]]
    draw: int


def _stacked(items: list[tuple[Tensor | str, int, int]]) -> _Read:
    pictures = [picture for picture, _, _ in items if isinstance(picture, Tensor)]
    positions = [position for picture, position, _ in items if isinstance(picture, Tensor)]
    bad = [(position, picture) for picture, position, _ in items if isinstance(picture, str)]
    return _Read(collate(pictures) if pictures else None, positions, bad, items[0][2])


class Stream:
    """The batches of one split, from any point on."""

    def __init__(
        self,
        split: Split,
        plan: BatchPlan,
        geometry: ReadSettings,
        with_labels: bool = True,
        workers: int = 0,
        bad: BadImages | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Prepares; nothing is read.

        Args:
            split: Split to read.
            plan: Order of the batches and their examples.
            geometry: How files become pictures of one size.
            with_labels: Whether labels travel.
            workers: Processes that decode files.
            bad: Reporter of unreadable files.
            device: Device of the network; images that need no decoding stay there if it is a GPU with enough memory.
        """
        self.plan, self.bad, self._geometry, self._device = plan, bad or BadImages(), geometry, device
        self._split = split
        self._labels = split.labels if with_labels else None
        self._indices: Tensor | None = None
        images = split.part.images
        self._is_features = isinstance(images, FeatureStorage)
        if isinstance(images, TensorStorage):
            whole = len(split.indices) == len(images)
            self._indices = None if whole else torch.tensor(split.indices)
        else:
            assert isinstance(images, RecordStorage)
            self._requests, self._decoded = _Requests(plan), _Decoded(images, split.indices, geometry)
            self._loader: DataLoader[Any] = DataLoader(
                self._decoded,
                batch_sampler=self._requests,
                num_workers=workers,
                collate_fn=_stacked,
                persistent_workers=workers > 0,
                # Workers need no random numbers, and drawing their seed would move the global state.
                generator=torch.Generator(),
            )

    def batches(self, start: int, stop: int) -> Iterator[RawBatch]:
        """Yields batches start to stop - 1.

        Args:
            start: Number of the first batch since the start of training.
            stop: One past the last.

        Raises:
            InputError: A file cannot be decoded and the policy is `raise`, or nothing of a batch can be.
        """
        memory = self._memory
        if memory is None:
            yield from (batch for batch in self._read(start, stop) if batch is not None)
            return
        for g in range(start, stop):
            index, draw = self.plan[g]
            # Several times faster than indexing: it copies whole rows.
            rows = index if self._indices is None else self._indices[index]
            yield self._raw(memory.index_select(0, to_device(rows, memory.device)), index, draw)

    def close(self) -> None:
        """Ends the workers; the next pass would start others.

        Left to the garbage collector, which takes their queues down first, each of them is waited for 5 s.
        """
        loader = getattr(self, "_loader", None)
        if loader is not None and loader._iterator is not None:
            if loader.num_workers:
                loader._iterator._shutdown_workers()
            loader._iterator = None

    def _read(self, start: int, stop: int) -> Iterator[RawBatch | None]:
        if self._decoded.images.decoded:
            copied = self._copied(start, stop)
            return prefetch(copied) if self._pins else copied
        self._requests.start, self._requests.stop = start, stop
        return map(self._collated, self._loader)

    def _raw(self, images: Tensor, index: Tensor, draw: int) -> RawBatch:
        labels = None if self._labels is None else self._labels[index]
        draw_or_none = draw if self.plan.shuffle else None
        return RawBatch(images, labels, index, draw_or_none, is_features=self._is_features)

    @cached_property
    def _memory(self) -> Tensor | None:
        """All pictures, of which a batch is a selection; None where files are read for each batch."""
        images, count = self._split.part.images, len(self._split)
        if isinstance(images, TensorStorage):
            return images.data if self._device is None else images.on(self._device)
        assert isinstance(images, RecordStorage)
        shape = (count, *self._geometry.shape)
        # What is seen once is read while the device is at work.
        wanted = self.plan.shuffle and images.decoded and self._device is not None
        if not wanted or not fits_in_memory(math.prod(shape), cast(torch.device, self._device)):
            return None
        made = torch.empty(shape, dtype=torch.uint8, device=self._device)
        for start in range(0, count, _AT_ONCE):
            rows = images.several(self._split.indices[start : start + _AT_ONCE], self._pins)
            if rows is None:
                return None
            made[start : start + _AT_ONCE].copy_(rows, non_blocking=True)
        return made

    def _copied(self, start: int, stop: int) -> Iterator[RawBatch | None]:
        """Batches of pictures that are there decoded; where one is not, its batch is read like any other."""
        images = self._split.part.images
        assert isinstance(images, RecordStorage)
        for g in range(start, stop):
            index, draw = self.plan[g]
            rows = images.several([self._split.indices[i] for i in index.tolist()], self._pins)
            if rows is None:
                yield self._collated(_stacked([self._decoded[i, None, draw] for i in index.tolist()]))
            else:
                yield self._raw(rows, index, draw)

    @property
    def _pins(self) -> bool:
        return self._device is not None and self._device.type == "cuda"

    def _collated(self, read: _Read) -> RawBatch | None:
        for position, why in read.bad:
            self.bad.report(self._path(position), why)
        if read.images is None and not self.plan.shuffle:
            return None
        if read.images is None:  # a step of training needs something to train on
            raise InputError(
                f"no image of a whole batch could be read, '{show_path(self._path(read.bad[0][0]))}' among them: "
                "check the files and the permissions of their folder"
            )
        return self._raw(read.images, torch.tensor(read.positions), read.draw)

    def _path(self, position: int) -> Path:
        images = self._split.part.images
        assert isinstance(images, RecordStorage)
        return images.place(self._split.indices[position])


def close(streams: list[Stream]) -> None:
    """Ends the workers of all, and forgets them.

    Args:
        streams: Empty afterwards.
    """
    while streams:
        streams.pop().close()


class Schedule(Protocol):
    """Which parts batch g holds, and how many batches of each part came before it."""

    def parts(self, g: int) -> tuple[str, ...]:
        """Names.

        Args:
            g: Counts batches from the start of training.
        """

    def before(self, part: str, g: int) -> int:
        """Batches of a part among the first g.

        Args:
            part: `labeled` or `unlabeled`.
            g: Counts batches from the start of training.
        """


class TrainLoader:
    """The parts of a training batch side by side, in epochs of a fixed number of steps.

    Lightning saves `state_dict` in its checkpoints and hands it back, so an interrupted epoch goes on where it stopped:
    with the same batches where the product of batch size and processes is the same, and else at the next whole batch
    of the pass, so that no example comes twice in it and fewer than one batch of all processes are left out.
    """

    def __init__(
        self,
        streams: dict[str, Stream],
        steps: int,
        schedule: Schedule | None = None,
        taken: int | None = None,
        repeats: bool = False,
    ) -> None:
        """Joins the streams.

        Args:
            streams: `labeled`, `unlabeled` or both.
            steps: Batches of an epoch.
            schedule: Rule that decides which streams each batch holds; None for all.
            taken: So many of them are taken before the next epoch begins (`limit_train_batches`); None for all.
            repeats: Whether each epoch has the batches of the first one (`overfit_batches`).
        """
        self.streams, self.steps, self.schedule, self.repeats = streams, steps, schedule, repeats
        self.taken = steps if taken is None else taken
        self.epoch, self.position = 0, 0
        self._ahead: dict[str, int] = {}  # of a stream's own count, since it went on with batches of another size

    @property
    def sampler(self) -> "TrainLoader":
        """Lightning calls `set_epoch` on what it finds here."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Moves to the start of an epoch, or stays inside it after a resume.

        Args:
            epoch: Counted from 0.
        """
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[dict[str, RawBatch]]:
        start = self.position if self.position < self.taken else 0
        self.position = start
        first, last = self._first + start, self._first + self.steps
        parts = {
            name: stream.batches(self._before(name, first), self._before(name, last))
            for name, stream in self.streams.items()
        }
        for g in range(first, last):
            self.position += 1
            names = tuple(parts) if self.schedule is None else self.schedule.parts(g)
            yield {name: next(parts[name]) for name in names}

    @property
    def _first(self) -> int:
        """Number of the epoch's first batch."""
        return 0 if self.repeats else self.epoch * self.taken

    def _before(self, part: str, g: int) -> int:
        return (g if self.schedule is None else self.schedule.before(part, g)) + self._ahead.get(part, 0)

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch would come from."""
        g = self._first + self.position
        places = {name: stream.plan.place(self._before(name, g)) for name, stream in self.streams.items()}
        ended = self.position >= self.taken
        return {"epoch": self.epoch, "position": self.position, "ended": ended, "places": places}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved place.

        Args:
            state: State from `state_dict`, possibly of another number of processes.
        """
        self.epoch, self.position, self._ahead = state["epoch"], state["position"], {}
        g = self._first + (self.taken if state.get("ended") else self.position)
        for name, place in state.get("places", {}).items():
            plan, own = self.streams[name].plan, self._before(name, g)
            if place is not None and plan.place(own) not in (None, tuple(place)):
                self._ahead[name] = plan.after(tuple(place)) - own


class EvalLoader:
    """One pass over a split in its own order."""

    def __init__(self, stream: Stream) -> None:
        """Wraps the stream.

        Args:
            stream: Stream whose plan does not shuffle.
        """
        self.stream = stream

    def __len__(self) -> int:
        return self.stream.plan.per_pass

    def __iter__(self) -> Iterator[RawBatch]:
        return self.stream.batches(0, len(self))

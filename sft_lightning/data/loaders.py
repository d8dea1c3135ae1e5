"""Loaders of step-bounded, rank-aware, resumable batches from one tensor or from records that workers read.

All randomness of a batch, its examples and the seed of its views, follows from the seed of the run and the number of
the batch. A loader that starts at a batch continues from there, whatever the number of workers, and changes no global
random state.
"""

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sft_lightning.data.bad_examples import UNREADABLE, BadFiles, describe_read_error, show_path
from sft_lightning.data.batch_sampling import PRIME, BatchPlan
from sft_lightning.data.source import is_whole
from sft_lightning.data.splits import Split
from sft_lightning.data.storage import FeatureStorage, HasShape, RecordStorage, TensorStorage, collate
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import Inputs
from sft_lightning.utils.lightning_patches import shut_down_workers
from sft_lightning.utils.transfer import fits_in_memory, prefetch, to_device

_AT_ONCE = 256  # examples copied to a device at a time


class RawBatch(NamedTuple):
    """Batch that a loader yields, before any view is made.

    Attributes:
        inputs: Stored examples, such as uint8 images of shape (B, C, H, W).
        labels: Labels, int64 of shape (B,), or None for unlabeled examples.
        indices: Positions in the split, int64 of shape (B,).
        seed: Seed of the random views of this batch, or None if views are fixed.
        names: Names of the examples, in prediction only.
        is_features: Whether `inputs` holds features of the examples, (B, F), in place of the examples.
    """

    inputs: Inputs
    labels: Tensor | None
    indices: Tensor
    seed: int | None
    names: list[str] | None = None
    is_features: bool = False


class _Records(Dataset[Any]):
    """Data set that reads one record: (position, seed or None, seed of the batch) to (example or reason, ...)."""

    def __init__(self, storage: RecordStorage, indices: Sequence[int], settings: HasShape) -> None:
        self.storage, self.indices, self.settings = storage, indices, settings

    def __getitem__(self, request: tuple[int, int | None, int]) -> tuple[Inputs | str, int, int]:
        position, seed, batch_seed = request
        try:
            return self.storage.read(self.indices[position], self.settings, seed), position, batch_seed
        except UNREADABLE as error:
            return describe_read_error(error), position, batch_seed


class _Requests:
    """Batch sampler whose first and last batch are set before each pass."""

    def __init__(self, plan: BatchPlan) -> None:
        self.plan, self.start, self.stop = plan, 0, 0

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int | None, int]]]:
        for batch_idx in range(self.start, self.stop):
            indices, batch_seed = self.plan[batch_idx]
            seeds = [batch_seed * PRIME + k if self.plan.shuffle else None for k in range(len(indices))]
            yield [(i, seed, batch_seed) for i, seed in zip(indices.tolist(), seeds, strict=True)]


class _Read(NamedTuple):
    """Batch from a worker: stacked examples, their positions, and the reasons why others cannot be read."""

    inputs: Inputs | None
    positions: list[int]
    bad: list[tuple[int, str]]
    seed: int


def _stacked(items: list[tuple[Inputs | str, int, int]]) -> _Read:
    examples = [content for content, _, _ in items if not isinstance(content, str)]
    positions = [position for content, position, _ in items if not isinstance(content, str)]
    bad = [(position, content) for content, position, _ in items if isinstance(content, str)]
    return _Read(collate(examples) if examples else None, positions, bad, items[0][2])


class Stream:
    """Batches of one split, starting from any batch."""

    def __init__(
        self,
        split: Split,
        plan: BatchPlan,
        settings: HasShape,
        with_labels: bool = True,
        workers: int = 0,
        bad: BadFiles | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Prepare to read; nothing is read yet.

        Args:
            split: Examples to read.
            plan: Plan of the batches.
            settings: Settings by which records become examples of one shape.
            with_labels: Whether batches contain labels.
            workers: Number of processes that read records.
            bad: List that unreadable records are reported to.
            device: Device of the network; examples that need no reading are kept there if it is a GPU with enough
                memory.
        """
        self.plan, self.bad, self._settings, self._device = plan, bad or BadFiles(), settings, device
        self._split = split
        self._labels = split.labels if with_labels else None
        self._indices: Tensor | None = None
        self._loader: DataLoader[Any] | None = None
        storage = split.part.storage
        self._is_features = isinstance(storage, FeatureStorage)
        if isinstance(storage, TensorStorage):
            self._indices = None if is_whole(split.indices, len(storage)) else torch.tensor(split.indices)
        else:
            assert isinstance(storage, RecordStorage)
            self._requests, self._records = _Requests(plan), _Records(storage, split.indices, settings)
            self._loader = DataLoader(
                self._records,
                batch_sampler=self._requests,
                num_workers=workers,
                collate_fn=_stacked,
                persistent_workers=workers > 0,
                # Workers need no random numbers, and drawing their seed would move the global state.
                generator=torch.Generator(),
            )

    def batches(self, start: int, stop: int) -> Iterator[RawBatch]:
        """Yield batches start to stop - 1.

        Args:
            start: Number of the first batch since the start of training.
            stop: Number of the batch after the last one.

        Raises:
            InputError: A record cannot be read and the policy is `raise`, or none of a training batch can be.
        """
        memory = self._memory
        if memory is None:
            yield from (batch for batch in self._read(start, stop) if batch is not None)
            return
        for batch_idx in range(start, stop):
            index, seed = self.plan[batch_idx]
            # Several times faster than indexing: it copies whole rows.
            rows = index if self._indices is None else self._indices[index]
            yield self._raw(memory.index_select(0, to_device(rows, memory.device)), index, seed)

    def close(self) -> None:
        """End the workers; another pass would start new ones."""
        if self._loader is not None:
            shut_down_workers(self._loader)

    def _read(self, start: int, stop: int) -> Iterator[RawBatch | None]:
        if self._records.storage.is_decoded:
            copied = self._copied(start, stop)
            return prefetch(copied) if self._pins else copied
        assert self._loader is not None
        self._requests.start, self._requests.stop = start, stop
        return map(self._collated, self._loader)

    def _raw(self, inputs: Inputs, index: Tensor, seed: int) -> RawBatch:
        labels = None if self._labels is None else self._labels[index]
        view_seed = seed if self.plan.shuffle else None
        return RawBatch(inputs, labels, index, view_seed, is_features=self._is_features)

    @cached_property
    def _memory(self) -> Tensor | None:
        """All examples, from which each batch selects, or None if records are read for each batch."""
        storage, count = self._split.part.storage, len(self._split)
        if isinstance(storage, TensorStorage):
            return storage.data if self._device is None else storage.on(self._device)
        assert isinstance(storage, RecordStorage)
        shape = (count, *self._settings.shape)
        # Examples that are used only once are read while the device computes.
        wanted = self.plan.shuffle and storage.is_decoded and self._device is not None
        if not wanted or not fits_in_memory(math.prod(shape), cast(torch.device, self._device)):
            return None
        made = torch.empty(shape, dtype=torch.uint8, device=self._device)
        for start in range(0, count, _AT_ONCE):
            rows = storage.read_batch(self._split.indices[start : start + _AT_ONCE], self._pins)
            if rows is None:
                return None
            made[start : start + _AT_ONCE].copy_(rows, non_blocking=True)
        return made

    def _copied(self, start: int, stop: int) -> Iterator[RawBatch | None]:
        """Yield batches of examples that are stored decoded; decode the files of a batch if one of them is not."""
        storage = self._split.part.storage
        assert isinstance(storage, RecordStorage)
        for batch_idx in range(start, stop):
            index, seed = self.plan[batch_idx]
            rows = storage.read_batch([self._split.indices[i] for i in index.tolist()], self._pins)
            if rows is None:
                yield self._collated(_stacked([self._records[i, None, seed] for i in index.tolist()]))
            else:
                yield self._raw(rows, index, seed)

    @property
    def _pins(self) -> bool:
        return self._device is not None and self._device.type == "cuda"

    def _collated(self, read: _Read) -> RawBatch | None:
        for position, why in read.bad:
            self.bad.report(self._path(position), why)
        if read.inputs is None and not self.plan.shuffle:
            return None
        if read.inputs is None:  # a training step needs at least one example
            raise InputError(
                f"no example of a whole batch could be read, '{show_path(self._path(read.bad[0][0]))}' among them: "
                "check the files and the permissions of their folder"
            )
        return self._raw(read.inputs, torch.tensor(read.positions), read.seed)

    def _path(self, position: int) -> Path:
        storage = self._split.part.storage
        assert isinstance(storage, RecordStorage)
        return storage.path_of(self._split.indices[position])


def close(streams: list[Stream]) -> None:
    """End the workers of all streams, and empty the list.

    Args:
        streams: Streams to close; the list is emptied.
    """
    while streams:
        streams.pop().close()


class Schedule(Protocol):
    """Schedule of the parts that each batch holds."""

    def parts(self, batch_idx: int) -> tuple[str, ...]:
        """Return the names of the parts that a batch holds.

        Args:
            batch_idx: Number of the batch since the start of training.
        """

    def before(self, part: str, batch_idx: int) -> int:
        """Count the batches that hold a part among the first `batch_idx`.

        Args:
            part: `labeled` or `unlabeled`.
            batch_idx: Number of the batch since the start of training.
        """


class TrainLoader:
    """Loader of the parts of a training batch side by side, in epochs of a fixed number of steps.

    Lightning saves `state_dict` in its checkpoints and restores it, so an interrupted epoch continues where it stopped:
    with the same batches if the product of batch size and processes is the same, and otherwise at the next complete
    batch of the pass, so that no example repeats and fewer than one batch of all processes is skipped.
    """

    def __init__(
        self,
        streams: dict[str, Stream],
        steps: int,
        schedule: Schedule | None = None,
        taken: int | None = None,
        repeats: bool = False,
    ) -> None:
        """Join the streams.

        Args:
            streams: Streams by part: `labeled`, `unlabeled` or both.
            steps: Number of batches of an epoch.
            schedule: Schedule of the parts that each batch holds; None for all parts.
            taken: Number of batches used before the next epoch begins (`limit_train_batches`); None for all.
            repeats: Whether each epoch has the batches of the first one (`overfit_batches`).
        """
        self.streams, self.steps, self.schedule, self.repeats = streams, steps, schedule, repeats
        self.taken = steps if taken is None else taken
        self.epoch, self.position = 0, 0
        self._ahead: dict[str, int] = {}  # offset of a stream that resumed with another batch size

    @property
    def sampler(self) -> "TrainLoader":
        """This loader, because Lightning calls `set_epoch` on the sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Move to the start of an epoch, or stay inside it after a resume.

        Args:
            epoch: Number of the epoch, from 0.
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
        for batch_idx in range(first, last):
            self.position += 1
            names = tuple(parts) if self.schedule is None else self.schedule.parts(batch_idx)
            yield {name: next(parts[name]) for name in names}

    @property
    def _first(self) -> int:
        """Number of the epoch's first batch."""
        return 0 if self.repeats else self.epoch * self.taken

    def _before(self, part: str, batch_idx: int) -> int:
        return (batch_idx if self.schedule is None else self.schedule.before(part, batch_idx)) + self._ahead.get(
            part, 0
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, the position in it and the progress of each stream before the next batch."""
        batch_idx = self._first + self.position
        places = {name: stream.plan.place(self._before(name, batch_idx)) for name, stream in self.streams.items()}
        ended = self.position >= self.taken
        return {"epoch": self.epoch, "position": self.position, "ended": ended, "places": places}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state.

        Args:
            state: State from `state_dict`, possibly of another number of processes.
        """
        self.epoch, self.position, self._ahead = state["epoch"], state["position"], {}
        batch_idx = self._first + (self.taken if state.get("ended") else self.position)
        for name, place in state.get("places", {}).items():
            plan, own = self.streams[name].plan, self._before(name, batch_idx)
            if place is not None and plan.place(own) not in (None, tuple(place)):
                self._ahead[name] = plan.after(tuple(place)) - own


class EvalLoader:
    """One pass over a split in its own order."""

    def __init__(self, stream: Stream) -> None:
        """Wrap the stream.

        Args:
            stream: Stream whose plan does not shuffle.
        """
        self.stream = stream

    def __len__(self) -> int:
        return self.stream.plan.per_pass

    def __iter__(self) -> Iterator[RawBatch]:
        return self.stream.batches(0, len(self))

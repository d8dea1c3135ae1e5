"""`FewLabelDataModule`: sampling, loaders and exact resume for any modality, which adds sources and views."""

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from sft_lightning.data.batch_sampling import BatchPlan
from sft_lightning.data.batches import BatchViews, Labeled, Unlabeled, moved
from sft_lightning.data.contract import BatchRequest, RequestsBatches, batch_request
from sft_lightning.data.copies import Copies, find_exact_copies
from sft_lightning.data.eval_batches import choose_at_random, choose_by_class
from sft_lightning.data.loaders import EvalLoader, RawBatch, Stream, TrainLoader
from sft_lightning.data.modality import Clip, Views
from sft_lightning.data.predict_datamodule import PredictDataModule
from sft_lightning.data.run_splits import TestOn
from sft_lightning.data.source import Examples
from sft_lightning.data.split_checks import check_unlabeled_batch
from sft_lightning.data.splits import Split, SplitConfig
from sft_lightning.data.storage import FeatureStorage, HasShape, ReadSettings
from sft_lightning.utils.cpu import count_cores
from sft_lightning.utils.errors import InputError, check_min
from sft_lightning.utils.inputs import Inputs, InputSpec, concatenate_inputs
from sft_lightning.utils.lightning_patches import reset_train_loader


class FewLabelDataModule(PredictDataModule):
    """Few labeled and many unlabeled examples of one modality.

    A training batch is a mapping with `labeled` (`Labeled`), `unlabeled` (`Unlabeled`) or both, as the paradigm
    requests. Validation, test and prediction batches are `Labeled`. A modality opens sources, says how examples are
    read (`read_settings`) and makes their `views`.
    """

    views: Views

    def __init__(
        self,
        source: str,
        request: SplitConfig,
        unlabeled_source: str | None = None,
        split_file: str | None = None,
        test_on: TestOn = "split",
        on_bad: str = "raise",
        class_names: list[str] | None = None,
        labeled_views: tuple[str, ...] = ("weak",),
        batch_size: int = 64,
        unlabeled_ratio: int = 7,
        balanced_labels: bool = False,
        eval_batch_size: int | None = None,
        steps_per_epoch: int | None = None,
        num_workers: int | None = None,
        shard_window: int = 16,
        labels: str | None = None,
        label_separator: str | None = None,
        label_columns: str | list[str] | None = None,
    ) -> None:
        """Keep the settings; the source is opened when it is first needed.

        Args:
            source: Name of the source, as `open_source` of the modality takes it.
            request: Settings of the splits.
            unlabeled_source: Name of another source, whose training examples are the unlabeled ones.
            split_file: A `split.csv` of an earlier run to reuse instead of making new splits.
            test_on: `split` to test on the held-out part, `all` to test on all labels the run has not learned.
            on_bad: `raise` to stop at an unreadable example, `skip` to leave it out, count and list it.
            class_names: Classes in the order of their numbers; those of the source are matched by name.
            labeled_views: Views of a labeled training example: `weak`, `strong` or both.
            batch_size: Training examples of each batch and process.
            unlabeled_ratio: Unlabeled examples for each labeled one.
            balanced_labels: Whether classes take turns in labeled batches if unlabeled examples are trained on, too.
            eval_batch_size: Batch size of evaluation and prediction; None for `batch_size`.
            steps_per_epoch: Batches of an epoch; None for one pass over the first part that the paradigm needs.
            num_workers: Processes that read examples; None for one per available core, at most 8.
            shard_window: Number of shards whose examples are shuffled at a time.
            labels: A CSV with the columns `id,label`, whose labels are added to those of the source and replace them.
            label_separator: Separator of several classes in a label; None for one class each.
            label_columns: Columns of 0 and 1 of a table, each a class, or a pattern; None for one column of labels.

        Raises:
            InputError: A number is out of its range.
        """
        sizes = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "steps_per_epoch": steps_per_epoch}
        check_min(1, **sizes, unlabeled_ratio=unlabeled_ratio, shard_window=shard_window)
        check_min(0, num_workers=num_workers)
        super().__init__(
            source, request, unlabeled_source, split_file, test_on, on_bad, class_names, labels, label_separator,
            label_columns,
        )  # fmt: skip
        self.labeled_views, self.unlabeled_ratio, self.balanced_labels = labeled_views, unlabeled_ratio, balanced_labels
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.steps_per_epoch, self.shard_window = steps_per_epoch, shard_window
        self.num_workers = min(8, count_cores()) if num_workers is None else num_workers

    # --- what a modality adds

    @property
    @abstractmethod
    def input_spec(self) -> InputSpec:
        """What goes into a network, known before any example is read."""

    @property
    def read_settings(self) -> HasShape:
        """Settings by which records become examples of one shape; a modality may add some."""
        return ReadSettings(self.input_spec.shape)

    @property
    def reading_key(self) -> str:
        """Text of all settings that change how an example is read."""
        return repr(self.read_settings)

    @property
    def size_settings(self) -> dict[str, Any]:
        """Settings other than the batch size that memory depends on; a modality may have some."""
        return {}

    @property
    def fixed_views(self) -> bool:
        """Whether labeled training examples are the same in every epoch, so that their features can be cached."""
        return False

    def fingerprints(self, name: str) -> list[bytes]:
        """Compute the SHA-256 of the content of each example of a split and of how it is read."""
        start, split, made = hashlib.sha256(repr((self.input_spec, self.reading_key)).encode()), self.splits[name], []
        for content in split.part.storage.fingerprints(split.indices):
            one = start.copy()
            one.update(content)
            made.append(one.digest())
        return made

    @property
    def decoded_bytes(self) -> int:
        """Bytes of a cache of all decoded files of the splits; 0 where nothing is decoded."""
        how = self.read_settings
        return sum(split.part.storage.count_decoded(split.indices, how) for split in self.splits.values())

    @property
    def given_size(self) -> int | None:
        """Side of the inputs where the user set one that networks of another size should meet; None where not."""
        return None

    @property
    def mean_share(self) -> float:
        """Share of the largest input that a training example fills on average; 1 where inputs have one size."""
        return 1.0

    def settings_to_show(self, side: int) -> dict[str, Any]:
        """Return settings with which examples are shown to people whole and at a size that they can read, if any.

        Args:
            side: Length of the longer side in pixels, of what has one.
        """
        return {}

    @classmethod
    def settings_for(cls, input_spec: InputSpec) -> dict[str, Any]:
        """Return the settings with which data of this class gives certain inputs; none unless a modality has some.

        Args:
            input_spec: Inputs of a network.
        """
        return {}

    def use_recorded(self, input_spec: InputSpec) -> None:
        """Take over what a run has learned about its inputs, such as a tokenizer; nothing unless a modality has some.

        Args:
            input_spec: Inputs that the checkpoint of the run records.
        """

    def prepare_reading(self, name: str, split: Split, train: bool) -> tuple[Split, HasShape, int]:
        """Return the split to read from, the settings for reading, and the number of reading processes.

        Args:
            name: Name of the split.
            split: Examples to read.
            train: Whether they are trained on.
        """
        return split, self.read_settings, self.num_workers

    def find_copies(self, labeled: Split, others: Split | None = None) -> tuple[Copies, Copies]:
        """Find copies, so that a cross-validation keeps them together: examples of equal content.

        Args:
            labeled: Labeled examples.
            others: Further examples to learn from, or None.

        Returns:
            Copies among the labeled examples, and among these and the others.
        """
        alone = find_exact_copies([labeled])
        return alone, alone if others is None or not len(others) else find_exact_copies([labeled, others])

    def views_of(self, name: str) -> Views:
        """Return the views of a training split.

        Args:
            name: Name of the split.
        """
        return self.views

    @property
    def batch_size(self) -> int:
        """Training examples of each batch and process; labeled ones where both kinds come together."""
        return self._batch_size

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        # Lightning's BatchSizeFinder (2.6) makes its first trial with the loaders from before it set a size, and goes
        # on to 0 if not even one example fits; the error raised then must let it remove its checkpoint.
        if size < 1:
            raise InputError(
                f"batch_size is {size}: give a number of at least 1; if not even one example fits into memory, lower "
                f"{' or '.join([*self.size_settings, 'unlabeled_ratio'])}"
            )
        self._batch_size = size
        if self.trainer is not None:
            reset_train_loader(self.trainer)

    # --- sampling

    @property
    def _request(self) -> BatchRequest:
        return batch_request(None if self.trainer is None else self.trainer.lightning_module)

    def _plan(self, name: str, split: Split, train: bool) -> BatchPlan:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if len(split) < world_size:
            raise InputError(f"there are {len(split)} {name} examples for {world_size} processes: use fewer devices")
        size = self.batch_size if train else self.eval_batch_size
        both = train and len(self._request.parts) > 1
        if both and name == "unlabeled":
            size *= self.unlabeled_ratio
        beside = both and name == "labeled"
        balance = split.labels if beside and self.balanced_labels else None
        seed = 2 * self.request.seed + (name == "unlabeled")  # two streams of one run differ
        order = split.part.storage.pass_order(split.indices, self.shard_window) if train else None
        plan = BatchPlan(len(split), size, seed, train, rank, world_size, beside, balance, order)
        epoch = self._request.balanced_from_epoch if train and name == "labeled" else None
        if epoch is None:
            return plan
        later = BatchPlan(len(split), size, seed, train, rank, world_size, endless=True, balance=split.labels)
        return plan.then(later, epoch * self._taken(self.steps_per_epoch or plan.per_pass))

    @property
    def epoch_steps(self) -> int:
        """Training batches of an epoch of this process, after `limit_train_batches`."""
        return self._taken(self._batches)

    def _taken(self, batches: int) -> int:
        limit = 1.0 if self.trainer is None else self.trainer.limit_train_batches
        return min(batches, limit) if isinstance(limit, int) else int(batches * (limit or 1.0))

    @property
    def _batches(self) -> int:
        first = "unlabeled" if "unlabeled" in self._request.parts else "labeled"
        return self.steps_per_epoch or self._plan(first, self.splits[first], train=True).per_pass

    # --- loaders

    @property
    def _device(self) -> torch.device | None:
        return None if self.trainer is None else self.trainer.strategy.root_device

    def _stream(self, name: str, split: Split, train: bool) -> Stream:
        split = self._features.get(name, split)
        plan = self._plan(name, split, train)
        split, how, workers = self.prepare_reading(name, split, train)
        made = Stream(split, plan, how, name != "unlabeled", workers, self.bad, self._device)
        self._streams.append(made)
        return made

    def train_dataloader(self) -> TrainLoader:
        """Return the parts that the paradigm requests, side by side.

        Raises:
            InputError: A part that is requested has no example.
        """
        needed = self._request.parts
        if "labeled" in needed and not len(self.splits["labeled"]):
            raise InputError(
                f"source {self.source.name!r} gives no label to train on (num_labels is {self.request.num_labels}): "
                "ask for some, or train without labels"
            )
        if "unlabeled" in needed and not len(self.splits["unlabeled"]):
            raise InputError(
                f"source {self.source.name!r} gives no unlabeled example: use fewer labels (num_labels), add a folder "
                "'unlabeled' or lines with a blank label, or name an unlabeled_source"
            )
        streams = {name: self._stream(name, self.splits[name], train=True) for name in needed}
        everyone = self.batch_size * (1 if self.trainer is None else self.trainer.world_size)
        if len(streams) > 1 and (few := check_unlabeled_batch(len(self.splits["unlabeled"]), everyone)):
            rank_zero_info(f"Data: {few}.")
        module = None if self.trainer is None else self.trainer.lightning_module
        schedule = module.make_schedule(self.epoch_steps) if isinstance(module, RequestsBatches) else None
        repeats = self.trainer is not None and self.trainer.overfit_batches > 0
        return TrainLoader(streams, self._batches, schedule, self.epoch_steps, repeats)

    def _eval(self, name: str, split: Split) -> EvalLoader | list[Any]:
        return EvalLoader(self._stream(name, split, train=False)) if len(split) else []

    def val_dataloader(self) -> EvalLoader | list[Any]:
        """Return the validation split, or an empty list if none is held out."""
        return self._eval("val", self.splits["val"])

    def test_dataloader(self) -> EvalLoader | list[Any]:
        """Return the test split.

        Raises:
            InputError: The split is empty.
        """
        if not len(self.splits["test"]):
            raise InputError(f"source {self.source.name!r} has no test example: set test_size or add a folder 'test'")
        return self._eval("test", self.splits["test"])

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move examples before their views are made; on the CPU there is nothing to do."""
        if device.type == "cpu":
            return batch
        if isinstance(batch, dict):
            return {name: moved(raw, device) for name, raw in batch.items()}
        return moved(batch, device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Make the views on the device."""
        if isinstance(batch, RawBatch):
            return BatchViews(self.views).labeled(self._with_targets(batch))
        made: dict[str, Labeled | Unlabeled] = {}
        if "labeled" in batch:
            views = BatchViews(self.views_of("labeled"), self.labeled_views)
            made["labeled"] = views.labeled(self._with_targets(batch["labeled"]))
        if "unlabeled" in batch:
            views = BatchViews(self.views_of("unlabeled"))
            made["unlabeled"] = views.unlabeled(batch["unlabeled"], self._request.views)
        return made

    def _with_targets(self, raw: RawBatch) -> RawBatch:
        """Return a batch with what networks learn in place of the numbers of its labels."""
        return raw if raw.labels is None else raw._replace(labels=self.make_targets(raw.labels))

    # --- examples without random changes

    def labeled_batches(self, most: int, device: torch.device, name: str = "labeled") -> Iterator[Labeled]:
        """Yield batches of a split without random changes, the same on every process."""
        return self._unaugmented(choose_by_class(self.splits[name], most, self.request.seed), device)

    def training_batches(self, most: int, device: torch.device) -> Iterator[Labeled]:
        """Yield training examples without random changes, the same on every process: labeled ones first."""
        yield from self.labeled_batches(most, device)
        split, left = self.splits["unlabeled"], most - len(self.splits["labeled"])
        if left > 0 and len(split):
            yield from self._unaugmented(choose_at_random(split, left, self.request.seed), device)

    def batches_of(self, name: str, device: torch.device) -> Iterator[Labeled]:
        """Yield all examples of a split in their order, without random changes, the same on every process."""
        split, _, workers = self.prepare_reading(name, self.splits[name], train=False)
        return self._unaugmented(split, device, workers)

    def inputs_of(self, name: str, positions: list[int]) -> Inputs:
        """Return some examples of a split as networks see them without random changes, (N, ...) each."""
        split = self.splits[name]
        few = Split(split.part, [split.indices[i] for i in positions])
        return concatenate_inputs([batch.x for batch in self._unaugmented(few, torch.device("cpu"))])

    def annotated_inputs_of(self, name: str, positions: list[int]) -> Inputs:
        """Return inputs as `inputs_of` does, with what moves along in their views, such as boxes; here, nothing."""
        return self.inputs_of(name, positions)

    def show_examples(self, name: str, positions: list[int]) -> Sequence[Tensor | str]:
        """Return some examples of a split as people look at them, as `Views.show` gives them.

        Args:
            name: Name of the split.
            positions: Positions in the split.
        """
        return [*self.views.show(self.inputs_of(name, positions))] if positions else []

    def clips_of(self, name: str, positions: list[int]) -> Sequence[Clip | None]:
        """Return what pages play beside some examples of a split; nothing unless a modality has something."""
        return [None] * len(positions)

    def _unaugmented(self, split: Split, device: torch.device, workers: int | None = None) -> Iterator[Labeled]:
        plan, workers = BatchPlan(len(split), self.eval_batch_size), self.num_workers if workers is None else workers
        stream = Stream(split, plan, self.read_settings, workers=workers, bad=self.bad, device=device)
        for raw in EvalLoader(stream):
            yield self.on_after_batch_transfer(self.transfer_batch_to_device(raw, device, 0), 0)

    def use_features(self, features: dict[str, Tensor]) -> None:
        """Give features in place of the examples of some splits from now on."""
        self._features = {
            name: Split(
                Examples(FeatureStorage(made), self.splits[name].ids, self.splits[name].labels), list(range(len(made)))
            )
            for name, made in features.items()
        }

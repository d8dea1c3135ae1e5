"""`SplitDataModule`: from a source to the splits of a run, whatever the modality."""

from abc import abstractmethod
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from sft_lightning.data.added_labels import LabeledSource
from sft_lightning.data.bad_examples import SKIPPED, BadFiles
from sft_lightning.data.class_names import find_missing_classes
from sft_lightning.data.class_order import RenumberedSource
from sft_lightning.data.contract import FewLabelData
from sft_lightning.data.issues import as_finding
from sft_lightning.data.label_columns import SEPARATOR, LabelColumns
from sft_lightning.data.label_files import read_label_rows
from sft_lightning.data.label_sets import LabelSets, LabelSetSource
from sft_lightning.data.loaders import Stream, close
from sft_lightning.data.prepare_splits import read_splits
from sft_lightning.data.run_splits import TestOn, choose_run_split, get_split_settings
from sft_lightning.data.source import Examples, Source, take_unlabeled
from sft_lightning.data.split_files import write_split_file
from sft_lightning.data.splits import SplitConfig, Splits
from sft_lightning.utils.errors import InputError

MANIFEST = "split.csv"


class SplitDataModule(FewLabelData, LightningDataModule):
    """Data module that opens a source and makes, restores and writes the splits of a run.

    Attributes:
        followed_run: Folder of a run that is resumed or evaluated again and determines the splits, or None.
        starts: Paths of the `split.csv` of runs that this one starts from, whose labels it has already learned.
        unlogged_folder: Folder of a run without a logger.
    """

    trainer: Any
    # Whether splits hold examples as they lie in the source, so that data modules of other sizes can share them.
    shares_splits: ClassVar[bool] = False
    has_boxes: ClassVar[bool] = False  # whether targets are boxes of objects
    in_addition: ClassVar[str] = ""  # what examples have in addition to themselves, after their kind in a sentence
    bad_setting: ClassVar[str] = "on_bad"  # name of the setting for unreadable files
    bad_listing: ClassVar[str] = SKIPPED  # name of the file in a run's folder that lists those
    # Settings that convert examples to one shape; None where they are set, or examples have one shape anyway.
    shape_remedy: str | None = None

    def __init__(
        self,
        source: str,
        request: SplitConfig,
        unlabeled_source: str | None,
        split_file: str | None,
        test_on: TestOn,
        on_bad: str,
        class_names: list[str] | None,
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
            labels: A CSV with the columns `id,label`, whose labels are added to those of the source and replace them.
            label_separator: Separator of several classes in a label; None for one class each.
            label_columns: Columns of 0 and 1 of a table, each a class, or a pattern; None for one column of labels.

        Raises:
            InputError: The seed is out of its range, or a setting of several classes is wrong.
        """
        super().__init__()
        if not 0 <= request.seed < 2**32:
            raise InputError(f"seed is {request.seed}: give a whole number from 0 to 4294967295")
        if label_separator is not None and not label_separator.strip():
            raise InputError(f"label_separator is {label_separator!r}: give a character such as ';', or leave it out")
        if label_columns is not None and label_separator is not None:
            raise InputError(
                f"label_separator is {label_separator!r} and label_columns is {label_columns!r}: set one of them"
            )
        self._named, self._class_names, self.labels = source, class_names, labels
        self.label_columns: LabelColumns | None = None
        if label_columns is not None:
            given = label_columns if isinstance(label_columns, str) else tuple(label_columns)
            self.label_columns, label_separator = LabelColumns(given), SEPARATOR
        self.label_separator = label_separator
        self.unlabeled_source, self.split_file, self.test_on = unlabeled_source, split_file, test_on
        self.request, self.bad = request, self._make_record(on_bad)
        self.followed_run: Path | None = None
        self.starts: Sequence[Path] = ()
        self.unlogged_folder: Path | None = None
        self.splits: Splits = {}
        self._parts: list[Examples] = []
        self._features: Splits = {}
        self._streams: list[Stream] = []

    def _make_record(self, policy: str) -> BadFiles:
        return BadFiles(policy, self.bad_setting, listing=self.bad_listing)

    # --- what a modality adds

    @abstractmethod
    def open_source(self, name: str) -> Source:
        """Open the source of labeled and unlabeled examples.

        Args:
            name: Name as the user wrote it.
        """

    def open_unlabeled(self, name: str) -> Examples:
        """Open another source and return its training examples, without labels.

        Args:
            name: Name as the user wrote it.

        Raises:
            InputError: The source has no training or unlabeled examples.
        """
        return take_unlabeled(self.open_source(name))

    def on_splits_read(self, source: Source) -> None:
        """Inspect the splits after they are made and before anything is read from them.

        Args:
            source: Source of the examples.
        """

    def describe_inputs(self) -> str:
        """Return what networks get of an example, in a few words."""
        return " x ".join(map(str, self.input_spec.shape))

    def suggest_settings(self) -> dict[str, Any]:
        """Return settings that suit the examples of the splits, for who sets none; none unless a modality has some."""
        return {}

    @property
    def measures_values(self) -> bool:
        """Whether the check of the files also decodes them for further measurements."""
        return False

    def __str__(self) -> str:
        """Return the class and the source; Lightning would make all loaders to count their batches."""
        return f"{type(self).__name__} of {self._named}"

    # --- source and classes

    @cached_property
    def opened_source(self) -> Source:
        """Source of the examples as it lies there, opened on first access."""
        return self.open_source(self._named)

    @cached_property
    def labeled_source(self) -> Source:
        """Source of the examples with the labels of the setting `labels`, in its own order of classes."""
        separator = self.label_separator
        source, listed = self.opened_source, self._class_names
        if self.labels is not None and separator is not None:  # any set of classes; `LabelSetSource` checks these
            listed = [row.label for row in read_label_rows(Path(self.labels)) if row.label and not row.status]
        if self.labels is not None:
            source = LabeledSource(source, Path(self.labels), listed)
        if separator is None:
            return source
        if self.label_columns is not None and not self.opened_source.column_classes:
            raise InputError(
                f"label_columns is {self.label_columns}, and source {self._named!r} has no columns: give a table, or "
                "leave it out"
            )
        return LabelSetSource(source, separator, self._class_names, self.opened_source.column_classes)

    @property
    def label_sets(self) -> LabelSets | None:
        """Sets of classes that labels are numbers of; None where each label is one class."""
        if self.label_separator is None:  # without opening the source, which may be gone when others are predicted
            return None
        source = self.labeled_source
        assert isinstance(source, LabelSetSource)
        return source.label_sets

    @property
    def target(self) -> str:
        """What networks learn of an example: `class`, or `class_set` where examples have several classes."""
        return "class" if self.label_separator is None else "class_set"

    def require_classes(self, what: str) -> None:
        """Refuse data whose examples have no classes but other targets, such as masks; here, none.

        Args:
            what: Command or class that cannot take them, as the subject of a sentence.

        Raises:
            InputError: The targets are not classes.
        """

    def require_one_class(self, what: str) -> None:
        """Refuse data whose examples have several classes.

        Args:
            what: Command or class that cannot take them, as the subject of a sentence.

        Raises:
            InputError: The data has a `label_separator`.
        """
        if self.target != "class":
            setting = f"label_separator {self.label_separator!r}"
            if self.label_columns is not None:
                setting = f"label_columns {self.label_columns}"
            raise InputError(
                f"{what} takes examples of one class each, and {setting} gives them several: use "
                "FineTuneClassifier or SemiSupervisedModule with fit, test and predict"
            )

    def make_targets(self, labels: Tensor) -> Tensor:
        """Return what networks learn of labels: the labels, or 1 for each class of their sets and 0 for the others.

        Args:
            labels: Labels, int64, (N,); -1 where unknown.

        Returns:
            int64, (N,) or (N, C); -1 where unknown.
        """
        sets = self.label_sets
        return labels if sets is None else sets.rows.to(labels.device)[labels]

    @property
    def source(self) -> Source:
        """Source of the examples with labels in the order of `class_names`."""
        if self._class_names is None or self._class_names == list(self.labeled_source.class_names):
            return self.labeled_source
        return RenumberedSource(self.labeled_source, self._class_names)

    @property
    def source_key(self) -> str:
        """Text of all settings that decide what the source holds, and how its classes are numbered."""
        separator: tuple[str, ...] = () if self.label_separator is None else (self.label_separator,)
        separator += () if self.label_columns is None else (str(self.label_columns),)
        return repr((type(self).__qualname__, self._named, self.bad.policy, self._class_names, self.labels, *separator))

    @property
    def num_classes(self) -> int:
        """Number of classes, known before any example is read."""
        return len(self.class_names)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of the labels."""
        return list(self.labeled_source.class_names if self._class_names is None else self._class_names)

    def name_targets(self, targets: Tensor) -> list[str]:
        """Return the label of each target; an empty text where it is unknown.

        Args:
            targets: What `make_targets` gives, (N,) or (N, C).
        """
        names, sets = self.class_names, self.label_sets
        if sets is None:
            return [names[k] if k >= 0 else "" for k in targets.tolist()]
        named = ([name for name, is_in in zip(names, row, strict=True) if is_in] for row in targets.tolist())
        return ["" if -1 in row else sets.format(one) for row, one in zip(targets.tolist(), named, strict=True)]

    def labeled_counts(self) -> Tensor:
        """Return the number of training labels of each class, int64 of shape (num_classes,)."""
        return self.count_labels(self.splits["labeled"].labels)

    def count_labels(self, labels: Tensor) -> Tensor:
        """Return how many labels have each class, int64, (num_classes,).

        Args:
            labels: Known labels, int64, (N,).
        """
        sets = self.label_sets
        return torch.bincount(labels, minlength=self.num_classes) if sets is None else sets.count(labels)

    # --- splits

    def setup(self, stage: str) -> None:
        """Read the source and make the splits, once.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.
        """
        if not self.splits:
            self._make_splits(stage)
        folder = self._run_folder()  # a collective call: on every rank
        if folder is not None and stage == "fit" and self.trainer is not None and self.trainer.is_global_zero:
            if self.followed_run is None:
                self.write_splits(folder / MANIFEST, self.splits)
            self._list_skipped(folder)

    def share_splits(self, other: Self) -> None:
        """Take over the source and the splits of a data module that differs only in the size of its inputs.

        Args:
            other: Data module after its setup.

        Raises:
            ValueError: Examples of this modality are kept as they are read, such as token ids.
        """
        if not self.shares_splits:
            raise ValueError(f"{type(self).__name__} keeps examples as its settings read them: open the source again")
        self.opened_source, self.labeled_source = other.opened_source, other.labeled_source
        self.splits, self._parts, self.bad = other.splits, other._parts, other.bad
        self.request.findings[:] = []
        self.on_splits_read(self.source)
        shared = other.request.findings
        self.request.findings[:] = [*shared, *(new for new in self.request.findings if new not in shared)]

    def write_splits(self, path: Path, splits: Splits) -> None:
        """Write splits of the source's examples, for `split_file`.

        Args:
            path: Path of the file; its folder is made.
            splits: Splits of this data module, or others of the same examples.
        """
        about: dict[str, Any] = {"source": self.opened_source.name, "class_names": self.class_names}
        about |= get_split_settings(self.request, self.unlabeled_source)
        write_split_file(path, splits, self._parts, self.source.label_names, about)

    def _make_splits(self, stage: str) -> None:
        # Predicting needs no labels, so the source may have other classes than the model.
        strange = stage == "predict" and find_missing_classes(self.labeled_source.class_names, self.class_names)
        source, second = self.labeled_source if strange else self.source, self._open_second(stage)
        self.request.label_sets = self.label_sets
        self.request.findings[:] = map(as_finding, source.messages)  # drops those of a refused attempt
        followed = None if self.followed_run is None else self.followed_run / MANIFEST
        run = choose_run_split(followed, stage, self.starts, self.test_on, self.split_file)
        how = self.split_file, self.bad, self.shape_remedy, self.measures_values, run, self.starts
        self.splits, self._parts = read_splits(source, second, self.request, *how)
        self.on_splits_read(source)
        for finding in self.request.findings:
            rank_zero_info(f"Data: {finding}.")
        sizes = ", ".join(f"{len(split):,} {name}" for name, split in self.splits.items())
        rank_zero_info(f"Data: {source.name}: {sizes}.")

    def _open_second(self, stage: str) -> tuple[str, Examples] | None:
        """Open the other source of unlabeled examples, or return None if it is missing when a run is evaluated."""
        if (name := self.unlabeled_source) is None:
            return None
        try:
            return name, self.open_unlabeled(name)
        except InputError:
            if stage == "fit" or self.followed_run is None:
                raise
            return None

    def as_trained(self, run: Path, class_names: list[str] | None = None) -> Self:
        """Return the same data in the splits of a run, independent of what this data module has loaded."""
        other = copy(self)
        other.split_file, other.request = None, replace(self.request, findings=[])
        other.followed_run, other.starts, other.test_on = run, (), "split"
        other.bad, other._features, other._streams = (
            BadFiles(self.bad.policy, self.bad_setting, listing=self.bad_listing),
            {},
            [],
        )
        other._class_names = class_names or self._class_names
        other._make_splits("calibrate")
        return other

    # --- end of a run

    def on_exception(self, exception: BaseException) -> None:
        """End the processes that read examples."""
        close(self._streams)

    def teardown(self, stage: str) -> None:
        """End the processes that read examples; count and list the examples that could not be read.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.
        """
        close(self._streams)
        folder = self._run_folder()
        if self.bad.num_unreported:
            rank_zero_info(f"Data: {self.bad.summarize()}.")
        if folder is not None:
            self._list_skipped(folder)

    def _run_folder(self) -> Path | None:
        is_logged = self.trainer is not None and bool(self.trainer.loggers)
        folder = self.trainer.log_dir if is_logged else self.unlogged_folder
        is_dry_run = self.trainer is not None and self.trainer.fast_dev_run
        return None if folder is None or is_dry_run else Path(folder)

    def _list_skipped(self, folder: Path) -> None:
        if folder.is_dir():
            self.bad.write(folder, self.trainer.global_rank if self.trainer is not None else 0)

"""Splits of a resumed or evaluated run: restore them from its `split.csv`, and report what changed since."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from sft_lightning.data.issues import Finding
from sft_lightning.data.source import Examples, concatenated
from sft_lightning.data.split_changes import SplitChanges, format_examples
from sft_lightning.data.split_files import (
    LEFT_OUT,
    Row,
    check_rows,
    is_same_data,
    join_examples,
    list_split_rows,
    read_contents,
    read_head,
    read_rows,
)
from sft_lightning.data.splits import NAMES, Split, SplitConfig, Splits, without_leaks
from sft_lightning.utils.errors import InputError

TestOn = Literal["split", "all"]
HELD_OUT = ("val", "test")
# Splits that each stage needs. Unlabeled examples are checked elsewhere: whether they are needed depends on the method.
_NEEDED = {
    "fit": ("labeled",),
    "calibrate": ("labeled",),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("test",),
}
_NEEDS_RUN_DATA = ("fit", "calibrate")  # stages that refuse other data than the run's
_SPLIT_SETTINGS = ("seed", "num_labels", "labels_per_class", "val_size", "test_size", "unlabeled_source")


def get_split_settings(request: SplitConfig, unlabeled_source: str | None) -> dict[str, Any]:
    """Return the settings that determine a split, for the first line of its file.

    Args:
        request: Sizes and seed.
        unlabeled_source: Name of another source of unlabeled examples, or None.
    """
    return {name: getattr(request, name, unlabeled_source) for name in _SPLIT_SETTINGS}


@dataclass(frozen=True)
class RunSplit:
    """Split of a resumed or evaluated run.

    Attributes:
        path: Path of the run's `split.csv`.
        stage: Stage: `fit`, `validate`, `test`, `predict`, or `calibrate` on the data of the run.
        starts: Paths of the `split.csv` files of the runs that it started from.
        measures_all: Whether to evaluate on all labeled examples of other data, even if it has a test or val split.
    """

    path: Path
    stage: str
    starts: tuple[Path, ...] = ()
    measures_all: bool = False

    def apply(
        self,
        source: str,
        class_names: Sequence[str],
        named: Mapping[str, Examples],
        second: Examples | None,
        request: SplitConfig,
        choose: Callable[[SplitConfig], Splits],
    ) -> Splits:
        """Divide the examples as the run did, leaving out examples that it did not have.

        On other data than the run's, everything is evaluated except examples that the run was trained on.

        Args:
            source: Name of the source, as the user wrote it.
            class_names: Names of the source's classes.
            named: Examples of the source by the name of their split.
            second: Examples of a second source of unlabeled examples, or None.
            request: Sizes and seed of the splits; findings are appended.
            choose: Function that makes the splits of a new run.

        Raises:
            InputError: The data of the run is missing, or `fit` would continue on other data.
        """
        check_rows(self.path)
        head, parts = read_head(self.path), list(named.values())
        everything = [*parts, second] if second is not None else parts
        if not self._is_of_run(head, source, parts, everything):
            if self.stage in _NEEDS_RUN_DATA:
                raise InputError(
                    f"the run of {str(self.path)!r} was trained on source {head.get('source')!r}, and source "
                    f"{source!r} holds other examples: continue with the same data, or start a new run from it with "
                    "model.init_args.weights"
                )
            policy = replace(request, on_leak="drop")
            why = f"{source} is not the data of the run"
            splits = choose_measured(named, why, _NEEDED[self.stage][0], self.measures_all, request)
            return leave_out_trained(splits, (self.path, *self.starts), policy, None)
        if self.measures_all:
            trained = sum(row.split in ("labeled", "unlabeled") for row in read_rows(self.path))
            raise InputError(
                f"test_on is 'all', and source {source!r} is the data of the run: {trained:,} of its examples were "
                "trained on; leave test_on at 'split', or name other data by data.init_args.source"
            )
        trial = replace(request, findings=[])
        try:
            fresh = choose(trial)
        except InputError:  # too few examples are left
            fresh = None
        if fresh is not None and self._is_same(fresh, class_names):
            request.findings.extend(trial.findings)
            return fresh
        changes = SplitChanges()
        splits = self._assign(parts, second, class_names, changes)
        if self.stage == "fit":
            splits = without_leaks(splits, request)
        differ = [
            f"{name} {value} ({head[name]} in the run)"
            for name, value in get_split_settings(request, head.get("unlabeled_source")).items()
            if name in head and head[name] != value
        ]
        phrases = changes.describe()
        if differ:
            phrases.append(
                f"{', '.join(differ)} would choose another split and {'do' if len(differ) > 1 else 'does'} not"
            )
        if phrases:
            message = f"the split is that of the run ({self.path}): {'; '.join(phrases)}"
            request.findings.append(Finding("changed_data", message, changes.names))
        for name in _NEEDED[self.stage]:
            if not len(splits[name]) and (lost := changes.gone.get(name)):
                raise InputError(
                    f"source {source!r} no longer has any of the {len(lost):,} {name} examples of the run "
                    f"({format_examples(lost)}; {self.path}): put them back, or name other data by "
                    "data.init_args.source"
                )
        return splits

    def _is_of_run(
        self, head: Mapping[str, Any], source: str, parts: Sequence[Examples], everything: list[Examples]
    ) -> bool:
        """Return whether the source is the run's, perhaps moved, and not other data with the same names."""
        named = head.get("source")
        if named is not None and os.path.normpath(str(named)) == os.path.normpath(source):
            return True
        if is_same_data(head, everything):
            return True
        position = {name: (part, i) for part in parts for i, name in enumerate(part.ids)}
        rows = [row for row in read_rows(self.path) if row.split in HELD_OUT]
        rows = rows or [row for row in read_rows(self.path) if row.split == "labeled"]
        there = [row for row in rows if row.id in position]
        if not there or 2 * len(there) < len(rows) or not all(row.content for row in there):
            return bool(rows) and len(there) == len(rows)
        same = [
            row
            for row in there
            if next(read_contents(position[row.id][0].storage, [position[row.id][1]])) == row.content
        ]
        return 2 * len(same) >= len(rows)

    @property
    def _compared(self) -> tuple[str, ...]:
        """Splits whose content is compared; the evaluation of a run does not read its training examples."""
        return ("labeled", *HELD_OUT) if self.stage in _NEEDS_RUN_DATA else HELD_OUT

    def _is_same(self, splits: Splits, class_names: Sequence[str]) -> bool:
        rows = (row for row in read_rows(self.path) if row.split != LEFT_OUT)
        for old, new in zip_longest(rows, list_split_rows(splits, class_names, self._compared)):
            if old is None or new is None or old[:3] != new[:3]:
                return False
            if old.content != new.content and old.content and new.split in self._compared:
                return False
        return True

    def _assign(
        self, parts: Sequence[Examples], second: Examples | None, class_names: Sequence[str], changes: SplitChanges
    ) -> Splits:
        sources = [*parts, second] if second is not None else list(parts)
        position = {name: (k, i) for k, part in enumerate(parts) for i, name in enumerate(part.ids)}
        second_position = position if second is None else {name: (len(parts), i) for i, name in enumerate(second.ids)}
        rows = list(read_rows(self.path))
        trained = {row.content for row in rows if row.split == "labeled" and row.content}
        chosen: dict[str, dict[int, list[int]]] = {name: {} for name in NAMES}
        listed = {"own": set[str](), "apart": set[str]()}
        for row in rows:
            in_second = row.split == "unlabeled" and second is not None
            listed["apart" if in_second else "own"].add(row.id)
            if row.split == LEFT_OUT:
                listed["apart"].add(row.id)
                continue
            where = (second_position if in_second else position).get(row.id)
            if where is None:
                changes.gone.setdefault(row.split, []).append(row.id)
            elif self._is_kept(row, sources[where[0]], where[1], class_names, trained, changes):
                chosen[row.split].setdefault(where[0], []).append(where[1])
        changes.new = [name for name in position if name not in listed["own"]]
        if second is not None:
            changes.new += [name for name in second_position if name not in listed["apart"]]
        return join_examples(chosen, sources)

    def _is_kept(
        self, row: Row, part: Examples, i: int, class_names: Sequence[str], trained: set[str], changes: SplitChanges
    ) -> bool:
        """Return whether an example that still exists stays in its split, and record what changed about it."""
        label = int(part.labels[i])
        now = class_names[label] if label >= 0 else ""
        if row.label and not now:
            changes.blank.append(row.id)
            return False
        if row.label and now != row.label:
            changes.relabeled.append(f"{row.id} ({row.label} then, {now} now)")
        if row.content and row.split in self._compared:
            content = next(read_contents(part.storage, [i]))
            if content != row.content and content in trained and row.split in HELD_OUT:
                changes.trained.append(row.id)
                return False
            if content != row.content:
                changes.changed.append(row.id)
        return True


@dataclass(frozen=True)
class AllLabeled:
    """Evaluation on all labeled examples of a source, for a checkpoint outside of its run.

    Attributes:
        stage: Stage: `validate`, `test` or `predict`.
    """

    stage: str

    def apply(
        self,
        source: str,
        class_names: Sequence[str],
        named: Mapping[str, Examples],
        second: Examples | None,
        request: SplitConfig,
        choose: Callable[[SplitConfig], Splits],
    ) -> Splits:
        """Put all labeled examples into the evaluated split; the arguments are those of `RunSplit.apply`."""
        return choose_measured(named, f"test_on is 'all' for {source}", _NEEDED[self.stage][0], True, request)


def choose_run_split(
    path: Path | None, stage: str, starts: Sequence[Path], test_on: TestOn, split_file: str | None
) -> RunSplit | AllLabeled | None:
    """Choose what determines the splits in place of the settings of a new run.

    Args:
        path: Path of the `split.csv` of the resumed or evaluated run, or None.
        stage: Stage: `fit`, `validate`, `test`, `predict` or `calibrate`.
        starts: Paths of the `split.csv` files of the runs that it started from.
        test_on: Examples to evaluate on: those of the split, or all labeled ones.
        split_file: Path of a split file that the user gave, or None.

    Returns:
        Object that makes the splits, or None if the settings of a new run do.

    Raises:
        InputError: `test_on` is `all` in training, or together with a split file.
    """
    measures_all = test_on == "all"
    if measures_all and stage == "fit":
        raise InputError(
            "test_on is 'all', which evaluates a run on other examples than those of training: leave it at 'split' "
            "here, and give it to `test` or `validate`"
        )
    if path is not None:
        return RunSplit(path, stage, tuple(starts), measures_all)
    if measures_all and split_file is not None:
        raise InputError(
            f"test_on is 'all', and split_file {split_file!r} names the examples to measure: give one of them"
        )
    return AllLabeled(stage) if measures_all else None


def choose_measured(
    named: Mapping[str, Examples], why: str, name: str, takes_all: bool, request: SplitConfig
) -> Splits:
    """Put the examples of other data to evaluate on into the evaluated split.

    Args:
        named: Examples of the source by the name of their split.
        why: First half of the message that states which examples are evaluated.
        name: Name of the evaluated split: `test` or `val`.
        takes_all: Whether to take all labeled examples even if the source has a split of that name.
        request: Request that findings are appended to.
    """
    nothing = Split(next(iter(named.values())), [])
    pieces = [(part, (part.labels >= 0).nonzero()[:, 0].tolist()) for part in named.values()]
    labeled = sum(len(indices) for _, indices in pieces)
    if name in named and not takes_all:
        part = named[name]
        measured = Split(part, range(len(part)))
        others = labeled - len(part)
        more = f"; set test_on: all to evaluate its other {others:,} labeled examples, too" if others else ""
        message = f"{why}: its own {name} split is evaluated ({len(part):,}){more}"
    else:
        pieces = [piece for piece in pieces if piece[1]]
        both = concatenated(*pieces) if pieces else nothing.part
        measured = Split(both, range(len(both))) if pieces else nothing
        message = f"{why}: all of its labeled examples are evaluated ({labeled:,})"
    request.findings.append(Finding("evaluated_data", message))
    return {**dict.fromkeys(NAMES, nothing), name: measured}


def leave_out_trained(splits: Splits, trained: Sequence[Path], request: SplitConfig, source: str | None) -> Splits:
    """Leave examples out of validation and test whose labels earlier runs learned.

    Args:
        splits: Splits of a new run.
        trained: Paths of the `split.csv` files of the earlier runs.
        request: Policy for leaks; findings are appended.
        source: Name of the source. Where a run recorded no content, its examples are compared by name if its source has
            this name. None compares by content only.

    Raises:
        InputError: The policy is `raise`, or a split would be empty.
    """
    contents: dict[str, Path] = {}
    names: dict[str, Path] = {}
    for path in trained:
        check_rows(path)
        is_same_source = source is not None and read_head(path).get("source") == source
        for row in read_rows(path):
            if row.split == "labeled" and row.content:
                contents.setdefault(row.content, path)
            elif row.split == "labeled" and is_same_source:
                names.setdefault(row.id, path)
    if not contents and not names:
        return splits
    kept = dict(splits)
    for name in HELD_OUT:
        split = splits[name]
        learned = {
            i: run
            for i, example, content in zip(
                split.indices, split.ids, read_contents(split.part.storage, split.indices), strict=True
            )
            if (run := contents.get(content) or names.get(example)) is not None
        }
        if not learned:
            continue
        runs = ", ".join(sorted({str(path.parent) for path in learned.values()}))
        shown = format_examples([repr(split.part.ids[i]) for i in learned])
        what = f"{len(learned):,} of {len(split):,} {name} examples are labeled training examples of {runs} ({shown})"
        remedy = f"give data.init_args.split_file={next(iter(learned.values()))} for the split of that run"
        if request.on_leak == "raise":
            raise InputError(f"{what}: {remedy}, or set on_leak: drop to leave them out")
        if len(learned) == len(split):
            raise InputError(f"{what}, and none is left: {remedy}, or give other data")
        leak = Finding("leak", f"{what} and are left out; {remedy}", [split.part.ids[i] for i in learned])
        request.findings.append(leak)
        request.leaks.append(leak)
        kept[name] = Split(split.part, [i for i in split.indices if i not in learned])
    return kept

"""Splits that a seed alone determines, disjoint by construction and checked by content.

Examples are taken in the order of SHA-256(seed, purpose, id), regardless of file order, machine, process and
library versions. A budget of 40 labels is therefore a subset of the budget of 100 with the same seed.
"""

import hashlib
import heapq
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sft_lightning.data.equal_examples import find_equal_examples
from sft_lightning.data.issues import MAX_EXAMPLES, Finding
from sft_lightning.data.label_sets import LabelSets
from sft_lightning.data.normal_splits import describe_unused_defects, find_defects
from sft_lightning.data.quotas import quotas
from sft_lightning.data.set_splits import choose_sets
from sft_lightning.data.source import Examples, concatenated, is_whole
from sft_lightning.utils.errors import InputError

LeakPolicy = Literal["drop", "raise"]
NAMES = ("labeled", "unlabeled", "val", "test")
_SAID = {"val": "validation", "test": "test"}
# An example that is in two splits stays in the first of these.
_KEEPS = {"test": 0, "val": 1}


@dataclass
class Split:
    """Some examples of one collection.

    Attributes:
        part: Collection that holds the examples.
        indices: Positions of the examples in the collection.
    """

    part: Examples
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> Tensor:
        """Labels, int64 of shape (N,); -1 where unknown."""
        if isinstance(self.indices, range) and is_whole(self.indices, len(self.part)):
            return self.part.labels
        return self.part.labels[torch.as_tensor(self.indices, dtype=torch.long)]

    @property
    def ids(self) -> list[str]:
        """Names of the examples."""
        return [self.part.ids[i] for i in self.indices]


Splits = dict[str, Split]


@dataclass
class SplitConfig:
    """Settings of the splits.

    Attributes:
        seed: Seed that chooses the examples.
        num_labels: Total number of labels, or None.
        labels_per_class: Number of labels of each class, or None. With neither, all labels are used.
        val_size: Share (below 1) or number of training examples held out if the source has no validation split.
        test_size: Share or number of training examples held out if the source has no test split.
        on_leak: Policy for an example in two splits; `keep` changes nothing, for audits of the data.
        findings: Findings about the data and its splits, which a run logs.
        leaks: Findings about held-out examples whose labels an earlier run has learned, which the lineage keeps.
        label_sets: Sets of classes that labels are numbers of; None where each label is one class.
        normal_class: Number of the only class to train on, to which examples of others are compared; None for all.
    """

    seed: int = 0
    num_labels: int | None = None
    labels_per_class: int | None = None
    val_size: float = 0.1
    test_size: float = 0.2
    on_leak: LeakPolicy | Literal["keep"] = "drop"
    findings: list[Finding] = field(default_factory=list)
    leaks: list[Finding] = field(default_factory=list)
    label_sets: LabelSets | None = None
    normal_class: int | None = None


def _hash_key(seed: int, purpose: str, name: str) -> bytes:
    """Compute the sorting key that replaces a random number; `purpose` keeps different choices independent."""
    return hashlib.sha256(f"{seed}\0{purpose}\0{name}".encode()).digest()


def choose(
    ids: Iterable[str],
    labels: Sequence[int],
    groups: Sequence[str] | None,
    quota: dict[int, int],
    seed: int,
    purpose: str,
    keep: bool = False,
) -> set[int]:
    """Choose examples until each class has its quota, and keep groups together.

    Groups are visited in the order of their sorting keys and taken if that brings the counts closer to the quota.
    Without groups, the quota is met exactly.

    Args:
        ids: Names of the candidates.
        labels: Class of each candidate.
        groups: Group of each candidate, or None.
        quota: Number of examples wanted, by class.
        seed: Seed of the splits.
        purpose: Name of the choice, which keeps different choices independent.
        keep: Whether to leave groups with the last examples of a class and to take at least one other group.

    Returns:
        Positions in `ids`.
    """
    missing = Counter(quota)
    if not missing.total():
        return set()
    if groups is None:
        return _first(ids, labels, quota, seed, purpose)
    members: dict[str, list[int]] = {}
    for position, name in enumerate(groups):
        members.setdefault(name, []).append(position)
    taken: set[int] = set()
    left = Counter(labels)
    best: tuple[int, list[int]] | None = None
    for name in sorted(members, key=lambda name: _hash_key(seed, purpose, name)):
        own = members[name]
        counts = {labels[own[0]]: 1} if len(own) == 1 else Counter(labels[i] for i in own)  # a Counter is slow to make
        if keep and any(left[c] <= n for c, n in counts.items()):
            continue
        gain = sum(abs(missing[c]) - abs(missing[c] - n) for c, n in counts.items())
        if gain > 0:
            taken.update(own)
            missing.subtract(counts)
            left.subtract(counts)
        elif best is None or gain > best[0]:
            best = gain, own
    if keep and not taken and best is not None:  # one large group exceeds the quota, but an empty split would be worse
        taken.update(best[1])
    return taken


def _first(ids: Iterable[str], labels: Sequence[int], quota: dict[int, int], seed: int, purpose: str) -> set[int]:
    """Choose the examples of each class with the lowest keys, and hold only these in memory."""
    best: dict[int, list[tuple[int, int]]] = {c: [] for c, n in quota.items() if n > 0}
    for position, (name, label) in enumerate(zip(ids, labels, strict=True)):
        own = best.get(label)
        if own is None:
            continue
        entry = -int.from_bytes(_hash_key(seed, purpose, name)), position  # negative: the highest key is on top
        if len(own) < quota[label]:
            heapq.heappush(own, entry)
        elif entry > own[0]:
            heapq.heapreplace(own, entry)
    return {position for own in best.values() for _, position in own}


def make_splits(
    parts: dict[str, Examples], second: Examples | None, request: SplitConfig, class_names: Sequence[str]
) -> Splits:
    """Divide the examples of a source into splits.

    Args:
        parts: Examples of the source by the split that it assigns.
        second: Unlabeled examples of another source, which then are the only unlabeled ones.
        request: Settings of the splits; findings are appended.
        class_names: Names of the classes, for messages.

    Raises:
        InputError: More labels are requested than exist, or a split that is needed would be empty.
    """
    train, given = parts.get("train"), parts.get("unlabeled")
    nothing = Split(next(iter(parts.values())), [])
    splits: Splits = {name: _all(parts[name]) for name in ("test", "val") if name in parts}
    defects, rest = (nothing, nothing) if train is None else _set_apart(train, request)
    for name, size in (("test", request.test_size), ("val", request.val_size)):
        if name not in parts:
            splits[name], rest = _held_out(rest, size, request, name)
    if len(defects) and "test" in parts:
        request.findings.append(describe_unused_defects(defects.ids))
    elif len(defects):
        splits["test"] = Split(defects.part, sorted([*splits["test"].indices, *defects.indices]))
    if second is not None:
        unlabeled = leave_out_groups(_all(second), splits, request)
    elif given is None:
        unlabeled = nothing
    elif train is None and "val" not in parts:
        splits["val"], unlabeled = _held_out(_all(given), request.val_size, request, "val")
    else:
        unlabeled = leave_out_groups(_all(given), splits, request)
    # Leaks are dropped first, so that dropped examples do not count toward the label budget.
    splits = without_leaks({**splits, "train": rest, "unlabeled": unlabeled}, request)
    rest, unlabeled = splits.pop("train"), splits["unlabeled"]
    splits["labeled"], rest = _labeled(rest, request, class_names)
    if second is None:
        splits["unlabeled"] = _joined(rest, unlabeled)
    return {name: splits[name] for name in NAMES}


def _all(part: Examples) -> Split:
    return Split(part, range(len(part)))


def _set_apart(train: Examples, request: SplitConfig) -> tuple[Split, Split]:
    """Return the training examples that are only compared, and those to train on."""
    return _divided(_all(train), find_defects(train.labels, request.normal_class))


def _divided(split: Split, taken: npt.NDArray[np.int64]) -> tuple[Split, Split]:
    """Return the taken examples, and the rest."""
    if len(taken) in (0, len(split)):
        nothing = Split(split.part, [])
        return (split, nothing) if len(taken) else (nothing, split)
    rest = np.setdiff1d(np.asarray(split.indices, dtype=np.int64), taken, assume_unique=True)
    return Split(split.part, np.sort(taken).tolist()), Split(split.part, rest.tolist())


def _known(pool: Split) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], dict[int, int]]:
    """Return the labeled examples of a pool, their labels, and the count of each class in the order of the classes."""
    indices, labels = np.asarray(pool.indices, dtype=np.int64), pool.labels.numpy()
    indices, labels = indices[labels >= 0], labels[labels >= 0]
    classes, counts = np.unique(labels, return_counts=True)
    return indices, labels, dict(zip(classes.tolist(), counts.tolist(), strict=True))


def _ids(part: Examples, indices: npt.NDArray[np.int64]) -> Iterable[str]:
    return (part.ids[i] for i in indices.tolist())


def _held_out(pool: Split, size: float, request: SplitConfig, purpose: str) -> tuple[Split, Split]:
    """Return the examples held out of a pool and the rest, which keeps at least one example of each class."""
    part = pool.part
    candidates, labels, counts = _known(pool)
    if not len(candidates):
        candidates, labels = np.asarray(pool.indices, dtype=np.int64), np.full(len(pool), -1)
        counts = {-1: len(pool)} if len(pool) else {}
    if size < 0 or (size >= 1 and size != int(size)):
        raise InputError(f"{purpose}_size is {size}: give a share below 1 or a whole number of examples")
    total = int(size) if size >= 1 else round(size * len(candidates))
    name, asked = _SAID[purpose], f"{purpose}_size is {size:g} of {len(candidates):,} examples"
    if total == 0 or not len(candidates):
        if size and len(candidates):
            message = f"{name} is empty: {asked}, which is less than one; ask for more"
            request.findings.append(Finding("empty_split", message, [purpose]))
        return _divided(pool, candidates[:0])
    if total >= len(candidates):
        raise InputError(
            f"{purpose}_size asks for {total} of the {len(candidates)} training examples: leave some to train on"
        )
    groups = None if part.groups is None else [part.groups[i] for i in candidates.tolist()]
    if request.label_sets is not None and labels[0] >= 0:
        names, key = [*_ids(part, candidates)], partial(_hash_key, request.seed, purpose)
        counts_of = request.label_sets.rows.numpy()[labels]
        chosen = choose_sets(names, counts_of, groups, key, total)
    else:
        if size < 1:  # only shares are capped, to keep an example of each class
            total = min(total, sum(n - 1 for n in counts.values()))
        quota = quotas(counts, total, keep=1)
        chosen = choose(_ids(part, candidates), labels.tolist(), groups, quota, request.seed, purpose, keep=True)
    held, rest = _divided(pool, candidates[sorted(chosen)])
    if not len(held):
        last = "groups stay together, and each one holds the last examples of a class"
        why = "each one is the last of its class" if part.groups is None else last
        message = f"{name} is empty: {asked}, but {why}; give more, or set {purpose}_size: 0"
        request.findings.append(Finding("empty_split", message, [purpose]))
    elif abs(len(held) - total) > total / 2:
        are = "example is" if len(held) == 1 else "examples are"
        wanted = f"where {total:,} were asked for, because groups stay together"
        message = f"{len(held):,} {are} held out for {name} {wanted}"
        request.findings.append(Finding("split_size", message, [purpose]))
    if part.groups is None:
        return held, rest
    # The unlabeled members of a held-out group must not be trained on either.
    return held, leave_out_groups(rest, {purpose: held}, request)


def _labeled(pool: Split, request: SplitConfig, class_names: Sequence[str]) -> tuple[Split, Split]:
    """Return the examples whose labels are used, and the rest of the pool."""
    candidates, labels, counts = _known(pool)
    if min(request.num_labels or 0, request.labels_per_class or 0) < 0:
        raise InputError(
            f"num_labels is {request.num_labels}, labels_per_class {request.labels_per_class}: give zero or more, "
            "or null for all"
        )
    if request.num_labels is not None and request.labels_per_class is not None:
        raise InputError("num_labels and labels_per_class are both set: give one of them")
    if (sets := request.label_sets) is not None:
        counts = dict(enumerate(sets.count(torch.from_numpy(labels)).tolist()))
    if request.labels_per_class is not None:
        for c, name in enumerate(class_names):
            if counts.get(c, 0) < request.labels_per_class:
                raise InputError(
                    f"labels_per_class is {request.labels_per_class}, but class {name!r} has only {counts.get(c, 0)} "
                    "labeled training examples after validation and test were held out: ask for fewer"
                )
        quota = dict.fromkeys(counts, request.labels_per_class)
    elif request.num_labels is not None:
        if request.num_labels > len(candidates):
            raise InputError(
                f"num_labels is {request.num_labels}, but only {len(candidates)} labeled training examples are left "
                "after validation and test were held out: ask for fewer"
            )
        quota = quotas(counts, request.num_labels) if sets is None else {}  # examples of no class count for none
    else:
        return _divided(pool, candidates)
    # Groups separate training from evaluation; within training, the label budget is met exactly.
    if sets is not None:
        names, key = [*_ids(pool.part, candidates)], partial(_hash_key, request.seed, "labeled")
        chosen = choose_sets(
            names, sets.rows.numpy()[labels], None, key, request.num_labels, request.labels_per_class, at_least_one=True
        )
        return _divided(pool, candidates[sorted(chosen)])
    chosen = choose(_ids(pool.part, candidates), labels.tolist(), None, quota, request.seed, "labeled")
    return _divided(pool, candidates[sorted(chosen)])


def leave_out_groups(given: Split, held: Splits, request: SplitConfig) -> Split:
    """Return the examples of a split without those whose group is held out.

    Args:
        given: Split to train on.
        held: Splits that are held out.
        request: Settings of the splits; a finding is appended.
    """
    groups = {split.part.groups[i] for split in held.values() if split.part.groups is not None for i in split.indices}
    own = given.part.groups
    if own is None or not groups:
        return given
    keep = [i for i in given.indices if own[i] not in groups]
    if count := len(given) - len(keep):
        message = f"{count:,} unlabeled examples were left out: their group is in validation or test"
        out = (given.part.ids[i] for i in given.indices if own[i] in groups)
        request.findings.append(Finding("held_out_group", message, list(itertools.islice(out, MAX_EXAMPLES))))
    return Split(given.part, keep)


def _joined(rest: Split, given: Split) -> Split:
    """Join the training examples whose labels are not used and the source's own unlabeled ones."""
    if not len(rest) or not len(given):
        return given if len(given) else rest
    return _all(concatenated((rest.part, rest.indices), (given.part, given.indices)))


def without_leaks(splits: Splits, request: SplitConfig) -> Splits:
    """Drop or refuse training examples that are also held out for evaluation.

    Args:
        splits: Splits `test`, `val` and those to train on.
        request: Settings with the policy; findings are appended.

    Raises:
        InputError: The same example is in two splits and the policy is `raise`.
    """
    for a, b in itertools.combinations(splits, 2):
        if splits[a].part is splits[b].part and np.intersect1d(splits[a].indices, splits[b].indices).size:
            raise AssertionError(f"splits {a} and {b} overlap")
    if request.on_leak == "keep":
        return splits
    drop: dict[str, set[int]] = {name: set() for name in splits}
    pairs = []
    for group in find_equal_examples(splits, request):
        keeper = min(group, key=lambda item: _KEEPS.get(item[0], len(_KEEPS)))
        for name, index in group:
            # Copies among training examples are a weighting by the data and leak nothing into evaluation.
            if name != keeper[0] and keeper[0] in _KEEPS:
                drop[name].add(index)
                here, there = (splits[split].part.ids[i] for split, i in (keeper, (name, index)))
                pairs.append((keeper[0], here, name, there))
    if not pairs:
        return splits
    listed = "; ".join(f"{there!r} ({into}) equals {here!r} ({of})" for of, here, into, there in pairs[:5])
    more = f"; and {len(pairs) - 5} more" if len(pairs) > 5 else ""
    if request.on_leak == "raise":
        raise InputError(f"the same example is in two splits: {listed}{more}; remove one, or set on_leak: drop")
    message = f"{len(pairs)} examples were dropped because the same example is held out for evaluation: {listed}{more}"
    request.findings.append(Finding("leak", message, [there for *_, there in pairs]))
    why = "is empty, because each of its examples is held out for evaluation elsewhere"
    request.findings += [
        Finding("empty_split", f"{_SAID.get(name, name)} {why}", [name])
        for name, gone in drop.items()
        if gone and len(gone) == len(splits[name])
    ]
    return {
        name: Split(split.part, [i for i in split.indices if i not in drop[name]]) if drop[name] else split
        for name, split in splits.items()
    }

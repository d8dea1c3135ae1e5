"""Labeled, unlabeled, validation, test: chosen by a seed alone, disjoint by construction, checked by content.

The order in which examples are taken is that of SHA-256(seed, purpose, id). It depends on nothing else: not on the
order of the files, the machine, the process or the version of a library. A budget of 40 labels is therefore a subset
of the budget of 100 with the same seed.
"""

import csv
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sft_lightning.data.images import repeated
from sft_lightning.data.sources import Part, concatenated
from sft_lightning.errors import InputError

LeakPolicy = Literal["drop", "raise"]
NAMES = ("labeled", "unlabeled", "val", "test")
# Where the same picture stands in two splits, it stays in the first of these.
_KEEPS = ("test", "val", "labeled", "unlabeled")


@dataclass
class Split:
    """Some examples of one part.

    Attributes:
        part: Where they are.
        indices: Positions in the part.
    """

    part: Part
    indices: list[int]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> Tensor:
        """int64 of shape (N,), -1 where unknown."""
        return self.part.labels[torch.tensor(self.indices, dtype=torch.long)]

    @property
    def ids(self) -> list[str]:
        """The names of the examples."""
        return [self.part.ids[i] for i in self.indices]


Splits = dict[str, Split]


@dataclass
class Request:
    """What the user asks of the splits.

    Attributes:
        seed: Chooses the examples.
        num_labels: Labels in total, or None.
        labels_per_class: Labels of each class, or None. With neither, all labels are used.
        val_size: Share (below 1) or number of the training examples held out where the source has no validation part.
        test_size: The same for the test part.
        on_leak: What happens to a picture that stands in two splits.
    """

    seed: int = 0
    num_labels: int | None = None
    labels_per_class: int | None = None
    val_size: float = 0.1
    test_size: float = 0.2
    on_leak: LeakPolicy = "drop"
    messages: list[str] = field(default_factory=list)


def rank(seed: int, purpose: str, name: str) -> bytes:
    """The sorting key that stands in for a random number.

    Args:
        seed: The user's.
        purpose: Keeps independent choices independent.
        name: The example or group.
    """
    return hashlib.sha256(f"{seed}\0{purpose}\0{name}".encode()).digest()


def choose(
    ids: Sequence[str],
    labels: Sequence[int],
    groups: Sequence[str] | None,
    quota: dict[int, int],
    seed: int,
    purpose: str,
) -> set[int]:
    """Takes examples until each class has its quota; a group comes whole or not at all.

    Groups are visited in the order of their rank and taken when that brings the counts closer to the quota. Without
    groups this takes exactly the quota.

    Args:
        ids: Names of the candidates.
        labels: Class of each.
        groups: Group of each, or None.
        quota: Class to the number wanted.
        seed: The user's.
        purpose: What the choice is for.

    Returns:
        Positions in `ids`.
    """
    members: dict[str, list[int]] = {}
    for position, name in enumerate(groups if groups is not None else ids):
        members.setdefault(name, []).append(position)
    missing = Counter(quota)
    taken: set[int] = set()
    for name in sorted(members, key=lambda name: rank(seed, purpose, name)):
        counts = Counter(labels[i] for i in members[name])
        gain = sum(abs(missing[c]) - abs(missing[c] - n) for c, n in counts.items())
        if gain > 0:
            taken.update(members[name])
            missing.subtract(counts)
    return taken


def quotas(counts: dict[int, int], total: int) -> dict[int, int]:
    """Divides a total among classes in proportion to their counts, at least one each where the total allows it.

    Args:
        counts: Class to the number available.
        total: To be divided; at most the sum of the counts.
    """
    available = sum(counts.values())
    floor = 1 if total >= len(counts) else 0
    shares = {c: max(floor, total * n // available) for c, n in counts.items()}
    # Largest remainder; ties go to the smaller class number, so the result depends on the counts alone.
    order = sorted(counts, key=lambda c: (-(total * counts[c] % available), c))
    while sum(shares.values()) < total:
        for c in order:
            if sum(shares.values()) < total and shares[c] < counts[c]:
                shares[c] += 1
    while sum(shares.values()) > total:
        largest = max(shares, key=lambda c: (shares[c], -c))
        shares[largest] -= 1
    return shares


def make_splits(parts: dict[str, Part], second: Part | None, request: Request, class_names: Sequence[str]) -> Splits:
    """Divides the parts of a source.

    Args:
        parts: What the source has.
        second: Unlabeled examples of another source, which then are the only unlabeled ones.
        request: Sizes and seed.
        class_names: For messages.

    Raises:
        InputError: More labels are asked for than exist, or a split would be empty that must not be.
    """
    train = parts.get("train")
    splits: Splits = {}
    pool: set[int] = set()
    if train is not None:
        labels = train.labels.tolist()
        pool = set(range(len(train)))
        for name, size in (("test", request.test_size), ("val", request.val_size)):
            if name not in parts:
                held = _held_out(train, labels, pool, size, request.seed, name)
                splits[name] = Split(train, sorted(held))
                pool -= held
    for name in ("val", "test"):
        if name in parts:
            splits[name] = Split(parts[name], list(range(len(parts[name]))))
    labeled: set[int] = set()
    if train is not None:
        labeled = _labeled(train, labels, pool, request, class_names)
        splits["labeled"] = Split(train, sorted(labeled))
    given = parts.get("unlabeled")
    if second is not None:
        splits["unlabeled"] = Split(second, list(range(len(second))))
    elif given is not None and train is not None:
        splits["unlabeled"] = _joined(train, sorted(pool - labeled), given, splits, request)
    elif given is not None:
        held = _held_out(given, given.labels.tolist(), set(range(len(given))), request.val_size, request.seed, "val")
        splits.setdefault("val", Split(given, sorted(held)))
        splits["unlabeled"] = Split(given, sorted(set(range(len(given))) - set(splits["val"].indices)))
    elif train is not None:
        splits["unlabeled"] = Split(train, sorted(pool - labeled))
    for name in NAMES:
        splits.setdefault(name, Split(next(iter(parts.values())), []))
    return _without_leaks({name: splits[name] for name in NAMES}, request)


def _held_out(part: Part, labels: list[int], pool: set[int], size: float, seed: int, purpose: str) -> set[int]:
    candidates = [i for i in sorted(pool) if labels[i] >= 0] or sorted(pool)
    if size < 0 or (size >= 1 and size != int(size)):
        raise InputError(f"{purpose}_size is {size}: give a share below 1 or a whole number of examples")
    total = int(size) if size >= 1 else round(size * len(candidates))
    if total >= len(candidates) and total > 0:
        raise InputError(
            f"{purpose}_size asks for {total} of the {len(candidates)} training examples: leave some to train on"
        )
    if total == 0:
        return set()
    counts = Counter(labels[i] for i in candidates)
    chosen = choose(
        [part.ids[i] for i in candidates],
        [labels[i] for i in candidates],
        None if part.groups is None else [part.groups[i] for i in candidates],
        quotas(dict(counts), total),
        seed,
        purpose,
    )
    held = {candidates[k] for k in chosen}
    if part.groups is not None:  # the unlabeled members of a held-out group must not be trained on either
        groups = {part.groups[i] for i in held}
        pool -= {i for i in pool if part.groups[i] in groups} - held
    return held


def _labeled(train: Part, labels: list[int], pool: set[int], request: Request, class_names: Sequence[str]) -> set[int]:
    candidates = [i for i in sorted(pool) if labels[i] >= 0]
    counts = Counter(labels[i] for i in candidates)
    if request.num_labels is not None and request.labels_per_class is not None:
        raise InputError("num_labels and labels_per_class are both set: give one of them")
    if request.labels_per_class is not None:
        for c, name in enumerate(class_names):
            if counts[c] < request.labels_per_class:
                raise InputError(
                    f"labels_per_class is {request.labels_per_class}, but class {name!r} has only {counts[c]} labeled "
                    "training images after validation and test were held out: ask for fewer"
                )
        quota = dict.fromkeys(counts, request.labels_per_class)
    elif request.num_labels is not None:
        if request.num_labels > len(candidates):
            raise InputError(
                f"num_labels is {request.num_labels}, but only {len(candidates)} labeled training images are left "
                "after validation and test were held out: ask for fewer"
            )
        quota = quotas(dict(counts), request.num_labels) if request.num_labels else {}
    else:
        return set(candidates)
    if any(n < 0 for n in quota.values()) or (request.num_labels or 0) < 0:
        raise InputError("the number of labels is negative: give zero or more")
    # Groups keep training apart from evaluation; within training a budget of labels is met exactly.
    chosen = choose(
        [train.ids[i] for i in candidates], [labels[i] for i in candidates], None, quota, request.seed, "labeled"
    )
    return {candidates[k] for k in chosen}


def _joined(train: Part, rest: list[int], given: Part, splits: Splits, request: Request) -> Split:
    """The source's own unlabeled part, and the training examples whose labels are not used."""
    keep = list(range(len(given)))
    if given.groups is not None:
        held = {
            split.part.groups[i]
            for name in ("val", "test")
            if name in splits and (split := splits[name]).part.groups is not None
            for i in split.indices
        }
        keep = [i for i in keep if given.groups[i] not in held]
        if len(keep) < len(given):
            request.messages.append(
                f"{len(given) - len(keep)} unlabeled images were left out: their group is in validation or test"
            )
    if not rest:
        return Split(given, keep)
    if not keep:
        return Split(train, rest)
    return Split(concatenated((train, rest), (given, keep)), list(range(len(rest) + len(keep))))


def _without_leaks(splits: Splits, request: Request) -> Splits:
    """Drops or refuses pictures that stand in two splits, by position and by content."""
    for a in NAMES:
        for b in NAMES[NAMES.index(a) + 1 :]:
            if splits[a].part is splits[b].part and set(splits[a].indices) & set(splits[b].indices):
                raise AssertionError(f"splits {a} and {b} overlap")
    drop: dict[str, set[int]] = {name: set() for name in NAMES}
    pairs = []
    for group in repeated({name: (splits[name].part.images, splits[name].indices) for name in _KEEPS}):
        keeper = min(group, key=lambda item: _KEEPS.index(item[0]))
        for name, index in group:
            # Copies among the training pictures are the data's own weighting; they tell nothing about the test.
            if name != keeper[0] and keeper[0] in ("test", "val"):
                drop[name].add(index)
                pairs.append((keeper[0], _place(splits, keeper), name, _place(splits, (name, index))))
    if not pairs:
        return splits
    listed = "; ".join(f"{there!r} ({into}) equals {here!r} ({of})" for of, here, into, there in pairs[:5])
    more = f"; and {len(pairs) - 5} more" if len(pairs) > 5 else ""
    if request.on_leak == "raise":
        raise InputError(f"the same picture stands in two splits: {listed}{more}; remove one, or set on_leak: drop")
    request.messages.append(
        f"{len(pairs)} pictures were dropped because the same picture is held out for evaluation: {listed}{more}"
    )
    return {
        name: Split(split.part, [i for i in split.indices if i not in drop[name]]) for name, split in splits.items()
    }


def _place(splits: Splits, item: tuple[str, int]) -> str:
    return splits[item[0]].part.ids[item[1]]


def digest(parts: Iterable[Part]) -> str:
    """SHA-256 over the digests of all collections of pictures, whatever their order.

    Args:
        parts: All parts of the sources.
    """
    return hashlib.sha256("".join(sorted(part.images.digest() for part in parts)).encode()).hexdigest()


def write_manifest(
    path: Path, splits: Splits, parts: Iterable[Part], class_names: Sequence[str], about: dict[str, Any]
) -> None:
    """Writes a split: one comment line of JSON, then `id,split,label`, one example a line.

    Args:
        path: The file; its folder is made.
        splits: What to write.
        parts: All parts of the sources, for the digest.
        class_names: Names of the labels.
        about: Goes into the comment line, with the counts and the digest.
    """
    head = {**about, "sha256": digest(parts), "counts": {name: len(split) for name, split in splits.items()}}
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(path.name + ".part")
    with staged.open("w", newline="", encoding="utf-8") as file:
        file.write(f"# {json.dumps(head)}\n")
        writer = csv.writer(file)
        writer.writerow(("id", "split", "label"))
        for name, split in splits.items():
            for example, label in zip(split.ids, split.labels.tolist(), strict=True):
                # The hidden label of an unlabeled example is nobody's business.
                shown = class_names[label] if label >= 0 and name != "unlabeled" else ""
                writer.writerow((example, name, shown))
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)


def read_manifest(path: Path, parts: Iterable[Part], class_names: Sequence[str]) -> Splits:
    """Reads a split back.

    Args:
        path: Written by `write_manifest`.
        parts: All parts that its examples can be in.
        class_names: The source's classes, which the file's labels must be among.

    Raises:
        InputError: The file is none, or does not fit the data.
    """
    listed = list(parts)
    place = {name: (k, i) for k, part in enumerate(listed) for i, name in enumerate(part.ids)}
    chosen: dict[str, dict[int, list[int]]] = {name: {} for name in NAMES}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            head = json.loads(file.readline().removeprefix("# "))
            for row in csv.DictReader(file):
                if row["id"] not in place:
                    raise InputError(
                        f"split_file {str(path)!r} names {row['id']!r}, which the source does not have: "
                        "give the source that the file was made from"
                    )
                k, i = place[row["id"]]
                known = int(listed[k].labels[i])
                if row["label"] and (known < 0 or class_names[known] != row["label"]):
                    raise InputError(
                        f"split_file {str(path)!r} says {row['id']!r} is {row['label']!r}, the source says "
                        f"{class_names[known] if known >= 0 else 'nothing'!r}: the data changed"
                    )
                chosen[row["split"]].setdefault(k, []).append(i)
    except (OSError, KeyError, ValueError, csv.Error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"split_file {str(path)!r} is no readable split ({error}): give a run's split.csv") from error
    splits: Splits = {}
    for name, by_part in chosen.items():
        pieces = [Split(listed[k], indices) for k, indices in by_part.items()]
        if len(pieces) > 1:
            both = concatenated(*((piece.part, piece.indices) for piece in pieces))
            pieces = [Split(both, list(range(len(both))))]
        splits[name] = pieces[0] if pieces else Split(listed[0], [])
    if digest(listed) != head.get("sha256"):
        raise InputError(
            f"split_file {str(path)!r} was made from other pictures (their SHA-256 differs): use the same data, "
            "or make a new split"
        )
    return splits

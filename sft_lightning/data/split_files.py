"""A run's `split.csv`: which example was in which split, and whether the data is still the same."""

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sft_lightning.data.faults import STRADDLING, fault
from sft_lightning.data.parts import Part, concatenated
from sft_lightning.data.splits import NAMES, Split, Splits
from sft_lightning.errors import InputError
from sft_lightning.files import whole


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
    with whole(path) as staged, staged.open("w", newline="", encoding="utf-8") as file:
        file.write(f"# {json.dumps(head)}\n")
        writer = csv.writer(file)
        writer.writerow(("id", "split", "label"))
        for name, split in splits.items():
            for example, label in zip(split.ids, split.labels.tolist(), strict=True):
                # The hidden label of an unlabeled example is nobody's business.
                shown = class_names[label] if label >= 0 and name != "unlabeled" else ""
                writer.writerow((example, name, shown))


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
    seen: set[tuple[int, int]] = set()
    try:
        with path.open(newline="", encoding="utf-8") as file:
            head = json.loads(file.readline().removeprefix("# "))
            if not isinstance(head, dict):
                raise ValueError("its first line is no JSON object")
            for row in csv.DictReader(file):
                if row["id"] not in place:
                    raise InputError(
                        f"split_file {str(path)!r} names {row['id']!r}, which the source does not have: "
                        "give the source that the file was made from"
                    )
                k, i = place[row["id"]]
                if (k, i) in seen:
                    raise InputError(f"split_file {str(path)!r} lists {row['id']!r} twice: keep one of the two lines")
                seen.add((k, i))
                known = int(listed[k].labels[i])
                if row["label"] and (known < 0 or class_names[known] != row["label"]):
                    raise InputError(
                        f"split_file {str(path)!r} says {row['id']!r} is {row['label']!r}, the source says "
                        f"{class_names[known] if known >= 0 else 'nothing'!r}: the data changed"
                    )
                chosen[row["split"]].setdefault(k, []).append(i)
    except (OSError, KeyError, ValueError, RecursionError, csv.Error) as error:
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
    _check_groups(path, splits)
    return splits


def labeled_ids(path: Path) -> set[str]:
    """The examples whose labels a run has learned from.

    Args:
        path: Its `split.csv`.

    Raises:
        InputError: It is damaged.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            file.readline()
            return {row["id"] for row in csv.DictReader(file) if row["split"] == "labeled"}
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise _unreadable(path, error) from error


def split_counts(path: Path) -> dict[str, Counter[str]]:
    """How many examples of each class a split file has in each split; the class of an unlabeled one is "".

    Args:
        path: A run's `split.csv`.

    Raises:
        InputError: It is damaged.
    """
    found: dict[str, Counter[str]] = {name: Counter() for name in NAMES}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            file.readline()
            for row in csv.DictReader(file):
                found[row["split"]][row["label"]] += 1
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise _unreadable(path, error) from error
    return found


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{str(path)!r} is no readable split ({error}): remove it, or train again")


def _check_groups(path: Path, splits: Splits) -> None:
    """A group (patient, video) must not stand on both sides of an evaluation, also in a file edited by hand."""
    owner: dict[str, str] = {}
    for name in ("test", "val", "labeled", "unlabeled"):
        split = splits[name]
        for i in split.indices if split.part.groups is not None else []:
            group = str(split.part.groups[i])  # type: ignore[index]
            kind = name if name in ("test", "val") else "training"
            if owner.setdefault(group, kind) != kind:
                places = f"{owner[group]} and {kind}"
                sentence = f"split_file {str(path)!r} puts group {group!r} into {places}: keep it in one"
                fault(STRADDLING, places, group, f"in {split.part.ids[i]!r}", sentence)

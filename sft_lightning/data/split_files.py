"""Read and write a run's `split.csv`: the split of each example, and a digest of the data."""

import csv
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sft_lightning.data.issues import STRADDLING, report_fault
from sft_lightning.data.source import Examples, concatenated
from sft_lightning.data.splits import NAMES, Split, Splits
from sft_lightning.data.storage import Storage
from sft_lightning.utils.atomic import open_atomic
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.json_files import read_json_header

LEFT_OUT = "left_out"  # value of the column `split` for an example that is in no split
_WITH_CONTENT = ("labeled", "val", "test")  # splits whose labels are used
_CONTENT_DIGITS = 32
_REMEDY = "put back the file that the run wrote, or train again"
_BATCH = 1024  # examples whose content is read at once


class Row(NamedTuple):
    """Row of a `split.csv`, one for each example.

    Attributes:
        id: Name of the example.
        split: One of `NAMES`, or `LEFT_OUT`.
        label: Name of its class, or empty.
        content: First hexadecimal digits of the SHA-256 of its file, or of its pixels in memory; empty where unlabeled,
            and in files of earlier versions.
    """

    id: str
    split: str
    label: str
    content: str


_CONTENT = "content"  # kind of the digest `sha256` in the first line; files without it digest names and sizes


def digest_examples(parts: Iterable[Examples]) -> str:
    """Return a SHA-256 over the digests of all collections of examples, regardless of their order.

    Args:
        parts: Examples of all sources.
    """
    return _join_digests(part.storage.digest() for part in parts)


def _join_digests(digests: Iterable[str]) -> str:
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def _digest_sizes(parts: Iterable[Examples]) -> str:
    """Return the digest of earlier versions, which covers names and sizes of files in place of their content."""
    return _join_digests(part.storage.digest_sizes() for part in parts)


def is_same_data(head: Mapping[str, Any], parts: Sequence[Examples]) -> bool:
    """Return whether a split was made from these examples.

    Args:
        head: First line of the split file, from `read_head`.
        parts: Examples of all sources.
    """
    made = digest_examples(parts) if head.get("digest") == _CONTENT else _digest_sizes(parts)
    return head.get("sha256") == made


def write_split_file(
    path: Path, splits: Splits, parts: Iterable[Examples], class_names: Sequence[str], metadata: dict[str, Any]
) -> None:
    """Write a split file: a comment line of JSON, then `id,split,label,content`, one example per line.

    Args:
        path: Path of the file; its folder is created.
        splits: Splits to write.
        parts: Examples of all sources, for the digest.
        class_names: Names of the classes.
        metadata: Fields for the comment line, in addition to the counts and the digest.
    """
    head = {
        **metadata,
        "sha256": digest_examples(parts),
        "digest": _CONTENT,
        "counts": {name: len(split) for name, split in splits.items()},
    }
    with open_atomic(path) as staged, staged.open("w", newline="", encoding="utf-8") as file:
        file.write(f"# {json.dumps(head)}\n")
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        writer.writerows(list_split_rows(splits, class_names))
        writer.writerows(Row(name, LEFT_OUT, "", "") for name in _list_left_out(splits, list(parts)))


def list_split_rows(
    splits: Splits, class_names: Sequence[str], with_content: Sequence[str] = _WITH_CONTENT
) -> Iterator[Row]:
    """Yield the rows of a `split.csv`.

    Args:
        splits: Splits of a run.
        class_names: Names of the classes.
        with_content: Names of the splits whose examples are read for their content.
    """
    for name, split in splits.items():
        contents = read_contents(split.part.storage, split.indices) if name in with_content else itertools.repeat("")
        for example, label, content in zip(split.ids, split.labels.tolist(), contents, strict=False):
            # Unlabeled examples may have hidden labels for evaluation, which must not leak into a run's files.
            label_name = class_names[label] if label >= 0 and name != "unlabeled" else ""
            yield Row(example, name, label_name, content)


def read_contents(examples: Storage, indices: Sequence[int]) -> Iterator[str]:
    """Yield the value of the column `content` for some examples, empty for an example that cannot be read.

    Args:
        examples: Collection of examples.
        indices: Positions of the examples in the collection.
    """
    for start in range(0, len(indices), _BATCH):
        batch = indices[start : start + _BATCH]
        try:
            fingerprints = examples.contents(batch)
        except OSError:  # one of them cannot be read
            fingerprints = [_read_content(examples, i) for i in batch]
        yield from (fingerprint.hex()[:_CONTENT_DIGITS] for fingerprint in fingerprints)


def _read_content(examples: Storage, index: int) -> bytes:
    try:
        return examples.contents([index])[0]
    except OSError:
        return b""


def _list_left_out(splits: Splits, parts: Sequence[Examples]) -> Iterator[str]:
    """Yield the names of the examples that are in no split."""
    if sum(map(len, parts)) <= sum(map(len, splits.values())):  # the common case: nothing was left out
        return
    used = Counter(name for split in splits.values() for name in split.ids)
    for part in parts:
        for name in part.ids:
            if used[name]:
                used[name] -= 1
            else:
                yield name


def read_head(path: Path) -> dict[str, Any]:
    """Read the first line of a `split.csv`.

    Args:
        path: Path of a run's `split.csv`.

    Raises:
        InputError: The file is damaged or missing.
    """
    return read_json_header(path, _REMEDY)


def read_rows(path: Path) -> Iterator[Row]:
    """Read the examples of a `split.csv`.

    Args:
        path: Path of a run's `split.csv`.

    Raises:
        InputError: The file is damaged or missing.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            file.readline()
            for row in csv.DictReader(file):
                if row["split"] not in (*NAMES, LEFT_OUT) or row["id"] is None or row["label"] is None:
                    raise ValueError(f"split {row['split']!r} is not one of {', '.join(NAMES)}")
                yield Row(row["id"], row["split"], row["label"], row.get("content") or "")
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise _unreadable_error(path, error) from error


def check_rows(path: Path) -> None:
    """Check that the `split.csv` of a run lists each example once and as many as the run wrote.

    Args:
        path: Path of a run's `split.csv`.

    Raises:
        InputError: Lines are missing, or were added or moved to another split.
    """
    counts: Counter[str] = Counter()
    labeled: set[str] = set()  # or held out; an unlabeled example of a second source may have the same name
    for row in read_rows(path):
        counts[row.split] += 1
        if row.split not in ("unlabeled", LEFT_OUT):
            if row.id in labeled:
                raise _unreadable_error(path, ValueError(f"it lists {row.id!r} twice"))
            labeled.add(row.id)
    written = read_head(path).get("counts")
    for name, count in written.items() if isinstance(written, dict) else ():
        if counts[name] != count:
            raise _unreadable_error(
                path, ValueError(f"it lists {counts[name]:,} {name} examples, and the run had {count:,}")
            )


def join_examples(chosen: Mapping[str, Mapping[int, list[int]]], parts: Sequence[Examples]) -> Splits:
    """Make splits of examples that may come from more than one collection.

    Args:
        chosen: Positions of the examples of each split, by the index of their collection in `parts`.
        parts: Collections of examples.
    """
    splits: Splits = {}
    for name, by_part in chosen.items():
        pieces = [Split(parts[k], indices) for k, indices in by_part.items()]
        if len(pieces) > 1:
            both = concatenated(*((piece.part, piece.indices) for piece in pieces))
            pieces = [Split(both, list(range(len(both))))]
        splits[name] = pieces[0] if pieces else Split(parts[0], [])
    return splits


def read_split_file(path: Path, parts: Iterable[Examples], class_names: Sequence[str]) -> Splits:
    """Read a split file and find its examples.

    Args:
        path: Path of a file that `write_split_file` wrote.
        parts: Collections that the examples are in.
        class_names: Names of the source's classes.

    Raises:
        InputError: The file is not a split file, or does not fit the data.
    """
    listed = list(parts)
    position = {name: (k, i) for k, part in enumerate(listed) for i, name in enumerate(part.ids)}
    chosen: dict[str, dict[int, list[int]]] = {name: {} for name in NAMES}
    used: set[tuple[int, int]] = set()
    try:
        with path.open(newline="", encoding="utf-8") as file:
            head = json.loads(file.readline().removeprefix("# "))
            if not isinstance(head, dict):
                raise ValueError("its first line is not a JSON object")
            for row in csv.DictReader(file):
                if row["split"] == LEFT_OUT:
                    continue
                if row["id"] not in position:
                    raise InputError(
                        f"split_file {str(path)!r} names {row['id']!r}, which the source does not have: "
                        "give the source that the file was made from"
                    )
                k, i = position[row["id"]]
                if (k, i) in used:
                    raise InputError(f"split_file {str(path)!r} lists {row['id']!r} twice: keep one of the two lines")
                used.add((k, i))
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
        raise InputError(
            f"split_file {str(path)!r} is not a readable split ({error}): give a run's split.csv"
        ) from error
    splits = join_examples(chosen, listed)
    if not is_same_data(head, listed):
        raise InputError(
            f"split_file {str(path)!r} was made from other examples (their SHA-256 differs): use the same data, "
            "or make a new split"
        )
    _check_groups(path, splits)
    return splits


def read_labeled_ids(path: Path) -> set[str]:
    """Read the names of the examples whose labels a run has learned.

    Args:
        path: Path of a run's `split.csv`.

    Raises:
        InputError: The file is damaged or missing.
    """
    return {row.id for row in read_rows(path) if row.split == "labeled"}


def read_split_counts(path: Path) -> dict[str, Counter[str]]:
    """Read the number of examples of each class in each split; the class of an unlabeled example is "".

    Args:
        path: Path of a run's `split.csv`.

    Raises:
        InputError: The file is damaged or missing.
    """
    counts: dict[str, Counter[str]] = {name: Counter() for name in NAMES}
    for row in read_rows(path):
        if row.split != LEFT_OUT:
            counts[row.split][row.label] += 1
    return counts


def _unreadable_error(path: Path, error: Exception) -> InputError:
    return InputError(f"{str(path)!r} cannot be read ({error}): {_REMEDY}")


def _check_groups(path: Path, splits: Splits) -> None:
    """Refuse a group (patient, video) in both training and evaluation, which a manually edited file may have."""
    owner: dict[str, str] = {}
    for name in ("test", "val", "labeled", "unlabeled"):
        split = splits[name]
        for i in split.indices if split.part.groups is not None else []:
            group = str(split.part.groups[i])  # type: ignore[index]
            kind = name if name in ("test", "val") else "training"
            if owner.setdefault(group, kind) != kind:
                places = f"{owner[group]} and {kind}"
                sentence = f"split_file {str(path)!r} puts group {group!r} into {places}: keep it in one"
                report_fault(STRADDLING, places, group, f"in {split.part.ids[i]!r}", sentence)

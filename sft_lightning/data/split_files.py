"""A run's `split.csv`: which example was in which split, and whether the data is still the same."""

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
from sft_lightning.data.vision.images import FileImages, Images
from sft_lightning.utils.atomic import open_atomic
from sft_lightning.utils.errors import InputError

LEFT_OUT = "left_out"  # stands in the column `split` of an example that is in none
_WITH_CONTENT = ("labeled", "val", "test")  # whose labels count
_CONTENT_DIGITS = 32
_BATCH = 1024  # images whose content is read at a time


class Row(NamedTuple):
    """One example of a `split.csv`.

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


_CONTENT = "content"  # what `sha256` of the comment line is of; earlier versions, without this field, took files' sizes


def digest_examples(parts: Iterable[Examples]) -> str:
    """SHA-256 over the digests of all collections of pictures, whatever their order.

    Args:
        parts: All parts of the sources.
    """
    return _join_digests(part.images.digest() for part in parts)


def _join_digests(digests: Iterable[str]) -> str:
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def _digest_sizes(parts: Iterable[Examples]) -> str:
    """As earlier versions made it: of files, of names and sizes."""
    return _join_digests(
        part.images.digest_sizes() if isinstance(part.images, FileImages) else part.images.digest() for part in parts
    )


def is_same_data(head: Mapping[str, Any], parts: Sequence[Examples]) -> bool:
    """Return whether a split was made from these images.

    Args:
        head: First line of its file.
        parts: All parts of the sources.
    """
    made = digest_examples(parts) if head.get("digest") == _CONTENT else _digest_sizes(parts)
    return head.get("sha256") == made


def write_split_file(
    path: Path, splits: Splits, parts: Iterable[Examples], class_names: Sequence[str], metadata: dict[str, Any]
) -> None:
    """Writes a split: one comment line of JSON, then `id,split,label,content`, one example a line.

    Args:
        path: The file; its folder is made.
        splits: What to write.
        parts: All parts of the sources, for the digest.
        class_names: Names of the labels.
        metadata: Goes into the comment line, with the counts and the digest.
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
    """Give the rows of a `split.csv`.

    Args:
        splits: Splits of a run.
        class_names: Names of the labels.
        with_content: Names of the splits whose images are read for their content.
    """
    for name, split in splits.items():
        contents = read_contents(split.part.images, split.indices) if name in with_content else itertools.repeat("")
        for example, label, content in zip(split.ids, split.labels.tolist(), contents, strict=False):
            # The hidden label of an unlabeled example is nobody's business.
            shown = class_names[label] if label >= 0 and name != "unlabeled" else ""
            yield Row(example, name, shown, content)


def read_contents(images: Images, indices: Sequence[int]) -> Iterator[str]:
    """Give what stands in the column `content` for some images, empty for one that cannot be read.

    Args:
        images: Collection of images.
        indices: Positions in it.
    """
    for start in range(0, len(indices), _BATCH):
        some = indices[start : start + _BATCH]
        try:
            found = images.fingerprints(some)
        except OSError:  # one of them
            found = [_read_content(images, i) for i in some]
        yield from (one.hex()[:_CONTENT_DIGITS] for one in found)


def _read_content(images: Images, index: int) -> bytes:
    try:
        return images.fingerprints([index])[0]
    except OSError:
        return b""


def _list_left_out(splits: Splits, parts: Sequence[Examples]) -> Iterator[str]:
    """Names of the examples that are in none of the splits; mostly there are none, and nothing is gone through."""
    if sum(map(len, parts)) <= sum(map(len, splits.values())):
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
        path: File of a run.

    Raises:
        InputError: It is damaged.
    """
    try:
        with path.open(encoding="utf-8") as file:
            head = json.loads(file.readline().removeprefix("# "))
        if not isinstance(head, dict):
            raise ValueError("its first line is not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable_error(path, error) from error
    return head


def read_rows(path: Path) -> Iterator[Row]:
    """Read the examples of a `split.csv`.

    Args:
        path: File of a run.

    Raises:
        InputError: It is damaged.
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
    """Make sure that the `split.csv` of a run lists each example once and as many as the run wrote.

    Args:
        path: File of a run.

    Raises:
        InputError: Lines are missing, or were added or moved to another split.
    """
    counts: Counter[str] = Counter()
    labeled: set[str] = set()  # or held out; an unlabeled example may be of another source, with the same name
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
                path, ValueError(f"it lists {counts[name]:,} {name} images, and the run had {count:,}")
            )


def join_examples(chosen: Mapping[str, Mapping[int, list[int]]], parts: Sequence[Examples]) -> Splits:
    """Make splits of examples that may come from several parts.

    Args:
        chosen: Positions by number of the part, for each split.
        parts: Parts that the numbers stand for.
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
    """Reads a split back.

    Args:
        path: Written by `write_split_file`.
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
                if row["split"] == LEFT_OUT:
                    continue
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
    splits = join_examples(chosen, listed)
    if not is_same_data(head, listed):
        raise InputError(
            f"split_file {str(path)!r} was made from other pictures (their SHA-256 differs): use the same data, "
            "or make a new split"
        )
    _check_groups(path, splits)
    return splits


def read_labeled_ids(path: Path) -> set[str]:
    """The examples whose labels a run has learned from.

    Args:
        path: Its `split.csv`.

    Raises:
        InputError: It is damaged.
    """
    return {row.id for row in read_rows(path) if row.split == "labeled"}


def read_split_counts(path: Path) -> dict[str, Counter[str]]:
    """How many examples of each class a split file has in each split; the class of an unlabeled one is "".

    Args:
        path: A run's `split.csv`.

    Raises:
        InputError: It is damaged.
    """
    found: dict[str, Counter[str]] = {name: Counter() for name in NAMES}
    for row in read_rows(path):
        if row.split != LEFT_OUT:
            found[row.split][row.label] += 1
    return found


def _unreadable_error(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{str(path)!r} is not a readable split ({error}): put back the file that the run wrote, or train again"
    )


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
                report_fault(STRADDLING, places, group, f"in {split.part.ids[i]!r}", sentence)

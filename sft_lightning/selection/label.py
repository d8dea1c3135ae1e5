"""`sft-lightning label`: a page to label examples with one key each, served to this machine or written as one file."""

import base64
import hashlib
import io
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sft_lightning.data.class_names import list_classes
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.data.label_columns import SEPARATOR
from sft_lightning.data.label_files import STATUSES, LabelRow, read_label_rows, read_table, write_label_rows
from sft_lightning.data.modality import Clip
from sft_lightning.data.open_data import open_data
from sft_lightning.data.source import concatenated
from sft_lightning.data.splits import Split
from sft_lightning.selection.label_server import LabelServer
from sft_lightning.selection.select import select_examples
from sft_lightning.utils.atomic import write_text
from sft_lightning.utils.errors import InputError, check_min, did_you_mean
from sft_lightning.utils.html import render_template

_SPLIT = "to label"  # name of the split of the examples on the page
_SIDE = 512  # pixels of an image file on a served page
_STATIC_SIDE = 256  # pixels of an image in a file that holds them all


def label(
    source: str,
    ids: str | None = None,
    out: str = "labels.csv",
    class_names: list[str] | None = None,
    num_labels: int = 50,
    hide_labels: bool = False,
    label_separator: str | None = None,
    label_columns: str | list[str] | None = None,
    port: int = 0,
    static: str | None = None,
) -> Path | str:
    """Show examples one by one on a page, and write their labels to a CSV that `data.init_args.labels` takes.

    Args:
        source: Source of the examples, as `data.init_args.source` takes it: a folder, a table, or the name of a data
            set.
        ids: CSV with the examples to label in its column `id`, such as `select.csv`; a column `suggestion` holds labels
            to confirm. Null for the examples that `select` chooses.
        out: CSV of the labels. Each answer is written at once, and examples that are in it are not asked again.
        class_names: Classes to choose from; null for those of the source.
        num_labels: Number of examples that are chosen without `ids`.
        hide_labels: Whether they are chosen among all training examples, as if none had a label.
        label_separator: Separator of the classes of an example, as in `dog;outdoors`, of which the page takes any
            number; null where each has one.
        label_columns: Columns of 0 and 1 of a table, each a class, or a pattern such as `tag_*`; null for one column of
            labels.
        port: Port of 127.0.0.1 that the page is served on; 0 for a free one.
        static: Path of an HTML file to write instead, which keeps the labels in the browser until they are downloaded.

    Returns:
        Path of the static page, or a summary after Ctrl-C.

    Raises:
        InputError: The examples, labels or classes cannot be used.
    """
    check_min(0, port=port)
    check_min(1, num_labels=num_labels)
    path = Path(out)
    if not path.is_file():
        if path.exists():
            raise InputError(f"out {out!r} is a folder: give the path of a CSV")
        if static is None:
            write_label_rows(path, [])
    sets: dict[str, Any] = {"label_separator": label_separator, "label_columns": label_columns}
    chosen = select_examples(source, num_labels, hide_labels=hide_labels, **sets).ids if ids is None else []
    suggestions = dict.fromkeys(chosen, "") if ids is None else _read_ids(Path(ids))
    side = _SIDE if static is None else _STATIC_SIDE
    session = LabelSession(source, suggestions, path, class_names, side, sets)
    if static is not None:
        write_text(Path(static), session.render(embeds=True))
        return Path(static)
    server = LabelServer(port, session.render(embeds=False), session.read, session.answer)
    with server:
        sys.stdout.write(f"Open {server.address} in a browser; Ctrl-C ends it. Labels go to {out}.\n")
        sys.stdout.flush()
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    return session.summarize()


class LabelSession:
    """Examples to label, and the answers so far, which are in a file at any time."""

    def __init__(
        self,
        source: str,
        suggestions: dict[str, str],
        out: Path,
        class_names: list[str] | None,
        side: int,
        sets: Mapping[str, Any] | None = None,
    ) -> None:
        """Find the examples, and read earlier answers.

        Args:
            source: Source of the examples.
            suggestions: Suggested class by name of the example; empty for none.
            out: CSV of the labels.
            class_names: Classes to choose from, or None.
            side: Side of image files in pixels.
            sets: Settings of the data that give examples several classes, or None.

        Raises:
            InputError: An example, a suggestion or an earlier label does not fit the source, or it has no classes.
        """
        self.out, self._lock = out, threading.Lock()
        self._data = _open(source, out if out.is_file() else None, class_names, side, sets or {})
        self._separator = self._data.label_separator
        self.class_names = self._data.class_names if class_names is None else class_names
        if not self.class_names:
            raise InputError(f"source {source!r} has no classes: list them in class_names, as in '[cat, dog]'")
        for name, suggestion in suggestions.items():
            for each in self._split(suggestion):
                if each and each not in self.class_names:
                    hint = did_you_mean(each, self.class_names)
                    if SEPARATOR in each:
                        hint = f"; where examples have several classes, set label_separator to {SEPARATOR!r}"
                    raise InputError(f"ids suggests the class {each!r} for {name!r}, which is unknown{hint}")
        self._suggestions, self.ids = suggestions, list(suggestions)
        self._choose(source)
        self._rows = self._read_rows()

    def _read_rows(self) -> dict[str, LabelRow]:
        return {row.id: row for row in read_label_rows(self.out, "out")} if self.out.is_file() else {}

    def _choose(self, source: str) -> None:
        """Make the split of the examples, in their order."""
        trained = [self._data.splits[name] for name in ("labeled", "unlabeled")]
        places = {name: (split, i) for split in trained for name, i in zip(split.ids, split.indices, strict=True)}
        for name in self.ids:
            if name not in places:
                raise InputError(
                    f"source {source!r} has no readable training example {name!r}{did_you_mean(name, [*places])}: give "
                    "names as in select.csv"
                )
        pieces = [(places[name][0].part, [places[name][1]]) for name in self.ids]
        self._data.splits[_SPLIT] = Split(concatenated(*pieces), range(len(pieces)))

    def read(self, kind: str, number: int) -> tuple[bytes, str]:
        """Return a file of an example, and its media type.

        Args:
            kind: Kind of the file: `image`, or `clip` for what the page plays.
            number: Number of the example.

        Raises:
            IndexError: There is none.
        """
        if kind not in ("image", "clip") or number >= len(self.ids):
            raise IndexError(f"{kind}/{number}")
        shown = self._show(number) if kind == "image" else self._clip(number)
        if shown is None or isinstance(shown, str):
            raise IndexError(f"{kind}/{number}")
        return _encode(shown) if isinstance(shown, Tensor) else shown

    def _clip(self, number: int) -> Clip | None:
        with self._lock:
            return self._data.clips_of(_SPLIT, [number])[0]

    def _show(self, number: int) -> Tensor | str:
        with self._lock:
            return self._data.show_examples(_SPLIT, [number])[0]

    def answer(self, message: Any) -> None:
        """Take an answer and write the file.

        Args:
            message: Mapping with `number` of the example, and `answer`: label and status, or None to take it back.

        Raises:
            ValueError: The message is not one that the page sends.
        """
        number, given = (message.get("number"), message.get("answer")) if isinstance(message, dict) else (None, None)
        if type(number) is not int or not 0 <= number < len(self.ids):
            raise ValueError("the page shows other examples than the command")
        name = self.ids[number]
        with self._lock:
            rows = self._read_rows()  # another process, or a spreadsheet, may have written it, too
            if given is None:
                rows.pop(name, None)
            elif not isinstance(given, list) or len(given) != 2 or not self._is_answer(*given):
                raise ValueError("the page shows other classes than the command")
            else:
                rows[name] = LabelRow(name, *given)
            write_label_rows(self.out, rows.values())
            self._rows = rows

    def _is_answer(self, label: Any, status: Any) -> bool:
        if label == "":
            return status in STATUSES[1:]
        if status != "" or not isinstance(label, str):
            return False
        return label == self._separator or all(each in self.class_names for each in self._split(label))

    def _split(self, label: str) -> list[str]:
        return [label] if self._separator is None else list_classes(label, self._separator)

    def render(self, embeds: bool) -> str:
        """Return the page.

        Args:
            embeds: Whether the page holds the examples and keeps the answers itself, without a server.
        """
        items: list[dict[str, str]] = []
        for k, name in enumerate(self.ids):
            item = {"id": name, "suggestion": self._suggestions[name]}
            shown = self._show(k) if embeds or k == 0 or "text" in items[0] else None
            if isinstance(shown, str):
                item["text"] = shown
            else:
                item["image"] = _embed(*_encode(shown)) if embeds and shown is not None else f"image/{k}"
                clip = self._clip(k) if embeds or k == 0 or "clip" in items[0] else None
                if clip is not None:
                    item["clip"] = _embed(*clip) if embeds else f"clip/{k}"
            items.append(item)
        answers = {k: self._rows[name][1:3] for k, name in enumerate(self.ids) if name in self._rows}
        source = self._data.source.name
        asked = (source, self.ids, self.class_names, *([] if self._separator is None else [self._separator]))
        key = hashlib.sha256(repr(asked).encode("utf-8", "replace")).hexdigest()[:16]
        state: dict[str, Any] = {"source": source, "file": str(self.out), "key": key, "saves": not embeds}
        state |= {"items": items, "classes": self.class_names, "answers": answers, "separator": self._separator}
        return render_template("label.html", state=state)

    def summarize(self) -> str:
        """Return a sentence about the answers."""
        rows = [self._rows[name] for name in self.ids if name in self._rows]
        labeled = sum(not row.status for row in rows)
        left = len(self.ids) - len(rows)
        more = f"; {left:,} are left, start the command again to go on" if left else ""
        return f"{labeled:,} of {len(self.ids):,} {self._data.input_spec.plural} have a label in {self.out}{more}"


def _open(
    source: str, labels: Path | None, class_names: Sequence[str] | None, side: int, sets: Mapping[str, Any]
) -> FewLabelDataModule:
    """Open the data with all of its examples, whole and large."""
    given = {
        "labels": None if labels is None else str(labels),
        "class_names": class_names and list(class_names),
        **sets,
    }
    how: dict[str, Any] = {
        "val_size": 0,
        "test_size": 0,
        "num_workers": 0,
        "on_bad_image": "skip",
        "on_bad_recording": "skip",
    }
    data = open_data(source, given, how)
    if large := data.settings_to_show(side):
        data = open_data(source, given, how | large)
    data.setup("fit")
    return data


def _read_ids(path: Path) -> dict[str, str]:
    """Read the names of the examples to label, in their order, with a suggested class or an empty text."""
    where = f"ids {str(path)!r}"
    suggestions = {cells["id"]: cells.get("suggestion", "") for _, cells in read_table(path, where, ("id",))}
    if not suggestions:
        raise InputError(f"{where} has no line below its header: list one example per line")
    return suggestions


def _encode(x: Tensor) -> tuple[bytes, str]:
    """Return an image, (C, H, W) in [0, 1], as a file: small ones without loss."""
    pixels = (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    kind = "PNG" if max(image.size) <= 96 else "JPEG"
    file = io.BytesIO()
    image.save(file, kind, **({} if kind == "PNG" else {"quality": 85}))
    return file.getvalue(), f"image/{kind.lower()}"


def _embed(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"

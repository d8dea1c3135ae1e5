"""The data module of a source of `solve`, by what the source holds, and what trainings on it set."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sft_lightning import AudioDataModule, ImageDataModule, TextDataModule
from sft_lightning.data.audio.sources import RECORDINGS, TABLES
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.data.table_rows import TableRows
from sft_lightning.data.text.tables import SUFFIXES
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import InputSpec

_LISTED = 2000  # files of a folder that are looked at
_PRETRAIN_VIEW = ("crop_scale=[0.3,1.0]", "flip=false", "brightness=0.4", "contrast=0.4", "blur=0")
_OF_IMAGES = ("image_size", "resize", "value_range")


@dataclass(frozen=True)
class Modality:
    """What `solve` does differently for each kind of examples.

    Attributes:
        name: Kind of the inputs.
        make: Data module from the name of the source and settings.
        unit: Unit of the size of an example.
        plain: Backbone without weights, whose features are the inputs themselves.
        small_view: Options of trainings of networks of this package.
        large_view: Options of trainings of published networks.
        pretrained: Backbone that is pre-trained from scratch; empty where none is.
        pretrain_view: Options of that pre-training.
        skipping: Setting that leaves out unreadable files; empty where examples are not files.
        candidate: Published network that the user may name; empty where some are found or fetched.
    """

    name: str
    make: Callable[..., FewLabelDataModule]
    unit: str
    plain: str
    small_view: tuple[str, ...] = ()
    large_view: tuple[str, ...] = ("--model.layer_decay=0.75",)
    pretrained: str = ""
    pretrain_view: tuple[str, ...] = ()
    skipping: str = ""
    candidate: str = ""


VISION = Modality(
    "image", ImageDataModule, "px", "pixels", ("--data.weak_view.crop_padding=2",),
    ("--data.weak_view.crop_scale=[0.3,1.0]", "--model.layer_decay=0.75"), "resnet8:flatten",
    tuple(f"--data.pretrain_view.{change}" for change in _PRETRAIN_VIEW), "on_bad_image",
)  # fmt: skip
TEXT = Modality("text", TextDataModule, "tokens", "bag_of_words", candidate="a sentence encoder")
AUDIO = Modality(
    "audio", AudioDataModule, "frames", "log_mel", pretrained="resnet8", skipping="on_bad_recording",
    candidate="a wav2vec 2.0",
)  # fmt: skip


def find_modality(source: str, given: dict[str, Any]) -> Modality:
    """Return the kind of examples that a source holds.

    A table with a column `text` and none called `path`, and a folder with mostly `.txt` files, hold texts; a table of
    paths of recordings, and a folder with mostly recordings, hold these; anything else holds images.

    Args:
        source: Source as the user named it.
        given: Settings of the user by name, None where he gave none.

    Raises:
        InputError: A setting of images is given for other examples.
    """
    path, modality = Path(source), VISION
    if path.is_dir():
        names = [file.name.lower() for file in islice(path.rglob("*.*"), _LISTED)]
        for kind, fits in ((TEXT, lambda name: name.endswith(".txt")), (AUDIO, RECORDINGS.is_named)):
            count = sum(map(fits, names))
            modality = kind if count and count >= len(names) - count else modality
    elif path.is_file() and path.suffix.lower() in {*SUFFIXES, *TABLES}:
        modality = AUDIO if _lists_recordings(path) else TEXT if _has_texts(path) else VISION
    for name in _OF_IMAGES if modality is not VISION else ():
        if given.get(name) is not None:
            plural = InputSpec(modality.name, (1,)).plural
            raise InputError(f"{name} is {given[name]!r}, and source {source!r} holds {plural}: leave it out")
    return modality


def _lists_recordings(path: Path) -> bool:
    """Return whether the first path of a table is that of a recording."""
    try:
        return any(RECORDINGS.is_named(row["path"]) for _, row in islice(TableRows(path, ("path",)), 1))
    except InputError:  # which opening it explains
        return False


def _has_texts(path: Path) -> bool:
    """Return whether the header of a table has a column of texts and none of paths."""
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return True
    if suffix == ".parquet":
        try:
            import pyarrow.parquet as parquet

            names = parquet.read_schema(path).names
        except (ImportError, OSError, ValueError):  # which opening it explains
            return False
    else:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            head = file.readline()
        names = next(csv.reader([head], delimiter=max(",;\t|", key=head.count)), [])
    plain = {name.strip().casefold() for name in names}
    return "text" in plain and "path" not in plain

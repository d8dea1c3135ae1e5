"""The data module of a source of `solve`, by what the source holds, and what trainings on it set."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sft_lightning import ImageDataModule, TextDataModule
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.data.text.tables import SUFFIXES
from sft_lightning.utils.errors import InputError

_LISTED = 2000  # files of a folder that are looked at
_OF_IMAGES = ("image_size", "resize", "value_range")


@dataclass(frozen=True)
class Modality:
    """What `solve` does differently for each kind of examples.

    Attributes:
        name: Kind of the inputs.
        make: Data module from the name of the source and settings.
        unit: Unit of the size of an example.
        plain: Backbone without weights, whose features are the inputs themselves, or weights of what they consist of.
        plain_encoding: Encoding of the inputs of that backbone where it is another one than that of networks.
        small_view: Options of trainings of networks of this package.
        large_view: Options of trainings of published networks.
        pretrained: Backbone that is pre-trained from scratch; empty where none is.
    """

    name: str
    make: Callable[..., FewLabelDataModule]
    unit: str
    plain: str
    small_view: tuple[str, ...] = ()
    large_view: tuple[str, ...] = ("--model.layer_decay=0.75",)
    pretrained: str = ""
    plain_encoding: str = ""


VISION = Modality(
    "image", ImageDataModule, "px", "pixels", ("--data.weak_view.crop_padding=2",),
    ("--data.weak_view.crop_scale=[0.3,1.0]", "--model.layer_decay=0.75"), "resnet8:flatten",
)  # fmt: skip
TEXT = Modality("text", TextDataModule, "tokens", "tfidf", plain_encoding="words:1048576")


def find_modality(source: str, given: dict[str, Any]) -> Modality:
    """Return the kind of examples that a source holds.

    A table with a column `text` and none called `path`, and a folder with `.txt` files and no class folder of images,
    hold texts; anything else holds images.

    Args:
        source: Source as the user named it.
        given: Settings of the user by name, None where he gave none.

    Raises:
        InputError: A setting of images is given for texts.
    """
    path = Path(source)
    if path.is_dir():
        names = [file.suffix.lower() for file in islice(path.rglob("*.*"), _LISTED)]
        texts = names.count(".txt")
        holds_texts = texts > 0 and texts >= len(names) - texts
    else:
        holds_texts = path.suffix.lower() in SUFFIXES and path.is_file() and _has_texts(path)
    if not holds_texts:
        return VISION
    for name in _OF_IMAGES:
        if given.get(name) is not None:
            raise InputError(f"{name} is {given[name]!r}, and source {source!r} holds texts: leave it out")
    return TEXT


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

"""Whether a source holds texts."""

from itertools import islice
from pathlib import Path

from sft_lightning.data.table_header import read_column_names
from sft_lightning.data.text.dataset_folder import holds_texts, is_dataset_folder
from sft_lightning.data.text.source import SAMPLE_NAME
from sft_lightning.data.text.tables import SUFFIXES

_LISTED = 2000  # files of a folder that are looked at


def holds(source: str) -> bool:
    """Return whether a source is the sample, a table with a column `text` and none `path`, or a folder of texts.

    Folders of texts hold `.txt` files, or a data set of Hugging Face.

    Args:
        source: Source as the user named it.
    """
    if source == SAMPLE_NAME:
        return True
    path = Path(source)
    if path.is_dir() and is_dataset_folder(path):
        return holds_texts(path)
    if path.is_dir():
        names = [file.suffix.lower() for file in islice(path.rglob("*.*"), _LISTED)]
        texts = names.count(".txt")
        return texts > len(names) - texts  # as many lie beside images as their captions
    return path.suffix.lower() in SUFFIXES and path.is_file() and _has_texts(path)


def _has_texts(path: Path) -> bool:
    """Return whether the header of a table has a column of texts and none of paths."""
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return True
    plain = {name.strip().casefold() for name in read_column_names(path)}
    return "text" in plain and "path" not in plain

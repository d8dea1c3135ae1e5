"""Files from which an encoder of texts is built again, kept in the folder of a run or beside an export.

A run then needs the folder of a published model no more: its weights are in the checkpoint, and its configuration and
tokenizer in the copies. Code and weights are never copied. A tokenizer that was learned lies at the same place.
"""

import hashlib
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

from sft_lightning.networks.hugging_face import KEPT, find_file, make_key
from sft_lightning.networks.text.tokenizers import read_pieces, write_pieces
from sft_lightning.utils.errors import InputError

FOLDER = "encoder"  # of a run
FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")


def keep_files(name: str, folder: Path) -> None:
    """Copy the configuration and the tokenizer of a published model, or write a tokenizer that was learned.

    Args:
        name: Name of a tokenizer, such as `hf/FOLDER`; hashed words have no files.
        folder: Folder of the run, below which they are kept.
    """
    write_pieces(name, folder / FOLDER / FILES[1])
    if not name.startswith("hf/"):
        return
    for file in FILES:
        try:
            source = find_file(name, file)
        except InputError:  # not every model has all of them; those that it needs were read before
            continue
        target = folder / FOLDER / file
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            staged = target.with_name(f"{file}.part")
            shutil.copyfile(source, staged)
            staged.replace(target)


def use_kept_files(name: str, path: Path) -> None:
    """Read a published model from the copies of a run from now on, if its folder is gone or has changed since.

    The tokenizer that a run has learned is always read from its folder.

    Args:
        name: Name of a tokenizer, such as `hf/FOLDER`.
        path: Folder of the run, or a file in it.

    Raises:
        InputError: Another run of this process has a copy of the same name that differs.
    """
    run = path if path.is_dir() else path.parent.parent if path.parent.name == "checkpoints" else path.parent
    kept = (run / FOLDER).resolve()
    read_pieces(name, kept / FILES[1])
    if not name.startswith("hf/") or not (kept / "tokenizer.json").is_file():
        return
    key = make_key(name)
    before = KEPT.pop(key, None)
    if before is not None and _hash(lambda file: before / file) != _hash(lambda file: kept / file):
        raise InputError(
            f"runs {str(before.parent)!r} and {str(kept.parent)!r} have different copies of {name!r}: use them in "
            "separate commands"
        )
    live = _hash(lambda file: find_file(name, file))
    if live == _hash(lambda file: kept / file):
        return
    KEPT[key] = kept
    if live and before is None:
        rank_zero_info(f"Model {name!r} has changed since the run: its copy in {str(kept)!r} is read.")


def _hash(place: Callable[[str], Path]) -> dict[str, str]:
    """Return the SHA-256 of what decides how texts are read, by file."""
    found = {}
    for file in FILES[:2]:
        with suppress(InputError, OSError):
            found[file] = hashlib.sha256(place(file).read_bytes()).hexdigest()
    return found

"""Under which circumstances a run was trained, for `sft-lightning repeat`: `run.json` in the run's folder.

It holds `command` (the words after `sft-lightning`), `folder` (where they were given), `seed`, `data_sha256` (of the
pictures) and `split_sha256` (of `split.csv`), `code` (commit of the Git repository that the folder lies in, and whether
its tracked files differ), `package_sha256` (of this package's code), `versions`, `machine`, `device`, `processes` and
`threads`. What tracked files differ in is kept as `uncommitted.patch`, if it is small.
"""

import hashlib
import json
import shlex
import string
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from sft_lightning._version import __version__
from sft_lightning.runs.lineage import hash_file, read_data_digest
from sft_lightning.utils.atomic import open_atomic, write_json
from sft_lightning.utils.environment import describe_machine
from sft_lightning.utils.errors import InputError

PROVENANCE = "run.json"
PATCH = "uncommitted.patch"
LARGEST = 2**20  # bytes of a patch that is kept
_PACKAGES = ("torchvision", "timm", "numpy", "torchmetrics")  # torch's and lightning's are the machine's
_SHOWN = 12  # characters of a digest or commit that are told
# What may change a result, by the words that tell it.
_COMPARED = {
    "folder": "folder", "seed": "seed", "data_sha256": "data", "split_sha256": "split.csv", "code": "code",
    "package_sha256": "package", "device": "device", "processes": "processes", "threads": "threads",
}  # fmt: skip
Provenance = dict[str, Any]


def format_command(words: Sequence[str]) -> str:
    """A command as it can be pasted.

    Args:
        words: After `sft-lightning`.
    """
    return f"sft-lightning {shlex.join(words)}"


def write_provenance(run: Path, words: Sequence[str], seed: int | bool | None, trainer: Trainer) -> None:
    """Writes `run.json` of a run that starts.

    Args:
        run: Its folder, with `split.csv`.
        words: Of the command.
        seed: Of `seed_everything`; False for none.
        trainer: About to train.
    """
    told, kind = describe_machine(), trainer.strategy.root_device.type
    split = run / "split.csv"
    code, patch = describe_code(Path.cwd())
    if 0 < len(patch) <= LARGEST:
        with open_atomic(run / PATCH) as staged:
            staged.write_bytes(patch)
    found: Provenance = {
        "command": list(words),
        "folder": str(Path.cwd()),
        "seed": seed,
        "data_sha256": read_data_digest(run),
        "split_sha256": hash_file(split) if split.is_file() else None,
        "code": code,
        "package_sha256": hash_package(),
        "versions": {"sft-lightning": __version__, **{name: metadata.version(name) for name in _PACKAGES}},
        "machine": told,
        "device": told.get("cards", kind) if kind == "cuda" else kind,
        "processes": trainer.world_size,
        "threads": torch.get_num_threads(),
    }
    write_json(run / PROVENANCE, found)


def read_provenance(run: Path) -> Provenance:
    """What a run recorded; nothing of one that recorded nothing.

    Args:
        run: Its folder.

    Raises:
        InputError: Its `run.json` is damaged.
    """
    path = run / PROVENANCE
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}): remove it") from error
    if not isinstance(found, dict) or not _is_record(found):
        raise InputError(f"{str(path)!r} is no record of a run: remove it")
    return found


def _is_record(found: Provenance) -> bool:
    words, threads, code = found.get("command"), found.get("threads"), found.get("code", "missing")
    return (
        isinstance(words, list)
        and all(isinstance(word, str) for word in words)
        and type(threads) is int
        and threads > 0
        and all(isinstance(found.get(name), dict) for name in ("versions", "machine"))
        and not any(isinstance(found.get(name), dict) for name in _COMPARED if name != "code")
        and (code is None or (isinstance(code, dict) and _is_state(code)))
    )


def _is_state(code: dict[str, Any]) -> bool:
    dirty = code.get("dirty")
    texts = ("commit", "patch_sha256") if dirty else ("commit",)
    return isinstance(dirty, bool) and all(isinstance(code.get(name), str) for name in texts)


def describe_code(folder: Path) -> tuple[dict[str, Any] | None, bytes]:
    """The state of the Git repository that a folder lies in, and in what its tracked files differ from the commit.

    Args:
        folder: Any.

    Returns:
        `commit`, `dirty`, and `patch_sha256` where it is; None outside of a repository and where Git is missing, or
        does not answer.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    patch = _git(folder, "diff", "HEAD", "--binary", "--no-ext-diff", "--no-color")
    if commit is None or patch is None:
        return None, b""
    code: dict[str, Any] = {"commit": commit.decode().strip(), "dirty": bool(patch)}
    if patch:
        code["patch_sha256"] = hashlib.sha256(patch).hexdigest()
    return code, patch


def _git(folder: Path, *words: str) -> bytes | None:
    # No lock: another command of the user may be at work.
    command = ["git", "--no-optional-locks", "-C", str(folder), *words]
    try:
        return subprocess.run(command, capture_output=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def hash_package() -> str:
    """SHA-256 of the code of this package: two states of it may have the same version."""
    home = Path(__file__).parents[1]
    files = sorted((path.relative_to(home).as_posix(), path) for path in home.rglob("*.py"))
    return hashlib.sha256("\n".join(f"{name} {hash_file(path)}" for name, path in files).encode()).hexdigest()


def describe_differences(then: Provenance, now: Provenance) -> list[str]:
    """What differs between two records and may change a result, each in words.

    Args:
        then: Of the recorded run.
        now: Of the one that repeats it.
    """
    if not then:
        return [f"unknown, as the run has no {PROVENANCE}"]
    found = [
        f"{word} ({shorten(then.get(name))} then, {shorten(now.get(name))} now)"
        for name, word in _COMPARED.items()
        if then.get(name) != now.get(name)
    ]
    for group in ("versions", "machine"):
        old, new = then.get(group) or {}, now.get(group) or {}
        found += [
            f"{name} ({old.get(name, 'none')} then, {new.get(name, 'none')} now)"
            for name in {**old, **new}
            if old.get(name) != new.get(name)
        ]
    return found


def shorten(value: Any) -> str:
    """A value of the record in a few words.

    Args:
        value: Any; a digest or commit is cut.
    """
    if isinstance(value, dict):  # of the code
        changed = f" with changes {value['patch_sha256'][:_SHOWN]}" if value["dirty"] else ""
        return f"commit {value['commit'][:_SHOWN]}{changed}"
    is_digest = isinstance(value, str) and len(value) == 64 and set(value) <= set(string.hexdigits)
    return "none" if value is None else str(value)[: _SHOWN if is_digest else None]

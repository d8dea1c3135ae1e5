"""Circumstances of a training, for `sft-lightning repeat`: `run.json` in the run's folder.

The file holds `command` (the arguments after `sft-lightning`), `folder` (where the command was given), `seed`,
`data_sha256` (of the examples) and `split_sha256` (of `split.csv`), `code` (commit of the Git repository around the
folder, and whether its tracked files differ), `package_sha256` (of this package's code), `versions`, `machine`,
`device`, `processes` and `threads`. Uncommitted changes are kept as `uncommitted.patch`, if they are small.
"""

import hashlib
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
from sft_lightning.runs.lineage import hash_file
from sft_lightning.runs.record import COMPARED, PROVENANCE, Provenance, RunRecord
from sft_lightning.utils.atomic import open_atomic, write_json
from sft_lightning.utils.environment import describe_machine

PATCH = "uncommitted.patch"
LARGEST = 2**20  # bytes; a larger patch is not kept
_PACKAGES = ("torchvision", "timm", "numpy", "torchmetrics")  # torch's and lightning's are the machine's
_SHOWN = 12  # characters of a digest or commit


def format_command(argv: Sequence[str]) -> str:
    """Return a command as it can be pasted into a shell.

    Args:
        argv: Arguments after `sft-lightning`.
    """
    return f"sft-lightning {shlex.join(argv)}"


def write_provenance(run: Path, argv: Sequence[str], seed: int | bool | None, trainer: Trainer) -> None:
    """Write `run.json` of a run that starts.

    Args:
        run: Folder of the run, with `split.csv`.
        argv: Arguments after `sft-lightning`.
        seed: Value of `seed_everything`; False for none.
        trainer: Trainer that is about to train.
    """
    machine, kind = describe_machine(), trainer.strategy.root_device.type
    split = run / "split.csv"
    code, patch = describe_code(Path.cwd())
    if 0 < len(patch) <= LARGEST:
        with open_atomic(run / PATCH) as staged:
            staged.write_bytes(patch)
    record: Provenance = {
        "command": list(argv),
        "folder": str(Path.cwd()),
        "seed": seed,
        "data_sha256": RunRecord(run).data_digest,
        "split_sha256": hash_file(split) if split.is_file() else None,
        "code": code,
        "package_sha256": hash_package(),
        "versions": {"sft-lightning": __version__, **{name: metadata.version(name) for name in _PACKAGES}},
        "machine": machine,
        "device": machine.get("cards", kind) if kind == "cuda" else kind,
        "processes": trainer.world_size,
        "threads": torch.get_num_threads(),
    }
    write_json(run / PROVENANCE, record)


def describe_code(folder: Path) -> tuple[dict[str, Any] | None, bytes]:
    """Describe the state of the Git repository that a folder lies in.

    Args:
        folder: Any folder.

    Returns:
        `commit`, `dirty` and, where the state is dirty, `patch_sha256`, together with the patch from the commit to the
        tracked files; None and an empty patch outside of a repository, and where Git is missing or does not answer.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    patch = _git(folder, "diff", "HEAD", "--binary", "--no-ext-diff", "--no-color")
    if commit is None or patch is None:
        return None, b""
    code: dict[str, Any] = {"commit": commit.decode().strip(), "dirty": bool(patch)}
    if patch:
        code["patch_sha256"] = hashlib.sha256(patch).hexdigest()
    return code, patch


def _git(folder: Path, *args: str) -> bytes | None:
    # Without locks: another Git command of the user may be running.
    command = ["git", "--no-optional-locks", "-C", str(folder), *args]
    try:
        return subprocess.run(command, capture_output=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def hash_package() -> str:
    """Return the SHA-256 of the code of this package, two states of which may have the same version."""
    home = Path(__file__).parents[1]
    files = sorted((path.relative_to(home).as_posix(), path) for path in home.rglob("*.py"))
    return hashlib.sha256("\n".join(f"{name} {hash_file(path)}" for name, path in files).encode()).hexdigest()


def describe_differences(then: Provenance, now: Provenance) -> list[str]:
    """Describe what differs between two records and may change a result.

    Args:
        then: Record of the original run.
        now: Record of the run that repeats it.
    """
    if not then:
        return [f"unknown, as the run has no {PROVENANCE}"]
    differences = [
        f"{field} ({shorten(then.get(name))} then, {shorten(now.get(name))} now)"
        for name, field in COMPARED.items()
        if then.get(name) != now.get(name)
    ]
    for group in ("versions", "machine"):
        old, new = then.get(group) or {}, now.get(group) or {}
        differences += [
            f"{name} ({old.get(name, 'none')} then, {new.get(name, 'none')} now)"
            for name in {**old, **new}
            if old.get(name) != new.get(name)
        ]
    return differences


def shorten(value: Any) -> str:
    """Format a value of the record for people; digests and commits are cut.

    Args:
        value: Value of a field.
    """
    if isinstance(value, dict):  # the state of the code
        changes = f" with changes {value['patch_sha256'][:_SHOWN]}" if value["dirty"] else ""
        return f"commit {value['commit'][:_SHOWN]}{changes}"
    is_digest = isinstance(value, str) and len(value) == 64 and set(value) <= set(string.hexdigits)
    return "none" if value is None else str(value)[: _SHOWN if is_digest else None]

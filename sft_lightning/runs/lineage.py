"""What a run or a part started from, back to the first source: `lineage.json` in the run's folder, a chain of links.

A link is a mapping: `run` (the folder), `model`, `backbone`, `data`, `data_sha256` (of the pictures), `weights` and
`weights_sha256` (of the file it started from), `leaks` (sentences about held-out images whose labels that file has
learned), `date`, `version`, `machine`. A chain is a list of them, the source first. Each run holds its whole chain, so
that nothing is forgotten when a folder is moved or removed.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sft_lightning._version import __version__
from sft_lightning.utils.atomic import write_json
from sft_lightning.utils.environment import describe_machine
from sft_lightning.utils.errors import InputError

LINEAGE = "lineage.json"
SPLIT = "split.csv"
Link = dict[str, Any]
_TEXTS = ("run", "published", "file", "sha256", "model", "weights", "head_weights", "date")
_MACHINE = {"system", "processor", "cores", "python", "torch", "lightning"}


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content.

    Args:
        path: Any file.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_chain(run: Path) -> list[Link]:
    """The chain of a run, the run itself last; of a run that recorded none, the run alone.

    Args:
        run: Its folder.

    Raises:
        InputError: Its `lineage.json` is damaged.
    """
    path = run / LINEAGE
    if not path.is_file():
        return [{"run": str(run)}]
    try:
        chain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}): remove it, or train again") from error
    return check_chain(chain, str(path)) or [{"run": str(run)}]


def check_chain(chain: Any, where: str) -> list[Link]:
    """A chain that was read from a file.

    Args:
        chain: What stood there.
        where: The file.

    Raises:
        InputError: It is none that a run records.
    """
    if not isinstance(chain, list) or not all(map(_is_link, chain)):
        raise InputError(f"{where!r} is no list of links: remove it, or train again")
    return chain


def _is_link(link: Any) -> bool:
    if not isinstance(link, dict) or not any(isinstance(link.get(name), str) for name in ("run", "published", "file")):
        return False
    machine_told = link.get("machine", {})
    known = not machine_told or (isinstance(machine_told, dict) and machine_told.keys() >= _MACHINE)
    texts = all(link.get(name) is None or isinstance(link[name], str) for name in _TEXTS)
    leaks = link.get("leaks", [])
    texts = texts and isinstance(leaks, list) and all(isinstance(sentence, str) for sentence in leaks)
    return known and texts and ("file" not in link or isinstance(link.get("sha256"), str))


def find_run(file: Path) -> Path | None:
    """The run whose folder a file of weights lies in, or None.

    Args:
        file: A checkpoint, or an exported part.
    """
    for folder in (file.parent, file.parent.parent):
        if (folder / "fit.yaml").is_file():
            return folder
    return None


def find_run_folder(run: str) -> Path:
    """The folder of the run that the user means.

    Args:
        run: The folder, or a file in it.

    Raises:
        InputError: It is none.
    """
    path = Path(run)
    folder = path if (path / "fit.yaml").is_file() else find_run(path) if path.exists() else None
    if folder is None:
        raise InputError(f"run {run!r} is no folder of a run (it has no fit.yaml): give lightning_logs/NAME/version_N")
    return folder


def build_source_chain(weights: str, about: Mapping[str, Any], backbone: str) -> list[Link]:
    """The chain of what a run starts from.

    Args:
        weights: The setting: `none`, `default` or the path of a file (not of a folder).
        about: What the file says of itself.
        backbone: Name of the network, for published weights.
    """
    if weights == "none":
        return []
    if weights == "default":
        return [{"published": backbone}]
    if about.get("chain"):
        return list(check_chain(about["chain"], weights))
    run = find_run(Path(weights))
    return read_chain(run) if run is not None else [{"file": weights, "sha256": hash_file(Path(weights))}]


def find_earlier_splits(file: Path, about: Mapping[str, Any]) -> tuple[list[Path], list[str]]:
    """Find the splits of the runs that have led to a file of weights, and have learned labels.

    Args:
        file: Checkpoint, or exported part.
        about: What the file says of itself.

    Returns:
        Files `split.csv`, and folders of runs that have none or are gone.
    """
    run = find_run(file)
    chain = read_chain(run) if run is not None else check_chain(about.get("chain") or [], str(file))
    found, missing = list[Path](), list[str]()
    for link in chain:
        if "run" not in link or link.get("model") == "AutoencoderModule" or link.get("learns_labels") is False:
            continue
        folders = [Path(link["run"])]
        if run is not None:  # which may have been moved, with the others
            way = os.path.relpath(link["run"], chain[-1].get("run", ""))
            folders.insert(0, Path(os.path.normpath(run / way)))
        split = next((folder / SPLIT for folder in folders if _is_run_of(link, folder)), None)
        if split is None:
            missing.append(link["run"])
        else:
            found.append(split)
    return found, missing


def _is_run_of(link: Link, folder: Path) -> bool:
    """Whether a folder holds the run of a link, and its split: another run may have come to have the same name."""
    return (folder / SPLIT).is_file() and read_chain(folder)[-1].get("date") in (None, link.get("date"))


def read_data_digest(run: Path) -> str | None:
    """SHA-256 of the pictures of a run, as its `split.csv` has it.

    Args:
        run: Its folder.

    Raises:
        InputError: That file is damaged.
    """
    path = run / "split.csv"
    if not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8") as file:
            digest: str | None = json.loads(file.readline().removeprefix("# ")).get("sha256")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{str(path)!r} is no readable split ({error}): remove it, or train again") from error
    return str(digest) if digest is not None else None


def write_lineage(run: Path, link: Link, sources: list[Link]) -> None:
    """Writes the chain of a run that starts.

    Args:
        run: Its folder, with `split.csv`.
        link: What is to be said of the run.
        sources: The chain before it.
    """
    own = {"run": str(run), **link, "data_sha256": read_data_digest(run)}
    own.update({"date": datetime.now(UTC).isoformat(timespec="seconds"), "version": __version__})
    own["machine"] = describe_machine()
    write_json(run / LINEAGE, [*sources, own])


def format_lineage(chain: list[Link]) -> str:
    """A chain in words, the source first, a line for each link.

    Args:
        chain: Of a run.
    """
    lines = []
    for k, link in enumerate(chain):
        if "published" in link:
            what = f"published weights of {link['published']}"
        elif "file" in link:
            what = f"file {link['file']} (SHA-256 {link['sha256'][:12]})"
        else:
            model, data = link.get("model"), link.get("data")
            words = [f"{model} ({link['backbone']})" if link.get("backbone") else model, f"on {data}" if data else None]
            words += [f"[{link['run']}]", str(link.get("date", ""))[:10] or None]
            what = "  ".join(word for word in words if word)
        indent = "  " * k
        lines.append(f"{indent}{'-> ' if k else ''}{what}")
        lines += [f"{indent}   {sentence}" for sentence in link.get("leaks", [])]
    return "\n".join(lines)


def show_lineage(run: str) -> str:
    """What `sft-lightning lineage RUN` prints.

    Args:
        run: Folder of a run, or a file in it.

    Raises:
        InputError: It is none.
    """
    return format_lineage(read_chain(find_run_folder(run)))

"""What a run or an exported part started from, back to the first source: `lineage.json` in the run's folder.

The file is a chain of links, the source first. A link is a mapping: `run` (the folder), `model`, `backbone`, `data`,
`data_sha256` (of the examples), `labels` and `labels_sha256` (of the file beside the source), `weights` and
`weights_sha256` (of the file it started from), `leaks` (findings about held-out examples whose labels that file has
learned), `date`, `version`, `machine`. Each run holds its whole chain, so that nothing is lost when a folder is moved
or removed.
"""

import hashlib
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sft_lightning._version import __version__
from sft_lightning.runs.record import CONFIG, LINEAGE, SPLIT, Link, RunRecord, check_chain, read_leaks
from sft_lightning.utils.atomic import write_json
from sft_lightning.utils.environment import describe_machine
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.solution_folder import resolve_solution


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal digits.

    Args:
        path: Path of the file.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_run(file: Path) -> Path | None:
    """Return the folder of the run that a file of weights lies in, or None.

    Args:
        file: Checkpoint, or exported part.
    """
    for folder in (file.parent, file.parent.parent):
        if (folder / CONFIG).is_file():
            return folder
    return None


def find_run_folder(run: str) -> Path:
    """Return the folder of a run that the user names.

    Args:
        run: Folder of the run or of a solution, or a file in the run.

    Raises:
        InputError: The path does not lead to a run.
    """
    path = resolve_solution(Path(run))
    folder = path if (path / CONFIG).is_file() else find_run(path) if path.exists() else None
    if folder is None:
        raise InputError(
            f"run {run!r} is not the folder of a run (it has no {CONFIG}): give lightning_logs/NAME/version_N"
        )
    return folder


def list_starts(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return what a model starts or learns from, `default` or a path, by the name of the setting.

    Args:
        settings: Settings of the model (`init_args`); `teacher` is the run that it or its strategy distills.
    """
    strategy = settings.get("strategy")
    options = None if strategy is None or isinstance(strategy, str) else strategy.get("init_args")
    teacher = options.get("weights") if options else settings.get("teacher")
    if options is None and teacher is not None and not Path(str(teacher)).exists():
        teacher = None  # a published backbone
    given = {"weights": settings.get("weights"), "head_weights": settings.get("head_weights"), "teacher": teacher}
    return {name: str(value) for name, value in given.items() if value not in (None, "none")}


def build_source_chain(weights: str, metadata: Mapping[str, Any], backbone: str) -> list[Link]:
    """Return the chain of what a run starts from.

    Args:
        weights: Value of the setting: `none`, `default` or the path of a file (not of a folder).
        metadata: Metadata of the file.
        backbone: Name of the network, for published weights.
    """
    if weights == "none":
        return []
    if weights == "default":
        return [{"published": backbone}]
    if metadata.get("chain"):
        return list(check_chain(metadata["chain"], weights))
    run = find_run(Path(weights))
    return RunRecord(run).chain if run is not None else [{"file": weights, "sha256": hash_file(Path(weights))}]


def find_earlier_splits(file: Path, metadata: Mapping[str, Any]) -> tuple[list[Path], list[str]]:
    """Find the splits of the runs that have led to a file of weights and have learned labels.

    Args:
        file: Checkpoint, or exported part.
        metadata: Metadata of the file.

    Returns:
        Files `split.csv`, and folders of runs that have none or are gone.
    """
    run = find_run(file)
    chain = RunRecord(run).chain if run is not None else check_chain(metadata.get("chain") or [], str(file))
    splits, missing = list[Path](), list[str]()
    for link in chain:
        if "run" not in link or link.get("model") == "AutoencoderModule" or link.get("learns_labels") is False:
            continue
        folders = [Path(link["run"])]
        if run is not None:  # it may have been moved together with the runs before it
            relative = os.path.relpath(link["run"], chain[-1].get("run", ""))
            folders.insert(0, Path(os.path.normpath(run / relative)))
        split = next((folder / SPLIT for folder in folders if _is_run_of(link, folder)), None)
        if split is None:
            missing.append(link["run"])
        else:
            splits.append(split)
    return splits, missing


def _is_run_of(link: Link, folder: Path) -> bool:
    """Return whether a folder holds the run of a link and its split: another run may have taken the same name."""
    return (folder / SPLIT).is_file() and RunRecord(folder).chain[-1].get("date") in (None, link.get("date"))


def write_lineage(run: Path, link: Link, sources: list[Link]) -> None:
    """Write the chain of a run that starts.

    Args:
        run: Folder of the run, with `split.csv`.
        link: Fields that describe the run.
        sources: Chain of what it starts from.
    """
    last = {"run": str(run), **link, "data_sha256": RunRecord(run).data_digest}
    last |= {"date": datetime.now(UTC).isoformat(timespec="seconds"), "version": __version__}
    last["machine"] = describe_machine()
    write_json(run / LINEAGE, [*sources, last])


def format_lineage(chain: list[Link]) -> str:
    """Format a chain for people, the source first, one line for each link.

    Args:
        chain: Chain of a run.
    """
    lines = []
    for k, link in enumerate(chain):
        if "published" in link:
            text = f"published weights of {link['published']}"
        elif "file" in link:
            text = f"file {link['file']} (SHA-256 {link['sha256'][:12]})"
        else:
            model, data = link.get("model"), link.get("data")
            fields = [
                f"{model} ({link['backbone']})" if link.get("backbone") else model,
                f"on {data}" if data else None,
                f"with {link['labels']}" if link.get("labels") else None,
                f"[{link['run']}]",
                str(link.get("date", ""))[:10] or None,
            ]
            text = "  ".join(field for field in fields if field)
        indent = "  " * k
        lines.append(f"{indent}{'-> ' if k else ''}{text}")
        lines += [f"{indent}   {leak}" for leak in read_leaks(link)]
    return "\n".join(lines)


def show_lineage(run: str) -> str:
    """Show what a run started from, back to the first source.

    Args:
        run: Folder of a run, or a file in it.

    Raises:
        InputError: The path does not lead to a run.
    """
    return format_lineage(RunRecord(find_run_folder(run)).chain)

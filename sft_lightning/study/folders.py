"""Names of the runs of a study: for people, as `100_labels/freematch/seed_0`; the key stands in a file beside the run.

Runs with the same name and other inputs, such as corrected labels, are kept: the later one gets `seed_0_2`.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from sft_lightning.study.plan import StudyRun
from sft_lightning.utils.atomic import write_json

RECORD = "study_run.json"


def assign_folders(runs: Sequence[StudyRun], study: Path) -> list[StudyRun]:
    """Return the runs with the names of their folders, and make the folders of new runs.

    A run that was started before keeps its folder, whatever its method was called, so that it can resume. Only one
    process at a time may call this for a study.

    Args:
        runs: Runs that are going to be trained.
        study: Folder of the study.
    """
    folders = dict(_read_records(study))
    assigned = []
    for run in runs:
        folder = folders.get(run.key) or _find_legacy(study, run.key)
        if folder is None:
            folder = folders[run.key] = _make_folder(study, run)
        assigned.append(run._replace(folder=folder))
    return assigned


def _make_folder(study: Path, run: StudyRun) -> str:
    number = 1
    while (study / (name := run.label if number == 1 else f"{run.label}_{number}")).exists():
        number += 1
    write_json(study / name / RECORD, {"key": run.key, "title": run.title})
    return name


def _read_records(study: Path) -> Iterator[tuple[str, str]]:
    """Yield keys and names of the runs that have a record."""
    for path in sorted(study.glob(f"*/*/*/{RECORD}")):
        try:
            key = json.loads(path.read_text(encoding="utf-8"))["key"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue  # damaged: its run is trained anew, in another folder
        if isinstance(key, str):
            yield key, path.parent.relative_to(study).as_posix()


def _find_legacy(study: Path, key: str) -> str | None:
    """Return the folder of a run from version 0.1, whose name ends with the first digits of the key."""
    paths = [path for path in study.glob(f"*_{key[:8]}") if path.is_dir()]
    return paths[0].name if paths else None

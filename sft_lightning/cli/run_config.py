"""Splits that the data of a command takes from runs: that of the resumed run, and those of the runs before it."""

import re
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.data.issues import Finding
from sft_lightning.data.split_datamodule import MANIFEST
from sft_lightning.networks.weights import find_weights, read_metadata
from sft_lightning.runs.lineage import find_earlier_splits, find_run, list_starts
from sft_lightning.runs.paths import get_run_folder
from sft_lightning.runs.record import RunRecord
from sft_lightning.utils.errors import InputError


def set_splits(data: FewLabelDataModule, config: Any, run: Path | None) -> None:
    """Keep the split of a run that is resumed or measured again, and record whose labels were seen before it.

    Args:
        data: Data module of the command, before its setup.
        config: Config of the command.
        run: Folder of the run, or None for a new one.
    """
    checkpoint = config.get("ckpt_path")
    if checkpoint is None:
        data.starts, unknown = _find_starts(config)
        for finding in unknown:
            rank_zero_info(f"Data: {finding}.")
        data.request.leaks += unknown
    elif run is not None and (run / MANIFEST).is_file() and not _names_manifest(data.split_file, run / MANIFEST):
        data.followed_run = run
        data.starts = find_earlier_splits(run / MANIFEST, {})[0]
    elif data.split_file is None and data.predict_source is None:
        what = "the split is chosen anew from the present data, and may hold out"
        if data.test_on == "all":
            what = "all labeled examples are measured, and may include"
        rank_zero_info(
            f"Data: checkpoint {checkpoint!r} has no {MANIFEST} of its run: {what} examples that the run was trained "
            "on."
        )


def explain_missing_data(config: Any, error: InputError | None) -> str | None:
    """Explain that data of a run is not where its config says, with the remedy.

    Args:
        config: Config of the command.
        error: Error that ended the command, or None.

    Returns:
        The sentence, or None if the error has another cause.
    """
    checkpoint = config.get("ckpt_path")
    run = get_run_folder(Path(checkpoint)) if checkpoint else None
    settings = (config.get("data") or {}).get("init_args") or {}
    if error is None or run is None:
        return None
    recorded = RunRecord(run).read_settings("data")
    # The root first: if it is missing, so are the data sets that `source` names in it.
    for name in ("root", "source", "unlabeled_source", "split_file", "labels"):
        given = settings.get(name)
        # A path that the command itself names is another mistake, which the error explains.
        if not isinstance(given, str) or given != recorded.get(name) or not _describe_absence(Path(given)):
            continue
        if not {repr(given), repr(str(Path(given)))} & {*re.findall(r"'[^']*'", str(error))}:
            continue
        what = f"{name} {given!r}, which {str(run / 'fit.yaml')!r} names, is {_describe_absence(Path(given))}"
        remedy = f"give the place of its data by --data.init_args.{name}"
        started = _read_start_folder(run)
        if started is None or started == str(Path.cwd()):
            return f"{what}: put it back, or {remedy}"
        return (
            f"{what}; the run was started in {started!r}, to which paths in its config are relative: call the command "
            f"there, or {remedy}"
        )
    return None


def _describe_absence(path: Path) -> str | None:
    """Describe why a path holds no data, or return None: an empty folder may be the mount point of a disk."""
    try:
        if path.is_dir():
            return None if any(path.iterdir()) else "an empty folder"
        return None if path.exists() else "missing"
    except OSError as error:
        return f"not readable ({error.strerror})"


def _read_start_folder(run: Path) -> str | None:
    try:
        started = RunRecord(run).provenance.get("folder")
    except InputError:
        return None
    return started if isinstance(started, str) else None


def _find_starts(config: Any) -> tuple[list[Path], list[Finding]]:
    """Find `split.csv` of the runs that a new run starts from, and explain which of them are not known."""
    settings = config.model.get("init_args") or {}
    starts, unknown = list[Path](), list[Finding]()
    for name, given in list_starts(settings).items():
        if given == "default":
            continue
        path = find_weights(Path(given), "backbone" if name == "weights" else "head")
        found, missing = find_earlier_splits(path, read_metadata(path))
        starts += [split for split in found if split not in starts]
        if path.suffix == ".ckpt" and find_run(path) is None:
            message = (
                f"{name} {given!r} is a checkpoint outside of its run: whether it has learned labels of test "
                "examples is not known"
            )
            unknown.append(Finding("leak", message, [str(path)]))
        if missing:
            message = (
                f"{name} {given!r} has learned labels in {', '.join(missing)}, which has no {MANIFEST} any more: "
                "whether they are labels of test examples is not known"
            )
            unknown.append(Finding("leak", message, missing))
    return starts, unknown


def _names_manifest(split_file: str | None, manifest: Path) -> bool:
    """Return whether the user names the split of the run, which is then taken as it is or not at all."""
    return split_file is not None and Path(split_file).is_file() and Path(split_file).samefile(manifest)

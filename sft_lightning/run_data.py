"""What the data of a command takes from runs: the split of the one that goes on, and of those before it."""

from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from sft_lightning.circumstances import read_circumstances
from sft_lightning.data.datamodule import MANIFEST, ImageDataModule
from sft_lightning.errors import InputError
from sft_lightning.lineage import run_of, splits_before
from sft_lightning.networks.weights import find_weights, read_about
from sft_lightning.runs import run_folder


def set_splits(data: ImageDataModule, config: Any, run: Path | None) -> None:
    """Let the split of a run rule that goes on or is measured again, and note whose labels were seen before it.

    Args:
        data: Data module of the command, before its setup.
        config: Config of the command.
        run: Folder of the run, or None for a new one.
    """
    checkpoint = config.get("ckpt_path")
    if checkpoint is None:
        data.starts = _starts(config)
    elif run is not None and (run / MANIFEST).is_file() and not _names(data.split_file, run / MANIFEST):
        data.followed_run = run
        data.starts = splits_before(run / MANIFEST, {})[0]
    elif data.split_file is None and data.predict_source is None:
        what = "the split is chosen anew from what lies there now, and may hold out"
        if data.test_on == "all":
            what = "all labeled images are measured, and may include"
        rank_zero_info(
            f"Data: checkpoint {checkpoint!r} has no {MANIFEST} of its run: {what} images that the run was trained on."
        )


def name_start(config: Any, error: InputError | None) -> str | None:
    """Return the sentence about data that is not where the config of a run says, with the folder where it was started.

    Args:
        config: Config of the command.
        error: Mistake that ended the command, or None.

    Returns:
        None where the mistake is another one.
    """
    checkpoint = config.get("ckpt_path")
    run = run_folder(Path(checkpoint)) if checkpoint else None
    settings = (config.get("data") or {}).get("init_args") or {}
    if error is None or run is None:
        return None
    for name in ("source", "unlabeled_source", "split_file", "root"):
        given = settings.get(name)
        if not isinstance(given, str) or Path(given).exists() or given not in str(error):
            continue
        try:
            started = read_circumstances(run).get("folder")
        except InputError:
            return None
        if not isinstance(started, str) or started == str(Path.cwd()):
            return None
        return (
            f"{error}; the run was started in {started!r}, where the paths of its config begin: call the command "
            f"there, or give --data.init_args.{name} with the place of its data"
        )
    return None


def _starts(config: Any) -> list[Path]:
    """Files `split.csv` of the runs that a new run starts from."""
    settings = config.model.get("init_args") or {}
    starts: list[Path] = []
    for name in ("weights", "head_weights"):
        given = settings.get(name)
        if given in (None, "none", "default"):
            continue
        path = find_weights(Path(given), "head" if name == "head_weights" else "backbone")
        found, missing = splits_before(path, read_about(path))
        starts += [split for split in found if split not in starts]
        if path.suffix == ".ckpt" and run_of(path) is None:
            rank_zero_info(
                f"Data: {name} {given!r} is a checkpoint outside of its run: whether it has learned labels of test "
                "images is not known."
            )
        if missing:
            rank_zero_info(
                f"Data: {name} {given!r} has learned labels in {', '.join(missing)}, which has no {MANIFEST} any more: "
                "whether they are labels of test images is not known."
            )
    return starts


def _names(split_file: str | None, manifest: Path) -> bool:
    """Whether the split of the run is asked for by its name, which takes it as it is or not at all."""
    return split_file is not None and Path(split_file).is_file() and Path(split_file).samefile(manifest)

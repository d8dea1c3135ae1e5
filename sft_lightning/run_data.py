"""What the data of a command takes from runs: the split of the one that goes on, and of those before it."""

from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from sft_lightning.data.datamodule import MANIFEST, ImageDataModule
from sft_lightning.lineage import splits_before
from sft_lightning.networks.weights import find_weights, read_about


def set_splits(data: ImageDataModule, config: Any, run: Path | None) -> None:
    """Let the split of a run rule that goes on or is measured again, and note whose labels were seen before it.

    Args:
        data: Data module of the command, before its setup.
        config: Config of the command.
        run: Folder of the run, or None for a new one.
    """
    if run is None:
        data.starts = _starts(config)
    elif (run / MANIFEST).is_file() and not _names(data.split_file, run / MANIFEST):
        data.followed_run = run
        data.starts = splits_before(run / MANIFEST, {})[0]


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
        if missing:
            rank_zero_info(
                f"Data: {name} {given!r} has learned labels in {', '.join(missing)}, which has no {MANIFEST} any more: "
                "whether they are labels of test images is not known."
            )
    return starts


def _names(split_file: str | None, manifest: Path) -> bool:
    """Whether the split of the run is asked for by its name, which takes it as it is or not at all."""
    return split_file is not None and Path(split_file).is_file() and Path(split_file).samefile(manifest)

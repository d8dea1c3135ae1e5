"""Find the checkpoint that the user names, read it, and check that it fits the model.

Heavy modules are imported where they are used, so that a wrong path is reported before torch is imported.
"""

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lightning.runs.paths import list_versions
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.solution_folder import resolve_solution

if TYPE_CHECKING:
    from torch import nn

    from sft_lightning.networks.weights import Tensors


def find_checkpoint(name: str, runs: Path) -> Path:
    """Find the checkpoint that the user names.

    Args:
        name: Path of a checkpoint, folder of a run (its last checkpoint) or of a solution (that of its model), or
            `last` (that of the newest run).
        runs: Folder of the runs of one name, for `last`.

    Raises:
        InputError: The checkpoint does not exist.
    """
    if name == "last":
        checkpoints = [path for run in list_versions(runs) if (path := find_newest_checkpoint(run)) is not None]
        if not checkpoints:
            raise InputError(f"ckpt_path is 'last', but no run in {str(runs)!r} has a checkpoint yet: start without it")
        return checkpoints[-1]
    path = resolve_solution(Path(name))
    if (path / "checkpoints").is_dir() and (checkpoint := find_newest_checkpoint(path)) is not None:
        return checkpoint
    if not path.is_file():
        raise InputError(
            f"ckpt_path {name!r} is neither a checkpoint nor a run with checkpoints/last.ckpt: check the path"
        )
    return path


def find_run_checkpoint(name: str) -> Path:
    """Find the checkpoint of a run that the user names.

    Args:
        name: Folder of a run (its last checkpoint) or of a solution (that of its model), or a checkpoint.

    Raises:
        InputError: The checkpoint does not exist.
    """
    try:
        return find_checkpoint(name, Path("."))
    except InputError as error:
        raise InputError(str(error).replace("ckpt_path", "run", 1)) from error


def find_newest_checkpoint(run: Path) -> Path | None:
    """Find the last checkpoint of a run, or the newest intact one if a crash of the machine has damaged it.

    Args:
        run: Folder of the run.

    Returns:
        Path of the checkpoint, or None if the run has none. Damaged ones are reported.
    """
    last = run / "checkpoints" / "last.ckpt"
    others = sorted(last.parent.glob("*.ckpt"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in [last, *(other for other in others if other != last)] if others else []:
        if path.is_file() and zipfile.is_zipfile(path):
            return path
        if path.is_file():
            from lightning.pytorch.utilities import rank_zero_info

            rank_zero_info(f"Skipped {path}, which is damaged.")
    return last if last.is_file() else None  # damaged: whoever reads it says why


def read_checkpoint(path: Path) -> "tuple[Tensors, dict[str, Any]]":
    """Read a checkpoint that a command starts from, so that a damaged one is reported before the Trainer reads it.

    Args:
        path: Path of the checkpoint.

    Returns:
        Tensors and metadata, as `read_weights` returns them.

    Raises:
        InputError: The checkpoint is damaged, or holds objects that could run code.
    """
    from sft_lightning.networks.weights import read_weights

    try:
        return read_weights(path)
    except InputError as error:
        raise InputError(str(error).replace("weights", "ckpt_path", 1)) from error


def check_checkpoint(path: Path, tensors: "Tensors", model: "nn.Module") -> None:
    """Check that a checkpoint fits a model.

    Args:
        path: Path of the checkpoint, for the message.
        tensors: Tensors that `read_checkpoint` returned.
        model: Model to load the tensors into.

    Raises:
        InputError: The checkpoint belongs to another model.
    """
    # A network beside the trained one, which a training builds and its checkpoints contain.
    beside = tuple(getattr(model, "fit_only", ()))
    tensors = {n: t for n, t in tensors.items() if not n.startswith(beside)}
    # Buffers that checkpoints of earlier versions lack, which their modules load with a value of their own.
    added = _list_buffers(model, "added_buffers")
    own = {n: t for n, t in model.state_dict().items() if n in tensors or not (n in added or n.startswith(beside))}
    # "Extra state" (torch's term) may have any shape: a strategy's memory of the unlabeled examples. So may what a
    # classifier without gradient steps is fitted to.
    fitted = _list_buffers(model, "fitted_buffers")
    fixed = {n: t for n, t in own.items() if n not in fitted and not n.endswith("_extra_state")}
    differ = sorted({*own} ^ {*tensors}) or [n for n, t in fixed.items() if t.shape != tensors[n].shape]
    if differ:
        raise InputError(
            f"ckpt_path {str(path)!r} is of another model than the config ({len(differ)} tensors differ, such as "
            f"{differ[0]!r}): give the config of its run, or leave --config out"
        )


def _list_buffers(model: "nn.Module", attribute: str) -> set[str]:
    """Return the full names of the buffers that an attribute of some parts of a model lists."""
    return {
        f"{prefix}.{name}".lstrip(".")
        for prefix, part in model.named_modules()
        for name in getattr(part, attribute, ())
    }

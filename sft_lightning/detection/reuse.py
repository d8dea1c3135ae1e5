"""Detectors of earlier runs as a start, whose classes are matched by name."""

from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from sft_lightning.data.class_names import find_missing_classes, format_class_names, match_classes
from sft_lightning.detection.base import DetectionHead
from sft_lightning.networks.weights import Tensors, find_weights, read_weights
from sft_lightning.runs.trained_classes import read_recorded_classes

_HEAD = "head."


def take_detector(head: DetectionHead, tensors: Tensors, weights: str, class_names: Sequence[str] | None) -> bool:
    """Copy the detector of a weights file, and log it; classes that it lacks start anew.

    Args:
        head: Detector, changed in place.
        tensors: Tensors of the file that the backbone came from; perhaps without a detector.
        weights: Path of the file or run.
        class_names: Names of the classes of the detector; None where they are not known.

    Returns:
        Whether a detector was taken over.
    """
    old = {name.removeprefix(_HEAD): t for name, t in tensors.items() if name.startswith(_HEAD)}
    own = head.state_dict()
    if not set(own) & set(old):
        return False
    path = find_weights(Path(weights))
    theirs = read_recorded_classes(read_weights(path)[1], path)
    rows = _list_class_tensors(head)
    reason = ""
    if set(own) != set(old):
        reason = "it is a detector of another kind"
    elif wrong := [n for n, t in own.items() if n not in rows and t.shape != old[n].shape]:
        reason = f"{wrong[0]} has shape {tuple(old[wrong[0]].shape)} there, and {tuple(own[wrong[0]].shape)} here"
    elif theirs is None or class_names is None:
        reason = f"{path if theirs is None else 'the model'} does not name its classes"
    elif not any(row >= 0 for row in match_classes(class_names, theirs)):
        reason = (
            f"its classes are {format_class_names(theirs)}, those of the data {format_class_names(list(class_names))}"
        )
    if reason or theirs is None or class_names is None:
        rank_zero_info(f"The detector of the weights was replaced by a new one: {reason}.")
        return False
    matches = torch.tensor(match_classes(class_names, theirs))
    made = {
        name: _match_rows(t, old[name], matches, rows[name], head.first_class) if name in rows else old[name]
        for name, t in own.items()
    }
    head.load_state_dict(made)
    new = find_missing_classes(class_names, theirs)
    rest = f"; rows of new classes start anew: {format_class_names(new)}" if new else ""
    rank_zero_info(f"The detector of the weights was taken over, too{rest}.")
    return True


def _list_class_tensors(head: DetectionHead) -> dict[str, int]:
    return {f"{layer}.{part}": inner for layer, inner in head.class_layers.items() for part in ("weight", "bias")}


def _match_rows(new: Tensor, old: Tensor, matches: Tensor, inner: int, background: int) -> Tensor:
    """Return a tensor whose rows of classes come from another one, if that has them.

    Args:
        new: Tensor of the detector, (A * C * inner, ...), C with the background, if there is one.
        old: Tensor of the earlier detector.
        matches: Class of the earlier detector for each class, int64; -1 for none.
        inner: Rows of a class side by side.
        background: Number of rows for the background, 0 or 1.
    """
    count = (len(matches) + background) * inner
    anchors = len(new) // count
    made = new.clone().view(anchors, -1, inner, *new.shape[1:])
    theirs = old.to(new).view(anchors, -1, inner, *new.shape[1:])
    made[:, :background] = theirs[:, :background]
    is_shared = matches >= 0
    made[:, background:][:, is_shared] = theirs[:, background:][:, matches[is_shared]]
    return made.view_as(new)

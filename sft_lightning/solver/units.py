"""Results of recipes on disk, one file each, which later calls read."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from sft_lightning.networks.weights import read_weights, write_weights
from sft_lightning.utils.errors import InputError


def read_unit(path: Path, shape: Sequence[int]) -> tuple[Tensor | None, bool]:
    """Return the predictions of an earlier call, (R, *shape), or None, and whether they are those of all folds.

    Args:
        path: Path of the file; a damaged one counts as missing, so that its content is computed again.
        shape: Shape of the predictions of a division, such as (N, C).
    """
    if not path.is_file():
        return None, False
    try:
        tensors, metadata = read_weights(path)
    except InputError:
        return None, False
    probabilities = tensors.get("probabilities")
    if probabilities is None or probabilities.shape[1:] != tuple(shape):
        return None, False
    return probabilities, metadata.get("complete") is True


def write_unit(path: Path, recipe: str, is_complete: bool, probabilities: Tensor) -> None:
    """Write the predictions of a recipe.

    Args:
        path: Path of the file.
        recipe: Name of the recipe.
        is_complete: Whether all folds were predicted.
        probabilities: Probabilities of the labeled examples, (R, N, C), of masks their scores, (R, N), or detections of
            objects, (R, N, K, 6); NaN where not predicted.
    """
    tensors = {"probabilities": probabilities.contiguous()}
    write_weights(path, tensors, {"recipe": recipe, "complete": is_complete})

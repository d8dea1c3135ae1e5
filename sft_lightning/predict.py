"""What `sft-lightning predict` takes from the checkpoint instead of from the data that it learned from."""

from pathlib import Path
from typing import Any

from sft_lightning.networks.weights import read_weights, settings_of


def without_source(data: Any, checkpoint: Path) -> None:
    """Takes classes and size of the images from the checkpoint, so that those it learned from need not be there.

    Args:
        data: Config of the data module, changed in place.
        checkpoint: Of a classifier, or of another network that takes images.
    """
    settings = data.get("init_args") or {}
    if settings.get("predict_source") is None or not all(
        n in settings for n in ("class_names", "image_size", "channels")
    ):
        return
    learned = settings_of(read_weights(checkpoint)[1], checkpoint)
    shape = learned.get("image_shape")
    if shape is None or ("num_classes" in learned and not learned.get("class_names")):
        return
    settings["class_names"] = list(learned.get("class_names") or [])
    settings["channels"], settings["image_size"] = shape[0], shape[1]

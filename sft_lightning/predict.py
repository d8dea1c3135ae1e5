"""`sft-lightning predict RUN SOURCE [options]`: the short form, and what prediction takes from the checkpoint."""

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from sft_lightning.errors import InputError
from sft_lightning.lineage import run_of
from sft_lightning.networks.weights import read_weights
from sft_lightning.runs import find_checkpoint

_LONG = ("--ckpt_path", "--data.init_args.predict_source")


def spelled_out(args: Sequence[str]) -> list[str]:
    """The words of a command, those of `predict` in their long form.

    Args:
        args: Words of the command line, the command first.

    Raises:
        InputError: There is no such run, or a run or source stands there twice.
    """
    command, *rest = args
    given = list(takewhile(lambda word: not word.startswith("-"), rest))
    if command != "predict" or not given:
        return list(args)
    if len(given) > 2:
        raise InputError(
            f"predict takes a run and one source, {given[2]!r} is one too many: give a folder, or a CSV that lists "
            "the images in its column 'path'"
        )
    options = rest[len(given) :]
    for word, name in zip(given, _LONG, strict=False):
        if any(option.split("=")[0] == name for option in options):
            raise InputError(f"predict is told {word!r} and {name}: give one of them")
    _check_run(given[0], any(option.split("=")[0] in ("--config", "-c") for option in options))
    return [command, *options, *(part for pair in zip(_LONG, given, strict=False) for part in pair)]


def _check_run(name: str, configured: bool) -> None:
    if name == "last":
        return
    try:
        checkpoint = find_checkpoint(name, Path("."))
    except InputError as error:
        raise InputError(str(error).replace("ckpt_path", "run", 1)) from error
    if run_of(checkpoint) is None and not configured:
        raise InputError(f"run {name!r} has no fit.yaml beside its checkpoints: add --config with that of its training")


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
    learned = read_weights(checkpoint)[1].get("hyper_parameters", {})
    shape = learned.get("image_shape")
    if shape is None or ("num_classes" in learned and not learned.get("class_names")):
        return
    settings["class_names"] = list(learned.get("class_names") or [])
    settings["channels"], settings["image_size"] = shape[0], shape[1]

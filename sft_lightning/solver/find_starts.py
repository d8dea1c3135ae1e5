"""Starts at hand: published weights in the caches of torch and Hugging Face, files in this folder, and earlier runs.

Only what has learned no labels of a user is taken: a run that knows the labels would be judged by what it knows.
"""

import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from sft_lightning.data.split_files import read_contents, read_rows
from sft_lightning.networks.weights import read_metadata, read_weights
from sft_lightning.runs.lineage import find_earlier_splits, find_run
from sft_lightning.runs.paths import LOGS
from sft_lightning.solver.labels import LabeledSource
from sft_lightning.transfer.candidates import Candidate, find_weights_file
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import InputSpec

DEFAULT = "timm/tf_efficientnet_lite0"  # the published network with which this project has measured most
NONE = "none"
_MOST = 6  # starts of all kinds together
_TIMEOUT = 5.0  # seconds for the first answer of the publisher
_SNAPSHOT_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class FoundStart:
    """Start at hand.

    Attributes:
        candidate: Start.
        reason: Phrase about where it was found.
        is_given: Whether the user named it.
    """

    candidate: Candidate
    reason: str
    is_given: bool = False


def find_starts(source: LabeledSource, own_folder: Path) -> list[FoundStart]:
    """Find starts for a source, published ones first, at most six.

    Args:
        source: Source.
        own_folder: Folder of the solution, whose runs are not starts of itself.
    """
    if source.modality.solve.candidate:
        return []
    found = [*_list_torch_cache(), *_list_hugging_face_cache(), *_list_files(source), *_list_runs(source, own_folder)]
    return found[:_MOST]


def _list_torch_cache() -> Iterator[FoundStart]:
    """List the published networks of torchvision whose weights have been fetched before."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"  # noqa: TID251  # which only names the folder
    files = {path.name: path for path in folder.glob("*.pth")}
    if not files:
        return
    import torchvision.models
    from torchvision.models import get_model_weights, list_models

    for name in sorted(list_models(module=torchvision.models)):
        if Path(str(get_model_weights(name).DEFAULT.url)).name in files:
            yield FoundStart(Candidate(f"torchvision/{name}"), f"published weights in {folder}")


def _list_hugging_face_cache() -> Iterator[FoundStart]:
    """List the published networks of timm whose weights have been fetched before; the file is read where it lies."""
    from huggingface_hub.constants import HF_HUB_CACHE

    for folder in sorted(Path(HF_HUB_CACHE).glob("models--timm--*")):
        import timm

        name = folder.name.removeprefix("models--timm--")
        files = [file for kind in _SNAPSHOT_FILES for file in sorted(folder.glob(f"snapshots/*/{kind}"))]
        if files and timm.is_model(name):
            yield FoundStart(Candidate(f"timm/{name}", str(files[0])), f"published weights in {HF_HUB_CACHE}")


def _list_files(source: LabeledSource) -> Iterator[FoundStart]:
    """List the weights files in the current folder that say which network they are of."""
    for path in sorted(Path().glob("*.safetensors")):
        backbone = _identify(path, source, any_channels=True)
        if backbone:
            yield FoundStart(Candidate(weights=str(path)), f"{backbone}, a file in this folder")


def _list_runs(source: LabeledSource, own_folder: Path) -> Iterator[FoundStart]:
    """List the newest pre-training of each name below `lightning_logs`, the newest first."""
    files = sorted(Path(LOGS).glob("**/encoder.safetensors"), key=lambda path: -path.stat().st_mtime)
    names: set[Path] = set()
    for path in files:
        run = find_run(path)
        if run is None or run.parent in names or own_folder in run.parents:
            continue
        backbone = _identify(path, source, any_channels=False)
        if backbone:
            names.add(run.parent)
            yield FoundStart(Candidate(weights=str(run)), f"{backbone}, pre-trained without labels")


def _identify(path: Path, source: LabeledSource, any_channels: bool) -> str:
    """Return the backbone of a file that may be a start of a source; empty for any other file."""
    try:
        metadata = read_metadata(path)
        spec = InputSpec.from_settings(metadata)
        splits, missing = find_earlier_splits(path, metadata)
    except (InputError, OSError, ValueError):  # of another program, or damaged
        return ""
    fits = spec is not None and spec.modality == source.data.input_spec.modality and metadata.get("part") != "head"
    if spec is None or not fits or splits or missing:
        return ""
    # Gray files can be read with three channels, too.
    channels = {source.data.input_spec.shape[0]} | ({3} if "channels" in source.settings else set())
    if not any_channels and spec.shape[0] not in channels:
        return ""
    return str(metadata.get("backbone") or "")


def check_knowledge(candidate: Candidate, source: LabeledSource) -> str:
    """Check that a start that the user named has learned none of the labels, by which it is judged.

    Args:
        candidate: Start.
        source: Source with the labels.

    Returns:
        Sentence about runs behind it that can't be checked; empty where all can.

    Raises:
        InputError: It has learned some of them, or its file is damaged.
    """
    if candidate.weights in ("none", "default"):
        return ""
    path = find_weights_file(candidate.weights)
    read_weights(path)  # a damaged file is refused before anything is computed
    splits, missing = find_earlier_splits(path, read_metadata(path))
    labeled = source.data.splits["labeled"]
    contents = {*read_contents(labeled.part.storage, labeled.indices)} - {""}
    learned = {row.content for split in splits for row in read_rows(split) if row.split == "labeled"}
    if known := len(contents & learned):
        raise InputError(
            f"candidate {str(candidate)!r} has learned {known:,} of these labels, so that it would be judged by what "
            "it knows: leave it out, or give the network that it started from"
        )
    if missing:
        return f"{candidate} has learned labels in {', '.join(missing)}, which is gone: it may know some of these"
    return ""


def fetch_default() -> FoundStart:
    """Return the published start that is fetched where none is at hand, after asking whether its publisher answers.

    Raises:
        InputError: The publisher does not answer within 5 seconds.
    """
    from huggingface_hub.constants import ENDPOINT

    try:
        with urllib.request.urlopen(ENDPOINT, timeout=_TIMEOUT):
            pass
    except (OSError, ValueError) as error:  # URLError is an OSError
        reason = getattr(error, "reason", error)
        raise InputError(
            f"download is true, and {ENDPOINT} does not answer ({reason}): fetch {DEFAULT} on a machine with a "
            "network and name its file with --candidates, or leave --download out"
        ) from error
    return FoundStart(Candidate(DEFAULT), "published weights, to be fetched")

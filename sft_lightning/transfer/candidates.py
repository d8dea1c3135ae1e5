"""Candidates for a start: backbones by name, weight files and earlier runs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.data.split_datamodule import MANIFEST
from sft_lightning.data.split_files import read_labeled_ids
from sft_lightning.networks.build import adapt_spec, build_encoder
from sft_lightning.networks.encoder import Encoder
from sft_lightning.networks.hugging_face import find_file
from sft_lightning.networks.vision.backbones import find_source_head
from sft_lightning.networks.vision.pretrained import fetch_published_weights, is_published, list_published_names
from sft_lightning.networks.weights import Tensors, find_weights, read_metadata, read_weights
from sft_lightning.runs.lineage import find_run
from sft_lightning.runs.record import Link, RunRecord, check_chain
from sft_lightning.runs.trained_network import load_trained_network
from sft_lightning.utils.errors import InputError, did_you_mean
from sft_lightning.utils.inputs import InputSpec
from sft_lightning.utils.solution_folder import resolve_solution

_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


@dataclass
class Candidate:
    """Start to compare.

    Args:
        backbone: Name of the backbone, such as `conv` or a torchvision or timm name; null to read it from the weights.
        weights: `none` for a random start, `default` for the published weights, or the path of a file or run.
        image_size: Side of its images in pixels; null for the size given for the data where the weights fit it, else
            that of its file or run, else that of the data.
    """

    backbone: str | None = None
    weights: str = "default"
    image_size: int | None = None

    def __str__(self) -> str:
        size = "" if self.image_size is None else f", {self.image_size} px"
        if self.weights in ("none", "default"):
            return f"{self.backbone} ({'random' if self.weights == 'none' else 'published'}{size})"
        return self.weights + size


def resolve_candidates(given: str | Candidate) -> list[Candidate]:
    """Resolve a text to candidates: a path where such a file or folder exists, else a name.

    Args:
        given: Name, file, run or folder of runs; a candidate is returned as it is.

    Raises:
        InputError: A folder holds no run, or nothing names a backbone.
    """
    if isinstance(given, Candidate):
        if given.backbone is None and given.weights in ("none", "default"):
            raise InputError(f"a candidate has weights {given.weights!r} and no backbone: name one")
        return [given]
    path = resolve_solution(Path(given))
    given = str(path) if path != Path(given) else given
    if path.is_dir() and not any((path / name).is_file() for name in ("encoder.safetensors", "checkpoints/last.ckpt")):
        runs = sorted({file.parent.parent for file in path.glob("**/checkpoints/last.ckpt")}, key=_natural_key)
        if not runs:
            raise InputError(f"candidates names the folder {given!r}, which holds no run: give one that `fit` wrote to")
        return [Candidate(weights=str(run)) for run in runs]
    looks_like_path = path.suffix in _SUFFIXES or given.startswith((".", "/"))
    return [Candidate(weights=given) if path.exists() or looks_like_path else Candidate(given)]


def check_candidate(start: Candidate, others: Sequence[str] = ()) -> None:
    """Check by its name alone that a candidate exists, before anything is built or fetched.

    Args:
        start: Candidate to check.
        others: Further valid words, for the hint.

    Raises:
        InputError: No weights are published under its name, or its file does not exist.
    """
    if start.weights == "none":
        return
    if start.weights != "default":
        find_weights_file(start.weights)
        return
    name = start.backbone or ""
    if name.startswith("hf/"):
        find_file(name, "model.safetensors")
        return
    if not is_published(name):
        files = [str(path) for kind in _SUFFIXES for path in sorted(Path().glob(f"*{kind}"))]
        hint = did_you_mean(name, [*others, *files, *list_published_names(name)])
        raise InputError(
            f"candidate {name!r} is not a network with published weights{hint}: give a name of torchvision or timm, "
            f"the path of a weights file or a run, or {{backbone: {name}, weights: PATH}}"
        )


def _natural_key(path: Path) -> list[tuple[str, int]]:
    """Return a sort key that puts version_10 after version_9."""
    return [(part.rstrip("0123456789"), int("0" + part[len(part.rstrip("0123456789")) :])) for part in path.parts]


def load_candidate(
    start: Candidate, input_spec: InputSpec, given_size: int | None = None, takes_maps: bool = False
) -> tuple[Encoder, Tensors]:
    """Build the network of a candidate, with the classifier of its source where it has one.

    Args:
        start: Candidate to load.
        input_spec: Inputs for candidates that record none.
        given_size: Side of the images that the user asked for; files and runs keep their own where they do not fit it.
        takes_maps: Whether a run that has learned masks or boxes may be a start.

    Returns:
        The backbone, and `weight` (S, F) and `bias` (S,) of the classifier or nothing.

    Raises:
        InputError: The candidate cannot be loaded.
    """

    def sized(spec: InputSpec) -> InputSpec:
        return spec if start.image_size is None else _resize(spec, start.image_size)

    if start.weights in ("none", "default"):
        assert start.backbone is not None
        backbone, _ = build_encoder(start.backbone, adapt_spec(start.backbone, sized(input_spec)), start.weights)
        if start.weights == "none" or not is_published(start.backbone):
            return backbone, {}
        return backbone, find_source_head(backbone, fetch_published_weights(start.backbone))
    path = find_weights_file(start.weights)
    metadata = read_weights(path)[1]
    ours = start.backbone is None and "hyper_parameters" in metadata
    trained = load_trained_network(path) if ours else None
    if trained is not None and not takes_maps:
        trained.require_classes(start.weights)
    about = metadata if trained is None else trained.metadata
    name = start.backbone or about.get("backbone")
    if name is None:
        raise InputError(
            f"weights {start.weights!r} do not say which backbone they are of: give {{backbone: NAME, weights: "
            f"{start.weights}}}"
        )
    spec = sized(InputSpec.from_settings(about) or input_spec)
    is_trusted = start.backbone is not None  # the user named it, not a file
    made = None
    if start.image_size is None and given_size is not None and given_size != spec.shape[-1]:
        made = _build_resized(name, _resize(spec, given_size), path, is_trusted)
    backbone, tensors = made or build_encoder(name, spec, str(path), imports=is_trusted)
    return backbone, find_source_head(backbone, tensors) if trained is None else trained.head


def _resize(spec: InputSpec, size: int) -> InputSpec:
    """Return the specification of square images of another size."""
    return replace(spec, shape=(spec.shape[0], size, size))


def _build_resized(name: str, spec: InputSpec, path: Path, is_trusted: bool) -> tuple[Encoder, Tensors] | None:
    """Build a backbone for images of another size than its weights are of, or return None where they do not fit it."""
    try:
        backbone, tensors = build_encoder(name, spec, str(path), imports=is_trusted)
    except InputError:
        return None
    return None if backbone.misfits else (backbone, tensors)


def find_weights_file(weights: str) -> Path:
    """Find the file of weights; of a run, prefer its checkpoint, since that holds its head, too."""
    path = resolve_solution(Path(weights))
    last = path / "checkpoints" / "last.ckpt"
    return last if last.is_file() else find_weights(path)


def read_chain(weights: str) -> list[Link]:
    """Read what led to weights, the first source first; nothing of published ones.

    Args:
        weights: `none`, `default`, or the path of a file or run.

    Raises:
        InputError: The path does not exist, or its lineage is damaged.
    """
    if weights in ("none", "default"):
        return []
    path = find_weights_file(weights)
    run = find_run(path)
    return RunRecord(run).chain if run is not None else check_chain(read_metadata(path).get("chain") or [], str(path))


def count_known_labels(weights: str, data: FewLabelDataModule) -> int:
    """Count the labels that the runs behind a file have learned from.

    Args:
        weights: Path of the file or run.
        data: Data module with the labels.
    """
    known: set[str] = set()
    for link in read_chain(weights):
        manifest = Path(link.get("run", "")) / MANIFEST
        learned = link.get("model") != "AutoencoderModule" and link.get("learns_labels") is not False
        if learned and link.get("data") == data.source.name and manifest.is_file():
            known |= read_labeled_ids(manifest)
    return len(known & {*data.splits["labeled"].ids})

"""Starts of `solve`, each at the size at which it sees the examples."""

from dataclasses import dataclass, replace
from pathlib import Path

from sft_lightning.cli.logging import silence_logs
from sft_lightning.networks.encoder import Encoder
from sft_lightning.networks.vision.backbones import BUILT_IN, Backbone
from sft_lightning.networks.weights import find_weights
from sft_lightning.paradigms.feature_cache import count_kept
from sft_lightning.runs.lineage import hash_file
from sft_lightning.solver.labels import LabeledSource
from sft_lightning.solver.space import MAX_GRAPH
from sft_lightning.solver.speed import measure_seconds
from sft_lightning.transfer.candidates import Candidate, load_candidate, read_chain
from sft_lightning.utils.errors import InputError

SIZES = (64, 96, 128, 224)  # pixels: sides at which networks of a library are tried
_PIECES = 1.4  # tokens of a published encoder for each word, about
_MAX_ENLARGED = 4  # times the side of a source's images, above which they are only blurred


@dataclass
class Start:
    """Network to start from, at the size at which it is used.

    Attributes:
        candidate: Start as the user or a search named it, with its size.
        backbone: Network with its weights.
        seconds: Measured seconds of the features that are not known yet.
        all_seconds: Measured seconds of the features of all examples.
        saw_pool: Whether a run behind it has learned from the examples of the source.
        digest: SHA-256 of the file of weights; empty for published ones.
        takes_smaller: Whether trainings may see smaller images, because the user gave no size.
    """

    candidate: Candidate
    backbone: Encoder
    seconds: float
    all_seconds: float
    saw_pool: bool = False
    digest: str = ""
    takes_smaller: bool = False

    @property
    def is_large(self) -> bool:
        """Whether the network is one of a library, which takes images of other sizes than those of its training."""
        if isinstance(self.backbone, Backbone):
            return self.backbone.architecture not in BUILT_IN
        return self.backbone.name.startswith("hf/")


def load_start(candidate: Candidate, source: LabeledSource, seconds: float, own_size: bool = False) -> Start:
    """Load a start at the largest size that the time allows.

    Networks of a library take images of any size: they get the largest of 64, 96, 128 and 224 pixels at which the
    features that are not known yet take at most `seconds`, or 64. Others keep the size of their training. A size that
    the user gave is kept where the weights fit it.

    Args:
        candidate: Start to load.
        source: Source of the examples.
        seconds: Time for the features.
        own_size: Whether to keep the size of its training, whatever the user gave.

    Raises:
        InputError: The start cannot be loaded.
    """
    given = None if own_size else candidate.image_size or source.given_size
    digest = "" if candidate.weights in ("none", "default") else hash_file(find_weights(Path(candidate.weights)))
    saw_pool = has_seen(candidate.weights, source)
    count = min(MAX_GRAPH, len(source.labels) + source.pool_size)

    def load(one: Candidate) -> Start:
        with silence_logs():
            return Start(one, load_candidate(one, source.data.input_spec, given)[0], 0.0, 0.0, saw_pool, digest)

    def measure(start: Start) -> Start:
        each = estimate_fill(source) * measure_seconds(start.backbone, learns=False)
        kept = count_kept(start.backbone, source.view(start.backbone.input_spec).data, ("labeled", "unlabeled"))
        return replace(start, seconds=max(0, count - kept) * each, all_seconds=count * each)

    start = load(candidate)
    if own_size or given is not None or not start.is_large or not source.modality.solve.has_sides:
        return measure(start)
    best: Start | None = None
    for size in list_sizes(source):
        try:
            larger = measure(load(replace(candidate, image_size=size)))
        except InputError:  # too small for the network
            continue
        if larger.backbone.misfits or (best is not None and larger.seconds > seconds):
            break
        best = larger
    return best or measure(start)


def estimate_fill(source: LabeledSource, longest: float = 1.0) -> float:
    """Return the share of the largest input that networks of the modality compute with, at most 1.

    Args:
        source: Source of the examples.
        longest: Length of the longest example of a batch, in means: 1 where examples of similar length come together.
    """
    share = source.data.mean_share
    return 1.0 if share == 1 else min(1.0, _PIECES * longest * share)


def has_seen(weights: str, source: LabeledSource) -> bool:
    """Return whether a run behind weights has learned from the examples of a source, with or without labels.

    Args:
        weights: `none`, `default`, or the path of a file or run.
        source: Source.
    """
    name = source.data.source.name
    return any(link.get("data") == name for link in read_chain(weights))


def list_sizes(source: LabeledSource) -> list[int]:
    """List the sides at which networks of a library are tried: at most four times that of images of one small size.

    Args:
        source: Source of the examples.
    """
    own = None if "image_size" in source.settings else source.data.input_spec.shape[-1]
    return [size for size in SIZES if own is None or size <= max(SIZES[0], _MAX_ENLARGED * own)]

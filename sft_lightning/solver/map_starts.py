"""Networks that give maps, from which recipes for masks and boxes start, all at one size of the examples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sft_lightning.cli.logging import silence_logs
from sft_lightning.networks.build import build_encoder
from sft_lightning.networks.encoder import Encoder
from sft_lightning.networks.vision.backbones import BUILT_IN
from sft_lightning.networks.weights import find_weights
from sft_lightning.runs.lineage import hash_file
from sft_lightning.solver.find_starts import FoundStart
from sft_lightning.solver.labels import LabeledSource
from sft_lightning.solver.starts import has_seen
from sft_lightning.transfer.candidates import Candidate, load_candidate
from sft_lightning.utils.errors import InputError


@dataclass(frozen=True)
class MapStart:
    """Network that gives maps, from which recipes start.

    Attributes:
        name: Name for readers.
        backbone: Name of the network.
        candidate: Start as the user or a search named it; None for a network without weights.
        saw_pool: Whether the network has learned from the unlabeled examples.
        digest: SHA-256 of the file of weights; empty for published ones.
        is_large: Whether the network is one of a library.
    """

    name: str
    backbone: str
    candidate: Candidate | None = None
    saw_pool: bool = False
    digest: str = ""
    is_large: bool = False

    @property
    def argv(self) -> tuple[str, ...]:
        """Options of a model that starts from it."""
        weights = () if self.candidate is None else (f"--model.weights={self.candidate.weights}",)
        return (f"--model.backbone={self.backbone}", *weights)

    def load(self, source: LabeledSource) -> Encoder:
        """Return the network at the size of a source, without what turns its maps into predictions.

        Args:
            source: Source at the size at which examples are seen.

        Raises:
            InputError: It cannot be loaded at this size.
        """
        spec = source.data.input_spec
        with silence_logs(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(source.data.request.seed)  # of random weights, which are the same in each pass
            if self.candidate is None:
                return build_encoder(self.backbone, spec)[0]
            network = load_candidate(self.candidate, spec, spec.shape[-1], takes_maps=True)[0]
        if network.input_spec.shape != spec.shape:
            raise InputError(f"its weights take {network.input_spec}, and all recipes see {spec}: leave it out")
        return network


def open_starts(
    found: Sequence[FoundStart],
    source: LabeledSource,
    prepare: Callable[[Encoder], object],
    drop: Callable[[str, str], object],
) -> list[MapStart]:
    """Return the starts that give maps.

    Args:
        found: Starts at hand.
        source: Source at the size at which they are compared.
        prepare: Function that builds on a network what recipes need, and refuses one that does not give it.
        drop: Function that gets the name of a start that is left out, and the reason.

    Raises:
        InputError: A start that the user named does not give them.
    """
    starts = []
    for one in found:
        candidate = one.candidate
        try:
            if candidate.image_size is not None:
                raise InputError(
                    f"it has a size of its own, and {source.kind} are compared at one size: set image_size of the call"
                )
            start = MapStart(str(candidate), "", candidate)
            with silence_logs():
                network = start.load(source)
                prepare(network)
        except InputError as error:
            if one.is_given:
                raise InputError(f"candidate {str(candidate)!r}: {error}") from error
            drop(str(candidate), f"{candidate}: {error}")
            continue
        has_file = candidate.weights not in ("none", "default")
        digest = hash_file(find_weights(Path(candidate.weights))) if has_file else ""
        seen, is_large = has_seen(candidate.weights, source), network.architecture not in BUILT_IN
        starts.append(MapStart(str(candidate), network.name, candidate, seen, digest, is_large))
    return starts

"""Whether labels of defects are worth it: the chosen classifier against a detector that sees normal examples alone."""

import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sft_lightning.anomaly import PatchCore
from sft_lightning.anomaly.base import MapBatch
from sft_lightning.anomaly.metrics import compute_auroc
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.data.normal_splits import list_normal_names
from sft_lightning.data.splits import Split
from sft_lightning.networks.encoder import Encoder
from sft_lightning.networks.modes import eval_mode
from sft_lightning.solver.labels import LabeledSource
from sft_lightning.solver.starts import Start
from sft_lightning.utils.errors import InputError

_LEARNED, _JUDGED = 200, 300  # most normal examples to learn from, and examples of each kind to judge by, in a fold
_STRIDES = ((8, 16), (4, 8), (4,))  # of the maps, the first that a network has
_SHARE = 0.25  # of the time of a call that the comparison may take
_DRAWS = 1000  # of the bootstrap
_CHOSEN = "detected"  # name of the split whose maps are computed


class DefectComparison(NamedTuple):
    """A classifier that has learned labels of defects against a detector that has not, on held-out labels.

    Attributes:
        normal_class: Name of the class of normal examples.
        classifier: AUROC of the classifier.
        detector: AUROC of the detector.
        low: Lower end of the 95% interval of the difference, classifier minus detector.
        high: Upper end of the interval.
        defects: Number of defective examples.
    """

    normal_class: str
    classifier: float
    detector: float
    low: float
    high: float
    defects: int

    def __str__(self) -> str:
        verdict = "whether the labels of defects help is not settled"
        if self.low > 0:
            verdict = "the labels of defects help"
        elif self.high < 0:
            verdict = "fit AnomalyDetector (docs/defects.md) until more defects are labeled"
        return (
            f"Defects: with {self.defects:,} labeled ones, the model ranks {self.classifier:.1%} of the pairs of a "
            f"defective and a {self.normal_class} example rightly, and PatchCore, which learns from the latter alone, "
            f"{self.detector:.1%}: {verdict} (95% interval of the difference {100 * self.low:+.1f} to "
            f"{100 * self.high:+.1f} points)."
        )


def compare_with_detector(
    source: LabeledSource, probabilities: Tensor, starts: Sequence[Start], seconds: float
) -> DefectComparison | None:
    """Compare a classifier with PatchCore on the same held-out labels, if one class is named like normal examples.

    Args:
        source: Source with labels and folds.
        probabilities: Probabilities of each labeled example without its fold, (N, C); NaN for one in no fold.
        starts: Starts at hand, of which the first with maps gives the features.
        seconds: Time of the whole call, of which the comparison takes a quarter at most.

    Returns:
        The comparison; None without a normal class, maps or time.
    """
    names = source.data.class_names
    normal = list_normal_names(names)
    if len(normal) != 1 or len(names) < 2:
        return None
    number = names.index(normal[0])
    is_normal, folds = (source.labels == number).numpy(), source.folds
    judged = ~probabilities.isnan().any(1).numpy() & (folds >= 0)
    order = np.random.default_rng(source.data.request.seed).permutation(len(folds))
    chosen = [*_first(order, judged & is_normal), *_first(order, judged & ~is_normal)]
    passes = source.num_folds * min(_LEARNED, int(is_normal.sum())) + len(chosen)
    opened = (_open_maps(start, seconds, source, passes) for start in starts)
    found = next((one for one in opened if one is not None), None)
    if found is None:
        return None
    encoder, data = found
    scores = torch.full((len(folds),), torch.nan, dtype=torch.float64)
    for fold in sorted({int(folds[i]) for i in chosen}):
        learned = [i for i in order.tolist() if is_normal[i] and folds[i] != fold][:_LEARNED]
        own = [i for i in chosen if folds[i] == fold]
        if not learned:
            return None
        scores[own] = _score(encoder, data, learned, own)
    defect_share = 1 - probabilities[:, number].double()
    kept = torch.tensor(chosen)
    return _compare(normal[0], defect_share[kept], scores[kept], torch.from_numpy(is_normal[chosen]))


def _first(order: np.ndarray, wanted: np.ndarray) -> list[int]:
    return [int(i) for i in order if wanted[i]][:_JUDGED]


def _open_maps(
    start: Start, seconds: float, source: LabeledSource, passes: int
) -> tuple[Encoder, FewLabelDataModule] | None:
    """Return a copy of a start that gives maps, and the data at its size; None if it has none or takes too long."""
    if start.candidate.weights == "none":
        return None
    each = start.seconds / max(1, len(source.labels) + source.pool_size)
    if each * passes > _SHARE * seconds:
        return None
    for strides in _STRIDES:
        encoder = copy.deepcopy(start.backbone)
        try:
            encoder.select_maps(strides)
        except InputError:
            continue
        return encoder, source.reopen(**type(source.data).settings_for(encoder.input_spec))
    return None


@torch.no_grad()
def _score(encoder: Encoder, data: FewLabelDataModule, learned: list[int], judged: list[int]) -> Tensor:
    """Fit PatchCore to some labeled examples, and return the scores of others, (len(judged),)."""
    method = PatchCore(max_bank=2_000, max_candidates=20_000)
    with eval_mode(encoder):
        method.fit(_read_maps(encoder, data, learned), len(learned), data.request.seed)
        height, width = encoder.input_spec.shape[-2:]
        scores = torch.full((len(judged),), torch.nan, dtype=torch.float64)
        for positions, maps in _read_maps(encoder, data, judged):
            scores[positions] = method.score(maps, (height, width)).example.double().cpu()
    return scores


def _read_maps(encoder: Encoder, data: FewLabelDataModule, positions: list[int]) -> Iterator[MapBatch]:
    split = data.splits["labeled"]
    data.splits[_CHOSEN] = Split(split.part, [split.indices[i] for i in positions])
    try:
        for batch in data.batches_of(_CHOSEN, encoder.device):
            for indices, x in zip(batch.indices.split(16), batch.x.split(16), strict=True):
                yield MapBatch(indices, encoder.forward_maps(x))
    finally:
        del data.splits[_CHOSEN]


def _compare(normal_class: str, ours: Tensor, theirs: Tensor, is_normal: Tensor) -> DefectComparison | None:
    """Compare two scores of the same examples, those that neither can read left out."""
    known = ~(ours.isnan() | theirs.isnan())
    normal, defective = ((known & kind).nonzero()[:, 0] for kind in (is_normal, ~is_normal))
    if not len(normal) or not len(defective):
        return None

    def measure(a: Tensor, b: Tensor) -> tuple[float, float]:
        return float(compute_auroc(ours[a], ours[b])), float(compute_auroc(theirs[a], theirs[b]))

    draw = torch.Generator().manual_seed(0)
    differences = []
    for _ in range(_DRAWS):
        a, b = (own[torch.randint(len(own), (len(own),), generator=draw)] for own in (normal, defective))
        first, second = measure(a, b)
        differences.append(first - second)
    low, high = np.quantile(differences, (0.025, 0.975))
    return DefectComparison(normal_class, *measure(normal, defective), float(low), float(high), len(defective))

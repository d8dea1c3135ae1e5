"""What a trained network makes of images of its own run: metrics, and outputs that a written program must repeat."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.console import hushed
from sft_lightning.data.datamodule import MANIFEST
from sft_lightning.errors import InputError
from sft_lightning.paradigms.metrics import ClassifierMetrics
from sft_lightning.reuse.opened import Opened, some_of
from sft_lightning.reuse.trained import Trained

COMPARED = 128  # images that are kept; of more, a program would only repeat more of the same
_IN_WORDS = {"val": "validation", "labeled": "labeled training", "unlabeled": "unlabeled training"}


@dataclass
class Measured:
    """What a trained network makes of images.

    Attributes:
        kind: `test`, `validation`, `labeled training`, `unlabeled training` or `random`.
        images: uint8, (N, C, H, W), at most `COMPARED`.
        features: (N, F), what PyTorch computes of them.
        logits: (N, K), or nothing without a head.
        metrics: By name, of the classifier on `count` images; empty where they were not measured.
        count: Images with a label that the metrics are of.
        total: Images of the split.
        why_not: Why the images are random ones.
    """

    kind: str
    images: Tensor
    features: Tensor
    logits: Tensor | None
    metrics: dict[str, float] = field(default_factory=dict)
    count: int = 0
    total: int = 0
    why_not: str | None = None

    @property
    def of(self) -> str:
        """The images in words."""
        return f"{len(self.images)} {self.kind} images"


def measure(run: str, trained: Trained, folder: Path | None, most: int) -> Measured:
    """Looks at images of the test split, else of validation, else of training; at random ones where none are left.

    The splits are those of the run's own `split.csv`: images that came to the data since, or left it, might have moved
    training images into a test split that is chosen anew.

    Args:
        run: Folder of a run, or a checkpoint.
        trained: Its network, which may have been changed since.
        folder: Of the run, if there is one.
        most: Images of a held-out split that metrics are measured on, drawn by the data's seed; 0 for no metrics.
    """
    manifest = None if folder is None else folder / MANIFEST
    own = [f"--data.init_args.split_file={manifest}"] if manifest is not None and manifest.is_file() else []
    try:
        with hushed():
            return _of_the_run(Opened(run, *own), trained, most)
    except InputError as error:  # the data was moved, changed or damaged since
        drawn = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (COMPARED, *trained.about["image_shape"]), dtype=torch.uint8, generator=drawn)
        return Measured("random", images, *_computed(trained, [images]), why_not=str(error))


def _of_the_run(opened: Opened, trained: Trained, most: int) -> Measured:
    data = opened.data
    name = next((n for n in ("test", "val", "labeled", "unlabeled") if len(data.splits[n])), None)
    if name is None:
        raise InputError(f"run {opened.name!r} has no image")
    judged = most > 0 and name in ("test", "val") and bool(trained.head)
    chosen = some_of(data, name, max(most, COMPARED) if judged else COMPARED)
    kept: list[Tensor] = []
    labels: list[Tensor] = []

    def batches() -> Iterator[Tensor]:
        for batch in data.batches_of(chosen, torch.device("cpu")):
            images = (batch.x * 255).round().to(torch.uint8)  # exact, unless images in memory were resized
            kept.append(images[: COMPARED - sum(map(len, kept))])
            labels.append(batch.y)
            yield images

    features, logits = _computed(trained, batches())
    images, y = torch.cat(kept), torch.cat(labels)
    seen = None if logits is None else logits[: len(images)]
    found = Measured(_IN_WORDS.get(name, name), images, features[: len(images)], seen, total=len(data.splits[name]))
    if judged and logits is not None:
        known = y >= 0
        metrics = ClassifierMetrics(logits.shape[1])
        metrics.update(logits[known], y[known])
        found.metrics = {n: float(v) for n, v in metrics.compute().items()}
        found.count = int(known.sum())
    return found


@torch.no_grad()
def _computed(trained: Trained, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Features and logits of uint8 images."""
    network = trained.network()
    features = torch.cat([network(images.float() / 255) for images in batches])
    logits = F.linear(features, trained.head["weight"], trained.head["bias"]) if trained.head else None
    return features, logits

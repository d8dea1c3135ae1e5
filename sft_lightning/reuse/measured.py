"""What a trained network makes of images of its own run: metrics, and outputs that a written program must repeat."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.console import hushed
from sft_lightning.data.datamodule import MANIFEST
from sft_lightning.errors import InputError
from sft_lightning.paradigms.feature_cache import features
from sft_lightning.paradigms.metrics import ClassifierMetrics
from sft_lightning.reuse.opened import Opened, some_of
from sft_lightning.reuse.trained import Trained

COMPARED = 128  # images that a program is compared on; of more, it would only repeat more of the same
_SPLITS = {"test": "test", "val": "validation", "labeled": "labeled training", "unlabeled": "unlabeled training"}


@dataclass
class Measured:
    """What there is to say of a network by images.

    Attributes:
        kind: Of the images: `test`, `validation`, `labeled training`, `unlabeled training` or `random`.
        images: uint8, (N, C, H, W), at most `COMPARED`; none where no program is to be compared.
        metrics: Of the classifier by name, on `count` images of `total`; empty where they were not measured.
        count: Images with a label.
        total: Images of the split.
        why_not: Why the images are random ones, or why there are no metrics although they were asked for.
    """

    kind: str
    images: Tensor
    metrics: dict[str, float] = field(default_factory=dict)
    count: int = 0
    total: int = 0
    why_not: str | None = None


def measure(run: str, trained: Trained, folder: Path | None, most: int, compared: int = COMPARED) -> Measured:
    """Looks at images of the test split, else of validation, else of training; at random ones where none are left.

    The splits are those of the run's own `split.csv`: chosen anew from data that grew or shrank since, a test split
    could hold what the run was trained on.

    Args:
        run: Folder of a run, or a checkpoint.
        trained: Its network, which may have been changed since.
        folder: Of the run, if there is one.
        most: Images of a held-out split that metrics are measured on, drawn by the data's seed; 0 for no metrics.
        compared: Images that are wanted for themselves.
    """
    manifest = None if folder is None else folder / MANIFEST
    own = [f"--data.init_args.split_file={manifest}"] if manifest is not None and manifest.is_file() else []
    try:
        with hushed():
            return _of_the_run(Opened(run, *own), trained, most, compared)
    except InputError as error:  # the data was moved, changed or damaged since
        drawn = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (compared, *trained.about["image_shape"]), dtype=torch.uint8, generator=drawn)
        return Measured("random", images, why_not=str(error))


def _of_the_run(opened: Opened, trained: Trained, most: int, compared: int) -> Measured:
    data = opened.data
    name = next((n for n in _SPLITS if len(data.splits[n])), None)
    if name is None:
        raise InputError(f"run {opened.name!r} has no image")
    images = torch.empty(0, *data.image_shape, dtype=torch.uint8)
    if compared:
        batches = data.batches_of(some_of(data, name, compared), torch.device("cpu"))
        images = torch.cat([(batch.x * 255).round().to(torch.uint8) for batch in batches])
    found = Measured(_SPLITS[name], images, total=len(data.splits[name]))
    if most and trained.head and name in ("test", "val"):
        chosen = some_of(data, name, most)
        x = features(trained.network(), data, chosen)
        if x is None:
            found.why_not = f"some {found.kind} images cannot be read"
            return found
        y = data.splits[chosen].labels
        known = y >= 0
        metrics = ClassifierMetrics(len(trained.head["bias"]))
        metrics.update(F.linear(x, trained.head["weight"], trained.head["bias"])[known], y[known])
        found.metrics = {n: float(v) for n, v in metrics.compute().items()}
        found.count = int(known.sum())
    return found

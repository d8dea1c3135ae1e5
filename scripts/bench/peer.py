"""FixMatch of LAMDA-SSL 1.0.2 (Jia et al. 2024) as a peer to measure against, where it is installed.

    python -m pip install --no-deps LAMDA-SSL==1.0.2

Its own step, augmentations, optimizer, average and loaders run as they are; what its FixMatch imports is numpy, scipy,
scikit-learn, pandas, Pillow and torchvision. What this changes, so that the release of 2023 runs on newer packages:
- scikit-learn moved `_approximate_mode`, which it imports for a split that is not made here, and dropped
  `ClassifierMixin._estimator_type`, which it reads,
- torch's schedulers take no `verbose` any more, and its `DataLoader` no `prefetch_factor` without workers,
- gray images have mean, standard deviation and gray of the first of its config's three channels,
- `chained`: its transforms in torchvision's `Compose` and not in scikit-learn's `Pipeline`, whose own checks at each
  image take as long as the views (weak and strong: 1.6 against 3.7 ms of one core). The views are the same.
"""

import time
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn
from torchvision.transforms import Compose

GRAY = (127,)  # the gray of its cutout
INSTALL = "python -m pip install --no-deps LAMDA-SSL==1.0.2"


def installed() -> bool:
    """Whether there is a LAMDA-SSL."""
    return find_spec("LAMDA_SSL") is not None


def fit_on_new_packages() -> None:
    """Gives scikit-learn back the two names that LAMDA-SSL imports; see above."""
    import sklearn.base
    import sklearn.utils
    from sklearn.utils import extmath

    sklearn.utils._approximate_mode = extmath._approximate_mode
    sklearn.base.ClassifierMixin._estimator_type = "classifier"


def fixmatch(
    model: nn.Module,
    known: Tensor,
    labels: Tensor,
    free: Tensor,
    *,
    batch: tuple[int, int],
    steps: int,
    workers: int,
    chained: bool,
) -> list[float]:
    """Trains, and returns when each step began: once its batch was there, seconds of the performance counter.

    Args:
        model: Images to logits.
        known: Labeled images (N, 1, H, W), uint8.
        labels: Of them, (N,).
        free: Unlabeled images (M, 1, H, W), uint8.
        batch: Labeled images of a batch, and how many unlabeled ones come with each.
        steps: To train.
        workers: Of the loader of unlabeled images; that of the labeled ones, which are few, has none.
        chained: Without scikit-learn's pipelines; see above.
    """
    fit_on_new_packages()
    from LAMDA_SSL.Algorithm.Classification.FixMatch import FixMatch
    from LAMDA_SSL.Augmentation.Vision.Cutout import Cutout
    from LAMDA_SSL.Config import FixMatch as Shipped
    from LAMDA_SSL.Dataloader.LabeledDataloader import LabeledDataLoader
    from LAMDA_SSL.Dataloader.UnlabeledDataloader import UnlabeledDataLoader
    from LAMDA_SSL.Dataset.LabeledDataset import LabeledDataset
    from LAMDA_SSL.Dataset.UnlabeledDataset import UnlabeledDataset
    from LAMDA_SSL.Sampler.RandomSampler import RandomSampler
    from LAMDA_SSL.Scheduler.CosineAnnealingLR import CosineAnnealingLR
    from LAMDA_SSL.Transform.ToImage import ToImage
    from LAMDA_SSL.Transform.ToTensor import ToTensor
    from LAMDA_SSL.Transform.Vision.Normalization import Normalization
    from sklearn.pipeline import Pipeline
    from torch.optim import lr_scheduler

    starts: list[float] = []

    def chain(parts: list[tuple[str, Any]]) -> Any:
        return Compose([part for _, part in parts]) if chained else Pipeline(parts)

    class Timed(FixMatch):  # type: ignore[misc]
        def start_fit_batch(self, *args: Any, **kwargs: Any) -> None:
            starts.append(time.perf_counter())

    class Cosine(CosineAnnealingLR):  # type: ignore[misc]
        def init_scheduler(self, optimizer: Any) -> lr_scheduler.LRScheduler:
            return lr_scheduler.CosineAnnealingLR(optimizer, self.T_max, self.eta_min)

    size, ratio = batch
    normalized = Normalization(Shipped.mean[:1], Shipped.std[:1])
    to_tensor = chain([("ToTensor", ToTensor(dtype="float", image=True)), ("Normalization", normalized)])
    weak = Shipped.weak_augmentation.steps
    strong = [*Shipped.strong_augmentation.steps[:-1], ("Cutout", Cutout(Shipped.strong_augmentation[-1].v, GRAY))]
    spread = {"num_workers": workers, "prefetch_factor": 2 if workers else None}
    Timed(
        mu=ratio,
        num_it_epoch=steps,
        num_it_total=steps,
        network=model,
        scheduler=Cosine(Shipped.scheduler.T_max, Shipped.scheduler.eta_min),
        augmentation={"weak_augmentation": chain(weak), "strong_augmentation": chain(strong)},
        labeled_dataset=LabeledDataset(pre_transform=ToImage(channels=1), transform=to_tensor),
        unlabeled_dataset=UnlabeledDataset(pre_transform=ToImage(channels=1), transform=to_tensor),
        labeled_sampler=RandomSampler(replacement=True, num_samples=size * 2**20),
        labeled_dataloader=LabeledDataLoader(size, num_workers=0, prefetch_factor=None, drop_last=True),
        unlabeled_dataloader=UnlabeledDataLoader(drop_last=True, **spread),
    ).fit(known[:, 0].numpy(), labels.numpy(), free[:, 0].numpy())
    return starts

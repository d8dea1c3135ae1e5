"""Run FixMatch of LAMDA-SSL 1.0.2 (Jia et al. 2024) for comparison, where it is installed.

    python -m pip install --no-deps LAMDA-SSL==1.0.2

Its step, augmentations, optimizer, average and loaders run unchanged. Its FixMatch imports only numpy, scipy,
scikit-learn, pandas, Pillow and torchvision. The release of 2023 needs these changes to run on current packages:
- scikit-learn moved `_approximate_mode`, which LAMDA-SSL imports for a split that is not used here, and removed
  `ClassifierMixin._estimator_type`, which it reads,
- torch's schedulers dropped `verbose`, and its `DataLoader` rejects `prefetch_factor` without workers,
- gray images use the mean, standard deviation and gray of the first of its config's three channels,
- `compose`: its transforms run in torchvision's `Compose` instead of scikit-learn's `Pipeline`, whose checks of each
  image take as long as the views (weak and strong: 1.6 against 3.7 ms of one core). The views are the same.
"""

import time
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn
from torchvision.transforms import Compose

GRAY = (127,)  # color of LAMDA-SSL's cutout
INSTALL = "python -m pip install --no-deps LAMDA-SSL==1.0.2"


def is_installed() -> bool:
    """Return whether LAMDA-SSL is installed."""
    return find_spec("LAMDA_SSL") is not None


def restore_removed_names() -> None:
    """Restore the two names that LAMDA-SSL needs in scikit-learn; see above."""
    import sklearn.base
    import sklearn.utils
    from sklearn.utils import extmath

    sklearn.utils._approximate_mode = extmath._approximate_mode
    sklearn.base.ClassifierMixin._estimator_type = "classifier"


def train_fixmatch(
    model: nn.Module,
    labeled: Tensor,
    labels: Tensor,
    unlabeled: Tensor,
    *,
    batch: tuple[int, int],
    steps: int,
    workers: int,
    compose: bool,
) -> list[float]:
    """Train with LAMDA-SSL's FixMatch and return the start of each step, in seconds of the performance counter.

    A step starts when its batch has been loaded.

    Args:
        model: Network from images to logits.
        labeled: Labeled images (N, 1, H, W), uint8.
        labels: Labels of these images, (N,).
        unlabeled: Unlabeled images (M, 1, H, W), uint8.
        batch: Number of labeled images per batch, and of unlabeled images per labeled image.
        steps: Number of steps.
        workers: Number of workers that load unlabeled images. The few labeled images are loaded by the main process.
        compose: Whether to avoid scikit-learn's pipelines; see above.
    """
    restore_removed_names()
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

    def chain(steps: list[tuple[str, Any]]) -> Any:
        return Compose([transform for _, transform in steps]) if compose else Pipeline(steps)

    class TimedFixMatch(FixMatch):  # type: ignore[misc]
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
    loading = {"num_workers": workers, "prefetch_factor": 2 if workers else None}
    TimedFixMatch(
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
        unlabeled_dataloader=UnlabeledDataLoader(drop_last=True, **loading),
    ).fit(labeled[:, 0].numpy(), labels.numpy(), unlabeled[:, 0].numpy())
    return starts

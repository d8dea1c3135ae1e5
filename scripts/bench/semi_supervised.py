"""Time FixMatch's training step (32 + 224 images at 28x28) through the command line, in plain loops and in LAMDA-SSL.

    python scripts/bench/semi_supervised.py --pairs 3 --out scripts/bench/results/semi_supervised.json

It uses the full Fashion-MNIST, the small CNN and WRN-28-2. Variants take turns, each in a process of its own:
- `framework`: the shipped config (weak views of labeled images) with logging, progress bar, pseudo-label metrics,
  average and checkpoints.
- `same_step`: the same computation with the framework's batched views in a plain loop, without logging, metrics and
  average.
- `one_batch`: labeled, weak and strong images go through forward and backward together, as in most implementations.
- `per_sample`: views are made image by image with PIL in a `DataLoader` with one worker per core.
- `lamda_ssl`, where it is installed (`peer.py`): the fastest, in each pair, of its FixMatch as shipped, and without
  scikit-learn's pipelines with 0 and with 2 workers.

`views` times the weak and strong views alone. It prints JSON with the unlabeled images per second and the ratios of
each pair.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import peer
import torch
from commands import CONFIGS
from provenance import collect_provenance
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image
from training_speed import record_epoch_starts

from sft_lightning import ImageDataModule, StrongView, WeakView
from sft_lightning.cli.lightning_cli import run
from sft_lightning.data.storage import TensorStorage
from sft_lightning.data.vision.views import strong, to_float, weak
from sft_lightning.networks.vision.backbones import build_backbone

LABELED, RATIO, THRESHOLD = 32, 7, 0.95
WEAK, STRONG = WeakView(crop_padding=2), StrongView()
STEPS = {"conv": 16, "wrn_28_2": 2}  # steps per epoch; the first epoch is not counted


def time_framework(network: str) -> float:
    """Train through the command line and return the median seconds per step of the epochs after the first."""
    starts: list[float] = []
    os.chdir(tempfile.mkdtemp())
    configs = [str(CONFIGS / "semi_supervised" / name) for name in ("shared.yaml", "fixmatch.yaml")]
    argv = ["fit", "--config", configs[0], "--config", configs[1]]
    argv += ["--data", str(CONFIGS / "data/fashion_mnist_semi_supervised.yaml")]
    argv += [f"--model.init_args.backbone={network}", f"--data.init_args.steps_per_epoch={STEPS[network]}"]
    argv += ["--data.init_args.labeled_view=weak", "--data.init_args.val_size=0", "--trainer.max_epochs=3"]
    with record_epoch_starts(starts):
        run(argv)
    return statistics.median(b - a for a, b in pairwise(starts[1:])) / STEPS[network]


def load_images() -> tuple[Tensor, Tensor, Tensor]:
    """Return the unlabeled images, the labeled images (both uint8) and their labels."""
    data = ImageDataModule("FashionMNIST", num_labels=100, val_size=0)
    data.setup("fit")
    unlabeled, labeled = data.splits["unlabeled"], data.splits["labeled"]
    assert isinstance(unlabeled.part.storage, TensorStorage)
    assert isinstance(labeled.part.storage, TensorStorage)
    return unlabeled.part.storage.data[unlabeled.indices], labeled.part.storage.data[labeled.indices], labeled.labels


def build_network_and_optimizer(network: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Build the network and the optimizer of the shipped config."""
    backbone, _ = build_backbone(network, (1, 28, 28))
    model = nn.Sequential(backbone, nn.Linear(backbone.num_features, 10))
    return model, torch.optim.SGD(model.parameters(), 0.03, momentum=0.9, nesterov=True, weight_decay=5e-4)


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, views: tuple[Tensor, ...], y: Tensor, one_batch: bool
) -> None:
    """Train one step of FixMatch.

    Args:
        model: Network from images to logits.
        optimizer: Optimizer of its parameters.
        views: Labeled images, and weak and strong views of unlabeled images.
        y: Labels.
        one_batch: Whether weak views go through the network with the others, and with gradient.
    """
    x, u_weak, u_strong = views
    if one_batch:
        logits = model(torch.cat([x, u_weak, u_strong]))
        weak_logits = logits[len(x) : len(x) + len(u_weak)].detach()
        labeled_logits, strong_logits = logits[: len(x)], logits[len(x) + len(u_weak) :]
    else:
        with torch.no_grad():
            weak_logits = model(u_weak)
        logits = model(torch.cat([x, u_strong]))
        labeled_logits, strong_logits = logits[: len(x)], logits[len(x) :]
    confidence, pseudo_labels = weak_logits.softmax(1).max(1)
    losses = F.cross_entropy(strong_logits, pseudo_labels, reduction="none")
    loss = F.cross_entropy(labeled_logits, y) + (losses * (confidence >= THRESHOLD)).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def time_plain_loop(network: str, one_batch: bool) -> float:
    """Return the mean seconds per step of a plain loop over batched views, after its first epoch."""
    unlabeled, labeled, labels = load_images()
    model, optimizer = build_network_and_optimizer(network)
    times = []
    for step in range(3 * STEPS[network]):
        start = time.perf_counter()
        drawn = torch.randint(len(labeled), (LABELED,))
        x = weak(to_float(labeled[drawn], 1, 28), WEAK, step)
        u = to_float(unlabeled[torch.randint(len(unlabeled), (LABELED * RATIO,))], 1, 28)
        views = (x, weak(u, WEAK, step, 1), strong(u, WEAK, STRONG, step))
        train_step(model, optimizer, views, labels[drawn], one_batch)
        times.append(time.perf_counter() - start)
    return statistics.mean(times[STEPS[network] :])


class PerSampleViews(Dataset[tuple[Tensor, Tensor]]):
    """A data set of a weak and a strong view of each image, made with torchvision's transforms for PIL images."""

    def __init__(self, images: Tensor) -> None:
        """Keep the images.

        Args:
            images: Images (N, 1, 28, 28), uint8.
        """
        self.images = images
        crop = transforms.RandomCrop(28, padding=2)
        self.weak = transforms.Compose([crop, transforms.ToTensor()])
        self.strong = transforms.Compose(
            [crop, transforms.RandAugment(2), transforms.ToTensor(), transforms.RandomErasing(1.0, (0.25, 0.25))]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        image = to_pil_image(self.images[i])
        return self.weak(image), self.strong(image)


def make_per_sample_loader(images: Tensor) -> DataLoader[tuple[Tensor, Tensor]]:
    """Return a shuffled loader of per-sample views with one worker per core."""
    cores = len(os.sched_getaffinity(0))
    return DataLoader(PerSampleViews(images), LABELED * RATIO, shuffle=True, num_workers=cores, drop_last=True)


def time_per_sample_loop(network: str) -> float:
    """Return the mean seconds per step of a plain loop over per-sample views, after its first epoch."""
    unlabeled, labeled, labels = load_images()
    model, optimizer = build_network_and_optimizer(network)
    starts = []
    for step, (u_weak, u_strong) in enumerate(make_per_sample_loader(unlabeled)):
        starts.append(time.perf_counter())
        drawn = torch.randint(len(labeled), (LABELED,))
        x = weak(to_float(labeled[drawn], 1, 28), WEAK, step)
        train_step(model, optimizer, (x, u_weak, u_strong), labels[drawn], one_batch=True)
        if step == 3 * STEPS[network]:
            break
    return (starts[-1] - starts[STEPS[network]]) / (len(starts) - 1 - STEPS[network])


def time_lamda_ssl(network: str, workers: int, compose: bool) -> float:
    """Return the mean seconds per step of LAMDA-SSL's own loop, after a quarter of the steps for warm-up.

    Args:
        network: Name of the network.
        workers: Number of workers that load unlabeled images.
        compose: Whether to avoid scikit-learn's pipelines.
    """
    unlabeled, labeled, labels = load_images()
    model, _ = build_network_and_optimizer(network)
    first, counted = max(2, STEPS[network] // 4), STEPS[network]
    starts = peer.train_fixmatch(
        model, labeled, labels, unlabeled,
        batch=(LABELED, RATIO), steps=first + counted + 1, workers=workers, compose=compose,
    )  # fmt: skip
    return (starts[-1] - starts[first]) / counted


def measure_views() -> dict[str, float]:
    """Return the images per second of making a weak and a strong view, batched and per sample."""
    unlabeled, _, _ = load_images()
    count = LABELED * RATIO

    def make_batched_views() -> None:
        u = to_float(unlabeled[torch.randint(len(unlabeled), (count,))], 1, 28)
        weak(u, WEAK, 0, 1)
        strong(u, WEAK, STRONG, int(torch.randint(1 << 30, ())))

    for _ in range(10):
        make_batched_views()
    start = time.perf_counter()
    for _ in range(100):
        make_batched_views()
    batched = 100 * count / (time.perf_counter() - start)
    images, start = 0, 0.0
    for i, (u_weak, _) in enumerate(make_per_sample_loader(unlabeled)):
        if i == 10:
            start = time.perf_counter()
        images += len(u_weak) if i > 10 else 0
        if i == 110:
            break
    return {"batched": batched, "per_sample": images / (time.perf_counter() - start)}


VARIANTS = {
    "framework": time_framework,
    "same_step": lambda network: time_plain_loop(network, one_batch=False),
    "one_batch": lambda network: time_plain_loop(network, one_batch=True),
    "per_sample": time_per_sample_loop,
}
PEERS = {
    "lamda_ssl_as_shipped": lambda network: time_lamda_ssl(network, workers=0, compose=False),
    "lamda_ssl_0_workers": lambda network: time_lamda_ssl(network, workers=0, compose=True),
    "lamda_ssl_2_workers": lambda network: time_lamda_ssl(network, workers=2, compose=True),
}
if peer.is_installed():
    VARIANTS.update(PEERS)


def measure_in_subprocess(*only: str, steps: int | None) -> Any:
    """Run one measurement in a process of its own and return its result.

    Args:
        only: Values of `--only`: `views`, or a variant and a network.
        steps: Number of steps per epoch, or None for the network's default.
    """
    command = [sys.executable, __file__, *([] if steps is None else [f"--steps={steps}"]), "--only", *only]
    process = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return json.loads(process.stdout.splitlines()[-1])


def compare(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Return medians by variant and the ratios of each pair.

    Args:
        rows: Seconds per step by variant, one row per pair.
    """
    fastest = [{"lamda_ssl": min(row[name] for name in PEERS)} if set(PEERS) <= set(row) else {} for row in rows]
    rows = [{**row, **peers} for row, peers in zip(rows, fastest, strict=True)]
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    return {
        "seconds_per_step": {name: round(seconds, 4) for name, seconds in medians.items()},
        "unlabeled_per_second": {name: round(LABELED * RATIO / seconds) for name, seconds in medians.items()},
        "framework_speed_over": {
            name: [round(row[name] / row["framework"], 2) for row in rows] for name in medians if name != "framework"
        },
    }


def main() -> None:
    """Time the pairs and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--networks", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--steps", type=int, help="steps per epoch, instead of the network's default")
    parser.add_argument("--only", nargs="+", help="one measurement in this process: views, or a variant and a network")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.steps:
        STEPS.update(dict.fromkeys(STEPS, args.steps))
    if args.only:
        print(json.dumps(measure_views() if args.only == ["views"] else VARIANTS[args.only[0]](args.only[1])))
        return
    if not peer.is_installed():
        print(f"LAMDA-SSL is not installed and is skipped; to include it: {peer.INSTALL}", file=sys.stderr)
    results: dict[str, Any] = {
        **collect_provenance(),
        "what": __doc__.splitlines()[0],
        "labeled": LABELED,
        "unlabeled": LABELED * RATIO,
    }
    pairs = [measure_in_subprocess("views", steps=args.steps) for _ in range(args.pairs)]
    results["views"] = {
        "images_per_second": {kind: round(statistics.median(p[kind] for p in pairs)) for kind in pairs[0]},
        "batched_over_per_sample": [round(p["batched"] / p["per_sample"], 2) for p in pairs],
    }
    for network in args.networks:
        rows = [
            {name: measure_in_subprocess(name, network, steps=args.steps) for name in VARIANTS}
            for _ in range(args.pairs)
        ]
        results[network] = compare(rows)
    text = json.dumps(results, indent=1)
    if args.out:
        args.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()

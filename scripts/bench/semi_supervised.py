"""FixMatch's step at 28x28: through the command line, as plain loops, and with per-sample PIL views; 32 + 224 images.

    python scripts/bench/semi_supervised.py --pairs 3 --out scripts/bench/results/semi_supervised.json

On the full Fashion-MNIST, each variant in turn and in a process of its own, for the small CNN and WRN-28-2:
`framework` is the shipped config (labels with weak views) with logging, progress bar, health, average and checkpoints;
`same step` does the same mathematics with our batched views in a bare loop, without logging, health and average;
`one batch` sends labeled, weak and strong images through forward and backward together, as most code does;
`per sample` makes the views image by image with PIL in a `DataLoader` with one worker a core. Where LAMDA-SSL is
installed (`peer.py`), its FixMatch runs as shipped, and without scikit-learn's pipelines with 0 and with 2 workers:
`lamda_ssl` is the fastest of the three in each pair. `views` are the weak and strong views alone. Prints JSON:
unlabeled images per second, and the ratios, pair by pair.
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
from about import about
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image

from sft_lightning import ImageDataModule, StrongView, WeakView
from sft_lightning.cli.lightning_cli import run
from sft_lightning.data.storage import TensorStorage
from sft_lightning.data.vision.views import strong, to_float, weak
from sft_lightning.networks.vision.backbones import build_backbone
from sft_lightning.training.callbacks.progress import Progress

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
LABELED, RATIO, THRESHOLD = 32, 7, 0.95
WEAK, STRONG = WeakView(crop_padding=2), StrongView()
STEPS = {"conv": 16, "wrn_28_2": 2}  # of an epoch; the first is not counted


def framework(network: str) -> float:
    """Seconds of a step, median of the epochs after the first, from start to start."""
    starts: list[float] = []
    old = Progress.on_train_epoch_start

    def timed(self: Progress, trainer: Any, *args: Any) -> None:
        starts.append(time.perf_counter())
        old(self, trainer, *args)

    Progress.on_train_epoch_start = timed  # type: ignore[method-assign,assignment]
    os.chdir(tempfile.mkdtemp())
    shared, own = (str(CONFIGS / "semi_supervised" / name) for name in ("shared.yaml", "fixmatch.yaml"))
    run(
        ["fit", "--config", shared, "--config", own, "--data", str(CONFIGS / "data/fashion_mnist_semi_supervised.yaml"),
         f"--model.init_args.backbone={network}", f"--data.init_args.steps_per_epoch={STEPS[network]}",
         "--data.init_args.labeled_view=weak", "--data.init_args.val_size=0", "--trainer.max_epochs=3"]
    )  # fmt: skip
    return statistics.median(b - a for a, b in pairwise(starts[1:])) / STEPS[network]


def pictures() -> tuple[Tensor, Tensor, Tensor]:
    """Unlabeled images, labeled ones and their labels, uint8."""
    data = ImageDataModule("FashionMNIST", num_labels=100, val_size=0)
    data.setup("fit")
    free, known = data.splits["unlabeled"], data.splits["labeled"]
    assert isinstance(free.part.images, TensorStorage)
    assert isinstance(known.part.images, TensorStorage)
    return free.part.images.data[free.indices], known.part.images.data[known.indices], known.labels


def network_and_optimizer(network: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """As the shipped config has them."""
    backbone, _ = build_backbone(network, (1, 28, 28))
    model = nn.Sequential(backbone, nn.Linear(backbone.num_features, 10))
    return model, torch.optim.SGD(model.parameters(), 0.03, momentum=0.9, nesterov=True, weight_decay=5e-4)


def update(model: nn.Module, sgd: torch.optim.Optimizer, views: tuple[Tensor, ...], y: Tensor, together: bool) -> None:
    """One step of FixMatch on labeled, weak and strong images."""
    x, mild, hard = views
    if together:
        logits = model(torch.cat([x, mild, hard]))
        on_weak = logits[len(x) : len(x) + len(mild)].detach()
        known, on_strong = logits[: len(x)], logits[len(x) + len(mild) :]
    else:
        with torch.no_grad():
            on_weak = model(mild)
        logits = model(torch.cat([x, hard]))
        known, on_strong = logits[: len(x)], logits[len(x) :]
    confidence, label = on_weak.softmax(1).max(1)
    unsupervised = (F.cross_entropy(on_strong, label, reduction="none") * (confidence >= THRESHOLD)).mean()
    loss = F.cross_entropy(known, y) + unsupervised
    sgd.zero_grad()
    loss.backward()
    sgd.step()


def plain(network: str, together: bool) -> float:
    """Seconds of a step of a bare loop over batched views."""
    free, known, labels = pictures()
    model, sgd = network_and_optimizer(network)
    times = []
    for step in range(3 * STEPS[network]):
        start = time.perf_counter()
        mine = torch.randint(len(known), (LABELED,))
        x = weak(to_float(known[mine], 1, 28), WEAK, step)
        u = to_float(free[torch.randint(len(free), (LABELED * RATIO,))], 1, 28)
        update(model, sgd, (x, weak(u, WEAK, step, 1), strong(u, WEAK, STRONG, step)), labels[mine], together)
        times.append(time.perf_counter() - start)
    return statistics.mean(times[STEPS[network] :])


class PerSample(Dataset[tuple[Tensor, Tensor]]):
    """Weak and strong views of one image, as torchvision's users write them."""

    def __init__(self, images: Tensor) -> None:
        """Keeps the images."""
        self.images = images
        crop = transforms.RandomCrop(28, padding=2)
        self.weak = transforms.Compose([crop, transforms.ToTensor()])
        self.strong = transforms.Compose(
            [crop, transforms.RandAugment(2), transforms.ToTensor(), transforms.RandomErasing(1.0, (0.25, 0.25))]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        picture = to_pil_image(self.images[i])
        return self.weak(picture), self.strong(picture)


def loader(images: Tensor) -> DataLoader[tuple[Tensor, Tensor]]:
    """Shuffled batches from one worker a core."""
    cores = len(os.sched_getaffinity(0))
    return DataLoader(PerSample(images), LABELED * RATIO, shuffle=True, num_workers=cores, drop_last=True)


def per_sample(network: str) -> float:
    """Seconds of a step of a plain loop over PIL views."""
    free, known, labels = pictures()
    model, sgd = network_and_optimizer(network)
    starts = []
    for step, (mild, hard) in enumerate(loader(free)):
        starts.append(time.perf_counter())
        mine = torch.randint(len(known), (LABELED,))
        x = weak(to_float(known[mine], 1, 28), WEAK, step)
        update(model, sgd, (x, mild, hard), labels[mine], True)
        if step == 3 * STEPS[network]:
            break
    return (starts[-1] - starts[STEPS[network]]) / (len(starts) - 1 - STEPS[network])


def lamda_ssl(network: str, workers: int, chained: bool) -> float:
    """Seconds of a step of LAMDA-SSL's own loop, after a quarter as many for warming up."""
    free, known, labels = pictures()
    model, _ = network_and_optimizer(network)
    first, counted = max(2, STEPS[network] // 4), STEPS[network]
    starts = peer.fixmatch(
        model, known, labels, free,
        batch=(LABELED, RATIO), steps=first + counted + 1, workers=workers, chained=chained,
    )  # fmt: skip
    return (starts[-1] - starts[first]) / counted


def views() -> dict[str, float]:
    """Images per second that get a weak and a strong view, with nothing else going on."""
    free, _, _ = pictures()
    count = LABELED * RATIO

    def batched() -> None:
        u = to_float(free[torch.randint(len(free), (count,))], 1, 28)
        weak(u, WEAK, 0, 1)
        strong(u, WEAK, STRONG, int(torch.randint(1 << 30, ())))

    for _ in range(10):
        batched()
    start = time.perf_counter()
    for _ in range(100):
        batched()
    ours = 100 * count / (time.perf_counter() - start)
    seen, began = 0, 0.0
    for i, (mild, _) in enumerate(loader(free)):
        if i == 10:
            began = time.perf_counter()
        seen += len(mild) if i > 10 else 0
        if i == 110:
            break
    return {"batched": ours, "per_sample": seen / (time.perf_counter() - began)}


VARIANTS = {
    "framework": framework,
    "same_step": lambda network: plain(network, together=False),
    "one_batch": lambda network: plain(network, together=True),
    "per_sample": per_sample,
}
PEERS = {
    "lamda_ssl_as_shipped": lambda network: lamda_ssl(network, workers=0, chained=False),
    "lamda_ssl_0_workers": lambda network: lamda_ssl(network, workers=0, chained=True),
    "lamda_ssl_2_workers": lambda network: lamda_ssl(network, workers=2, chained=True),
}
if peer.installed():
    VARIANTS.update(PEERS)


def alone(*words: str, steps: int | None) -> Any:
    """What one measurement says in a process of its own."""
    command = [sys.executable, __file__, *([] if steps is None else [f"--steps={steps}"]), "--only", *words]
    done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return json.loads(done.stdout.splitlines()[-1])


def compared(rows: list[dict[str, float]]) -> dict[str, Any]:
    """What the pairs say: medians by variant, and the ratios.

    Args:
        rows: Seconds of a step by variant, one row a pair.
    """
    best = [{"lamda_ssl": min(row[name] for name in PEERS)} if set(PEERS) <= set(row) else {} for row in rows]
    rows = [{**row, **own} for row, own in zip(rows, best, strict=True)]
    middle = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    return {
        "seconds_per_step": {name: round(seconds, 4) for name, seconds in middle.items()},
        "unlabeled_per_second": {name: round(LABELED * RATIO / seconds) for name, seconds in middle.items()},
        "framework_speed_over": {
            name: [round(row[name] / row["framework"], 2) for row in rows] for name in middle if name != "framework"
        },
    }


def main() -> None:
    """Times the pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--networks", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--steps", type=int, help="of an epoch, in place of the network's own number")
    parser.add_argument("--only", nargs="+", help="one measurement in this process: views, or a variant and a network")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.steps:
        STEPS.update(dict.fromkeys(STEPS, args.steps))
    if args.only:
        print(json.dumps(views() if args.only == ["views"] else VARIANTS[args.only[0]](args.only[1])))
        return
    if not peer.installed():
        print(f"LAMDA-SSL is not installed and is left out; to measure it, too: {peer.INSTALL}", file=sys.stderr)
    told: dict[str, Any] = {
        **about(),
        "what": __doc__.splitlines()[0],
        "labeled": LABELED,
        "unlabeled": LABELED * RATIO,
    }
    pairs = [alone("views", steps=args.steps) for _ in range(args.pairs)]
    told["views"] = {
        "images_per_second": {kind: round(statistics.median(p[kind] for p in pairs)) for kind in pairs[0]},
        "batched_over_per_sample": [round(p["batched"] / p["per_sample"], 2) for p in pairs],
    }
    for network in args.networks:
        rows = [{name: alone(name, network, steps=args.steps) for name in VARIANTS} for _ in range(args.pairs)]
        told[network] = compared(rows)
    text = json.dumps(told, indent=1)
    if args.out:
        args.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()

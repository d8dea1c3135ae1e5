"""Does the ranking predict? Weighted Kendall tau between each criterion of `rank` and the fine-tuned accuracy.

    python scripts/bench/ranking.py --out scripts/bench/results/ranking.json

The task is Fashion-MNIST with 10 labels of each class. Each start is scored on those labels without training, then
fine-tuned on them (all layers, the same steps, batches, views and optimizer as in `transfer.py`), and the last iterate
is tested. Starts: EfficientNet-Lite0 with ImageNet's weights, from scratch, and after digits; a small convolutional
network, an MLP, a wide ResNet and a ResNet-18 from scratch; the first two after autoencoding Fashion-MNIST or digits
without labels, and after learning to classify digits. The digits are the 1,797 of scikit-learn, 8x8 pixels. The seed
chooses the split, the initialization and the batches. What is in the output file is not run again.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from commands import fit, test
from efficientnet_lite0 import BACKBONE, convert
from label_budget import Results
from PIL import Image
from sklearn.datasets import load_digits
from transfer import SGD

from sft_lightning import ImageDataModule
from sft_lightning.transfer.candidates import Candidate
from sft_lightning.transfer.rank import CRITERIA, score_candidates
from sft_lightning.transfer.scores import weighted_kendall

LABELS, STEPS, EPOCHS = 10, 198, 6


def main() -> None:
    """Runs what is missing in the output file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, help="of torch; all cores unless given")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    results = Results(args.out.resolve(), {"labels_per_class": LABELS, "steps": STEPS, "batch": 32, "optimizer": SGD})
    os.chdir(tempfile.mkdtemp())
    starts: dict[str, Candidate] = {}
    for seed in args.seeds:
        missing = [name for name in STARTS if str(seed) not in results.rows.get(f"{name}: accuracy", {})]
        if missing:
            starts = starts or sources()
            for name in missing:
                measure(results, name, starts[name], seed)
    results.read()
    print(table(results.rows))


def measure(results: Results, name: str, start: Candidate, seed: int) -> None:
    """Scores and fine-tunes one start."""

    def data(**changed: Any) -> ImageDataModule:
        return ImageDataModule(
            "FashionMNIST", **{"labels_per_class": LABELS, "val_size": 5000, "seed": seed, **changed}
        )

    (ranked,) = score_candidates(data, [start], 5)
    for criterion, score in ranked.scores.items():
        results.add(f"{name}: {criterion}", seed, score)
    side = start.image_size or 28
    words = ["--data.init_args.source=FashionMNIST", f"--data.init_args.labels_per_class={LABELS}"]
    words += ["--data.init_args.num_labels=null", "--data.init_args.batch_size=32", "--data.init_args.val_size=5000"]
    words += [f"--data.init_args.image_size={side}", f"--data.init_args.weak_view.crop_padding={side // 14}"]
    words += [f"--data.init_args.steps_per_epoch={STEPS // EPOCHS}", f"--trainer.max_epochs={EPOCHS}"]
    words += ["--trainer.limit_val_batches=0", f"--model.init_args.optimizer={SGD}"]
    words += [f"--model.init_args.backbone={start.backbone}", f"--model.init_args.weights={start.weights}"]
    began = time.monotonic()
    run, _ = fit(["quickstart/fine_tune.yaml"], "ranked", seed, *words)
    results.add(f"{name}: accuracy", seed, test(run), time.monotonic() - began, ranked.seconds)


STARTS = {
    "EfficientNet-Lite0, ImageNet": (BACKBONE, 64),
    "EfficientNet-Lite0, ImageNet, then digits": (BACKBONE, 64),
    "EfficientNet-Lite0, scratch": (BACKBONE, 64),
    "ResNet-18, scratch": ("torchvision/resnet18", 64),
    "wide ResNet, scratch": ("wrn_28_2", 28),
    "conv, scratch": ("conv", 28),
    "conv, autoencoder on Fashion-MNIST": ("conv", 28),
    "conv, autoencoder on digits": ("conv", 28),
    "conv, classifier of digits": ("conv", 28),
    "MLP, scratch": ("mlp", 28),
    "MLP, autoencoder on Fashion-MNIST": ("mlp", 28),
    "MLP, classifier of digits": ("mlp", 28),
}


def sources() -> dict[str, Candidate]:
    """Trains the starts that learn something before."""
    imagenet = str(convert(Path("imagenet.safetensors").resolve()))
    found = {}
    for name, (backbone, side) in STARTS.items():
        _, _, source = name.partition(", ")
        if source == "ImageNet":
            weights = imagenet
        elif source == "scratch":
            weights = "none"
        elif source.startswith("autoencoder"):
            config, epochs = ("FashionMNIST", 2) if "Fashion" in source else (digits(), 20)
            words = [f"--data.init_args.source={config}", f"--model.init_args.network={backbone}", *SMALL]
            words += [f"--trainer.max_epochs={epochs}", "--data.init_args.batch_size=128"]
            weights = str(fit(["quickstart/autoencoder.yaml"], "source", 0, *words)[0])
        else:
            words = [f"--data.init_args.source={digits()}", "--data.init_args.num_labels=null", *SMALL]
            words += ["--data.init_args.steps_per_epoch=null", f"--trainer.max_epochs={3 if side > 28 else 20}"]
            words += [f"--data.init_args.image_size={side}", f"--model.init_args.optimizer={SGD}"]
            words += [f"--model.init_args.backbone={backbone}"]
            words += [f"--model.init_args.weights={imagenet if 'ImageNet' in source else 'none'}"]
            weights = str(fit(["quickstart/fine_tune.yaml"], "source", 0, *words)[0])
        path = weights if weights == "none" else str(Path(weights).resolve())
        found[name] = Candidate(backbone, path, side)
    return found


SMALL = ["--data.init_args.image_size=28", "--data.init_args.channels=1", "--trainer.limit_val_batches=0"]


def digits() -> Path:
    """scikit-learn's digits as class folders."""
    folder = Path("digits").resolve()
    if not folder.exists():
        given = load_digits()
        for i, (picture, label) in enumerate(zip(given.images, given.target, strict=True)):
            own = folder / "train" / str(label)
            own.mkdir(parents=True, exist_ok=True)
            Image.fromarray((picture * 255 / 16).astype("uint8")).save(own / f"{i}.png")
    return folder


def table(rows: dict[str, dict[str, list[float]]]) -> str:
    """Markdown: each start's accuracy and scores, means over the seeds; then tau of each criterion, for each seed."""

    def value(name: str, what: str, seed: str) -> float | None:
        found = rows.get(f"{name}: {what}", {}).get(seed)
        return None if found is None else found[0]

    seeds = sorted({seed for row in rows.values() for seed in row})
    lines = [f"| start | fine-tuned | {' | '.join(CRITERIA)} |", "|---" * (len(CRITERIA) + 2) + "|"]
    for name in STARTS:
        cells = []
        for what in ("accuracy", *CRITERIA):
            given = [v for seed in seeds if (v := value(name, what, seed)) is not None]
            cells.append(f"{statistics.mean(given):.3f}" if given else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    taus = []
    for what in CRITERIA:
        own = []
        for seed in seeds:
            pairs = [(s, a) for n in STARTS if (s := value(n, what, seed)) is not None
                     and (a := value(n, "accuracy", seed)) is not None]  # fmt: skip
            own.append(weighted_kendall(*zip(*pairs, strict=True)) if pairs else 0.0)
        taus.append(f"{statistics.mean(own):.2f} ({len(pairs)}: {' '.join(f'{tau:.2f}' for tau in own)})")
    lines.append(f"| weighted Kendall tau: mean (starts: seeds) | | {' | '.join(taus)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

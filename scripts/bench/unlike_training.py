"""Measure how well `predict` marks images that are unlike the training data: share of marked images and AUROC.

    python scripts/bench/unlike_training.py --out scripts/bench/results/unlike_training.json

Classifiers of Fashion-MNIST (`source: sample`) predict its test images, of which 1 % should be marked, and MNIST
digits, which should all be marked. The AUROC is that of the distance's percentile and, for comparison, of 1 minus the
largest probability. Calibration errors on the test images are those of the probabilities in the CSV, and of the network
before temperature scaling (`test`).
"""

import argparse
import csv
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from commands import QUIET, fit
from provenance import publish
from sklearn.metrics import roc_auc_score

from sft_lightning.cli.lightning_cli import run
from sft_lightning.data.vision.sources import open_source
from sft_lightning.report.metrics import compute_calibration_error

RUNS: dict[str, tuple[list[str], list[str]]] = {
    "fine_tune (mlp, 100 labels)": (["quickstart/fine_tune.yaml"], []),
    "fine_tune (conv, 1000 labels)": (
        ["quickstart/fine_tune.yaml"],
        [
            "--model.init_args.backbone=conv",
            "--data.init_args.num_labels=1000",
            "--data.init_args.steps_per_epoch=null",
        ],
    ),
    "decoupled (class means)": (
        ["quickstart/decoupled.yaml"],
        [
            "--model.init_args.coupling=joint",
            "--model.init_args.feature_epochs=0",
            "--model.init_args.head=nearest_class_mean",
        ],
    ),
    "freematch (conv, 100 labels)": (
        ["semi_supervised/shared.yaml", "semi_supervised/freematch.yaml"],
        ["--data.init_args.source=sample", "--data.init_args.num_labels=100", "--model.init_args.control=false"],
    ),
}


def predict(folder: Path, source: str) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Predict a source with a run and return percentiles (N,), probabilities (N, C) and the share of marked images."""
    run(["predict", f"--ckpt_path={folder}", f"--data.init_args.predict_source={source}", *QUIET])
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    percentile = torch.tensor([float(row["distance_percentile"]) for row in rows])
    p = torch.tensor([[float(v) for name, v in row.items() if name.startswith("p(")] for row in rows])
    return percentile, p, sum(row["unlike_training"] == "yes" for row in rows) / len(rows)


def measure(name: str, seed: int, extra: list[str]) -> dict[str, Any]:
    """Train and test one run, predict with it, and return the figures.

    Args:
        name: Name of the run in `RUNS`.
        seed: Seed of the split, the initialization and the batches.
        extra: Further options of `fit`.
    """
    configs, argv = RUNS[name]
    folder, _ = fit(configs, "bench", seed, *argv, *extra)
    metrics = run(["test", f"--ckpt_path={folder}", *QUIET]).trainer.callback_metrics
    fashion_percentiles, p, fashion_share = predict(folder, "sample")
    digit_percentiles, q, digit_share = predict(folder, "sample-digits")
    percentiles = torch.cat([fashion_percentiles, digit_percentiles])
    is_digit = [0] * len(fashion_percentiles) + [1] * len(digit_percentiles)
    labels = open_source("sample").load()["test"].labels
    return {
        "marked_fashion": round(fashion_share, 4),
        "marked_digits": round(digit_share, 4),
        "auroc": round(float(roc_auc_score(is_digit, percentiles)), 4),
        "auroc_of_confidence": round(float(roc_auc_score(is_digit, 1 - torch.cat([p, q]).max(1).values)), 4),
        "accuracy": round(float(metrics["test/accuracy"]), 4),
        "calibration_error": round(compute_calibration_error(p.clamp_min(1e-7).log(), labels), 4),
        "calibration_error_before": round(float(metrics["test/calibration_error"]), 4),
    }


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", nargs="+", default=list(RUNS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--words", nargs="*", default=[], help="further options of `fit`")
    args = parser.parse_args()
    args.out = None if args.out is None else args.out.resolve()
    os.chdir(tempfile.mkdtemp())
    runs = {name: [measure(name, seed, args.words) for seed in args.seeds] for name in args.runs}
    publish(args, {"runs": runs})


if __name__ == "__main__":
    main()

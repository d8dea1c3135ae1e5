"""How good are the features of a self-supervised start for few labels? Full Fashion-MNIST, through the command line.

    python scripts/bench/pretraining_starts.py --out scripts/bench/results/pretraining_starts.json
    python scripts/bench/pretraining_starts.py --run lightning_logs/pretraining/simclr/version_0 --labels 100

Pre-trains by a shipped config, or takes a run, and fits logistic regression on its frozen features for each number of
labels and each random balanced split; the same network before pre-training and the pixels stand beside it. `pools` are
read-outs of the same weights. Test accuracy on the 10,000 test images, of the last iterate. CPU seconds are those of
all threads of the process.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from commands import fit
from provenance import publish

from sft_lightning import ImageDataModule
from sft_lightning.networks.build import build_encoder, rebuild_encoder
from sft_lightning.networks.encoder import Encoder
from sft_lightning.study.baselines import fit_logistic_regression


def list_starts(run: Path, pools: list[str]) -> dict[str, Encoder | None]:
    """Return the feature extractors to compare by name; None for the pixels.

    Args:
        run: Folder of the pre-training.
        pools: Pooling of the network's last map, such as `flatten`.
    """
    trained = rebuild_encoder(run)
    starts: dict[str, Encoder | None] = {"pixels": None}
    for pool in pools:
        name = f"{trained.architecture}:{pool}"
        torch.manual_seed(0)
        starts[f"untrained, {pool}"] = build_encoder(name, trained.input_spec)[0]
        starts[f"pre-trained, {pool}"] = build_encoder(name, trained.input_spec, str(run))[0]
    return starts


def main() -> None:
    """Pre-train, and compare what starts from it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="pretraining/simclr_28.yaml", help="of the pre-training, below configs/")
    parser.add_argument("--run", type=Path, help="folder of a pre-training to use instead")
    parser.add_argument("--seed", type=int, default=0, help="of the pre-training")
    parser.add_argument("--labels", type=int, nargs="+", default=[40, 100, 1000])
    parser.add_argument("--splits", type=int, nargs="+", default=[0, 1, 2], help="seeds of the labeled examples")
    parser.add_argument("--pools", nargs="+", default=["flatten", "average"])
    parser.add_argument("--extra", nargs="+", default=[], help="further words of `fit`")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    out = None if args.out is None else args.out.resolve()
    result: dict[str, object] = {}
    if args.run is None:
        os.chdir(tempfile.mkdtemp())
        start = time.process_time()
        run, cli = fit([args.config], "pretraining", args.seed, *args.extra)
        metrics = {name: round(float(value), 4) for name, value in cli.trainer.callback_metrics.items()}
        result = {"cpu_seconds": round(time.process_time() - start), "steps": cli.trainer.global_step, "last": metrics}
    else:
        run = args.run.resolve()
        os.chdir(tempfile.mkdtemp())
    starts = list_starts(run, args.pools)
    accuracy: dict[str, dict[str, list[float]]] = {name: {} for name in starts}
    for labels in args.labels:
        for seed in args.splits:
            data = ImageDataModule("FashionMNIST", num_labels=labels, seed=seed, val_size=0, eval_batch_size=1000)
            data.setup("fit")
            for name, backbone in starts.items():
                value = fit_logistic_regression(data, backbone=backbone)
                accuracy[name].setdefault(str(labels), []).append(round(value, 4))
    mean = {
        name: {labels: round(statistics.mean(values), 4) for labels, values in own.items()}
        for name, own in accuracy.items()
    }
    args.out = out
    publish(args, {**result, "test_accuracy": mean, "by_split": accuracy})


if __name__ == "__main__":
    main()

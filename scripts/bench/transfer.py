"""Compare pretrained networks and depths of fine-tuning on the full Fashion-MNIST with 5, 10 and 50 labels per class.

    python scripts/bench/transfer.py --out scripts/bench/results/transfer.json

The networks are EfficientNet-Lite0 with ImageNet weights (`efficientnet_lite0.py`) at 64x64, the same network from
scratch, and the small convolutional network at 28x28 from scratch and from an autoencoder on all training images.
`head` trains only the head. `LP-FT` trains only the head for the first third of the steps, then all layers. `all`
trains all layers from the first step. `L2-SP` trains all layers and pulls the backbone toward its initial weights.
Every row has the same number of steps, batches, views and optimizer. The seed determines the split, the initialization
and the batches. Test accuracy is that of the last iterate. Runs that are in the output file are skipped.
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from commands import fit, test
from efficientnet_lite0 import BACKBONE, convert
from label_budget import Results, train_autoencoder

DEPTHS = {
    "head": ["--model.init_args.tune=head"],
    "LP-FT": ["--model.init_args.head_only_epochs=2"],
    "all": [],
    "L2-SP": ["--model.init_args.regularizer=L2SP"],
}
STARTS = {
    "ImageNet": (BACKBONE, 64, list(DEPTHS)),
    "autoencoder": ("conv", 28, list(DEPTHS)),
    "scratch": (BACKBONE, 64, ["all"]),
    "scratch, small": ("conv", 28, ["all"]),
}
SGD = "{class_path: torch.optim.SGD, init_args: {lr: 0.03, momentum: 0.9, nesterov: true, weight_decay: 0.0005}}"


def build_argv(side: int, steps: int, epochs: int) -> list[str]:
    """Return the options of `fit` that all rows share.

    Args:
        side: Side of the images in pixels.
        steps: Number of steps of the training.
        epochs: Number of epochs.
    """
    return [
        "--data.init_args.source=FashionMNIST", "--data.init_args.num_labels=null", "--data.init_args.val_size=5000",
        "--data.init_args.batch_size=32", f"--data.init_args.image_size={side}",
        f"--data.init_args.weak_view.crop_padding={side // 14}", f"--data.init_args.steps_per_epoch={steps // epochs}",
        f"--trainer.max_epochs={epochs}", "--trainer.limit_val_batches=0", f"--model.init_args.optimizer={SGD}",
    ]  # fmt: skip


def main() -> None:
    """Run what is missing in the output file and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--labels", type=int, nargs="+", default=[10, 5, 50], help="labels per class")
    parser.add_argument("--starts", nargs="+", default=list(STARTS), choices=list(STARTS))
    parser.add_argument("--steps", type=int, default=198, help="number of steps, in 6 epochs")
    parser.add_argument("--autoencoder_epochs", type=int, default=4)
    parser.add_argument("--threads", type=int, help="number of torch's threads; all cores by default")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    settings = {"steps": args.steps, "batch": 32, "autoencoder_epochs": args.autoencoder_epochs, "optimizer": SGD}
    results = Results(args.out.resolve(), settings)
    folder = args.out.resolve().parent
    os.chdir(tempfile.mkdtemp())
    weights = {
        "ImageNet": str(convert(Path("imagenet.safetensors").resolve())),
        "autoencoder": str(train_autoencoder(folder, args.autoencoder_epochs)),
    }
    for seed, labels, start in itertools.product(args.seeds, args.labels, args.starts):
        backbone, side, depths = STARTS[start]
        argv = [*build_argv(side, args.steps, 6), f"--data.init_args.labels_per_class={labels}"]
        argv += [f"--model.init_args.backbone={backbone}", f"--model.init_args.weights={weights.get(start, 'none')}"]
        for depth in depths:
            with results.claim(row := f"{labels} {start}: {depth}", seed) as is_missing:
                if is_missing:
                    started = time.monotonic()
                    run, _ = fit(["quickstart/fine_tune.yaml"], "transfer", seed, *argv, *DEPTHS[depth])
                    seconds = time.monotonic() - started
                    results.add(row, seed, test(run), seconds)
    results.read()
    print(format_table(results.rows))


def format_table(rows: dict[str, dict[str, list[float]]]) -> str:
    """Format mean and deviation of the test accuracy as Markdown, one row per pretrained network and depth."""
    budgets = sorted({int(row.split(" ", 1)[0]) for row in rows})
    lines = [f"| start | tuned | {' | '.join(f'{labels} a class' for labels in budgets)} |"]
    lines.append("|---" * (len(budgets) + 2) + "|")
    for start, (_, _, depths) in STARTS.items():
        for depth in depths:
            cells = []
            for labels in budgets:
                scores = [figures[0] for figures in rows.get(f"{labels} {start}: {depth}", {}).values()]
                deviation = f" ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
                cells.append(f"{statistics.mean(scores):.3f}{deviation} ({len(scores)})" if scores else "")
            lines.append(f"| {start} | {depth} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

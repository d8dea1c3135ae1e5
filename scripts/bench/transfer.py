"""Where to start and how far to fine-tune: full Fashion-MNIST with 5, 10 and 50 labels of each class.

    python scripts/bench/transfer.py --out scripts/bench/results/transfer.json

EfficientNet-Lite0 with ImageNet's weights (`efficientnet_lite0.py`) at 64x64, the same network from scratch, and the
small convolutional network at 28x28 from scratch and from an autoencoder that saw all training images without labels.
`head`: the backbone stays as it is. `LP-FT`: the head alone for the first third of the steps, then all. `all`: all from
the first step. `L2-SP`: all, and the backbone is drawn to its start. The same number of steps, batches, views and
optimizer for every row; the seed chooses the split, the initialization and the batches; test accuracy of the last
iterate. What is in the output file is not run again.
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
from label_budget import Results, autoencoder

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


def main() -> None:
    """Runs what is missing in the output file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--labels", type=int, nargs="+", default=[10, 5, 50], help="of each class")
    parser.add_argument("--starts", nargs="+", default=list(STARTS), choices=list(STARTS))
    parser.add_argument("--steps", type=int, default=198, help="in 6 epochs")
    parser.add_argument("--autoencoder_epochs", type=int, default=4)
    parser.add_argument("--threads", type=int, help="of torch; all cores unless given")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    how = {"steps": args.steps, "batch": 32, "autoencoder_epochs": args.autoencoder_epochs, "optimizer": SGD}
    results = Results(args.out.resolve(), how)
    folder = args.out.resolve().parent
    os.chdir(tempfile.mkdtemp())
    weights = {
        "ImageNet": str(convert(Path("imagenet.safetensors").resolve())),
        "autoencoder": str(autoencoder(folder, args.autoencoder_epochs)),
    }
    for seed, labels, start in itertools.product(args.seeds, args.labels, args.starts):
        backbone, side, depths = STARTS[start]
        words = [f"--data.init_args.image_size={side}", f"--data.init_args.labels_per_class={labels}"]
        words += [
            "--data.init_args.num_labels=null",
            "--data.init_args.batch_size=32",
            "--data.init_args.val_size=5000",
        ]
        words += [f"--data.init_args.weak_view.crop_padding={side // 14}", "--trainer.limit_val_batches=0"]
        words += [f"--data.init_args.steps_per_epoch={args.steps // 6}", "--trainer.max_epochs=6"]
        words += ["--data.init_args.source=FashionMNIST", f"--model.init_args.optimizer={SGD}"]
        words += [f"--model.init_args.backbone={backbone}", f"--model.init_args.weights={weights.get(start, 'none')}"]
        for depth in depths:
            with results.missing(row := f"{labels} {start}: {depth}", seed) as missing:
                if missing:
                    began = time.monotonic()
                    run, _ = fit(["quickstart/fine_tune.yaml"], "transfer", seed, *words, *DEPTHS[depth])
                    seconds = time.monotonic() - began
                    results.add(row, seed, test(run), seconds)
    results.read()
    print(table(results.rows))


def table(rows: dict[str, dict[str, list[float]]]) -> str:
    """Mean and deviation of the test accuracy as Markdown, a line for each start and depth."""
    budgets = sorted({int(row.split(" ", 1)[0]) for row in rows})
    lines = [f"| start | tuned | {' | '.join(f'{labels} a class' for labels in budgets)} |"]
    lines.append("|---" * (len(budgets) + 2) + "|")
    for start, (_, _, depths) in STARTS.items():
        for depth in depths:
            cells = []
            for labels in budgets:
                found = [figures[0] for figures in rows.get(f"{labels} {start}: {depth}", {}).values()]
                deviation = f" ± {statistics.stdev(found):.3f}" if len(found) > 1 else ""
                cells.append(f"{statistics.mean(found):.3f}{deviation} ({len(found)})" if found else "")
            lines.append(f"| {start} | {depth} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

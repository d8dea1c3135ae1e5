"""What do programs in 8-bit integers cost and gain?

    python scripts/bench/efficientnet_lite0.py eff.safetensors
    python scripts/bench/int8.py --weights eff.safetensors --out scripts/bench/results/int8.json

Two classifiers of the sample, from 1,000 labels: `resnet8`, trained for 200 steps at 28 pixels, and logistic regression
on EfficientNet-Lite0 at 96 pixels with the weights of ImageNet. `export --format onnx --int8 true` writes both programs
and measures them: bytes, accuracy on the 2,000 test images, and milliseconds of an image in batches of 32 on one
thread. Three seeds of the labels, and for `resnet8` of the weights.

Hypotheses, written down before the first run: less than 0.3 of the bytes, at most a point of accuracy lost, at least
1.5 times as fast, for both.
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from commands import QUIET
from provenance import publish

from sft_lightning.cli.lightning_cli import run
from sft_lightning.export.export import export


def main() -> None:
    """Measure both networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="of EfficientNet-Lite0")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    out, weights = args.out and args.out.resolve(), args.weights.resolve()
    args.weights, args.out = weights.name, out
    os.chdir(tempfile.mkdtemp())
    trained = ["--model=FineTuneClassifier", "--model.backbone=resnet8", "--model.optimizer=torch.optim.AdamW"]
    trained += ["--model.optimizer.lr=0.002", "--model.lr_scheduler=WarmupCosine", "--trainer.max_epochs=1"]
    trained += ["--data.batch_size=64", f"--data.steps_per_epoch={args.steps}"]
    frozen = ["--model=FrozenFeatureClassifier", "--model.backbone=timm/tf_efficientnet_lite0"]
    frozen += [f"--model.weights={weights}", "--data.image_size=96", "--data.channels=3"]
    networks = {"resnet8, 28 pixels": trained, "EfficientNet-Lite0, 96 pixels": frozen}
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in args.seeds:
        for name, words in networks.items():
            data = ["--data=ImageDataModule", "--data.source=sample", "--data.num_labels=1000", "--data.val_size=0"]
            drawn = [f"--data.seed={seed}", f"--seed_everything={seed}", "--run_name=run", *QUIET]
            made = run(["fit", words[0], *data, *words[1:], *drawn])
            file = export(str(made.trainer.log_dir), format="onnx", out="model.onnx", int8=True)
            found.setdefault(name, []).append(json.loads(file.with_name("model.onnx.json").read_text())["int8"])
    keys = ("bytes", "values", "milliseconds")
    mean = {
        name: {key: [round(statistics.mean(one[key][k] for one in each), 4) for k in (0, 1)] for key in keys}
        for name, each in found.items()
    }
    publish(args, {"mean_before_and_after": mean, "runs": found})


if __name__ == "__main__":
    main()

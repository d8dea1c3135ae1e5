"""How much does a small network learn from a large frozen one through unlabeled images?

    python scripts/bench/efficientnet_lite0.py eff.safetensors
    python scripts/bench/distillation.py --weights eff.safetensors --out scripts/bench/results/distillation.json

The teacher spreads 100 labels of the sample over ImageNet features of EfficientNet-Lite0 (3.4 million parameters) and
is fitted in seconds. The student is `resnet8` (0.3 million) from random weights, 200 steps of 32 labeled and 96
unlabeled images of 48 pixels: by labels alone, and by `DistillModule` with its defaults, with `dist`, or with features
beside the answers. Test accuracy of the last iterate for each of three draws of the labels. No setting was chosen by
these data.

Hypotheses, written down before the first run: the student is at least 5 points above labels alone, and at most 3 below
its teacher; `dist` and features each change it by less than 2. Budget: 40 minutes of one core.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from commands import QUIET, test
from provenance import publish

from sft_lightning.cli.lightning_cli import run

METHODS = {
    "labels alone": ["--model=FineTuneClassifier"],
    "answers": ["--model=DistillModule"],
    "answers, dist": ["--model=DistillModule", "--model.answer_loss=dist"],
    "answers and features": ["--model=DistillModule", "--model.feature_weight=1"],
}


def main() -> None:
    """Run all draws, and keep what is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="of EfficientNet-Lite0")
    parser.add_argument("--labels", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    out, weights = args.out and args.out.resolve(), args.weights.resolve()
    os.chdir(tempfile.mkdtemp())
    args.weights, args.out = weights.name, out
    data = ["--data=ImageDataModule", "--data.source=sample", f"--data.num_labels={args.labels}", "--data.val_size=0"]
    data += [f"--data.image_size={args.size}", "--data.channels=3", "--data.batch_size=32", "--data.num_workers=0"]
    spreading = ["--model=FrozenFeatureClassifier", "--model.classifier=LabelSpreading", "--model.whiten=128"]
    spreading += ["--model.backbone=timm/tf_efficientnet_lite0", f"--model.weights={weights}"]
    student = ["--model.backbone=resnet8", "--model.optimizer=torch.optim.AdamW", "--model.optimizer.lr=0.002"]
    student += ["--model.lr_scheduler=WarmupCosine", f"--data.steps_per_epoch={args.steps}", "--trainer.max_epochs=1"]
    accuracy: dict[str, list[float]] = {}
    seconds: dict[str, float] = {}
    for seed in args.seeds:
        drawn = [*data, f"--data.seed={seed}", f"--seed_everything={seed}", *QUIET]
        teacher = Path(str(run(["fit", *drawn, *spreading, "--run_name=teacher"]).trainer.log_dir))
        accuracy.setdefault("teacher", []).append(round(test(teacher), 4))
        for name, words in METHODS.items():
            begin = time.process_time()
            if "--model=DistillModule" in words:
                words = [*words, f"--model.teacher={teacher}", "--data.unlabeled_ratio=3"]
            made = run(["fit", *drawn, *words, *student, "--run_name=student"])
            seconds[name] = round(seconds.get(name, 0.0) + time.process_time() - begin, 1)
            accuracy.setdefault(name, []).append(round(test(Path(str(made.trainer.log_dir))), 4))
        mean = {name: round(statistics.mean(values), 4) for name, values in accuracy.items()}
        publish(args, {"mean": mean, "accuracy": accuracy, "cpu_seconds": seconds})


if __name__ == "__main__":
    main()

"""Do images without masks help segmentation, with 5 % and 20 % of the masks?

    python scripts/bench/segmentation.py --out scripts/bench/results/segmentation.json
    python scripts/bench/segmentation.py --backbone timm/tf_efficientnet_lite0 --weights FILE --rate 0.001 --steps 200 \
        --shares 0.05 --methods labels FixMatch UniMatch UniMatchV2 \
        --out scripts/bench/results/segmentation_pretrained.json
    python scripts/bench/segmentation.py --shares 0.05 \
        --methods labels "labels after MAE" "labels after SimCLR" "labels after DenseCL" \
        --out scripts/bench/results/segmentation_starts.json

On composed scenes (`shapes_scenes.py`), which are not photographs: textured shapes of five classes over noise, 64
pixels wide. The small residual network `resnet8` starts from scratch. `labels` learns from the drawn masks alone, and
from every training mask for comparison; `FixMatch` and `MeanTeacher` also learn from the images without masks, with
CutMix. All take as many steps with as many masks in a batch. Mean intersection over union of the test split, of the
last iterate, for each draw of the masks. Nothing was chosen by these scenes: settings are those of
`configs/segmentation`, but for the threshold of FixMatch, which a network from scratch rarely reaches in short runs
(0.8).

The second command starts from published weights of a classifier. Hypothesis, written down before its first run: with
22 masks, UniMatch V2 is at least 2 points above the labels alone, and FixMatch and UniMatch are not below them.
Budget: an hour of one core.

The third one first learns from the training images without their masks, for 300 steps of 64. Hypothesis, written down
before its first run: with 22 masks, at least one of them is 2 points above a random start. Budget: half an hour. The
queues of DenseCL hold 256 keys, fewer than there are images, and its average keeps .99, as suits short trainings.

The interval is that of the mean difference to `labels` on the same masks (Student's t, 95 %).
"""

import argparse
import csv
import math
import os
import statistics
import tempfile
import time
from pathlib import Path

from provenance import publish
from shapes_scenes import write

from sft_lightning.__main__ import main as command

_OBJECTIVES = {"DenseCL": ["--model.objective.queue=256", "--model.objective.decay=0.99"]}  # words beyond the defaults
_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # of Student's t, two-sided 95 %, by the number of draws


def fit(name: str, words: list[str]) -> Path:
    """Train, and return the folder of the run."""
    if command(["fit", f"--run_name={name}", *words, "--trainer.enable_progress_bar=false"]) not in (0, None):
        raise SystemExit(f"{name} failed")
    return max(Path("lightning_logs", name).iterdir(), key=lambda path: int(path.name.rpartition("_")[2]))


def pretrain(objective: str, source: Path, size: int, seed: int) -> Path:
    """Learn from the training images without their masks, and return the folder of the run."""
    words = ["--model=SelfSupervisedModule", f"--model.objective={objective}", "--model.backbone=resnet8"]
    words += ["--model.optimizer=AdamW", "--model.optimizer.lr=0.002", "--model.lr_scheduler=WarmupCosine"]
    words += ["--data=ImageDataModule", f"--data.source={source / 'train' / 'images'}", f"--data.image_size={size}"]
    words += ["--data.val_size=0", "--data.test_size=0", "--data.batch_size=64", "--data.num_workers=0"]
    words += ["--data.steps_per_epoch=300", "--trainer.max_epochs=1", f"--seed_everything={seed}"]
    return fit("start", [*words, "--trainer.accelerator=cpu", *_OBJECTIVES.get(objective, [])])


def measure(run: Path, metric: str) -> float:
    """Return a metric of a run on the test split."""
    command(["test", "--ckpt_path", str(run / "checkpoints" / "last.ckpt")])
    with (run / "metrics.csv").open(newline="") as file:
        return next(float(row["value"]) for row in csv.DictReader(file) if row["metric"] == f"test/{metric}")


def list_methods() -> dict[str, list[str]]:
    """Return the words of `fit` of each method."""
    semi = ["--model=SemiSupervisedModule", "--model.ema_decay=0.99", "--data.strong_view.cutmix=0.5"]
    return {
        "labels": ["--model=FineTuneClassifier"],
        "labels after MAE": ["--model=FineTuneClassifier"],
        "labels after SimCLR": ["--model=FineTuneClassifier"],
        "labels after DenseCL": ["--model=FineTuneClassifier"],
        "FixMatch": [*semi, "--model.strategy=FixMatch", "--model.strategy.threshold=0.8"],
        "MeanTeacher": [*semi, "--model.strategy=MeanTeacher", "--model.lambda_u=10"],
        "UniMatch": [*semi, "--model.strategy=UniMatch", "--model.strategy.threshold=0.8"],
        "UniMatchV2": [*semi, "--model.strategy=UniMatchV2", "--model.strategy.threshold=0.8"],
    }


def compare(values: list[float], base: list[float]) -> dict[str, float]:
    """Return the mean difference of two methods on the same draws, and half of its 95 % interval."""
    each = [a - b for a, b in zip(values, base, strict=True)]
    half = _T[len(each)] * statistics.stdev(each) / math.sqrt(len(each)) if len(each) in _T else math.nan
    return {"difference": round(statistics.mean(each), 4), "half_interval": round(half, 4)}


def main() -> None:
    """Compare on one set of scenes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--test", type=int, default=150)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.2], help="of the training masks")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--ratio", type=int, default=2, help="images without masks for each with one")
    parser.add_argument("--backbone", default="resnet8")
    parser.add_argument("--weights", default="none")
    parser.add_argument("--rate", type=float, default=0.002)
    parser.add_argument("--methods", nargs="+", default=["labels", "FixMatch", "MeanTeacher"])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    out, weights = args.out and args.out.resolve(), args.weights
    if weights not in ("none", "default"):
        weights, args.weights = str(Path(weights).resolve()), Path(weights).name
    os.chdir(tempfile.mkdtemp())
    source = write(Path("scenes"), args.count, args.size, args.test)
    data = ["--data=SegmentationDataModule", f"--data.source={source}", f"--data.image_size={args.size}"]
    data += ["--data.val_size=0", "--data.weak_view.flip=true", "--data.weak_view.crop_padding=8"]
    data += [f"--data.batch_size={args.batch}", f"--data.unlabeled_ratio={args.ratio}", "--data.num_workers=0"]
    data += [f"--data.steps_per_epoch={args.steps}", "--data.eval_batch_size=64", "--trainer.max_epochs=1"]
    data += [f"--model.backbone={args.backbone}", f"--model.weights={weights}", "--model.optimizer=AdamW"]
    data += [f"--model.optimizer.lr={args.rate}"]
    data += ["--model.lr_scheduler=WarmupCosine", "--trainer.accelerator=cpu"]
    training = args.count - args.test
    ious: dict[str, dict[str, list[float]]] = {}
    seconds: dict[str, float] = {}
    args.out = out
    for seed in args.seeds:
        for share in args.shares:
            masks = round(share * training)
            for name in args.methods:
                words = list_methods()[name]
                begin = time.process_time()
                drawn = [f"--data.num_labels={masks}", f"--data.seed={seed}", f"--seed_everything={seed}"]
                if " after " in name:
                    start = pretrain(name.partition(" after ")[2], source, args.size, seed)
                    drawn.append(f"--model.weights={start}")
                iou = measure(fit("run", [words[0], *data, *words[1:], *drawn]), "mean_iou")
                ious.setdefault(f"{masks} masks", {}).setdefault(name, []).append(round(iou, 4))
                seconds[name] = round(seconds.get(name, 0) + time.process_time() - begin, 1)
        everything = ["--model=FineTuneClassifier", f"--data.seed={seed}", f"--seed_everything={seed}"]
        ious.setdefault(f"{training} masks", {}).setdefault("labels", []).append(
            round(measure(fit("run", [everything[0], *data, *everything[1:]]), "mean_iou"), 4)
        )
        publish(args, {"mean_iou": ious, "against_labels": summarize(ious), "cpu_seconds": seconds})


def summarize(ious: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return the differences to `labels` of every other method, by the number of annotations."""
    return {
        masks: {name: compare(values, own["labels"]) for name, values in own.items() if name != "labels"}
        for masks, own in ious.items()
        if len(own) > 1
    }


if __name__ == "__main__":
    main()

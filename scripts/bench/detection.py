"""Do images without boxes help a detector, with 5 % and 20 % of the annotations?

    python scripts/bench/detection.py --out scripts/bench/results/detection.json
    python scripts/bench/detection.py --backbone timm/tf_efficientnet_lite0 --weights FILE --rate 0.001 --size 96 \
        --shares 0.2 --steps 300 --out scripts/bench/results/detection_pretrained.json

On composed scenes (`detection_scenes.py`), which are not photographs: textured shapes of five classes over noise, 64
pixels wide. FCOS on the small residual network `resnet8` starts from scratch. `labels` learns from the drawn
annotations alone; `Unbiased Teacher` also learns from the scenes without one, after half of the steps on annotations
alone. Both take as many steps with as many annotated scenes in a batch. Mean average precision (COCO's) of the test
split, of the last iterate, for each draw of the annotations. The score threshold is .5, as for FCOS in
`configs/detection`; nothing was chosen by these scenes.

The interval is that of the mean difference to `labels` on the same annotations (Student's t, 95 %). Hypothesis,
written down before the first run: no evidence with 5 %, where a detector from scratch finds little, and a gain with
20 %. Budget: an hour of one core.

The second command starts from published weights of a classifier, with scenes of 96 pixels. Hypothesis, written down
before its first run: labels alone find far more than from scratch (over .1), and Unbiased Teacher is at least a
point above them. Budget: half an hour of one core. (Planned with 5 % and 400 steps, too, for which the time was short.)
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

from detection_scenes import write
from provenance import publish
from segmentation import fit, measure, summarize


def main() -> None:
    """Compare on one set of scenes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=400, help="scenes for training")
    parser.add_argument("--test", type=int, default=150)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.2], help="of the annotations")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--detector", default="fcos")
    parser.add_argument("--backbone", default="resnet8")
    parser.add_argument("--weights", default="none")
    parser.add_argument("--rate", type=float, default=0.002)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    out, weights = args.out and args.out.resolve(), args.weights
    if weights not in ("none", "default"):
        weights, args.weights = str(Path(weights).resolve()), Path(weights).name
    os.chdir(tempfile.mkdtemp())
    args.out = out
    source = write(Path("scenes"), {"train": args.count, "test": args.test}, args.size)
    words = ["--data=DetectionDataModule", f"--data.source={source}", f"--data.image_size={args.size}"]
    words += ["--data.val_size=0", "--data.weak_view.flip=true", f"--data.batch_size={args.batch}"]
    words += ["--data.unlabeled_ratio=1", "--data.num_workers=0", f"--data.steps_per_epoch={args.steps}"]
    words += ["--data.eval_batch_size=64", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    words += [f"--model.backbone={args.backbone}", f"--model.weights={weights}", f"--model.detector={args.detector}"]
    words += ["--model.optimizer=AdamW", f"--model.optimizer.lr={args.rate}", "--model.lr_scheduler=WarmupCosine"]
    semi = [f"--model.burn_in_steps={args.steps // 2}", "--model.ema_decay=0.99", "--model.threshold=0.5"]
    methods = {"labels": ("FineTuneDetector", []), "Unbiased Teacher": ("SemiSupervisedDetector", semi)}
    found: dict[str, dict[str, list[float]]] = {}
    seconds: dict[str, float] = {}
    for seed in args.seeds:
        for share in args.shares:
            count = round(share * args.count)
            for name, (model, more) in methods.items():
                begin = time.process_time()
                drawn = [f"--data.num_labels={count}", f"--data.seed={seed}", f"--seed_everything={seed}"]
                value = measure(fit("run", [f"--model={model}", *words, *more, *drawn]), "map")
                found.setdefault(f"{count} annotations", {}).setdefault(name, []).append(round(value, 4))
                seconds[name] = round(seconds.get(name, 0) + time.process_time() - begin, 1)
                print(count, name, value, flush=True)
        publish(args, {"map": found, "against_labels": summarize(found), "cpu_seconds": seconds})


if __name__ == "__main__":
    main()

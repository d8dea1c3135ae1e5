"""Should batch normalization keep the statistics of its weights while a few labels are learned?

    python scripts/bench/norm_stats.py --sources FOLDER ... --backbone timm/tf_efficientnet_lite0 --weights FILE \
        --image_size 64 --out scripts/bench/results/norm_stats.json
    python scripts/bench/norm_stats.py --sources FOLDER --backbone resnet8 --weights RUN/encoder.safetensors \
        --image_size 28 --out scripts/bench/results/norm_stats_own_SOURCE.json

Each FOLDER has one folder of images for each class; `folder_recipes.py` divides it, labels 5 of each class at random,
and runs LP-FT (100 steps of 16 images) with `norm_stats` `batch` and `weights`, and logistic regression on the frozen
features beside them. The second command starts from SimCLR on the images of the same folder (150 steps of 128,
configs/pretraining/simclr_28.yaml), and runs FreeMatch after LP-FT, too (`--recipes`).

Hypothesis, written down after clip art, where `batch` lost 9 points to logistic regression and `weights` did not, and
before any other source: from published weights, `weights` is 5 points or more above `batch` on each. For own starts, no
hypothesis: the default is what is better on both sources.
Budget: a minute of one core for each training.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from provenance import publish

SETTINGS = ("batch", "weights")


def main() -> None:
    """Run both settings on each source, and go on with what is in the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=Path, nargs="+", required=True)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--least", type=int, default=20, help="images of a class that is used")
    parser.add_argument("--test", type=int, default=600, help="test images, at most")
    parser.add_argument("--recipes", nargs="+", default=["logistic regression", "LP-FT"])
    parser.add_argument("--folder", type=Path, help="of runs, to go on with")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    folder = (args.folder or Path(tempfile.mkdtemp())).resolve()
    accuracy: dict[str, dict[str, dict[str, float]]] = {}
    mean: dict[str, dict[str, float]] = {}
    for source in args.sources:
        for setting in SETTINGS:
            words = ["--source", str(source), "--backbone", args.backbone, "--weights", str(args.weights)]
            words += ["--image_size", str(args.image_size), "--least", str(args.least), "--test", str(args.test)]
            words += ["--starts", "published", "--norm_stats", setting, "--recipes", *args.recipes]
            one = folder / f"{source.name}-{setting}"
            script = Path(__file__).with_name("folder_recipes.py")
            subprocess.run([sys.executable, str(script), *words, "--folder", str(one)], check=True)
            found = json.loads((one / "results.json").read_text())
            for recipe in args.recipes:
                name = recipe if recipe == "logistic regression" else f"{recipe}, {setting}"
                accuracy.setdefault(source.name, {})[name] = found[recipe]
                mean.setdefault(source.name, {})[name] = round(statistics.mean(found[recipe].values()), 3)
    args.sources, args.weights, args.folder = [source.name for source in args.sources], args.weights.name, None
    publish(args, {"mean": mean, "accuracy": accuracy})


if __name__ == "__main__":
    main()

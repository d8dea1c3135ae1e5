"""Which way from a published network to a classifier of a folder with few labels? Through the command line.

    python scripts/bench/folder_recipes.py --source FOLDER --backbone timm/tf_efficientnet_lite0 --weights FILE \
        --out scripts/bench/results/folder_recipes.json

FOLDER has one folder of images for each class. A third of the images of each class, by the hash of their names, are
for the test, at most 1,000 in all; of the others, as many of each class as `--labels_per_class` are labeled, and the
rest is the pool. Recipes, from the weights and again after continued self-supervision (SimCLR on the pool and the
labeled images without labels, configs/pretraining/simclr_continued.yaml, once for all splits):
logistic regression and label spreading on frozen features, LP-FT (configs/reference/lp_ft_folder.yaml), label
propagation with that configuration's settings, and FreeMatch for 40 steps from the network and head of the LP-FT run of
the same labels. The others have the steps of `--steps`, and the last iterate counts. `--recipes` names those to run.

Hypotheses, written down before the first run: continued self-supervision helps where images are unlike ImageNet's;
LP-FT is above logistic regression on frozen features; label propagation is above LP-FT; FreeMatch after LP-FT, with the
warm-up and ramp of short runs, is not below LP-FT by more than a point.
Budget: 30 minutes of one core for a folder.
"""

import argparse
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path

from commands import CONFIGS, QUIET, fit, test
from provenance import publish

from sft_lightning.cli.lightning_cli import run as command

_SUFFIXES = {".png", ".jpg", ".jpeg"}


def divide(source: Path, out: Path, least: int, most_test: int) -> dict[str, int]:
    """Link the images of the larger classes into `train` and `test`, and return the number of images by class.

    Of images with the same content, the first is taken.

    Args:
        source: Folder of class folders, which may have folders of their own.
        out: Folder to fill.
        least: Smallest number of images of a class that is used.
        most_test: Largest number of test images.
    """
    files: dict[str, list[Path]] = {}
    seen: set[bytes] = set()
    every = (path for folder in source.iterdir() for path in folder.rglob("*"))
    for path in sorted(path for path in every if path.suffix.lower() in _SUFFIXES and path.is_file()):
        content = hashlib.sha256(path.read_bytes()).digest()
        if content not in seen:
            files.setdefault(path.relative_to(source).parts[0], []).append(path)
        seen.add(content)
    files = {name: paths for name, paths in files.items() if len(paths) >= least}
    total = sum(map(len, files.values()))
    share = min(1 / 3, most_test / total)
    for name, paths in files.items():
        by_hash = sorted(paths, key=lambda p: hashlib.sha256(str(p.relative_to(source)).encode()).digest())
        for i, path in enumerate(by_hash):
            link = out / ("test" if i < share * len(paths) else "train") / name / f"{i:05}{path.suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    return {name: len(paths) for name, paths in files.items()}


def main() -> None:
    """Run what is missing in the output file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--image_size", type=int, default=96)
    parser.add_argument("--labels_per_class", type=int, default=5)
    parser.add_argument("--least", type=int, default=40, help="images of a class that is used")
    parser.add_argument("--test", type=int, default=1000, help="test images, at most")
    parser.add_argument("--steps", type=int, default=100, help="of LP-FT and label propagation")
    parser.add_argument("--pretraining_steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipes", nargs="+", help="names of those to run; all by default")
    parser.add_argument("--starts", nargs="+", default=["published", "continued"])
    parser.add_argument("--norm_stats", default="auto", help="of all trainings with labels")
    parser.add_argument("--folder", type=Path, help="of runs and links, to go on with")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.out = args.out and args.out.resolve()
    source, weights = args.source.resolve(), args.weights.resolve()
    folder = args.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    links = Path("images")
    if not links.exists():
        divide(source, links, args.least, args.test)
    classes = {p.name: len(list((links / "train" / p.name).iterdir())) for p in (links / "test").iterdir()}
    data = [f"--data.init_args.source={links}", f"--data.init_args.image_size={args.image_size}"]
    data += ["--data.init_args.val_size=0", "--data.init_args.on_bad_image=skip", "--data.init_args.resize=pad"]
    given = [f"--model.init_args.backbone={args.backbone}"]
    stored = Path("results.json")
    accuracy: dict[str, dict[str, float]] = json.loads(stored.read_text()) if stored.exists() else {}

    def add(row: str, seed: int, value: float) -> None:
        accuracy.setdefault(row, {})[str(seed)] = round(value, 4)
        stored.write_text(json.dumps(accuracy))

    for stage in ("" if name == "published" else "continued, " for name in args.starts):
        start = weights
        done = [path.parent for path in Path("lightning_logs").glob("pretraining/*/version_*/encoder.safetensors")]
        if stage and done:
            start = done[0]
        elif stage:
            began = time.process_time()
            epoch = [f"--data.init_args.steps_per_epoch={args.pretraining_steps}", "--trainer.max_epochs=1"]
            own = [*data, *given, f"--model.init_args.weights={weights}", "--data.init_args.labels_per_class=1", *epoch]
            start, _ = fit(["pretraining/simclr_continued.yaml"], "pretraining/simclr_continued", 0, *own)
            add("CPU seconds of continued self-supervision", 0, time.process_time() - began)
        for seed in args.seeds:
            own = [*data, f"--data.init_args.labels_per_class={args.labels_per_class}", *given]
            own += [f"--model.init_args.weights={start}"]
            steps = [f"--data.init_args.steps_per_epoch={args.steps}", "--trainer.max_epochs=1"]
            frozen = ["--model=FrozenFeatureClassifier", "--data=ImageDataModule"]
            spreading = ["--model.init_args.classifier=LabelSpreading", "--model.init_args.classifier.balance=labeled"]
            semi = ["--model=SemiSupervisedModule", "--model.init_args.strategy=LabelPropagation"]
            tuned = Path("lightning_logs", f"{stage}LP-FT".replace(", ", "_"), f"version_{args.seeds.index(seed)}")
            after = [f"--model.init_args.weights={tuned}", "--model.init_args.head_start=random"]
            after += ["--data.init_args.steps_per_epoch=40", "--data.init_args.unlabeled_ratio=3"]
            steps += [f"--model.init_args.norm_stats={args.norm_stats}"]
            recipes = {
                "logistic regression": [*frozen, *own],
                "label spreading": [*frozen, *spreading, *own],
                "LP-FT": [f"--config={CONFIGS / 'reference/lp_ft_folder.yaml'}", *own, *steps],
                "label propagation": [f"--config={CONFIGS / 'reference/lp_ft_folder.yaml'}", *semi, *own, *steps],
                "FreeMatch after LP-FT": [
                    f"--config={CONFIGS / 'reference/lp_ft_folder.yaml'}", "--model=SemiSupervisedModule",
                    "--model.init_args.strategy=FreeMatch", *own, *steps, *after,
                ],
            }  # fmt: skip
            for recipe, words in recipes.items():
                row = f"{stage}{recipe}"
                if str(seed) in accuracy.get(row, {}) or (args.recipes and recipe not in args.recipes):
                    continue
                began = time.process_time()
                name = row.replace(", ", "_").replace(" ", "_")
                seeds = [f"--seed_everything={seed}", f"--data.init_args.seed={seed}", f"--run_name={name}"]
                run = command(["fit", *words, *seeds, *QUIET]).trainer.log_dir
                add(f"CPU seconds of {row}", seed, time.process_time() - began)
                add(row, seed, test(Path(str(run))))
                print(row, seed, accuracy[row], flush=True)
    args.source, args.weights, args.folder = source.name, weights.name, None
    publish(args, {"classes": classes, "accuracy_and_seconds": accuracy})


if __name__ == "__main__":
    main()

"""How good is `solve` on sources that its recipes were not made on, and is its interval right?

    python scripts/bench/solve_sources.py --sources FOLDER ... --weights FILE --minutes 10 \
        --out scripts/bench/results/solve_sources.json

Each FOLDER has one folder of images for each class. A third of the images of each class, at most 1,000 in all, is held
out by the hash of its names (`folder_recipes.divide`) and given to no recipe; of the others, 5 of each class are
labeled in a table, and the rest is the pool. `solve` runs with the file of weights as its only start; a model is judged
on the held-out images. Beside it: logistic regression on the frozen features of the same weights, and LP-FT with the
shipped config, both at 96 pixels on the same labels, the latter for 100 steps.

Hypotheses, written down before the first run: `solve` is not below logistic regression on frozen features by more than
the noise of the test (95 %, exact McNemar test), on any source; its interval holds the accuracy on the held-out images
on at least three of four sources. Budget: the minutes of each source, and 3 for LP-FT.
"""

import argparse
import contextlib
import csv
import io
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import torch
from commands import CONFIGS, QUIET
from folder_recipes import divide
from provenance import publish

from sft_lightning import solve
from sft_lightning.cli.lightning_cli import run as command
from sft_lightning.solver.solution import Solution
from sft_lightning.study.judge import compare_on_test

SIDE = 96  # pixels of the recipes beside `solve`
FIRST = re.compile(r"\[ *(\d+) s\] [^:]+: \d+\.\d% ")  # line of the first accuracy


class Echo(io.StringIO):
    """A stream that keeps what is written to it, and shows it."""

    def write(self, text: str) -> int:
        """Keep and show a text.

        Args:
            text: Text.
        """
        sys.stdout.write(text)
        return super().write(text)


def write_table(links: Path, labels_per_class: int) -> Path:
    """Write a table of the training images beside their folders, with a few labels of each class.

    Args:
        links: Folder with the training images by class in `train`.
        labels_per_class: Number of labels of each class.
    """
    table = links / "few_labels.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        for folder in sorted((links / "train").iterdir()):
            for i, path in enumerate(sorted(folder.iterdir())):
                writer.writerow([path.relative_to(links), folder.name if i < labels_per_class else ""])
    return table


def judge(rows: list[dict[str, str]]) -> torch.Tensor:
    """Return whether each held-out image is classified correctly.

    Args:
        rows: Predictions, whose paths name the classes by folder.
    """
    rows = sorted(rows, key=lambda row: row["path"])
    return torch.tensor([row["predicted"] == Path(row["path"]).parent.name for row in rows])


def run_source(source: Path, weights: Path, backbone: str, minutes: float, labels_per_class: int) -> dict[str, object]:
    """Run `solve` and the recipes beside it on a source.

    Args:
        source: Folder of class folders.
        weights: File of weights.
        backbone: Its network.
        minutes: Time for `solve`.
        labels_per_class: Number of labels of each class.
    """
    links = Path(source.name)
    sizes = divide(source, links, 20, 1000)
    table = write_table(links, labels_per_class)
    test = sorted(str(path) for path in (links / "test").rglob("*") if path.is_symlink())
    began, stream = time.monotonic(), Echo()
    with contextlib.redirect_stderr(stream):
        result = solve(str(table), minutes=minutes, name=source.name, candidates=[str(weights)])
    seconds = time.monotonic() - began
    correct = {"solve": judge(result.predict(test))}
    given = [f"--model.init_args.backbone={backbone}", f"--model.init_args.weights={weights}", "--seed_everything=0"]
    given += [f"--data.init_args.source={table}", f"--data.init_args.image_size={SIDE}", "--data.init_args.val_size=0"]
    given += ["--data.init_args.test_size=0", "--data.init_args.on_bad_image=skip", *QUIET]
    frozen = ["--model=FrozenFeatureClassifier", "--data=ImageDataModule"]
    tuned = [f"--config={CONFIGS / 'reference/lp_ft_folder.yaml'}", "--data.init_args.steps_per_epoch=100"]
    others = {"logistic regression on frozen features": frozen, "LP-FT": [*tuned, "--trainer.max_epochs=1"]}
    for number, (name, words) in enumerate(others.items()):
        run = command(["fit", *words, *given, f"--run_name={source.name}_{number}"]).trainer.log_dir
        correct[name] = judge(Solution(Path(), [], [], Path(str(run)), {}).predict(test))
    accuracy = {name: round(float(right.double().mean()), 4) for name, right in correct.items()}
    low, high = result.summary["accuracy"][1:]
    versus = compare_on_test(correct["solve"], correct["logistic regression on frozen features"])
    first = FIRST.search(stream.getvalue())
    return {
        "classes": len(sizes),
        "held_out": len(test),
        "accuracy": accuracy,
        "recipe": result.summary["recipe"].replace(str(weights), weights.name),  # without the folder of this machine
        "unlabeled": result.summary["unlabeled"],
        "reported": [round(value, 4) for value in result.summary["accuracy"]],
        "interval_holds": bool(low <= accuracy["solve"] <= high),
        "against_frozen_features": versus.verdict,
        "seconds": round(seconds),
        "seconds_to_first_accuracy": int(first[1]) if first else None,
    }


def main() -> None:
    """Run all sources, one after the other, and keep what is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=Path, nargs="+", required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--backbone", default="timm/tf_efficientnet_lite0")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--labels_per_class", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.out, weights = args.out and args.out.resolve(), args.weights.resolve()
    sources = [source.resolve() for source in args.sources]
    os.chdir(tempfile.mkdtemp())
    results = {}
    for source in sources:
        results[source.name] = run_source(source, weights, args.backbone, args.minutes, args.labels_per_class)
        print(json.dumps(results[source.name]), flush=True)
    args.sources, args.weights = [source.name for source in sources], weights.name
    publish(args, {"results": results})


if __name__ == "__main__":
    main()

"""By which score of held-out labels should `solve` choose its recipe?

    python scripts/bench/choice_rules.py --sources FOLDER ... --weights FILE \
        --out scripts/bench/results/choice_rules.json

Each FOLDER has one folder of images for each class. In each draw, 5 images of each class are labeled, and the others
are the pool. The recipes are those that `solve` judges in seconds: logistic regression and label spreading on pixels,
and both and smoothed logistic regression on the features of a published network at 96 pixels. Each is cross-fitted as
in `solve`, trained on all labels, and judged on the pool, whose labels are known here.

Rules: the recipe with the best `accuracy`, with the least `log loss` or `Brier` score of probabilities at the
temperature that suits them (one number for each recipe, fitted to the same held-out probabilities), or with the best
accuracy and of equal ones the least log loss (`tie`). `prior` adds to the accuracy of recipes on features what a prior
of 10 points over pixels, with a deviation of 10 points, is worth beside these labels. `best` is the accuracy of the
recipe that is best on the pool, and `mean` that of a recipe by chance.

Hypothesis, written down before the first run, after one draw each of icons and textiles: the least log loss is at
least a point better than the best accuracy on average over the sources, and on none a point worse. The same was stated
for `prior` before it was first run.
Budget: a quarter of an hour of one core.
"""

import argparse
import csv
import os
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from folder_recipes import divide
from provenance import publish
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.classifiers import Classifier, LabelSpreading, LogisticRegression, SmoothedLogisticRegression
from sft_lightning.classifiers.whitening import Whitened
from sft_lightning.paradigms.calibration import fit_temperature
from sft_lightning.solver import starts
from sft_lightning.solver.labels import LabeledSource, read_source
from sft_lightning.solver.plan import Plan
from sft_lightning.solver.trials import Result, Trials
from sft_lightning.transfer.candidates import Candidate

LABELS, SIDE = 5, 96
ADVANTAGE, DEVIATION = 0.1, 0.1
RULES = ("accuracy", "log loss", "Brier", "tie", "prior")


def write_draw(links: Path, seed: int) -> tuple[Path, dict[str, str]]:
    """Write a table with random labels of each class, and return it with the class of each image.

    Args:
        links: Folder with class folders.
        seed: Seed of the draw.
    """
    generator = np.random.default_rng(seed)
    table, classes = links / f"draw_{seed}.csv", dict[str, str]()
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        for folder in sorted(path for path in links.iterdir() if path.is_dir()):
            paths = sorted(folder.iterdir())
            labeled = {*generator.permutation(len(paths))[:LABELS].tolist()}
            for i, path in enumerate(paths):
                classes[str(path.relative_to(links))] = folder.name
                writer.writerow([path.relative_to(links), folder.name if i in labeled else ""])
    return table, classes


def measure_truth(result: Result, source: LabeledSource, classes: dict[str, str]) -> float:
    """Return the accuracy of a recipe on the pool, trained on all labels."""
    space, names = result.space, source.data.class_names
    kind = result.recipe.name.partition(" on ")[0]
    model: Classifier = LogisticRegression() if kind == "logistic regression" else SmoothedLogisticRegression()
    if kind == "label spreading":
        model = Whitened(LabelSpreading(), space.components)
    model.fit(space.labeled, source.labels, space.pool, len(names))
    predicted = torch.cat([model.predict(x) for x in torch.split(space.pool, 1000)])
    ids = source.data.splits["unlabeled"].ids
    truth = [classes[ids[i]] for i in space.pool_positions.tolist()]
    return statistics.fmean(names[k] == one for k, one in zip(predicted.tolist(), truth, strict=True))


def score(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Score held-out probabilities, (R, N, C), by each rule; higher is better."""
    y = labels.repeat(len(probabilities))
    logits = probabilities.clamp_min(1e-6).log().flatten(0, 1)
    known = ~logits.isnan().any(1)
    y, logits = y[known], logits[known]
    scaled = logits / fit_temperature(logits, y)
    right = float((logits.argmax(1) == y).double().mean())
    loss = float(F.cross_entropy(scaled, y))
    brier = float((scaled.softmax(1) - F.one_hot(y, logits.shape[1])).square().sum(1).mean())
    return {"accuracy": right, "log loss": -loss, "Brier": -brier, "tie": right - 1e-6 * loss}


def run_draw(links: Path, seed: int, weights: Path, backbone: str) -> dict[str, float]:
    """Return the accuracy on the pool of what each rule chooses."""
    table, classes = write_draw(links, seed)
    folder = Path("out", links.name, str(seed))
    source = read_source(str(table), folder, None, None, 0, "data")
    trials = Trials(source, Plan(folder / "plan.json", source.key, 1e6), "rules", folder, lambda text: None)
    trials.judge_pixels()
    candidate = Candidate(backbone, str(weights), SIDE)
    trials.judge_start(starts.load_start(candidate, source, 0))
    truth = [measure_truth(result, source, classes) for result in trials.results]
    scores = [score(result.probabilities, source.labels) for result in trials.results]
    for result, one in zip(trials.results, scores, strict=True):
        p = one["accuracy"]
        variance = 1.25 * p * (1 - p) / len(source.labels)
        one["prior"] = p + (ADVANTAGE * variance / DEVIATION**2 if result.space.is_network else 0.0)
    chosen = {rule: truth[int(np.argmax([one[rule] for one in scores]))] for rule in RULES}
    names = [result.recipe.name.replace(str(candidate), "network") for result in trials.results]
    recipes = dict(zip(names, truth, strict=True))
    return {**chosen, "best": max(truth), "mean": statistics.mean(truth), **recipes}


def main() -> None:
    """Run all sources."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=Path, nargs="+", required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--backbone", default="timm/tf_efficientnet_lite0")
    parser.add_argument("--seeds", type=int, nargs="+", default=[*range(10)])
    parser.add_argument("--most", type=int, default=3000, help="images of a source, at most")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    out, weights = args.out and args.out.resolve(), args.weights.resolve()
    sources = [source.absolute() for source in args.sources]
    args.sources, args.weights, args.out = [source.name for source in sources], weights.name, out
    os.chdir(tempfile.mkdtemp())
    draws: dict[str, list[dict[str, float]]] = {}
    mean: dict[str, dict[str, float]] = {}
    for source in sources:
        counts = divide(source, Path(source.name), 20, args.most)
        part = "test" if 2 / 3 * sum(counts.values()) > args.most else "train"  # of 60,000 images, 3,000 are enough
        for seed in args.seeds:
            found = run_draw(Path(source.name, part), seed, weights, args.backbone)
            draws.setdefault(source.name, []).append({name: round(value, 4) for name, value in found.items()})
            print(source.name, seed, draws[source.name][-1], flush=True)
        every = draws[source.name]
        mean[source.name] = {name: round(statistics.mean(one[name] for one in every), 4) for name in every[0]}
        names = (*RULES, "best", "mean")
        overall = {name: round(statistics.mean(one[name] for one in mean.values()), 4) for name in names}
        publish(args, {"overall": overall, "mean": mean, "draws": draws})


if __name__ == "__main__":
    main()

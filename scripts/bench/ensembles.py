"""Does the mean of logistic regression and label spreading beat both? Pixels, without networks.

    python scripts/bench/ensembles.py --mnist FOLDER --textile FOLDER --out scripts/bench/results/ensembles.json

Each seed draws its own labels, 4,000 unlabeled images and 2,000 others to test on. Members and means are judged as
`solve` does: by cross-fitting on the labels. A mean is of the probabilities as they are, or of each member's at its
temperature, which is fitted to predictions of the other folds (for the test: of all). `chosen` is the test accuracy of
the candidate with the best cross-fitted accuracy, of the members alone or of members and a mean.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import publish
from torch import Tensor
from torch.nn import functional as F

from sft_lightning import ImageDataModule
from sft_lightning.classifiers import LogisticRegression
from sft_lightning.classifiers.label_spreading import balance_classes, choose_neighbors, normalize_graph, spread_labels
from sft_lightning.classifiers.neighbors import find_neighbors
from sft_lightning.classifiers.whitening import WhitenedPCA
from sft_lightning.data.class_folds import make_folds
from sft_lightning.paradigms.calibration import fit_temperature
from sft_lightning.study.judge import choose
from sft_lightning.transfer.vectors import stack_vectors

POOL, TEST = 4000, 2000
LEAST = 1e-6
MEMBERS = ("logistic regression", "label spreading")


def main() -> None:
    """Measure all sources."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, help="root of torchvision's MNIST")
    parser.add_argument("--textile", type=Path, help="folder of class folders")
    parser.add_argument("--labels", type=int, nargs="+", default=[40, 100])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    given: dict[str, dict[str, Any]] = {"sample": {"source": "sample"}}
    if args.mnist:
        given["MNIST"] = {"source": "MNIST", "root": str(args.mnist), "test_size": 0}
    if args.textile:
        given["textile"] = {"source": str(args.textile), "image_size": 32, "channels": 1, "test_size": 0}
    results: dict[str, Any] = {}
    for name, settings in given.items():
        x, y = read(settings)
        for labels in args.labels:
            trials = [measure(x, y, labels, seed) for seed in range(args.seeds)]
            results[f"{name}, {labels} labels"] = {
                key: round(float(np.mean([trial[key] for trial in trials])), 4) for key in trials[0]
            }
            print(name, labels, results[f"{name}, {labels} labels"], flush=True)
    args.mnist, args.textile = bool(args.mnist), bool(args.textile)
    publish(args, results)


def read(settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the vectors and classes of all images of a source."""
    data = ImageDataModule(num_labels=None, val_size=0, **settings)
    data.setup("fit")
    splits = [name for name in ("labeled", "test") if len(data.splits[name])]
    parts = [stack_vectors(data.batches_of(name, torch.device("cpu")), data) for name in splits]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def measure(x: Tensor, y: Tensor, labels: int, seed: int) -> dict[str, float]:
    """Return the accuracies of a set of labels."""
    classes = int(y.max()) + 1
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    known = torch.cat([order[y[order] == c][: labels // classes] for c in range(classes)])
    rest = order[~torch.isin(order, known)]
    test, pool = rest[: min(TEST, len(rest) // 2)], rest[min(TEST, len(rest) // 2) :][:POOL]
    fold = torch.from_numpy(make_folds(y[known].numpy(), folds=5, repeats=1, seed=seed)[0])
    held, tested = zip(
        regress(x[known], y[known], x[test], fold, classes),
        spread(x[known], y[known], x[pool], x[test], fold, classes),
        strict=True,
    )
    candidates = dict(zip(MEMBERS, zip(held, tested, strict=True), strict=True))
    candidates["mean"] = torch.stack(held).mean(0), torch.stack(tested).mean(0)
    candidates["mean at temperatures"] = (
        torch.stack([scale_by_fold(p, y[known], fold) for p in held]).mean(0),
        torch.stack([scale(q, p, y[known]) for p, q in zip(held, tested, strict=True)]).mean(0),
    )
    row: dict[str, float] = {}
    for name, (ours, theirs) in candidates.items():
        row[f"{name}, cross-fitted"] = float((ours.argmax(1) == y[known]).double().mean())
        row[name] = float((theirs.argmax(1) == y[test]).double().mean())
    for extra in (None, "mean", "mean at temperatures"):
        among = [*MEMBERS, *([extra] if extra else [])]
        best = among[choose([row[f"{name}, cross-fitted"] for name in among])]
        row[f"chosen of members and {extra}" if extra else "chosen of members"] = row[best]
    return row


def regress(x: Tensor, y: Tensor, test: Tensor, fold: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return the probabilities of the labeled examples without their fold, and of the test examples."""
    held = torch.zeros(len(y), classes)
    for k in range(int(fold.max()) + 1):
        out = fold == k
        held[out] = LogisticRegression().fit(x[~out], y[~out], num_classes=classes).predict_proba(x[out])
    return held, LogisticRegression().fit(x, y, num_classes=classes).predict_proba(test)


def spread(x: Tensor, y: Tensor, pool: Tensor, test: Tensor, fold: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return the same of label spreading, over one graph."""
    every = torch.cat([x, pool])
    whitening = WhitenedPCA(64).fit([every])
    z, z_test = (F.normalize(whitening.transform(part), dim=1) for part in (every, test))
    k = choose_neighbors(len(z), classes)
    graph = normalize_graph(find_neighbors(z, z, k, exclude_self=True))

    def run(known: Tensor) -> Tensor:
        shares = spread_labels(graph, known, y[known], classes)
        others = torch.ones(len(z), dtype=torch.bool).index_fill(0, known, False)
        shares[others] = balance_classes(shares[others], y[known].bincount(minlength=classes) / len(known))
        return shares

    held = torch.zeros(len(y), classes)
    for number in range(int(fold.max()) + 1):
        out = fold == number
        held[out] = run((~out).nonzero()[:, 0])[: len(y)][out]
    return held, run(torch.arange(len(y)))[find_neighbors(z_test, z, k)].mean(1)


def scale(probabilities: Tensor, held: Tensor, y: Tensor) -> Tensor:
    """Return probabilities at the temperature that fits held-out ones best."""
    if bool((held.argmax(1) == y).all()):
        return probabilities
    temperature = fit_temperature(held.clamp_min(LEAST).log(), y)
    return (probabilities.clamp_min(LEAST).log() / temperature).softmax(1)


def scale_by_fold(held: Tensor, y: Tensor, fold: Tensor) -> Tensor:
    """Return held-out probabilities, each fold at the temperature of the others."""
    scaled = torch.empty_like(held)
    for k in range(int(fold.max()) + 1):
        out = fold == k
        scaled[out] = scale(held[out], held[~out], y[~out])
    return scaled


if __name__ == "__main__":
    main()

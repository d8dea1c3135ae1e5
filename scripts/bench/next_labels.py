"""Which unlabeled examples should be labeled next? Rounds of 20 labels on features of digits, without any training.

    python scripts/bench/next_labels.py --root FOLDER --out scripts/bench/results/next_labels.json

From 40 labels, as many of each class, three rounds add 20 each: random ones; those that the classifier doubts most
(the smallest margin between the two most probable classes), one near each center of 20 clusters among the 200, 1,000
or 4,000 most doubtful; and typical ones unlike those that have a label (one cluster for each label and each example to
choose). The data are the pixels of MNIST, for graphs and clusters their 128 whitened components. Mean test accuracy
before the first round and after each, over the seeds of the first labels. `label_next.csv` of `solve` follows what is
best here, the 4,000 of a pool of 9,000; `label_rounds.py` measures it on other data. Budget: 4 minutes of one core.
"""

import argparse
import statistics
from pathlib import Path

import torch
from pretraining_starts import Part, Space, build_space, choose_balanced, fit_logistic, spread
from provenance import publish
from torch import Tensor

from sft_lightning import ImageDataModule
from sft_lightning.selection import kmeans_centers, random_choice

STEP = 20
CLASSIFIERS = ("label spreading", "logistic regression")
CHOICES = ("random", "doubtful, of 200", "doubtful, of 1000", "doubtful, of 4000", "typical and new")


def classify(space: Space, chosen: Tensor, classifier: str) -> tuple[Tensor, float]:
    """Return the probabilities of all training examples and the test accuracy.

    Args:
        space: Vectors and graph.
        chosen: Positions of the labeled examples.
        classifier: Name of the classifier.
    """
    if classifier == "label spreading":
        probabilities = spread(space, chosen, None)
        predicted = probabilities[space.nearest_test].mean(1).argmax(1)
    else:
        model = fit_logistic(space, chosen)
        probabilities, predicted = model.predict_proba(space.x), model.predict(space.x_test)
    return probabilities, float((predicted == space.y_test).double().mean())


def choose(space: Space, labeled: Tensor, probabilities: Tensor, choice: str, seed: int) -> Tensor:
    """Return the positions of the examples to label next.

    Args:
        space: Vectors and graph.
        labeled: Positions of the labeled examples.
        probabilities: Probabilities of all training examples.
        choice: Name of the choice.
        seed: Seed of the round.
    """
    if choice == "random":
        return random_choice(space.components, STEP, seed, labeled)
    if choice == "typical and new":
        return kmeans_centers(space.components, STEP, seed, labeled)
    top = probabilities.topk(2, 1).values
    margin = top[:, 0] - top[:, 1]
    margin[labeled] = torch.inf
    doubtful = margin.argsort(stable=True)[: int(choice.split()[-1])]
    return doubtful[kmeans_centers(space.components[doubtful], STEP, seed)]


def main() -> None:
    """Run all rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="MNIST")
    parser.add_argument("--root", default="data", help="folder of the source")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    data = ImageDataModule(args.source, root=args.root, val_size=0, eval_batch_size=1000)
    data.setup("fit")
    space = build_space([Part(data, None)])
    results = {}
    for classifier in CLASSIFIERS:
        for choice in CHOICES:
            rows = []
            for seed in args.seeds:
                labeled, row = choose_balanced(space.y, 40, seed), []
                for turn in range(args.rounds + 1):
                    probabilities, accuracy = classify(space, labeled, classifier)
                    row.append(accuracy)
                    chosen = choose(space, labeled, probabilities, choice, 10 * seed + turn)
                    labeled = torch.cat([labeled, chosen])
                rows.append(row)
            results[f"{classifier}, {choice}"] = [round(statistics.mean(turn), 4) for turn in zip(*rows, strict=True)]
            print(classifier, choice, results[f"{classifier}, {choice}"], flush=True)
    args.root = Path(args.root).name
    publish(args, {"labels": [40 + STEP * turn for turn in range(args.rounds + 1)], "test_accuracy": results})


if __name__ == "__main__":
    main()

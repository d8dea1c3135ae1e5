"""Measure label spreading on pixels, and choices of what to label: Fashion-MNIST without any training.

    python scripts/bench/graph.py --out scripts/bench/results/graph.json

The graph joins all 60,000 training images with their 15 nearest neighbors by 64 whitened principal components of the
pixels. The labels are as many of each class (`random, balanced`), random images, or those that a method of
`sft-lightning select` chooses without labels. Test accuracy is that of all 10,000 test images, which are not in the
graph. `test_accuracy` holds means over the seeds, `accuracies` the figure of each seed. With `--balance`, probabilities
are scaled to equal shares of the classes.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from provenance import publish
from torch import Tensor

from sft_lightning import ImageDataModule
from sft_lightning.classifiers.label_spreading import balance_classes, normalize_graph, spread_labels
from sft_lightning.classifiers.neighbors import find_neighbors
from sft_lightning.classifiers.whitening import WhitenedPCA
from sft_lightning.selection import k_center, kmeans_centers, typiclust
from sft_lightning.transfer.vectors import stack_vectors

Choose = Callable[[Tensor, Tensor, int, int], Tensor]  # from features, labels, number of labels and seed


def main() -> None:
    """Measure all choices for all budgets and seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, nargs="+", default=[40, 100, 1000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--choices", nargs="+", default=[*CHOICES], choices=[*CHOICES])
    parser.add_argument("--selected_up_to", type=int, default=100, help="largest number of labels that is selected")
    parser.add_argument("--balance", action="store_true", help="scale to equal shares of the classes")
    parser.add_argument("--source", default="FashionMNIST")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    data = ImageDataModule(args.source, val_size=0)
    data.setup("fit")
    begin = time.monotonic()
    x, y, _ = stack_vectors(data.batches_of("labeled", torch.device("cpu")), data)
    x_test, y_test, _ = stack_vectors(data.batches_of("test", torch.device("cpu")), data)
    components = WhitenedPCA().fit([x])
    x, x_test = components.transform(x), components.transform(x_test)
    nearest, nearest_test = find_neighbors(x, x, 15, exclude_self=True), find_neighbors(x_test, x, 15)
    graph = normalize_graph(nearest)
    seconds: dict[str, float] = {"components and graph": round(time.monotonic() - begin, 1)}
    accuracies: dict[str, dict[int, list[float]]] = {}
    for choice in args.choices:
        for budget in args.labels:
            if budget > args.selected_up_to and not choice.startswith("random"):
                continue
            for seed in args.seeds:
                begin = time.monotonic()
                chosen = CHOICES[choice](x, y, budget, seed)
                seconds[f"{choice}, {budget}"] = round(time.monotonic() - begin, 1)
                begin = time.monotonic()
                probabilities = spread_labels(graph, chosen, y[chosen], data.num_classes)
                if args.balance:
                    probabilities = balance_classes(
                        probabilities, torch.full((data.num_classes,), 1 / data.num_classes)
                    )
                predicted = probabilities[nearest_test].mean(1).argmax(1)
                seconds["spreading"] = round(time.monotonic() - begin, 1)
                accuracy = float((predicted == y_test).double().mean())
                accuracies.setdefault(choice, {}).setdefault(budget, []).append(round(accuracy, 4))
    means = {
        choice: {budget: round(statistics.mean(values), 3) for budget, values in by_budget.items()}
        for choice, by_budget in accuracies.items()
    }
    publish(args, {"examples": len(x), "test_accuracy": means, "accuracies": accuracies, "seconds": seconds})


def choose_balanced(x: Tensor, y: Tensor, count: int, seed: int) -> Tensor:
    """Return as many random examples of each class."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(y), generator=generator)
    classes = int(y.max()) + 1
    return torch.cat([order[y[order] == k][: count // classes] for k in range(classes)])


def choose_randomly(x: Tensor, y: Tensor, count: int, seed: int) -> Tensor:
    """Return random examples, whatever their classes."""
    return torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[:count]


CHOICES: dict[str, Choose] = {
    "random, balanced": choose_balanced,
    "random": choose_randomly,
    "kmeans": lambda x, y, count, seed: kmeans_centers(x, count, seed),
    "typiclust": lambda x, y, count, seed: typiclust(x, count, seed),
    "k_center": lambda x, y, count, seed: k_center(x, count, seed),
}


if __name__ == "__main__":
    main()

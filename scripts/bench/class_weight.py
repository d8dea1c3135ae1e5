"""Should all classes, or all labels, have the same weight in label spreading? Pixels, no training.

    python scripts/bench/class_weight.py --source sample --out scripts/bench/results/class_weight.json
    python scripts/bench/class_weight.py --source MNIST --root FOLDER --out FILE

Of 6,000 training images (`balanced pool`), or of those that are left where class k is kept with a share that falls
from 1 to 0.1 (`unbalanced pool`), some are labeled: random ones (`random`), or four of each class and random ones
besides (`four each`). `labels` weighs all labels the same, `classes` all classes. `labels, scaled` also scales the
probabilities to the shares of the labels, and `labels, uniform` to equal shares. The figures are shares of unlabeled
images that are classified correctly, means over the seeds.

Asked when further labels, of unequal classes, made `solve` worse. Budget: 10 minutes of one core for a source.
"""

import argparse
import statistics
from pathlib import Path

import torch
from provenance import publish
from torch import Tensor

from sft_lightning import ImageDataModule
from sft_lightning.classifiers.label_spreading import balance_classes, normalize_graph, spread_labels
from sft_lightning.classifiers.neighbors import find_neighbors
from sft_lightning.classifiers.whitening import WhitenedPCA

SHARES = torch.tensor([1, 0.8, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1])


def choose(y: Tensor, count: int, each: int, seed: int) -> Tensor:
    """Return positions of labels: `each` of each class, and random ones besides."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    first = torch.cat([order[y[order] == k][:each] for k in range(10)])
    rest = order[~torch.isin(order, first)]
    return torch.cat([first, rest[: max(0, count - len(first))]])


def compare(x: Tensor, y: Tensor, labels: list[int], seeds: list[int], each: int) -> dict[int, dict[str, float]]:
    """Return the accuracy of each way by the number of labels."""
    z = torch.nn.functional.normalize(WhitenedPCA(64).fit([*torch.split(x, 256)]).transform(x), dim=1)
    graph = normalize_graph(find_neighbors(z, z, 15, exclude_self=True))
    means = {}
    for count in labels:
        rows: dict[str, list[float]] = {}
        for seed in seeds:
            known = choose(y, count, each, seed)
            others = torch.ones(len(y), dtype=torch.bool)
            others[known] = False
            plain, weighed = (spread_labels(graph, known, y[known], 10, weighs_classes=how) for how in (False, True))
            shares = y[known].bincount(minlength=10) / len(known)
            ways = {
                "labels": plain[others],
                "classes": weighed[others],
                "labels, scaled": balance_classes(plain[others], shares),
                "labels, uniform": balance_classes(plain[others], torch.full((10,), 0.1)),
            }
            for way, probabilities in ways.items():
                rows.setdefault(way, []).append(float((probabilities.argmax(1) == y[others]).double().mean()))
        means[count] = {way: round(statistics.mean(values), 3) for way, values in rows.items()}
        print(count, means[count], flush=True)
    return means


def main() -> None:
    """Compare on one source."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="sample")
    parser.add_argument("--root", default="data", help="folder of the source")
    parser.add_argument("--labels", type=int, nargs="+", default=[40, 60, 100])
    parser.add_argument("--seeds", type=int, nargs="+", default=[*range(8)])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    data = ImageDataModule(args.source, root=args.root, val_size=0, test_size=0.2, eval_batch_size=500)
    data.setup("fit")
    batches = list(data.batches_of("labeled", torch.device("cpu")))
    x, y = torch.cat([batch.x.flatten(1) for batch in batches]), torch.cat([batch.y for batch in batches])
    kept = torch.rand(len(y), generator=torch.Generator().manual_seed(0)) < SHARES[y]
    args.root = Path(args.root).name
    publish(
        args,
        {
            f"{pool}, {kind}": compare(x[index], y[index], args.labels, args.seeds, each)
            for pool, index in (("balanced pool", torch.arange(6000)), ("unbalanced pool", kept.nonzero()[:, 0]))
            for kind, each in (("random", 0), ("four each", 4))
        },
    )


if __name__ == "__main__":
    main()

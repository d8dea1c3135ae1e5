"""How good are the features of a self-supervised start for few labels? Full Fashion-MNIST, through the command line.

    python scripts/bench/pretraining_starts.py --out scripts/bench/results/pretraining_starts.json
    python scripts/bench/pretraining_starts.py --source MNIST --root FOLDER --labels 40 100 1000 --epochs 60
    python scripts/bench/pretraining_starts.py --run lightning_logs/pretraining/simclr/version_0 --labels 100
    python scripts/bench/pretraining_starts.py --backbone timm/tf_efficientnet_lite0 --weights FILE --weights_size 96

Pre-trains by a shipped config, or takes a run, and classifies its frozen features for each number of labels and each
random balanced split: by logistic regression, by label spreading on the cosine graph of 128 whitened principal
components (with and without the classes balanced as in the labels), by the mean of the probabilities of the first and
the last, and by whichever of these three has the higher accuracy in 5-fold cross-validation on the labels (`chosen`).
`selected` labels are those nearest to the centers of k-means on the same components; their classes are balanced evenly.
The same network before pre-training, and the pixels, stand beside it; with `--weights`, a published network at its own
image size, and its features joined with the pre-trained ones. Test accuracy on all test images, of the last iterate.
CPU seconds are those of all threads of the process; `seconds` are those of one split and one number of labels.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from commands import fit
from provenance import publish
from torch import Tensor
from torch.nn import functional as F

from sft_lightning import ImageDataModule
from sft_lightning.classifiers import LogisticRegression
from sft_lightning.classifiers.label_spreading import balance_classes, normalize_graph, spread_labels
from sft_lightning.classifiers.neighbors import find_neighbors
from sft_lightning.classifiers.whitening import WhitenedPCA
from sft_lightning.networks.build import build_encoder, rebuild_encoder
from sft_lightning.networks.encoder import Encoder
from sft_lightning.selection import kmeans_centers
from sft_lightning.transfer.vectors import stack_vectors


class Part(NamedTuple):
    """Data, and the network whose features of it are classified; None for the pixels."""

    data: ImageDataModule
    backbone: Encoder | None


def list_starts(run: Path, pools: list[str], data: ImageDataModule, published: Part | None) -> dict[str, list[Part]]:
    """Return by name the feature extractors to compare, whose features are joined where there are several.

    Args:
        run: Folder of the pre-training.
        pools: Pooling of the network's last map, such as `flatten`.
        data: Data module in which all training images are labeled.
        published: Published network and the same data at its image size, or None.
    """
    trained = rebuild_encoder(run)
    starts = {"pixels": [Part(data, None)]}
    for pool in pools:
        name = f"{trained.architecture}:{pool}"
        torch.manual_seed(0)
        starts[f"untrained, {pool}"] = [Part(data, build_encoder(name, trained.input_spec)[0])]
        starts[f"pre-trained, {pool}"] = [Part(data, build_encoder(name, trained.input_spec, str(run))[0])]
        if published:
            starts[f"published and pre-trained, {pool}"] = [published, *starts[f"pre-trained, {pool}"]]
    return {**starts, "published": [published]} if published else starts


class Space(NamedTuple):
    """Vectors of all training and test images, and their graph.

    Attributes:
        x: Vectors of the training images, (N, F).
        y: Their classes, (N,).
        x_test: Vectors of the test images, (M, F).
        y_test: Their classes, (M,).
        components: Whitened principal components of the training images, of length 1, (N, K).
        graph: Normalized graph of their 15 nearest neighbors.
        nearest_test: The 15 nearest training images of each test image, (M, 15).
    """

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    components: Tensor
    graph: Any
    nearest_test: Tensor


def build_space(parts: list[Part]) -> Space:
    """Compute vectors, standardized over the training images, and their graph.

    Args:
        parts: Data modules of the same images and networks, whose vectors are joined.
    """
    cpu = torch.device("cpu")
    vectors: dict[str, list[Tensor]] = {"labeled": [], "test": []}
    for data, backbone in parts:
        x, y, _ = stack_vectors(data.batches_of("labeled", cpu), data, backbone)
        x_test, y_test, _ = stack_vectors(data.batches_of("test", cpu), data, backbone)
        mean, deviation = x.mean(0), x.std(0).clamp_min(1e-6)
        vectors["labeled"].append((x - mean) / deviation)
        vectors["test"].append((x_test - mean) / deviation)
    x, x_test = torch.cat(vectors["labeled"], 1), torch.cat(vectors["test"], 1)
    whitening = WhitenedPCA(128).fit([x[:: -(-len(x) // 20_000)]])
    components, test = (F.normalize(whitening.transform(part), dim=1) for part in (x, x_test))
    graph = normalize_graph(find_neighbors(components, components, 15, exclude_self=True))
    return Space(x, y, x_test, y_test, components, graph, find_neighbors(test, components, 15))


def choose_balanced(y: Tensor, count: int, seed: int) -> Tensor:
    """Return the positions of as many random images of each class."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    classes = int(y.max()) + 1
    return torch.cat([order[y[order] == k][: count // classes] for k in range(classes)])


def spread(space: Space, chosen: Tensor, shares: Tensor | None) -> Tensor:
    """Return the probabilities of all training images, balanced to the shares of the classes if any are given."""
    probabilities = spread_labels(space.graph, chosen, space.y[chosen], int(space.y.max()) + 1)
    return probabilities if shares is None else balance_classes(probabilities, shares)


def fit_logistic(space: Space, chosen: Tensor) -> LogisticRegression:
    """Fit logistic regression to the labels."""
    return LogisticRegression().fit(space.x[chosen], space.y[chosen], num_classes=int(space.y.max()) + 1)


def cross_validate(space: Space, chosen: Tensor, shares: Tensor) -> dict[str, float]:
    """Return the accuracy of both classifiers and of their mean in 5-fold cross-validation on the labels."""
    y = space.y[chosen]
    fold = torch.empty_like(y)
    for k in range(int(y.max()) + 1):  # stratified
        rows = (y == k).nonzero()[:, 0]
        fold[rows] = torch.arange(len(rows)) % 5
    correct = {"logistic regression": 0, "label spreading, balanced": 0, "mean of both": 0}
    for k in range(5):
        known, held = chosen[fold != k], chosen[fold == k]
        if not len(held):
            continue
        logistic = fit_logistic(space, known).predict_proba(space.x[held])
        graph = spread(space, known, shares)[held]
        for name, probabilities in zip(correct, (logistic, graph, logistic + graph), strict=True):
            correct[name] += int((probabilities.argmax(1) == space.y[held]).sum())
    return {name: count / len(chosen) for name, count in correct.items()}


def classify(space: Space, budget: int, seed: int, is_selected: bool) -> dict[str, float]:
    """Return the test accuracy of each classifier.

    Args:
        space: Vectors and graph.
        budget: Number of labels.
        seed: Seed of the labels.
        is_selected: Whether k-means chooses the labels.
    """
    chosen = kmeans_centers(space.components, budget, seed) if is_selected else choose_balanced(space.y, budget, seed)
    classes = int(space.y.max()) + 1
    even = torch.full((classes,), 1 / classes)
    shares = even if is_selected else space.y[chosen].bincount(minlength=classes) / len(chosen)
    probabilities = {"logistic regression": fit_logistic(space, chosen).predict_proba(space.x_test)}
    for name, by in (("label spreading", None), ("label spreading, balanced", shares)):
        probabilities[name] = spread(space, chosen, by)[space.nearest_test].mean(1)
    probabilities["mean of both"] = probabilities["logistic regression"] + probabilities["label spreading, balanced"]
    results = {name: float((p.argmax(1) == space.y_test).double().mean()) for name, p in probabilities.items()}
    validated = cross_validate(space, chosen, shares)
    return {**results, "chosen": results[max(validated, key=lambda name: validated[name])]}


def main() -> None:
    """Pre-train, and compare what starts from it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="pretraining/simclr_28.yaml", help="of the pre-training, below configs/")
    parser.add_argument("--source", default="FashionMNIST")
    parser.add_argument("--root", default="data", help="folder of the source")
    parser.add_argument("--image_size", type=int, help="side of the images, for folders of large ones")
    parser.add_argument("--epochs", type=int, help="of the pre-training; default: those of the config")
    parser.add_argument("--selected_up_to", type=int, default=100, help="largest number of labels that is selected")
    parser.add_argument("--run", type=Path, help="folder of a pre-training to use instead")
    parser.add_argument("--seed", type=int, default=0, help="of the pre-training")
    parser.add_argument("--backbone", help="name of a published network to compare and join")
    parser.add_argument("--weights", type=Path, help="its weights")
    parser.add_argument("--weights_size", type=int, default=96, help="side of its images")
    parser.add_argument("--labels", type=int, nargs="+", default=[40, 100, 1000])
    parser.add_argument("--splits", type=int, nargs="+", default=[0, 1, 2], help="seeds of the labeled examples")
    parser.add_argument("--pools", nargs="+", default=["flatten", "average"])
    parser.add_argument("--starts", nargs="+", help="names of the starts to compare, such as pixels; all by default")
    parser.add_argument("--extra", nargs=argparse.REMAINDER, default=[], help="further words of `fit`, at the end")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    out, source, weights = args.out and args.out.resolve(), args.source, args.weights and args.weights.resolve()
    if Path(source).exists():
        source = str(Path(source).resolve())
    root = str(Path(args.root).resolve())
    given: dict[str, Any] = {"source": source, "root": root, "num_labels": None, "labels_per_class": None, "seed": 0}
    if args.image_size:
        given |= {"image_size": args.image_size, "channels": 1}
    result: dict[str, object] = {}
    if args.run is None:
        os.chdir(tempfile.mkdtemp())
        start = time.process_time()
        words = [f"--data.init_args.{name}={value}" for name, value in given.items() if value is not None]
        words += [f"--trainer.max_epochs={args.epochs}"] if args.epochs else []
        run, cli = fit([args.config], "pretraining", args.seed, *words, *args.extra)
        metrics = {name: round(float(value), 4) for name, value in cli.trainer.callback_metrics.items()}
        result = {"cpu_seconds": round(time.process_time() - start), "steps": cli.trainer.global_step, "last": metrics}
    else:
        run = args.run.resolve()
        os.chdir(tempfile.mkdtemp())
    data = ImageDataModule(**given, val_size=0, eval_batch_size=1000)
    data.setup("fit")
    published = None
    if weights is not None:
        large = ImageDataModule(**{**given, "image_size": args.weights_size}, val_size=0, eval_batch_size=200)
        large.setup("fit")
        published = Part(large, build_encoder(args.backbone, large.input_spec, str(weights))[0])
    accuracies: dict[str, dict[str, list[float]]] = {}
    seconds: dict[str, dict[str, float]] = {}
    for name, parts in list_starts(run, args.pools, data, published).items():
        if args.starts and name not in args.starts:
            continue
        begin = time.process_time()
        space = build_space(parts)
        seconds[name] = {"features and graph": round(time.process_time() - begin, 1)}
        begin, units = time.process_time(), 0
        for budget in args.labels:
            for is_selected in (False, True)[: 1 + (budget <= args.selected_up_to)]:
                for seed in args.splits:
                    units += 1
                    for method, value in classify(space, budget, seed, is_selected).items():
                        row = f"{name}, {method}{', selected' if is_selected else ''}"
                        accuracies.setdefault(row, {}).setdefault(str(budget), []).append(round(value, 4))
        seconds[name]["classifiers"] = round((time.process_time() - begin) / units, 1)
        print(name, {row: a for row, a in accuracies.items() if row.startswith(name)}, flush=True)
    mean = {
        row: {budget: round(statistics.mean(values), 4) for budget, values in own.items()}
        for row, own in accuracies.items()
    }
    args.out, args.weights, args.run = out, weights and weights.name, args.run and args.run.name
    args.source, args.root = Path(args.source).name, Path(args.root).name
    publish(args, {**result, "seconds": seconds, "test_accuracy": mean, "by_split": accuracies})


if __name__ == "__main__":
    main()

"""Does it help to smooth logistic regression over unlabeled neighbors? On frozen features of texts and images.

    python scripts/bench/smoothing.py --texts FILE.csv ... --encoder hf/FOLDER --out FILE
    python scripts/bench/smoothing.py --images FOLDER ... --backbone NAME --weights FILE --image_size 96 --out FILE
    python scripts/bench/smoothing.py --images FashionMNIST --weights FILE --pool 60000 --test 10000 --labels 4 10 100 \
        --all_labels --out scripts/bench/results/smoothing_fashion_mnist.json

Of each source, at most 6,000 training examples are the pool, from which 4, 8 and 20 of each class are labeled, and at
most 2,000 are the test. Logistic regression, `SmoothedLogisticRegression` and label spreading (on 128 whitened
components) on the same features; mean test accuracy over the draws. `--all_labels` adds logistic regression on all
labels of the pool, the ceiling.

Hypotheses, written down after descriptions of Debian packages (`text_sets.py`), on which the rule and its 50 neighbors
were chosen, and before any other source: smoothing is above logistic regression by 2 points or more with 4 and 8 labels
of a class, on each of glosses, 20 Newsgroups, R8 and clip art, and not below it with 20.
Budget: 10 minutes of one core for a source, most of it for the features.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from provenance import publish
from text_starts import choose, use_label_spreading
from torch import Tensor

from sft_lightning import ImageDataModule, TextDataModule
from sft_lightning.classifiers import LogisticRegression, SmoothedLogisticRegression
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.data.splits import Split
from sft_lightning.networks.build import build_encoder
from sft_lightning.networks.encoder import Encoder
from sft_lightning.transfer.vectors import stack_vectors


def read_vectors(data: FewLabelDataModule, name: str, most: int, encoder: Encoder) -> tuple[Tensor, Tensor]:
    """Return features and classes of some examples of a split, chosen at random.

    Args:
        data: Data module after its setup.
        name: Name of the split.
        most: Number of examples.
        encoder: Frozen network.
    """
    split = data.splits[name]
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:most]
    data.splits["chosen"] = Split(split.part, [split.indices[i] for i in order.tolist()])
    x, y, _ = stack_vectors(data.batches_of("chosen", torch.device("cpu")), data, encoder)
    return x, y


def compare(
    x: Tensor, y: Tensor, test: Tensor, y_test: Tensor, labels: list[int], seeds: list[int]
) -> dict[str, dict[int, list[float]]]:
    """Return the test accuracy of each classifier by the number of labels and the draw.

    Args:
        x: Features of the pool, (N, F).
        y: Their classes, (N,).
        test: Features of the test examples, (M, F).
        y_test: Their classes, (M,).
        labels: Numbers of labels of each class.
        seeds: Seeds of the draws.
    """
    spread = use_label_spreading(x, test)
    accuracy: dict[str, dict[int, list[float]]] = {}
    for each in labels:
        for seed in seeds:
            known = choose(y, each, seed)
            others = torch.ones(len(x), dtype=torch.bool).index_fill(0, known, False)
            classes = int(y.max()) + 1
            smoothed = SmoothedLogisticRegression().fit(x[known], y[known], x[others], classes)
            predicted = {
                "logistic regression": smoothed.linear.predict(test),
                "smoothed logistic regression": smoothed.predict(test),
                "label spreading": spread(known, y[known]),
            }
            for name, answer in predicted.items():
                right = float((answer == y_test).double().mean())
                accuracy.setdefault(name, {}).setdefault(each, []).append(round(right, 4))
    return accuracy


def main() -> None:
    """Compare on each source."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, nargs="*", default=[], help="tables with the columns text and label")
    parser.add_argument("--encoder", help="hf/ and a folder, of texts")
    parser.add_argument("--max_length", type=int, default=64)
    parser.add_argument("--images", type=Path, nargs="*", default=[], help="folders of class folders, or data sets")
    parser.add_argument("--backbone", default="timm/tf_efficientnet_lite0")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--image_size", type=int, default=96)
    parser.add_argument("--labels", type=int, nargs="+", default=[4, 8, 20], help="of each class")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--pool", type=int, default=6000, help="training examples, at most")
    parser.add_argument("--test", type=int, default=2000, help="test examples, at most")
    parser.add_argument("--all_labels", action="store_true", help="add logistic regression on all labels of the pool")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.out, weights = args.out and args.out.resolve(), args.weights and args.weights.resolve()
    sources = [path.resolve() if path.exists() else path for path in (*args.texts, *args.images)]
    os.chdir(tempfile.mkdtemp())
    results: dict[str, Any] = {}
    for number, source in enumerate(sources):
        begin, is_text = time.process_time(), number < len(args.texts)
        data: FewLabelDataModule
        if is_text:
            data = TextDataModule(str(source), tokenizer=args.encoder, max_length=args.max_length, val_size=0)
            data.setup("fit")
            encoder, _ = build_encoder(args.encoder, data.input_spec, "default")
        else:
            settings: dict[str, Any] = {"image_size": args.image_size, "on_bad_image": "skip", "resize": "pad"}
            data = ImageDataModule(str(source), **settings, val_size=0)
            data.setup("fit")
            encoder, _ = build_encoder(args.backbone, data.input_spec, str(weights))
        x, y = read_vectors(data, "labeled", args.pool, encoder)
        test, y_test = read_vectors(data, "test", args.test, encoder)
        accuracy = compare(x, y, test, y_test, args.labels, args.seeds)
        mean = {name: {k: round(statistics.mean(v), 4) for k, v in rows.items()} for name, rows in accuracy.items()}
        if args.all_labels:
            right = LogisticRegression().fit(x, y).predict(test) == y_test
            mean["logistic regression on all labels"] = {len(x): round(float(right.double().mean()), 4)}
        counts = {"pool": len(x), "test": len(test), "classes": int(y.max()) + 1}
        seconds = round(time.process_time() - begin)
        results[source.stem] = {**counts, "mean": mean, "accuracy": accuracy, "cpu_seconds": seconds}
        print(source.stem, counts, mean, flush=True)
    args.texts, args.images = [path.name for path in args.texts], [path.name for path in args.images]
    args.encoder, args.weights = args.encoder and Path(args.encoder).name, weights and weights.name
    publish(args, {"results": results})


if __name__ == "__main__":
    main()

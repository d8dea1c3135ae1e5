"""Which penalty should logistic regression have by default? Pixels and features of several numbers, few labels.

    python scripts/bench/penalties.py --root FOLDER --out scripts/bench/results/penalties.json

Hypothesis: the best strength (scikit-learn's C) falls with the number of features F, since the squared length of a
standardized example is F, so that one factor f in C = f / F suits all, and a strength of 1 is too weak a penalty of
many features. The data are digits (MNIST), which no published figure of the classifier's default is about; networks are
untrained. Mean test accuracy over seeds of random balanced labels. Budget: 5 minutes of one core.
"""

import argparse
import statistics
from pathlib import Path

import torch
from pretraining_starts import choose_balanced
from provenance import publish

from sft_lightning import ImageDataModule
from sft_lightning.classifiers import LogisticRegression
from sft_lightning.networks.build import build_encoder
from sft_lightning.transfer.vectors import stack_vectors


def main() -> None:
    """Compare the factors on each kind of features."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="MNIST")
    parser.add_argument("--root", default="data", help="folder of the source")
    parser.add_argument("--features", nargs="+", default=["pixels", "conv", "resnet8", "resnet8:flatten"])
    parser.add_argument("--factors", type=float, nargs="+", default=[1, 3, 10, 30, 100, 300, 1000])
    parser.add_argument("--labels", type=int, nargs="+", default=[40, 100, 1000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    data = ImageDataModule(args.source, root=args.root, val_size=0, eval_batch_size=1000)
    data.setup("fit")
    cpu = torch.device("cpu")
    accuracies = {}
    for name in args.features:
        torch.manual_seed(0)
        backbone = None if name == "pixels" else build_encoder(name, data.input_spec)[0]
        x, y, _ = stack_vectors(data.batches_of("labeled", cpu), data, backbone)
        x_test, y_test, _ = stack_vectors(data.batches_of("test", cpu), data, backbone)
        for budget in args.labels:
            chosen = [choose_balanced(y, budget, seed) for seed in args.seeds]
            strengths = {"1": 1.0} | {f"{f:g} / {x.shape[1]}": f / x.shape[1] for f in args.factors}
            row = {}
            for label, strength in strengths.items():
                models = [LogisticRegression(strength).fit(x[c], y[c], num_classes=data.num_classes) for c in chosen]
                right = [float((model.predict(x_test) == y_test).double().mean()) for model in models]
                row[label] = round(statistics.mean(right), 4)
            accuracies[f"{name}, {budget} labels"] = row
            print(name, budget, row, flush=True)
    publish(args, {"test_accuracy": accuracies})


if __name__ == "__main__":
    main()

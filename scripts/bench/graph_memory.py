"""How much memory and time does label spreading take for a million examples? Random clusters, an approximate index.

    python scripts/bench/graph_memory.py --out scripts/bench/results/graph_memory.json

Vectors are drawn from one Gaussian for each of 10 classes, far enough apart to be distinguished, and 100 of
them have a label. `peak_mib` is the largest resident memory of the process, `kept_mib` that of the vectors alone.
Needs faiss (extra `graph`). Budget: 20 minutes of one core.
"""

import argparse
import resource
import time
from pathlib import Path

import torch
from provenance import publish

from sft_lightning.classifiers import LabelSpreading


def main() -> None:
    """Fit once and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    y = torch.arange(args.examples) % 10
    x = torch.randn(args.examples, args.features) + 2 * torch.randn(10, args.features)[y]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.process_time()
    classifier = LabelSpreading(approximate=True).fit(x[:100], y[:100], x[100:])
    seconds = time.process_time() - began
    right = float((classifier.unlabeled_proba.argmax(1) == y[100:]).double().mean())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    results = {"cpu_seconds": round(seconds), "peak_mib": round(peak), "before_mib": round(before)}
    publish(args, {**results, "kept_mib": round(4 * x.numel() / 2**20), "accuracy": round(right, 4)})


if __name__ == "__main__":
    main()

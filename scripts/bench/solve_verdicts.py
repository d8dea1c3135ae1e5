"""How often does `solve` settle its verdict, and how often does its interval hold the truth? The shipped sample.

    python scripts/bench/solve_verdicts.py --out scripts/bench/results/solve_verdicts.json

Each seed draws its own labels. The accuracy that `solve` reports from the labels alone is compared with that of the
delivered model on the 2,000 images that the source holds out, which no choice has seen. The verdict is the one of the
quickstart: the best recipe with unlabeled images against the best one without, on the held-out images. `--minutes`
below 1 leaves networks out, so that a call takes some ten seconds.
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from provenance import publish

from sft_lightning import solve


def main() -> None:
    """Solve the sample again and again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="sample")
    parser.add_argument("--labels", type=int, nargs="+", default=[40, 100])
    parser.add_argument("--seeds", type=int, nargs="+", default=[*range(10)])
    parser.add_argument("--minutes", type=float, default=0.1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.out = args.out and args.out.resolve()
    os.chdir(tempfile.mkdtemp())
    rows: list[dict[str, Any]] = []
    for labels in args.labels:
        for seed in args.seeds:
            name = f"{labels}_{seed}"
            summary = solve(args.source, minutes=args.minutes, name=name, num_labels=labels, seed=seed).summary
            mean, low, high = (round(value, 4) for value in summary["accuracy"])
            truth = round(summary["test_accuracy"], 4)
            names = ("unlabeled", "recipe", "recipes", "seconds")
            covered = low <= truth <= high
            rows.append(
                {"labels": labels, "seed": seed, "reported": [mean, low, high], "test": truth, "covered": covered}
                | {name: summary[name] for name in names}
            )
    totals = {}
    for labels in args.labels:
        own = [row for row in rows if row["labels"] == labels]
        settled = sum(row["unlabeled"] != "no evidence yet" for row in own)
        covered = sum(row["covered"] for row in own)
        totals[str(labels)] = {"calls": len(own), "settled": settled, "covered": covered}
    publish(args, {"totals": totals, "calls": rows})


if __name__ == "__main__":
    main()

"""How good is `solve` on texts of several classes, against one-vs-rest logistic regression on TF-IDF?

    apt-get update
    python scripts/bench/debtags.py debtags.csv --facets role interface implemented-in works-with --fewest 300
    python scripts/bench/solve_sets.py debtags.csv --encoder hf/FOLDER --out scripts/bench/results/solve_sets.json

Of the texts that have a class, 200 are labeled, 1,000 more are the pool without labels, and 1,000 of other source
packages are held out; a package whose classes none of the 200 has is not held out. `solve` gets the labeled texts and
the pool, and judges by cross-fitting. Beside it, with the same labels: scikit-learn's logistic regression of each class
against its absence on its TF-IDF (C = 10), at a probability of 0.5, and at the one threshold for all classes that is
best on its predictions in five folds. All are judged by the mean F1 by example on the texts held out.

The second question is how thresholds are best chosen: of the same logistic regression and folds, `thresholds` has the
figure with a threshold of each class (`fit_thresholds`), too.

Hypotheses, written down before the first run: (1) `solve` with an encoder is above scikit-learn at the threshold of the
folds in each of three draws, without it equal within 3 points; (2) one threshold for all classes is above one of each
class by 3 points or more; (3) the interval of `solve` holds its figure on the texts held out in each draw.
Budget: 10 minutes of one core for all draws.
"""

import argparse
import csv
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from provenance import publish
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from sft_lightning import solve
from sft_lightning.data.set_folds import make_set_folds
from sft_lightning.tasks.multi_label_metrics import compute_example_f1, fit_shared_threshold, fit_thresholds

LABELED, POOL, TEST = 200, 1000, 1000
SEPARATOR = ";"
Row = dict[str, str]


def divide(table: Path, seed: int) -> tuple[list[Row], list[Row], list[Row]]:
    """Draw labeled, unlabeled and held-out texts, whose source packages are not among the others'.

    Args:
        table: Table with the columns text, label, group and id.
        seed: Seed of the draw.
    """
    with table.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["label"].strip(SEPARATOR)]
    random.Random(seed).shuffle(rows)
    few, pool = rows[:LABELED], rows[LABELED : LABELED + POOL]
    taken, known = {row["group"] for row in few + pool}, {name for row in few for name in list_classes(row)}
    free = (row for row in rows[LABELED + POOL :] if row["group"] not in taken and known.issuperset(list_classes(row)))
    return few, pool, [row for _, row in zip(range(TEST), free, strict=False)]


def list_classes(row: Row) -> list[str]:
    """Return the classes of a row."""
    return row["label"].split(SEPARATOR)


def make_targets(labels: list[str], names: list[str]) -> Tensor:
    """Return 1 for each class of each label and 0 for the others, (N, C)."""
    return torch.tensor([[int(name in label.split(SEPARATOR)) for name in names] for label in labels])


def fit_each_class(x: Any, y: Tensor, tested: Any) -> Tensor:
    """Return the probability of each class, (N, C), by logistic regression against its absence."""
    columns = []
    for own in y.T:
        if 0 < int(own.sum()) < len(own):
            model = LogisticRegression(C=10, max_iter=1000).fit(x, own.numpy())
            columns.append(torch.from_numpy(model.predict_proba(tested)[:, 1]))
        else:
            columns.append(torch.full((tested.shape[0],), float(own.float().mean())).double())
    return torch.stack(columns, 1)


def judge_plain(few: list[Row], pool: list[Row], held_out: list[Row], names: list[str]) -> dict[str, float]:
    """Return the mean F1 by example of logistic regression on TF-IDF by three rules of its thresholds.

    Args:
        few: Labeled texts.
        pool: Unlabeled texts, whose words count, too.
        held_out: Texts to judge on.
        names: Classes.
    """
    vectorizer = TfidfVectorizer().fit([row["text"] for row in few + pool])
    x, tested = (vectorizer.transform([row["text"] for row in rows]) for rows in (few, held_out))
    y, truth = (make_targets([row["label"] for row in rows], names) for rows in (few, held_out))
    several = y.sum(0) > 1
    fold = make_set_folds(y[:, several].numpy(), [row["group"] for row in few])[0]
    p = torch.zeros(y.shape, dtype=torch.float64)
    for k in range(5):
        held = fold == k
        p[torch.from_numpy(held)] = fit_each_class(x[~held], y[torch.from_numpy(~held)], x[held])
    judged = torch.from_numpy(fold >= 0)
    rules = {
        "at 0.5": torch.tensor(0.5),
        "at one threshold": fit_shared_threshold(p[judged], y[judged]),
        "at a threshold of each class": fit_thresholds(p[judged], y[judged]),
    }
    found = fit_each_class(x, y, tested)
    return {rule: score((found >= limit).long(), truth) for rule, limit in rules.items()}


def score(decided: Tensor, truth: Tensor) -> float:
    """Return the mean F1 by example."""
    return round(float(compute_example_f1(decided, truth).double().mean()), 4)


def run_draw(table: Path, seed: int, encoder: str | None, minutes: float) -> dict[str, Any]:
    """Run `solve` without and with an encoder, and logistic regression beside it.

    Args:
        table: Table of texts.
        seed: Seed of the draw.
        encoder: Encoder, as `hf/FOLDER`, or None for words alone.
        minutes: Time of each `solve`.
    """
    few, pool, held_out = divide(table, seed)
    names = sorted({name for row in few for name in list_classes(row)})
    truth = make_targets([row["label"] for row in held_out], names)
    path = Path(f"draw_{seed}.csv")
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label", "group", "id"])
        rows.writerows((row["text"], row["label"], row["group"], row["id"]) for row in few)
        rows.writerows((row["text"], "", row["group"], row["id"]) for row in pool)
    result: dict[str, Any] = {"classes": len(names), "held_out": len(held_out), "f1": {}, "solve": {}}
    for kind, candidates in (("words", "none"), ("encoder", encoder)):
        if candidates is None:
            continue
        began = time.process_time()
        solved = solve(
            str(path), minutes=minutes, name=f"{kind}_{seed}", label_separator=SEPARATOR, candidates=[candidates]
        )
        seconds = round(time.process_time() - began)
        answers = solved.predict([row["text"] for row in held_out])
        f1 = score(make_targets([answer["predicted"] for answer in answers], names), truth)
        result["f1"][f"solve, {kind}"] = f1
        _, low, high = solved.summary["example_f1"]
        short = {name: name.replace(str(encoder), "the encoder") for name in solved.summary["recipes"]}
        result["solve"][kind] = {
            "recipe": short[solved.summary["recipe"]],
            "reported": [round(value, 4) for value in solved.summary["example_f1"]],
            "interval_holds": bool(low <= f1 <= high),
            "unlabeled": solved.summary["unlabeled"],
            "recipes": {short[name]: round(value, 4) for name, value in solved.summary["recipes"].items()},
            "cpu_seconds": seconds,
        }
    plain = judge_plain(few, pool, held_out, names)
    result["f1"] |= {f"logistic regression, {rule}": value for rule, value in plain.items()}
    return result


def main() -> None:
    """Run what the output file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--encoder")
    parser.add_argument("--minutes", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    out, source = args.out and args.out.resolve(), args.source.resolve()
    runs = json.loads(out.read_text())["runs"] if out and out.exists() else {}
    os.chdir(tempfile.mkdtemp())
    encoder, args.encoder = args.encoder, args.encoder and Path(args.encoder).name
    args.source, args.out = source.name, out
    for seed in args.seeds:
        if str(seed) in runs:
            continue
        runs[str(seed)] = run_draw(source, seed, encoder, args.minutes)
        ways: dict[str, list[float]] = {}
        for run in runs.values():
            for way, value in run["f1"].items():
                ways.setdefault(way, []).append(value)
        held = [one["interval_holds"] for run in runs.values() for one in run["solve"].values()]
        mean = {way: round(statistics.mean(values), 3) for way, values in ways.items()}
        publish(args, {"mean": mean, "intervals_that_hold": [sum(held), len(held)], "runs": runs})


if __name__ == "__main__":
    main()

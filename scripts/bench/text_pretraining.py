"""Does masked language modeling on the pool help a text encoder, before a few labels are learned?

    python scripts/bench/wordnet_glosses.py glosses.csv
    python scripts/bench/text_pretraining.py --source glosses.csv --backbone hf/FOLDER --weights default --epochs 3 \
        --out scripts/bench/results/text_pretraining_published.json
    python scripts/bench/text_pretraining.py --source glosses.csv --backbone small_transformer --rate 0.001 \
        --epochs 10 --tune_steps 60 --out scripts/bench/results/text_pretraining_small.json

Of the texts, 2,000 are for the test and 6,000 are the pool, of which `--labels` of each class are labeled. The encoder
learns to fill hidden tokens of the pool once; logistic regression on its frozen features, and with `--tune_steps` also
fine-tuning from it, are compared with the same from the encoder as it was. Mean test accuracy over the seeds.

Hypotheses, written down before the first run: a small transformer gains at least 3 points at 8 labels of a class, in
both; a published sentence encoder gains nothing with frozen features, because filling words undoes what made it one.
Budget: 15 minutes of two cores for both.
"""

import argparse
import csv
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from provenance import publish

from sft_lightning import AutoencoderModule, FineTuneClassifier, TextDataModule
from sft_lightning.classifiers import LogisticRegression
from sft_lightning.data.text.views import TextView
from sft_lightning.networks.build import build_encoder
from sft_lightning.training.lr_schedulers import WarmupCosine
from sft_lightning.transfer.vectors import stack_vectors
from sft_lightning.utils.cpu import prepare_cpu

TEST, POOL = 2000, 6000
QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def write_part(source: str, path: Path) -> Path:
    """Write the pool and the test as a table."""
    with Path(source).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    random.Random(0).shuffle(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["text", "label", "split"])
        for i, row in enumerate(rows[: TEST + POOL]):
            out.writerow([row["text"], row["label"], "test" if i < TEST else "train"])
    return path


def main() -> None:
    """Compare on one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--weights", default="none")
    parser.add_argument("--max_length", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--tune_steps", type=int, default=0)
    parser.add_argument("--labels", type=int, nargs="+", default=[4, 8, 20], help="of each class")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    prepare_cpu()
    with tempfile.TemporaryDirectory() as folder:
        table = str(write_part(args.source, Path(folder) / "part.csv"))

        def open_data(labels: int, seed: int, **settings: object) -> TextDataModule:
            return TextDataModule(
                table, tokenizer=args.backbone if args.backbone.startswith("hf/") else None, val_size=0, seed=seed,
                max_length=args.max_length, labels_per_class=labels, **settings,  # type: ignore[arg-type]
            )  # fmt: skip

        data = open_data(1, 0, batch_size=64, weak_view=TextView())
        torch.manual_seed(0)
        model = AutoencoderModule(
            args.backbone, data.input_spec, hidden=0.15, weights=args.weights,
            optimizer=lambda p: torch.optim.AdamW(p, args.rate, weight_decay=0.01),
            lr_scheduler=lambda optimizer: WarmupCosine(optimizer, warmup_steps=50),
        )  # fmt: skip
        begin = time.process_time()
        trainer = Trainer(max_epochs=args.epochs, **QUIET)
        trainer.fit(model, data)
        seconds = round(time.process_time() - begin, 1)
        filled = {name: round(float(value), 4) for name, value in trainer.callback_metrics.items()}
        after = Path(folder) / "encoder.safetensors"
        model.save_encoder(after)
        accuracies: dict[str, dict[int, list[float]]] = {}
        for start, weights in (("as it was", args.weights), ("after filling words", str(after))):
            torch.manual_seed(0)
            encoder, _ = build_encoder(args.backbone, data.input_spec, weights)
            for each in args.labels:
                for seed in args.seeds:
                    data = open_data(each, seed, batch_size=32)
                    data.setup("fit")
                    device = torch.device("cpu")
                    x, y, _ = stack_vectors(data.batches_of("labeled", device), data, encoder)
                    x_test, y_test, _ = stack_vectors(data.batches_of("test", device), data, encoder)
                    right = float((LogisticRegression().fit(x, y).predict(x_test) == y_test).double().mean())
                    accuracies.setdefault(f"frozen, {start}", {}).setdefault(each, []).append(round(right, 4))
                    if args.tune_steps:
                        torch.manual_seed(seed)
                        classifier = FineTuneClassifier(
                            args.backbone, data.num_classes, data.input_spec, weights=weights,
                            head_start="logistic_regression", optimizer=lambda p: torch.optim.AdamW(p, 3e-4),
                        )  # fmt: skip
                        data = open_data(each, seed, batch_size=32, steps_per_epoch=args.tune_steps)
                        trainer = Trainer(max_epochs=1, **QUIET)
                        trainer.fit(classifier, data)
                        (metrics,) = trainer.test(classifier, data, verbose=False)
                        rows = accuracies.setdefault(f"fine-tuned, {start}", {})
                        rows.setdefault(each, []).append(round(metrics["test/accuracy"], 4))
            print(accuracies, flush=True)
    mean = {way: {k: round(statistics.mean(v), 3) for k, v in rows.items()} for way, rows in accuracies.items()}
    args.source, args.backbone = Path(args.source).name, Path(args.backbone).name
    publish(args, {"mean": mean, "accuracy": accuracies, "filled": filled, "cpu_seconds_of_pretraining": seconds})


if __name__ == "__main__":
    main()

"""Measure whether an autoencoder on the unlabeled images helps with 100 labels, for each variant and seed.

    python scripts/bench/pretraining.py --seeds 0 1 2 --out scripts/bench/results/pretraining.json

For each seed (of the split, the initialization and the batches), it trains the network from scratch and from each
variant of the autoencoder, once with all layers tuned and once with the encoder frozen, all with the same number of
steps and through the command line. Accuracy is that of the last iterate on the test split of the shipped sample. The
baseline is logistic regression on the pixels. Runs that are in the output file are skipped.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from commands import fit, test
from provenance import collect_provenance

from sft_lightning.study.baselines import fit_logistic_regression

VARIANTS: dict[str, list[str]] = {
    "mlp": [],
    "mlp denoising": ["--model.init_args.noise", "0.3"],
    "mlp masked": ["--model.init_args.hidden", "0.5"],
    "conv": [],
    "conv denoising": ["--model.init_args.noise", "0.3"],
    "conv masked": ["--model.init_args.hidden", "0.5"],
    "mlp on digits": ["--data.init_args.unlabeled_source", "sample-digits"],
}


def main() -> None:
    """Run what is missing in the output file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--epochs", type=int, default=20, help="epochs of the autoencoder")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    out = args.out.resolve()
    rows: dict[str, dict[str, float]] = json.loads(out.read_text())["test_accuracy"] if out.exists() else {}

    def record(row: str, seed: int, accuracy: float) -> None:
        rows.setdefault(row, {})[str(seed)] = round(accuracy, 4)
        mean = {
            name: [round(statistics.mean(v.values()), 4), round(statistics.stdev(v.values()), 4) if len(v) > 1 else 0.0]
            for name, v in rows.items()
        }
        content = {
            **collect_provenance(),
            "what": "100 labels of the shipped sample, final iterate, test accuracy by seed",
            "autoencoder_epochs": args.epochs,
            "mean_and_deviation": mean,
            "test_accuracy": rows,
        }
        out.write_text(json.dumps(content, indent=1) + "\n")

    os.chdir(tempfile.mkdtemp())
    start = time.monotonic()
    for seed in args.seeds:
        for network in sorted({variant.split()[0] for variant in args.variants}):
            backbone = ["--model.init_args.backbone", network]
            if str(seed) not in rows.get(f"{network} from scratch", {}):
                folder, cli = fit(["quickstart/fine_tune.yaml"], "scratch", seed, *backbone)
                record(f"{network} from scratch", seed, test(folder))
                record("logistic regression", seed, fit_logistic_regression(cli.datamodule))
        for variant in args.variants:
            if str(seed) in rows.get(f"{variant}, frozen", {}):
                continue
            network = variant.split()[0]
            epochs = ["--trainer.max_epochs", str(args.epochs), "--model.init_args.network", network]
            encoder, _ = fit(["quickstart/autoencoder.yaml"], "autoencoder", seed, *epochs, *VARIANTS[variant])
            pretrained = ["--model.init_args.backbone", network, "--model.init_args.weights", str(encoder)]
            folder, _ = fit(["quickstart/fine_tune.yaml"], "tuned", seed, *pretrained)
            record(f"{variant}, all tuned", seed, test(folder))
            folder, _ = fit(
                ["quickstart/fine_tune.yaml"], "frozen", seed, *pretrained, "--model.init_args.tune", "head"
            )
            record(f"{variant}, frozen", seed, test(folder))
    print(json.dumps({"seconds": round(time.monotonic() - start), **json.loads(out.read_text())}, indent=1))


if __name__ == "__main__":
    main()

"""Does an autoencoder on the unlabeled images help 100 labels? Each variant through the command line, several seeds.

    python scripts/bench/pretraining.py --seeds 0 1 2 --out scripts/bench/results/pretraining.json

For each seed (of the split, the initialization and the batches): the network from scratch, and after each variant of
the autoencoder with all of it tuned and with the encoder frozen; the same steps for all; accuracy of the last iterate
on the test split of the shipped sample. Logistic regression on the pixels stands beside them. What is in the output
file is not run again.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from about import about
from commands import fit, test

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
    """Runs what is missing in the output file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--epochs", type=int, default=20, help="of the autoencoder")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    out = args.out.resolve()
    done: dict[str, dict[str, float]] = json.loads(out.read_text())["test_accuracy"] if out.exists() else {}

    def record(row: str, seed: int, value: float) -> None:
        done.setdefault(row, {})[str(seed)] = round(value, 4)
        mean = {
            name: [round(statistics.mean(v.values()), 4), round(statistics.stdev(v.values()), 4) if len(v) > 1 else 0.0]
            for name, v in done.items()
        }
        how = {
            "what": "100 labels of the shipped sample, final iterate, test accuracy by seed",
            "autoencoder_epochs": args.epochs,
        }
        out.write_text(
            json.dumps({**about(), **how, "mean_and_deviation": mean, "test_accuracy": done}, indent=1) + "\n"
        )

    os.chdir(tempfile.mkdtemp())
    start = time.monotonic()
    for seed in args.seeds:
        for network in sorted({variant.split()[0] for variant in args.variants}):
            backbone = ["--model.init_args.backbone", network]
            if str(seed) not in done.get(f"{network} from scratch", {}):
                folder, cli = fit(["quickstart/fine_tune.yaml"], "scratch", seed, *backbone)
                record(f"{network} from scratch", seed, test(folder))
                record("logistic regression", seed, fit_logistic_regression(cli.datamodule))
        for variant in args.variants:
            if str(seed) in done.get(f"{variant}, frozen", {}):
                continue
            network = variant.split()[0]
            epochs = ["--trainer.max_epochs", str(args.epochs), "--model.init_args.network", network]
            encoder, _ = fit(["quickstart/autoencoder.yaml"], "autoencoder", seed, *epochs, *VARIANTS[variant])
            start_from = ["--model.init_args.backbone", network, "--model.init_args.weights", str(encoder)]
            folder, _ = fit(["quickstart/fine_tune.yaml"], "tuned", seed, *start_from)
            record(f"{variant}, all tuned", seed, test(folder))
            folder, _ = fit(
                ["quickstart/fine_tune.yaml"], "frozen", seed, *start_from, "--model.init_args.tune", "head"
            )
            record(f"{variant}, frozen", seed, test(folder))
    print(json.dumps({"seconds": round(time.monotonic() - start), **json.loads(out.read_text())}, indent=1))


if __name__ == "__main__":
    main()

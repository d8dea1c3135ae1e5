"""The reference of METHODS through the command line: what `reference_loop.py` does, with the shipped configs.

    python scripts/bench/reference_framework.py --seeds 0 1 2 --out result.json

Runs are kept in `lightning_logs/reference/`; started again, it goes on where it was. Prints JSON: per seed the test
accuracy of the last iterate and the held-out reconstruction loss.
"""

import argparse
import json
from pathlib import Path

from about import about

from sft_lightning.cli.lightning_cli import run
from sft_lightning.runs.paths import LOGS

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "reference"


def phase(config: str, name: str, seed: int, epochs: int, *extra: str) -> tuple[Path, dict[str, float]]:
    """Trains (or goes on) and tests; gives the run's folder and its test metrics."""
    folder = Path(LOGS) / name / "version_0"
    resume = ["--ckpt_path", "last"] if (folder / "checkpoints" / "last.ckpt").is_file() else []
    seeds = ["--seed_everything", str(seed), "--data.init_args.seed", str(seed)]
    length = ["--trainer.max_epochs", str(epochs), "--run_name", name]
    run(["fit", "--config", str(CONFIGS / config), *seeds, *length, *resume, *extra])
    tested = run(["test", "--ckpt_path", str(folder)])
    return folder, {key: float(value) for key, value in tested.trainer.callback_metrics.items()}


def main() -> None:
    """Runs the seeds one after the other and rewrites the output after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=100, help="of each phase")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    runs = []
    for seed in args.seeds:
        encoder, first = phase("autoencoder_fashion_mnist.yaml", f"reference/autoencoder-{seed}", seed, args.epochs)
        start = ["--model.init_args.weights", str(encoder)]
        _, second = phase("finetune_fashion_mnist.yaml", f"reference/finetune-{seed}", seed, args.epochs, *start)
        runs.append(
            {"seed": seed, "test_accuracy": second["test/accuracy"], "test_reconstruction_loss": first["test/loss"]}
        )
        text = json.dumps({"loop": "sft-lightning", "epochs": args.epochs, **about(), "runs": runs}, indent=1)
        if args.out:
            args.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()

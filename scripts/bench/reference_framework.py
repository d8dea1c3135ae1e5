"""Run the reference training of `reference_loop.py` through the command line with the shipped configs.

    python scripts/bench/reference_framework.py --seeds 0 1 2 --out result.json

Runs are kept in `lightning_logs/reference/`, and an interrupted benchmark resumes from there. It prints JSON with the
test accuracy of the last iterate and the reconstruction loss on the test split for each seed.
"""

import argparse
import json
from pathlib import Path

from provenance import collect_provenance

from sft_lightning.cli.lightning_cli import run
from sft_lightning.runs.paths import LOGS

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "reference"


def run_phase(config: str, name: str, seed: int, epochs: int, *extra: str) -> tuple[Path, dict[str, float]]:
    """Train or resume one phase, test it, and return the run's folder and its test metrics.

    Args:
        config: Name of the config.
        name: Name of the run.
        seed: Seed of the split, the initialization and the batches.
        epochs: Number of epochs.
        extra: Further options of `fit`.
    """
    folder = Path(LOGS) / name / "version_0"
    resume = ["--ckpt_path", "last"] if (folder / "checkpoints" / "last.ckpt").is_file() else []
    seeds = ["--seed_everything", str(seed), "--data.init_args.seed", str(seed)]
    settings = ["--trainer.max_epochs", str(epochs), "--run_name", name]
    run(["fit", "--config", str(CONFIGS / config), *seeds, *settings, *resume, *extra])
    cli = run(["test", "--ckpt_path", str(folder)])
    return folder, {key: float(value) for key, value in cli.trainer.callback_metrics.items()}


def main() -> None:
    """Run the seeds one after another and rewrite the output after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=100, help="epochs of each phase")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    runs = []
    for seed in args.seeds:
        name = f"reference/autoencoder-{seed}"
        encoder, pretrained = run_phase("autoencoder_fashion_mnist.yaml", name, seed, args.epochs)
        weights = ["--model.init_args.weights", str(encoder)]
        name = f"reference/finetune-{seed}"
        _, tuned = run_phase("finetune_fashion_mnist.yaml", name, seed, args.epochs, *weights)
        runs.append(
            {"seed": seed, "test_accuracy": tuned["test/accuracy"], "test_reconstruction_loss": pretrained["test/loss"]}
        )
        content = {"loop": "sft-lightning", "epochs": args.epochs, **collect_provenance(), "runs": runs}
        text = json.dumps(content, indent=1)
        if args.out:
            args.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()

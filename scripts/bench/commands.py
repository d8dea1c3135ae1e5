"""What the benches run through the command line."""

from pathlib import Path

from sft_lightning.cli import SFTCLI, run

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu")


def fit(configs: list[str], name: str, seed: int, *extra: str) -> tuple[Path, SFTCLI]:
    """One `fit`; gives the run's folder and what took part.

    Args:
        configs: Below `configs/`.
        name: Of the run.
        seed: Of the split, the initialization and the batches.
        extra: Further words.
    """
    given = [word for config in configs for word in ("--config", str(CONFIGS / config))]
    seeds = [f"--seed_everything={seed}", f"--data.init_args.seed={seed}"]
    cli = run(["fit", *given, f"--run_name={name}", *seeds, *QUIET, *extra])
    return Path(cli.trainer.log_dir or "."), cli


def test(folder: Path) -> float:
    """Test accuracy of a run's last iterate."""
    cli = run(["test", f"--ckpt_path={folder}", *QUIET])
    return float(cli.trainer.callback_metrics["test/accuracy"])

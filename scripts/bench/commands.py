"""Run trainings and tests through the command line, as the benchmarks need them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from sft_lightning.cli.lightning_cli import SFTCLI, run
from sft_lightning.training.callbacks.checkpoint import EpochPosition, RunCheckpoint

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu")


def fit(configs: list[str], name: str, seed: int, *extra: str) -> tuple[Path, SFTCLI]:
    """Train once and return the run's folder and the CLI with its trainer, model and data module.

    Args:
        configs: Paths of the configs, relative to `configs/`.
        name: Name of the run.
        seed: Seed of the split, the initialization and the batches.
        extra: Further options.
    """
    config_argv = [arg for config in configs for arg in ("--config", str(CONFIGS / config))]
    seeds = [f"--seed_everything={seed}", f"--data.init_args.seed={seed}"]
    cli = run(["fit", *config_argv, f"--run_name={name}", *seeds, *QUIET, *extra])
    return Path(cli.trainer.log_dir or "."), cli


def test(folder: Path) -> float:
    """Return the test accuracy of a run's last iterate."""
    cli = run(["test", f"--ckpt_path={folder}", *QUIET])
    return float(cli.trainer.callback_metrics["test/accuracy"])


def find_callback(cli: SFTCLI, name: str) -> Any:
    """Return the only callback of the class called `name`.

    The class of a script that runs as `__main__` is not the class that `--trainer.callbacks` imports, so `isinstance`
    cannot find it.
    """
    (callback,) = (c for c in cli.trainer.callbacks if type(c).__name__ == name)  # type: ignore[attr-defined]
    return callback


@contextmanager
def time_saves(seconds: list[float]) -> Iterator[None]:
    """Time each save of the last iterate during the trainings inside this context, except for the one at the end.

    Args:
        seconds: List to which the seconds of each save are appended.
    """
    save_if_due, save = RunCheckpoint._save_if_due, RunCheckpoint.save_last_iterate

    def timed_save(self: RunCheckpoint, trainer: Trainer, position: EpochPosition = "inside") -> None:
        start = time.perf_counter()
        save(self, trainer, position)
        seconds.append(time.perf_counter() - start)

    def timed_save_if_due(self: RunCheckpoint, *args: Any) -> None:
        RunCheckpoint.save_last_iterate = timed_save  # type: ignore[method-assign]
        try:
            save_if_due(self, *args)
        finally:
            RunCheckpoint.save_last_iterate = save  # type: ignore[method-assign]

    RunCheckpoint._save_if_due = timed_save_if_due  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        RunCheckpoint._save_if_due = save_if_due  # type: ignore[method-assign]

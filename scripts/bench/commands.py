"""What the benches run through the command line."""

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


@contextmanager
def timed_saves(seconds: list[float]) -> Iterator[None]:
    """Trainings inside say how long each save of the last iterate on the way took, without the one at the end.

    Args:
        seconds: Takes them.
    """
    own, save = RunCheckpoint._save_if_due, RunCheckpoint.save_last_iterate

    def timed(self: RunCheckpoint, trainer: Trainer, position: EpochPosition = "inside") -> None:
        start = time.perf_counter()
        save(self, trainer, position)
        seconds.append(time.perf_counter() - start)

    def within(self: RunCheckpoint, *args: Any) -> None:
        RunCheckpoint.save_last_iterate = timed  # type: ignore[method-assign]
        try:
            own(self, *args)
        finally:
            RunCheckpoint.save_last_iterate = save  # type: ignore[method-assign]

    RunCheckpoint._save_if_due = within  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        RunCheckpoint._save_if_due = own  # type: ignore[method-assign]

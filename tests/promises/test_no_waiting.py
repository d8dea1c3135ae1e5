"""A training step reads nothing back from the device: `aten::_local_scalar_dense` occurs at logging steps alone."""

from bisect import bisect_right
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.profiler import ProfilerActivity, profile, record_function

from sft_lightning.cli import run
from tests.conftest import CONFIGS

SHARED = ["semi_supervised/shared.yaml"]
SHIPPED = {
    "autoencoder": ["quickstart/autoencoder.yaml"],
    "fine_tune": ["quickstart/fine_tune.yaml"],
    "decoupled": ["quickstart/decoupled.yaml"],
    **{
        name: [*SHARED, f"semi_supervised/{name}.yaml"]
        for name in sorted(p.stem for p in (CONFIGS / "semi_supervised").glob("*.yaml"))
        if name != "shared"
    },
}
MARK = "step of the test"


class Reads(Callback):
    """Counts what 100 steps read, step by step; a step ends where the next one begins."""

    def __init__(self) -> None:
        self.found: Counter[int] = Counter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.profile = profile(activities=[ProfilerActivity.CPU])
        self.profile.__enter__()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        with record_function(MARK):
            pass

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 101:
            self.profile.__exit__(None, None, None)
            assert self.profile.profiler is not None
            assert self.profile.profiler.kineto_results is not None
            events = self.profile.profiler.kineto_results.events()
            starts = sorted(e.start_ns() for e in events if e.name() == MARK)
            reads = (e.start_ns() for e in events if e.name() == "aten::_local_scalar_dense")
            self.found = Counter(bisect_right(starts, at) for at in reads)


@pytest.mark.parametrize("name", list(SHIPPED))
def test_only_logging_steps_read(name: str, workdir: Path) -> None:
    words = [word for config in SHIPPED[name] for word in ("--config", str(CONFIGS / config))]
    words += ["--run_name=run", "--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.limit_val_batches=0"]
    words += ["--data.init_args.batch_size=4", "--data.init_args.steps_per_epoch=102", "--model.init_args.backbone=mlp"]
    words += ["--trainer.callbacks=tests.promises.test_no_waiting.Reads", "--data.init_args.num_labels=40"]
    words += ["--data.init_args.unlabeled_ratio=2"]
    done = run(["fit", *words])
    (seen,) = (c for c in done.trainer.callbacks if isinstance(c, Reads))
    print(name, dict(seen.found))

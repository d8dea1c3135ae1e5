"""Trains on two gloo processes through the command line, with the lean step and with Lightning's; for `test_lean`."""

import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch import Trainer

from sft_lightning.cli import fast_loop
from sft_lightning.cli.lightning_cli import SFTCLI
from tests.paradigms.helpers import Recorder, cli, state

TWO = ("--trainer.accelerator=cpu", "--trainer.strategy=ddp", "--trainer.devices=2")


class Seen(Recorder):
    """Also what DDP sends from the first process to all others before each pass."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        wrapped: Any = trainer.strategy.model
        self.sent = list(wrapped.named_module_buffers)


def trained(*words: str) -> tuple[SFTCLI, Seen]:
    done = cli("fit", "fine_tune", *TWO, "--trainer.callbacks=tests.paradigms.lean_worker.Seen", *words)
    return done, next(c for c in done.trainer.callbacks if isinstance(c, Seen))  # type: ignore[attr-defined]


def main(out: Path) -> None:
    os.chdir(out)
    found: dict[str, Any] = {}
    for is_lean in (True, False):
        with (
            patch.object(fast_loop, "CALLBACKS", fast_loop.CALLBACKS | ({Seen} if is_lean else set())),
            patch.object(torch.distributed, "broadcast", wraps=torch.distributed.broadcast) as asked,
        ):
            done, seen = trained("--model.init_args.class_weights=balanced")
        loop: Any = done.trainer.fit_loop.epoch_loop
        found["lean" if is_lean else "lightning"] = {
            "lean": loop._lean, "state": state(done.model), "losses": seen.losses, "sent": seen.sent,
            "asked": asked.call_count,
        }  # fmt: skip
    found["conv"] = trained("--model.init_args.backbone=conv", "--trainer.max_epochs=1")[1].sent
    torch.save(found, out / f"rank{done.trainer.global_rank}.pt")

"""Trainings that kill themselves, in processes forked from one that has imported everything."""

import json
import os
import random
import signal
import sys
from collections.abc import Sequence
from io import BufferedWriter
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from sft_lightning.__main__ import main
from sft_lightning.cli.lightning_cli import SFTCLI
from sft_lightning.losses.regularizers.base import Regularizer
from sft_lightning.paradigms.base import Paradigm
from sft_lightning.training.callbacks import checkpoint
from sft_lightning.training.callbacks.checkpoint import RunCheckpoint
from tests.forks import FORKS, enter, environments


class Dice(Regularizer):
    """Pulls the weights by an amount that all three generators of random numbers have a say in."""

    def penalty(self, network: nn.Module) -> Tensor:
        lots = random.random() + np.random.rand() + torch.rand(())
        return lots * torch.stack([p.square().sum() for p in network.parameters() if p.requires_grad]).sum()


class Torn(Regularizer):
    """Not finite in some steps, on the last process: `value` with sound gradients, or `gradient` with a sound value."""

    def __init__(self, kind: str, steps: list[int]) -> None:
        super().__init__(1.0)
        self.kind, self.steps = kind, steps

    def penalty(self, network: nn.Module) -> Tensor:
        assert isinstance(network, LightningModule)
        nothing = torch.stack([p.sum() * 0 for p in network.parameters() if p.requires_grad]).sum()
        trainer = network.trainer
        if trainer.global_step not in self.steps or trainer.global_rank + 1 < trainer.world_size:
            return nothing
        return nothing + torch.inf if self.kind == "value" else nothing.sqrt()


class Seen(Callback):
    """Writes down which examples each batch holds."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        parts = {name: part.indices.tolist() for name, part in batch.items()}
        with self.file.open("a") as file:
            file.write(json.dumps([trainer.global_step, parts]) + "\n")


def die(*_: Any) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def _kill(moment: str, count: int) -> None:
    """Lets the process die at a moment when it has come the count-th time."""
    left = count

    def due() -> bool:
        nonlocal left
        left -= 1
        return left == 0

    if moment == "step" or moment.startswith("SIG"):
        own = Paradigm.training_step
        asked = die if moment == "step" else lambda: os.kill(os.getpid(), signal.Signals[moment])

        def training_step(self: Paradigm, batch: Any, batch_idx: int) -> Tensor:
            loss = own(self, batch, batch_idx)
            if due():
                asked()
            return loss

        Paradigm.training_step = training_step  # type: ignore[method-assign]
    elif moment == "validation":
        end = Paradigm.on_validation_epoch_end

        def on_validation_epoch_end(self: Paradigm) -> None:
            end(self)
            if due():
                die()

        Paradigm.on_validation_epoch_end = on_validation_epoch_end  # type: ignore[method-assign]
    else:
        assert moment == "save"
        save = torch.save

        def half(content: Any, path: Any, *args: Any, **kwargs: Any) -> None:
            save(content, path, *args, **kwargs)
            if isinstance(path, BufferedWriter) and due():
                path.flush()
                os.truncate(path.name, path.tell() // 2)
                die()

        checkpoint.torch.save = half  # type: ignore[attr-defined]


def train(words: Sequence[str], folder: Path, moment: str, count: int, environment: dict[str, str]) -> None:
    """One training in a process of its own.

    Args:
        words: Of the command line.
        folder: Where it runs.
        moment: Of its death: `step`, `validation`, `save`; the name of a signal for a step in which the last of the
            processes gets it; "" for none.
        count: The how manieth.
        environment: Of the process.
    """
    os.chdir(folder)
    enter(environment)
    torch.set_num_threads(1)
    RunCheckpoint.EVERY, RunCheckpoint.SHARE = 3, 1e9
    rank, ranks = (int(environment.get(name, "0")) for name in ("LOCAL_RANK", "WORLD_SIZE"))
    if moment and (not moment.startswith("SIG") or rank + 1 >= ranks):
        _kill(moment, count)
    own = SFTCLI._instantiate_trainer
    seen = Seen(folder / f"seen{rank}.jsonl")
    SFTCLI._instantiate_trainer = lambda self, config, callbacks: own(self, config, [*callbacks, seen])  # type: ignore[method-assign]
    sys.exit(main(words))


def trained(words: Sequence[str], folder: Path, moment: str = "", count: int = 0, ranks: int = 1) -> list[int]:
    """Exit codes of the processes; negative for a signal."""
    folder.mkdir(exist_ok=True)
    if ranks > 1:
        words = [*words, "--trainer.strategy=ddp", f"--trainer.devices={ranks}"]
    owns = environments(ranks) if ranks > 1 else [{}]
    processes = [FORKS.Process(target=train, args=(words, folder, moment, count, own)) for own in owns]
    for process in processes:
        process.start()
    wait([process.sentinel for process in processes], timeout=120)
    for process in processes:
        process.join(1 if moment in ("step", "validation", "save") else 120)
        process.kill()  # the partner of a killed one waits for it forever
        process.join()
    return [process.exitcode if process.exitcode is not None else 999 for process in processes]

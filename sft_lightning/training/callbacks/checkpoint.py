"""Checkpoints from which a run goes on as if nothing had happened.

Lightning 2.6 stages a checkpoint in the temporary folder and moves it without a flush (pl#21253), keeps no state of the
random number generators, and writes its own `last.ckpt` only together with a new best.
"""

import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import distributed

from sft_lightning.data.contract import known_splits
from sft_lightning.training.callbacks.checkpoint_validation import check_content, check_paths
from sft_lightning.training.callbacks.preemption import SignalListener, raise_stopped
from sft_lightning.utils.atomic import open_atomic

EpochPosition = Literal["inside", "end"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints whole or not at all, and reads them without running anything."""

    @classmethod
    def install(cls, trainer: Trainer) -> None:
        """Takes the place of Lightning's, but of no other.

        Args:
            trainer: Before its training.
        """
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = cls()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes one.

        Args:
            checkpoint: What Lightning made.
            path: Where to.
            storage_options: Lightning's own way is taken where there are some, or the path is that of a service.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        # To a Python file: torch's own writing says "unexpected pos" of a full disk.
        with open_atomic(Path(path)) as staged, staged.open("wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads one, of which nothing is run.

        Args:
            path: Of the file.
            map_location: As torch has it.
            weights_only: Always true here.

        Raises:
            InputError: It is no checkpoint of a training.
        """
        checkpoint: dict[str, Any] = super().load_checkpoint(path, map_location, weights_only=True)
        check_content(checkpoint, path)
        return checkpoint


def get_random_state() -> dict[str, Any]:
    """Where the global random number generators stand, of types that are loaded safely."""
    kind, keys, place, has_gauss, gauss = np.random.get_state()  # that of whoever uses it
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.array(keys, dtype=np.int64)), place, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Puts them there.

    Args:
        state: From `get_random_state`.
    """
    version, inner, gauss = state["python"]
    random.setstate((version, tuple(inner), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


class RunCheckpoint(SignalListener, ModelCheckpoint):
    """`last.ckpt`, the last iterate, and `best-*.ckpt` by the paradigm's validation metric where there is one."""

    SHARE = 0.02  # of the time that may go into saving the last iterate on the way
    EVERY = 50  # steps after which this is asked; all processes must agree, which costs them a message

    def __init__(self) -> None:
        """Keeps one best and the last."""
        super().__init__(save_top_k=0, auto_insert_metric_name=False, enable_version_counter=False)
        self._saved: tuple[int, EpochPosition] = -1, "end"
        self._saved_at, self._seconds = 0.0, 0.0
        self._step = -1
        self._random: list[dict[str, Any]] = []

    @property
    def state_key(self) -> str:
        """A constant: Lightning asks in each hook of each step, and would build a text of all settings."""
        return type(self).__name__

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds out what to monitor."""
        monitor: tuple[str, str] | None = getattr(pl_module, "monitor", None)
        splits = known_splits(trainer)
        if monitor and len(splits.get("val", ())) and trainer.limit_val_batches:
            self.monitor, self.mode = monitor
            self.kth_value = torch.tensor(float("inf") if self.mode == "min" else -float("inf"))
            self.save_top_k = 1
            self.filename = "best-epoch={epoch}-" + self.monitor.split("/")[-1] + "={" + self.monitor + ":.4f}"
        super().setup(trainer, pl_module, stage)

    def state_dict(self) -> dict[str, Any]:
        """Also the random number generators of all processes."""
        own = get_random_state()
        every = [own]
        if distributed.is_available() and distributed.is_initialized():
            every = [own] * distributed.get_world_size()
            distributed.all_gather_object(every, own)
        return {**super().state_dict(), "random": every}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuses one that names files elsewhere."""
        check_paths(checkpoint["callbacks"].get(self.state_key, {}), self.dirpath, trainer.ckpt_path)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps them until the first step."""
        self._random = state_dict.pop("random", [])
        super().load_state_dict(self._move(state_dict))

    def _move(self, state: dict[str, Any]) -> dict[str, Any]:
        """Let a run whose folder was moved, or is called from elsewhere, keep its best checkpoint and the score."""
        if self.dirpath is None or state.get("dirpath") in (None, self.dirpath):
            return state
        best = state.get("best_k_models") or {}
        here = {name: str(Path(self.dirpath) / Path(name).name) for name in best}
        kept = {here[name]: score for name, score in best.items() if Path(here[name]).is_file()}
        if len(kept) < max(1, len(here)):  # it was not moved with the others, so the next one is the best
            return {**state, "best_model_path": ""}
        paths = {
            f"{kind}_model_path": str(Path(self.dirpath) / Path(name).name) if name else ""
            for kind in ("best", "kth_best", "last")
            for name in [state.get(f"{kind}_model_path") or ""]
        }
        return {**state, **paths, "best_k_models": kept, "dirpath": self.dirpath}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Goes on with the random numbers of the checkpoint, unless it is of another number of processes."""
        super().on_train_start(trainer, pl_module)
        if len(self._random) == trainer.world_size:
            set_random_state(self._random[trainer.global_rank])
        self._random = []
        self._step, self._saved_at = trainer.global_step, time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves the last iterate inside an epoch, after an optimizer step."""
        step = trainer.global_step
        stepped, self._step = step != self._step, step
        if not stepped or trainer.is_last_batch:  # the end of the epoch will see to it
            return
        if number := self._signals.agree():
            self.save_last_iterate(trainer)
            raise_stopped(trainer, number)
        if step % self.EVERY == 0:
            self._save_if_due(trainer, "inside")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the last iterate, unless epochs are so short that saving would take a noticeable share of the time."""
        super().on_train_epoch_end(trainer, pl_module)
        if number := self._signals.agree():
            self.save_last_iterate(trainer, "end")
            raise_stopped(trainer, number)
        self._save_if_due(trainer, "end")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the last iterate, also where the end of the epoch has: what averages weights changes them only now."""
        self._saved = -1, "end"
        self.save_last_iterate(trainer, "end")

    def _save_if_due(self, trainer: Trainer, place: EpochPosition) -> None:
        due = self.SHARE * (time.monotonic() - self._saved_at) >= self._seconds
        if trainer.strategy.broadcast(due):
            self.save_last_iterate(trainer, place)

    def save_last_iterate(self, trainer: Trainer, place: EpochPosition = "inside") -> None:
        """Writes `last.ckpt`, unless it is of this step and place.

        Args:
            trainer: In training; all processes must come here.
            place: Of the epoch: `inside`, or `end`, when it has been validated.
        """
        if (trainer.global_step, place) == self._saved or getattr(trainer, "fast_dev_run", False):
            return
        start = time.monotonic()
        assert self.dirpath is not None
        self.last_model_path = str(Path(self.dirpath) / "last.ckpt")
        self._saved = trainer.global_step, place
        self._save_checkpoint(trainer, self.last_model_path)
        self._saved_at = time.monotonic()
        self._seconds = self._saved_at - start

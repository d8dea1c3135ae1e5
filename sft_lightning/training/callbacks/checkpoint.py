"""Checkpoints for exact resumption.

Lightning 2.6 stages a checkpoint in the temporary folder and moves it without a flush (pl#21253), saves no state of
random number generators, and writes `last.ckpt` only together with a new best checkpoint.
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
from sft_lightning.training.module_interfaces import IsMonitored
from sft_lightning.utils.atomic import open_atomic

EpochPosition = Literal["inside", "end"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint I/O that writes atomically and reads without running code."""

    @classmethod
    def install(cls, trainer: Trainer) -> None:
        """Replace Lightning's own checkpoint I/O, but no other.

        Args:
            trainer: Trainer before its training.
        """
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = cls()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint atomically.

        Args:
            checkpoint: Checkpoint from Lightning.
            path: Path of the file, or URL of a storage service, which Lightning writes to.
            storage_options: Options that only Lightning's own I/O supports.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        # Through a Python file: torch's own writer reports a full disk as "unexpected pos".
        with open_atomic(Path(path)) as staged, staged.open("wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint without running code from it.

        Args:
            path: Path of the file.
            map_location: Device mapping of `torch.load`.
            weights_only: Ignored; always true.

        Raises:
            InputError: The file is not a checkpoint of a training.
        """
        checkpoint: dict[str, Any] = super().load_checkpoint(path, map_location, weights_only=True)
        check_content(checkpoint, path)
        return checkpoint


def get_random_state() -> dict[str, Any]:
    """Return the state of the global random number generators, of types that load safely."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # user code may rely on it
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.array(keys, dtype=np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restore the state of the global random number generators.

    Args:
        state: State that `get_random_state` returned.
    """
    version, inner, gauss = state["python"]
    random.setstate((version, tuple(inner), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


class RunCheckpoint(SignalListener, ModelCheckpoint):
    """Saves the last iterate as `last.ckpt`, and `best-*.ckpt` by the validation metric of the paradigm, if any."""

    SHARE = 0.02  # of the time that saving the last iterate may take
    EVERY = 50  # steps between checks whether to save, since all processes must agree, which costs a message

    def __init__(self) -> None:
        """Configure one best and one last checkpoint."""
        super().__init__(save_top_k=0, auto_insert_metric_name=False, enable_version_counter=False)
        self._saved: tuple[int, EpochPosition] = -1, "end"
        self._saved_at, self._seconds = 0.0, 0.0
        self._step = -1
        self._random: list[dict[str, Any]] = []

    @property
    def state_key(self) -> str:
        """Constant key, which Lightning reads in each hook of each step; its default builds a text of all settings."""
        return type(self).__name__

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the metric to monitor."""
        splits = known_splits(trainer)
        has_validation = len(splits.get("val", ())) and trainer.limit_val_batches
        monitored = pl_module.monitor if isinstance(pl_module, IsMonitored) else None
        if has_validation and monitored is not None:
            self.monitor, self.mode = monitored
            self.kth_value = torch.tensor(float("inf") if self.mode == "min" else -float("inf"))
            self.save_top_k = 1
            self.filename = "best-epoch={epoch}-" + self.monitor.split("/")[-1] + "={" + self.monitor + ":.4f}"
        super().setup(trainer, pl_module, stage)

    def state_dict(self) -> dict[str, Any]:
        """Return the state with the random number generators of all processes."""
        state = get_random_state()
        states = [state]
        if distributed.is_available() and distributed.is_initialized():
            states = [state] * distributed.get_world_size()
            distributed.all_gather_object(states, state)
        return {**super().state_dict(), "random": states}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the epoch open that `max_steps` or `max_time` ends halfway; Lightning counts it as done."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        loops = checkpoint["loops"]["fit_loop"]
        batches, epochs = loops["epoch_loop.batch_progress"], loops["epoch_progress"]
        if batches["is_last_batch"] or not batches["current"]["ready"]:
            return
        for counts in (epochs["current"], epochs["total"]):
            for kind in ("processed", "completed"):
                counts[kind] = min(counts[kind], counts["ready"] - 1)
        checkpoint["epoch"] = min(checkpoint["epoch"], epochs["current"]["completed"])

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that names files outside of its run."""
        check_paths(checkpoint["callbacks"].get(self.state_key, {}), self.dirpath, trainer.ckpt_path)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state, and keep the random number generators until the first step."""
        self._random = state_dict.pop("random", [])
        super().load_state_dict(self._move(state_dict))

    def _move(self, state: dict[str, Any]) -> dict[str, Any]:
        """Keep the best checkpoint and its score when the folder of a run was moved."""
        if self.dirpath is None or state.get("dirpath") in (None, self.dirpath):
            return state
        best = state.get("best_k_models") or {}
        moved = {name: str(Path(self.dirpath) / Path(name).name) for name in best}
        kept = {moved[name]: score for name, score in best.items() if Path(moved[name]).is_file()}
        if len(kept) < max(1, len(moved)):  # the best file is missing, so the next one counts as the best
            return {**state, "best_model_path": ""}
        paths = {
            f"{kind}_model_path": str(Path(self.dirpath) / Path(name).name) if name else ""
            for kind in ("best", "kth_best", "last")
            for name in [state.get(f"{kind}_model_path") or ""]
        }
        return {**state, **paths, "best_k_models": kept, "dirpath": self.dirpath}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the random numbers of a checkpoint that has the same number of processes."""
        super().on_train_start(trainer, pl_module)
        if len(self._random) == trainer.world_size:
            set_random_state(self._random[trainer.global_rank])
        self._random = []
        self._step, self._saved_at = trainer.global_step, time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save the last iterate inside an epoch, after an optimizer step."""
        step = trainer.global_step
        stepped, self._step = step != self._step, step
        if not stepped or trainer.is_last_batch:  # the end of the epoch saves it
            return
        if number := self._signals.agree():
            self.save_last_iterate(trainer)
            raise_stopped(trainer, number)
        if step % self.EVERY == 0:
            self._save_if_due(trainer, "inside")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last iterate, unless saving takes too large a share of the time."""
        super().on_train_epoch_end(trainer, pl_module)
        if number := self._signals.agree():
            self.save_last_iterate(trainer, "end")
            raise_stopped(trainer, number)
        self._save_if_due(trainer, "end")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last iterate again, since weight averaging may have changed the weights after the last epoch."""
        self._saved = -1, "end"
        self.save_last_iterate(trainer, "end")

    def _save_if_due(self, trainer: Trainer, position: EpochPosition) -> None:
        is_due = self.SHARE * (time.monotonic() - self._saved_at) >= self._seconds
        if trainer.strategy.broadcast(is_due):
            self.save_last_iterate(trainer, position)

    def save_last_iterate(self, trainer: Trainer, position: EpochPosition = "inside") -> None:
        """Write `last.ckpt`, unless it exists for this step and position.

        Args:
            trainer: Trainer in training; all processes must call this.
            position: Position in the epoch: `inside`, or `end` after its validation.
        """
        if (trainer.global_step, position) == self._saved or getattr(trainer, "fast_dev_run", False):
            return
        start = time.monotonic()
        assert self.dirpath is not None
        self.last_model_path = str(Path(self.dirpath) / "last.ckpt")
        self._saved = trainer.global_step, position
        self._save_checkpoint(trainer, self.last_model_path)
        self._saved_at = time.monotonic()
        self._seconds = self._saved_at - start

"""What the tests of the paradigms share: a short data module, a quiet trainer, and what passed through it."""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sft_lightning import FineTuneClassifier, ImageDataModule
from sft_lightning.cli.lightning_cli import SFTCLI, run
from sft_lightning.losses import unlabeled as strategies
from sft_lightning.losses.unlabeled.base import Strategy
from tests.forks import both_ranks, work

ROOT = Path(__file__).parents[2]
SHAPE = (1, 28, 28)


def sample(**settings: Any) -> ImageDataModule:
    return ImageDataModule("sample", **{"num_labels": 20, "batch_size": 10, "val_size": 30, **settings})


def classifier(backbone: str = "mlp", lr: float = 0.05, **settings: Any) -> FineTuneClassifier:
    torch.manual_seed(0)
    return FineTuneClassifier(
        backbone, 10, SHAPE, **{"optimizer": lambda p: torch.optim.SGD(p, lr, momentum=0.9), **settings}
    )


@cache
def teacher() -> Path:
    """A checkpoint of a classifier after two steps, for strategies that distill one."""
    path = Path(tempfile.mkdtemp()) / "teacher.ckpt"
    source, learner = sample(steps_per_epoch=2), trainer()
    with torch.random.fork_rng():
        learner.fit(classifier(class_names=source.class_names), source)
    learner.save_checkpoint(path)
    return path


def make_strategy(name: str, **settings: Any) -> Strategy:
    """A strategy with its defaults, and a teacher where it has no default for one."""
    given = {"weights": str(teacher())} if name == "SelfDistillation" else {}
    made: Strategy = getattr(strategies, name)(**given, **settings)
    return made


def trainer(callbacks: list[Callback] | None = None, **settings: Any) -> Trainer:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    fixed: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0, "max_epochs": 1}
    return Trainer(callbacks=callbacks, use_distributed_sampler=False, **{**quiet, **fixed, **settings})


def batches(*given: Any) -> DataLoader[Any]:
    return DataLoader(list(given), batch_size=None)  # type: ignore[arg-type]


class Recorder(Callback):
    """Keeps training batches, losses, learning rates, and the state after each epoch."""

    def __init__(self) -> None:
        self.batches: list[Any] = []
        self.losses: list[float] = []
        self.rates: list[list[float]] = []
        self.states: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(float(outputs["loss"]))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.states.append(state(pl_module))


class Pictures:
    """Counts the pictures that a network sees."""

    def __init__(self, network: nn.Module) -> None:
        self.count = 0
        network.register_forward_pre_hook(self._see)

    def _see(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.count += len(args[0])


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def cli(command: str, config: str, *words: str) -> SFTCLI:
    """Runs the real command line on a quickstart config, on the CPU and for a few steps."""
    own = ["--config", str(ROOT / "configs" / "quickstart" / f"{config}.yaml"), "--trainer.accelerator=cpu"]
    if command == "fit":
        own += ["--trainer.max_epochs=2", "--data.init_args.steps_per_epoch=6", "--data.init_args.num_labels=40"]
    return run([command, *own, "--trainer.enable_progress_bar=false", *words])


def two_processes(scenario: str, out: Path) -> Path:
    """Run a scenario of `ddp_worker` on two gloo processes, which leave `rank{rank}.pt` in the folder."""
    done = both_ranks(work, "tests.paradigms.ddp_worker", scenario, out, folder=ROOT, files=out)
    assert [rank.code for rank in done] == [0, 0], "".join(rank.stderr[-4000:] for rank in done)
    return out


def left_by_ranks(folder: Path) -> list[dict[str, Any]]:
    """Load what the two processes left."""
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]

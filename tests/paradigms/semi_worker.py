"""Semi-supervised training on two gloo processes; for `test_semi_supervised_ddp`.

In double precision: in single, an example at a threshold is accepted on one processor and rejected on another.
"""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from sft_lightning import ImageDataModule, SemiSupervisedModule
from sft_lightning.losses import unlabeled as strategies
from sft_lightning.training.callbacks.pseudo_label_metrics import PseudoLabelHealth
from tests.paradigms.helpers import SHAPE, Recorder, state, trainer

GLOBAL = {
    "FlexMatch": {"threshold": 0.35},
    "FreeMatch": {"momentum": 0.9, "fairness": 0.05},
    "SoftMatch": {"momentum": 0.9},
    "AdaMatch": {"momentum": 0.9},
    "DebiasMatch": {"momentum": 0.9, "threshold": 0.35},
}

SCHEDULES: tuple[Literal["joint", "alternating"], ...] = ("joint", "alternating")


class SameViews(ImageDataModule):
    """Views that are a function of the picture alone: random ones are drawn by each process for itself."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        views = super().on_after_batch_transfer(batch, dataloader_idx)
        if isinstance(views, dict) and "unlabeled" in views:
            weak: Tensor = views["unlabeled"].weak
            views["unlabeled"] = views["unlabeled"]._replace(strong=weak.flip(-1) * 0.8)
        return apply_to_collection(views, Tensor, lambda t: t.double() if t.is_floating_point() else t)


def train(name: str, schedule: Literal["joint", "alternating"], devices: int) -> dict[str, Any]:
    """What 12 steps lead to; the batch of all processes together is 8 labeled and 24 unlabeled pictures."""
    torch.manual_seed(0)
    model = SemiSupervisedModule(
        getattr(strategies, name)(**GLOBAL.get(name, {})), backbone="mlp", num_classes=10, image_shape=SHAPE,
        ema_decay=0.9, schedule=schedule, optimizer=lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01),
    )  # fmt: skip
    with torch.no_grad():  # a network with opinions
        for p in model.head.parameters():
            p.mul_(30)
    data = SameViews("sample", num_labels=40, val_size=9860, batch_size=8 // devices, unlabeled_ratio=3, seed=1,
                     steps_per_epoch=6, eval_batch_size=1000)  # fmt: skip
    seen, health = Recorder(), PseudoLabelHealth()
    settings: dict[str, Any] = {"strategy": "ddp"} if devices > 1 else {}
    settings.update(max_epochs=2, log_every_n_steps=4, limit_val_batches=1)
    run = trainer([seen, health], devices=devices, **settings)
    run.fit(model.double(), data)
    if devices > 1:
        run.strategy.barrier()
    logged = {n: float(v) for n, v in run.callback_metrics.items() if n.startswith("pseudo_labels/")}
    return {"state": state(model), "losses": seen.losses, "health": logged}


def main(out: Path) -> None:
    """Trains what `asked.json` in the folder names; each process writes what it saw."""
    asked = json.loads((out / "asked.json").read_text())
    found = {f"{name} {kind}": train(name, kind, 2) for name, kind in asked}
    torch.save(found, out / f"rank{torch.distributed.get_rank()}.pt")

"""Decoupled training on two gloo processes; for `test_decoupled_ddp`."""

from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from sft_lightning import DecoupledFeatureClassifier, ImageDataModule
from sft_lightning.losses.features import Center, CosinePrototype, SupCon
from tests.paradigms.helpers import SHAPE, Recorder, state, trainer

TWO: dict[str, Any] = {"coupling": "two_stage", "feature_epochs": 1}
RUNS: dict[str, Any] = {
    "mean joint": (lambda: CosinePrototype("mean"), {}),
    "learnable detached": (CosinePrototype, {"coupling": "detached"}),
    "center lws": (Center, {**TWO, "head": "lws"}),
    "supcon joint": (SupCon, {}),
    "supcon two_stage": (SupCon, TWO),
    "supcon crt": (SupCon, {**TWO, "head": "crt"}),
    "simplex nearest": (lambda: CosinePrototype("simplex"), {"head": "nearest_class_mean"}),
}


class Doubled(ImageDataModule):
    """The batches in double precision."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        views = super().on_after_batch_transfer(batch, dataloader_idx)
        return apply_to_collection(views, Tensor, lambda t: t.double() if t.is_floating_point() else t)


def train(name: str, devices: int) -> dict[str, Any]:
    """What 15 steps lead to; the batch of all processes together is 8 pictures."""
    torch.manual_seed(0)
    loss, settings = RUNS[name]
    model = DecoupledFeatureClassifier(
        loss(), backbone="mlp", num_classes=10, image_shape=SHAPE, optimizer=lambda p: torch.optim.SGD(p, 0.05),
        **settings,
    ).double()  # fmt: skip
    data = Doubled("sample", num_labels=40, val_size=61, batch_size=8 // devices, eval_batch_size=20)
    seen = Recorder()
    run = trainer([seen], devices=devices, max_epochs=3, **({"strategy": "ddp"} if devices > 1 else {}))
    run.fit(model, data)
    metrics = {n: float(v) for n, v in run.callback_metrics.items() if n.startswith("val/")}
    return {"state": state(model), "losses": seen.losses, "metrics": metrics}


def main(out: Path) -> None:
    """Trains all; each process writes what it saw."""
    found = {name: train(name, 2) for name in RUNS}
    torch.save(found, out / f"rank{torch.distributed.get_rank()}.pt")

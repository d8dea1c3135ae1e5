"""Batch normalization over two gloo processes, in double precision; for `test_synced_ddp`."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule

from sft_lightning import AutoencoderModule, DecoupledFeatureClassifier, FineTuneClassifier, SemiSupervisedModule
from sft_lightning.losses.features import SupCon
from sft_lightning.losses.unlabeled import FreeMatch, Reconstruction
from sft_lightning.training.sync_batchnorm import SyncBatchNormOnCPU, SyncBatchNormsOnCPU
from sft_lightning.utils.errors import InputError
from tests.paradigms.helpers import SHAPE, Recorder, state, trainer
from tests.paradigms.semi_worker import SameViews


def _optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.02, momentum=0.9)


SETTINGS: dict[str, Any] = {"num_classes": 10, "image_shape": SHAPE, "optimizer": _optimizer, "backbone": "conv"}
MODELS: dict[str, Any] = {
    "autoencoder": lambda: AutoencoderModule("conv", SHAPE, optimizer=_optimizer),
    "autoencoder without": lambda: AutoencoderModule("mlp", SHAPE, optimizer=_optimizer),
    "fine-tuning": lambda: FineTuneClassifier(**SETTINGS, head_only_epochs=1),
    "semi-supervised": lambda: SemiSupervisedModule(FreeMatch(momentum=0.9, fairness=0.05), **SETTINGS, ema_decay=0.9),
    "reconstruction": lambda: SemiSupervisedModule(Reconstruction(), **SETTINGS, schedule="alternating"),
    "decoupled": lambda: DecoupledFeatureClassifier(SupCon(), **SETTINGS),
}


def train(name: str, devices: int) -> dict[str, Any]:
    """What 8 steps lead to; the batch of all processes together is 8 labeled and 16 unlabeled pictures."""
    torch.manual_seed(0)
    model: LightningModule = MODELS[name]().double()
    data = SameViews("sample", num_labels=40, val_size=9860, batch_size=8 // devices, unlabeled_ratio=2, seed=1,
                     steps_per_epoch=4, eval_batch_size=4930)  # fmt: skip
    seen = Recorder()
    settings: dict[str, Any] = {"strategy": "ddp", "sync_batchnorm": True} if devices > 1 else {}
    run = trainer([seen], devices=devices, max_epochs=2, limit_val_batches=0, **settings)
    SyncBatchNormsOnCPU.install(run)
    run.fit(model, data)
    assert not any(type(module) is SyncBatchNormOnCPU for module in model.modules())
    return {"state": state(model), "losses": seen.losses}


def refused() -> str:
    """What is said of a single unlabeled picture for two processes."""
    data = SameViews("sample", num_labels=9000, val_size=999, batch_size=8)
    try:
        trainer(devices=2, strategy="ddp").fit(MODELS["semi-supervised"](), data)
    except InputError as error:
        return str(error)
    return "nothing"


def main(out: Path) -> None:
    """Trains all; each process writes what it saw."""
    found = {**{name: train(name, 2) for name in MODELS}, "refused": refused()}
    torch.save(found, out / f"rank{torch.distributed.get_rank()}.pt")

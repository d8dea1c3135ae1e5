"""Anomaly detection on two gloo processes; each process leaves what it learned in `rank{rank}.pt`."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from sft_lightning import AnomalyDataModule, AnomalyDetector
from sft_lightning.anomaly import AnomalyMethod, PaDiM, PatchCore
from tests.paradigms.helpers import state, trainer

METHODS: dict[str, AnomalyMethod] = {
    "patchcore": PatchCore(coreset=0.2, max_candidates=500),
    "padim": PaDiM(dimensions=10),
}


class Doubles(AnomalyDataModule):
    """Batches in double precision."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        made = super().on_after_batch_transfer(batch, dataloader_idx)
        return apply_to_collection(made, Tensor, lambda t: t.double() if t.is_floating_point() else t)


def learn(name: str, devices: int, folder: Path) -> dict[str, Any]:
    """Learn 13 normal textures, of which processes have 7 and 6, and test on others."""
    torch.manual_seed(0)
    data = Doubles(str(folder), image_size=32, batch_size=4, num_workers=0, val_size=5)
    model = AnomalyDetector(METHODS[name], "resnet8", data.input_spec, strides=[4, 8], false_alarm_rate=0.2).double()
    strategy: dict[str, Any] = {"strategy": "ddp"} if devices > 1 else {}
    run = trainer(devices=devices, **strategy)
    run.fit(model, data)
    metrics = {n: float(v) for n, v in run.callback_metrics.items()}
    (tested,) = run.test(model, data, verbose=False)
    return {"state": state(model), "metrics": metrics | dict(tested)}


def main(scenario: str, out: Path) -> None:
    """Learn on this process, and save what came out."""
    results = {name: learn(name, 2, out / scenario) for name in METHODS}
    torch.save(results, out / f"rank{os.environ['LOCAL_RANK']}.pt")

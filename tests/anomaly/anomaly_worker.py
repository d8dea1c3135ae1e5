"""Anomaly detection on two gloo processes; each process leaves what it learned in `rank{rank}.pt`."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from sft_lightning import AnomalyDataModule, AnomalyDetector, StudentTeacherDetector
from sft_lightning.anomaly import AnomalyMethod, PaDiM, PatchCore
from tests.paradigms.helpers import state, trainer

METHODS: dict[str, AnomalyMethod] = {
    "patchcore": PatchCore(coreset=0.2, max_candidates=500),
    "padim": PaDiM(dimensions=10),
}
TEACHER = "timm/test_convnext"
NAMES = (*METHODS, "student_teacher")


class Doubles(AnomalyDataModule):
    """Batches in double precision."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        made = super().on_after_batch_transfer(batch, dataloader_idx)
        return apply_to_collection(made, Tensor, lambda t: t.double() if t.is_floating_point() else t)


def learn(name: str, devices: int, folder: Path) -> dict[str, Any]:
    """Learn normal textures, of which each process has its share, and test on others.

    13 are learned by methods without steps, so that shares differ, and 12 in steps of 4.
    """
    torch.manual_seed(0)
    has_steps = name not in METHODS
    size = 4 // devices if has_steps else 4
    data = Doubles(str(folder), image_size=32, batch_size=size, num_workers=0, val_size=6 if has_steps else 5)
    strategy: dict[str, Any] = {"strategy": "ddp"} if devices > 1 else {}
    model: Any
    if has_steps:  # without batch normalization, whose statistics would be those of a process
        model = StudentTeacherDetector(
            TEACHER, data.input_spec, str(folder.parent / "teacher.safetensors"), strides=[4, 8], false_alarm_rate=0.2,
            optimizer=lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
        )  # fmt: skip
    else:
        model = AnomalyDetector(METHODS[name], "resnet8", data.input_spec, strides=[4, 8], false_alarm_rate=0.2)
    run = trainer(devices=devices, max_epochs=2, **strategy)
    run.fit(model.double(), data)
    metrics = {n: float(v) for n, v in run.callback_metrics.items() if n.startswith("val/")}
    (tested,) = run.test(model, data, verbose=False)
    return {"state": state(model), "metrics": metrics | dict(tested)}


def main(scenario: str, out: Path) -> None:
    """Learn on this process, and save what came out."""
    results = {name: learn(name, 2, out / scenario) for name in NAMES}
    torch.save(results, out / f"rank{os.environ['LOCAL_RANK']}.pt")

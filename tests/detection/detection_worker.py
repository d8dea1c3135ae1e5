"""Trainings of detectors on two gloo processes; each process leaves what it saw in `rank{rank}.pt`."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from sft_lightning import DetectionDataModule, FineTuneDetector, SemiSupervisedDetector
from tests.paradigms.helpers import Recorder, state, trainer

NAMES = {"retinanet": False, "ssdlite": False, "fcos": True}  # whether others teach, too, beside a control


class FixedViews(DetectionDataModule):
    """Batches in double precision, whose strong views are functions of the image: random views differ by process."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        views = super().on_after_batch_transfer(batch, dataloader_idx)
        if isinstance(views, dict) and "unlabeled" in views:
            views["unlabeled"] = views["unlabeled"]._replace(strong=views["unlabeled"].weak * 0.8)
        return apply_to_collection(views, Tensor, lambda t: t.double() if t.is_floating_point() else t)


def train(name: str, devices: int, folder: Path) -> dict[str, Any]:
    """Train 6 steps; the batch of all processes together has 4 annotated images, and 4 others."""
    torch.manual_seed(0)
    data = FixedViews(
        str(folder), num_labels=12, test_size=0, batch_size=4 // devices, image_size=64, steps_per_epoch=3,
        num_workers=0, eval_batch_size=2,
    )  # fmt: skip
    settings: dict[str, Any] = {"backbone": "resnet8", "num_classes": 2, "input_spec": (3, 64, 64)}
    settings |= {"detector": name, "width": 32, "norm_stats": "weights", "max_detections": 20}
    settings |= {"optimizer": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9), "score_threshold": 0.01}
    model: Any = FineTuneDetector(**settings)
    if NAMES[name]:
        model = SemiSupervisedDetector(**settings, ema_decay=0.9, burn_in_steps=1, control=True)
    recorder = Recorder()
    run = trainer([recorder], max_epochs=2, devices=devices, **({"strategy": "ddp"} if devices > 1 else {}))
    run.fit(model.double(), data)
    metrics = {n: float(v) for n, v in run.callback_metrics.items()}
    return {"state": state(model), "losses": recorder.losses, "metrics": metrics}


def main(scenario: str, out: Path) -> None:
    """Train on this process, and save what came out."""
    results = {name: train(name, 2, out / scenario) for name in NAMES}
    torch.save(results, out / f"rank{os.environ['LOCAL_RANK']}.pt")

"""Trains on two gloo processes and leaves what each of them saw; for `test_ddp`."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from sft_lightning.networks.adapters import LoRA
from sft_lightning.training.callbacks.predictions import PredictionWriter
from tests.paradigms.helpers import Pictures, Recorder, classifier, sample, state, trainer

RUNS: dict[str, dict[str, Any]] = {
    "conv": {"head_only_epochs": 1},
    "mlp": {"head_only_epochs": 1},
    "lora": {"backbone": "conv", "adapter": LoRA(rank=2), "head_only_epochs": 1},
    "cached": {"backbone": "conv", "tune": "head"},
}


class Validated(Callback):
    """Keeps the state of each replica after each validation."""

    def __init__(self) -> None:
        self.states: list[Any] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.states.append(state(pl_module))


def main(out: Path) -> None:
    os.chdir(out)  # where the features are kept
    found: dict[str, Any] = {}
    for name, own in RUNS.items():
        seen, after = Recorder(), Validated()
        settings: dict[str, Any] = {"accelerator": "cpu", "strategy": "ddp", "devices": 2, "max_epochs": 3}
        run = trainer([seen, after, PredictionWriter(out)], **settings)
        model = classifier(**{"backbone": name, **own})
        pictures = Pictures(model.backbone)
        before = state(model)
        data = sample(val_size=61, batch_size=5, eval_batch_size=10)
        run.fit(model, data)
        found[name] = {
            "before": before,
            "states": seen.states,
            "after": after.states,
            "pictures": pictures.count,
            "metrics": {n: float(v) for n, v in run.callback_metrics.items()},
        }
        if name == "mlp":
            found["test"] = run.test(model, data, verbose=False)[0]
            run.predict(model, data, return_predictions=False)
            one = sample(predict_source=str(out / "one.png"))  # fewer files than processes
            trainer([PredictionWriter(out / "one")], **settings).predict(model, one, return_predictions=False)
    torch.save(found, out / f"rank{run.global_rank}.pt")

"""Trains on two gloo processes and leaves what each of them saw; started by `test_ddp`, and by DDP for the second."""

import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from sft_lightning.callbacks.predictions import PredictionWriter
from tests.paradigms.helpers import Recorder, classifier, sample, state, trainer


class Validated(Callback):
    """Keeps the state of each replica after each validation."""

    def __init__(self) -> None:
        self.states: list[Any] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.states.append(state(pl_module))


def main(out: Path) -> None:
    found: dict[str, Any] = {}
    for name in ("conv", "mlp"):
        seen, after = Recorder(), Validated()
        settings: dict[str, Any] = {"accelerator": "cpu", "strategy": "ddp", "devices": 2, "max_epochs": 3}
        run = trainer([seen, after, PredictionWriter(out)], **settings)
        model = classifier(name, head_only_epochs=1)
        before = state(model)
        data = sample(val_size=61, batch_size=5, eval_batch_size=10)
        run.fit(model, data)
        found[name] = {
            "before": before,
            "states": seen.states,
            "after": after.states,
            "metrics": {n: float(v) for n, v in run.callback_metrics.items()},
        }
        if name == "mlp":
            found["test"] = run.test(model, data, verbose=False)[0]
            run.predict(model, data, return_predictions=False)
    torch.save(found, out / f"rank{run.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

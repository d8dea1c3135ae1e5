"""Do the guards catch it where unlabeled texts do harm, with 4 labels of each class?

    python scripts/bench/wordnet_glosses.py glosses.csv
    python scripts/bench/text_guards.py --source glosses.csv --out scripts/bench/results/text_guards.json

A small transformer from scratch learns 48 labels of 12 classes beside 5,832 unlabeled glosses; 120 further labels are
for validation, 2,000 for the test. `plain` has neither warm-up nor control; `guarded` has the warm-up of short runs,
and a control (`control: true`) that the run keeps if it has more validation texts right. A run is hurt if it is worse
than labels alone (same seed, split, network and steps) on the test texts with p < .05 (exact McNemar test, one-sided).

Hypotheses, written down before the first run: of the 12 plain runs, at least 3 are hurt, most of them of UDA and
FixMatch, as with BERT-like models in USB (Wang et al. 2022); of the guarded ones at most 1. The mean of the guarded
runs is at least that of the labels alone. Budget: 15 minutes of one core.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from provenance import publish
from text_pretraining import QUIET, write_part
from torch import Tensor

from sft_lightning import SemiSupervisedModule, TextDataModule, WarmupCosine
from sft_lightning.losses import unlabeled
from sft_lightning.training.callbacks.roll_back import RollBack
from sft_lightning.training.judges import mcnemar

STRATEGIES: dict[str, dict[str, Any]] = {
    "UDA": {}, "FixMatch": {}, "AdaMatch": {"momentum": 0.99}, "SoftMatch": {"momentum": 0.99},
}  # fmt: skip
AT_ONCE = {"warmup_steps": 0, "ramp_steps": 0}
ALONE = {"schedule": "alternating", "warmup_steps": 10**9}


def train(table: str, seed: int, steps: int, strategy: Any, **settings: Any) -> tuple[Tensor, bool]:
    """Train once, and return which test texts are right, and whether the control was kept."""
    seed_everything(seed, verbose=False)
    data = TextDataModule(
        table, labels_per_class=4, val_size=120, seed=seed, max_length=24, batch_size=8, unlabeled_ratio=3,
        eval_batch_size=500, steps_per_epoch=steps, labeled_view="both",
    )  # fmt: skip
    data.setup("fit")
    model = SemiSupervisedModule(
        strategy, backbone="small_transformer", num_classes=data.num_classes, input_spec=data.input_spec,
        ema_decay=0.98, optimizer=lambda p: torch.optim.AdamW(p, 1e-3),
        lr_scheduler=lambda o: WarmupCosine(o, warmup_steps=10), **settings,
    )  # fmt: skip
    guards: list[Callback] = [RollBack()] if settings.get("control") else []
    Trainer(
        accelerator="cpu", devices=1, max_steps=steps, max_epochs=1, check_val_every_n_epoch=2, num_sanity_val_steps=0,
        callbacks=guards, **QUIET,
    ).fit(model, data)  # fmt: skip
    model.eval()
    with torch.no_grad():
        batches = data.batches_of("test", torch.device("cpu"))
        right = torch.cat([model(batch.x).argmax(1) == batch.y for batch in batches])
    control = model.control
    kept = control is not None and all(map(torch.equal, model.head.parameters(), control.head.parameters()))
    return right, kept


def main() -> None:
    """Compare on one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, list[dict[str, Any]]] = {}
    begin = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        table = str(write_part(args.source, Path(folder) / "part.csv"))
        for seed in args.seeds:
            alone, _ = train(table, seed, args.steps, unlabeled.EntropyMinimization(), **ALONE)
            rows.setdefault("labels alone", []).append({"accuracy": round(float(alone.double().mean()), 4)})
            for name, options in STRATEGIES.items():
                for kind, settings in (("plain", AT_ONCE), ("guarded", {"control": True})):
                    strategy = getattr(unlabeled, name)(**options)
                    right, kept = train(table, seed, args.steps, strategy, **settings)
                    lost, won = int((alone & ~right).sum()), int((right & ~alone).sum())
                    row = {"accuracy": round(float(right.double().mean()), 4), "hurt": mcnemar(lost, won) < 0.05}
                    rows.setdefault(f"{name}, {kind}", []).append(
                        row | ({"kept_control": kept} if settings.get("control") else {})
                    )
            print(seed, {name: own[-1] for name, own in rows.items()}, flush=True)
    mean = {name: round(statistics.mean(row["accuracy"] for row in own), 3) for name, own in rows.items()}
    hurt = {
        kind: sum(row.get("hurt", False) for name, own in rows.items() if kind in name for row in own)
        for kind in ("plain", "guarded")
    }
    args.source = Path(args.source).name
    publish(args, {"mean": mean, "hurt": hurt, "runs": rows, "cpu_seconds": round(time.process_time() - begin)})


if __name__ == "__main__":
    main()

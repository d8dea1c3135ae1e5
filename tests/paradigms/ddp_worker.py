"""Trainings on two gloo processes for the `*_ddp` tests; each process leaves what it saw in `rank{rank}.pt`.

`SCENARIOS` names the trainings. A test imports `train_*` of its scenario to train on one process what two have trained.
The scenarios that compare losses and weights use double precision: in single precision an example near a threshold is
accepted on one processor and rejected on another.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, distributed

from sft_lightning import (
    AutoencoderModule,
    DecoupledFeatureClassifier,
    DistillModule,
    FineTuneClassifier,
    ImageDataModule,
    PretrainView,
    SelfSupervisedModule,
    SemiSupervisedModule,
    TextDataModule,
    TextView,
)
from sft_lightning.cli import fast_loop
from sft_lightning.cli.lightning_cli import SFTCLI
from sft_lightning.losses import pretraining, unlabeled as strategies
from sft_lightning.losses.features import Center, CosinePrototype, SupCon
from sft_lightning.losses.unlabeled import ClassAwarePseudoLabels, FreeMatch, Reconstruction, SoftMatch
from sft_lightning.networks.adapters import LoRA
from sft_lightning.training.callbacks.predictions import PredictionWriter
from sft_lightning.training.callbacks.pseudo_label_metrics import PseudoLabelHealth
from sft_lightning.training.sync_batchnorm import SyncBatchNormOnCPU, SyncBatchNormsOnCPU
from sft_lightning.utils.errors import InputError
from tests.losses.pretraining.references import SMALL
from tests.paradigms.helpers import SHAPE, Pictures, Recorder, classifier, cli, sample, state, trainer

Schedule = Literal["joint", "alternating"]
SCHEDULES: tuple[Schedule, ...] = ("joint", "alternating")

CLASSIFIERS: dict[str, dict[str, Any]] = {
    "conv": {"head_only_epochs": 1},
    "mlp": {"head_only_epochs": 1},
    "lora": {"backbone": "conv", "adapter": LoRA(rank=2), "head_only_epochs": 1},
    "cached": {"backbone": "conv", "tune": "head"},
}

TEXTS = ("fine-tuning", "semi-supervised", "budget")

TWO_STAGE: dict[str, Any] = {"coupling": "two_stage", "feature_epochs": 1}
DECOUPLED: dict[str, Any] = {
    "mean joint": (lambda: CosinePrototype("mean"), {}),
    "learnable detached": (CosinePrototype, {"coupling": "detached"}),
    "center lws": (Center, {**TWO_STAGE, "head": "lws"}),
    "supcon joint": (SupCon, {}),
    "supcon two_stage": (SupCon, TWO_STAGE),
    "supcon crt": (SupCon, {**TWO_STAGE, "head": "crt"}),
    "simplex nearest": (lambda: CosinePrototype("simplex"), {"head": "nearest_class_mean"}),
}

GLOBAL_STATISTICS = {
    "FlexMatch": {"threshold": 0.35},
    "FreeMatch": {"momentum": 0.9, "fairness": 0.05},
    "SoftMatch": {"momentum": 0.9},
    "AdaMatch": {"momentum": 0.9},
    "DebiasMatch": {"momentum": 0.9, "threshold": 0.35},
    "CoMatch": {"threshold": 0.18, "memory": 64, "recent_batches": 6, "projection": 16, "graph_threshold": 0.12},
    "SimMatch": {"threshold": 0.18, "recent_batches": 6, "projection": 16, "bank_momentum": 0.5},
}


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.02, momentum=0.9)


SETTINGS: dict[str, Any] = {"num_classes": 10, "input_spec": SHAPE, "optimizer": _sgd, "backbone": "conv"}
SYNCED: dict[str, Callable[[], LightningModule]] = {
    "autoencoder": lambda: AutoencoderModule("conv", SHAPE, optimizer=_sgd),
    "autoencoder without": lambda: AutoencoderModule("mlp", SHAPE, optimizer=_sgd),
    "fine-tuning": lambda: FineTuneClassifier(**SETTINGS, head_only_epochs=1),
    "semi-supervised": lambda: SemiSupervisedModule(FreeMatch(momentum=0.9, fairness=0.05), **SETTINGS, ema_decay=0.9),
    "reconstruction": lambda: SemiSupervisedModule(Reconstruction(), **SETTINGS, schedule="alternating"),
    "decoupled": lambda: DecoupledFeatureClassifier(SupCon(), **SETTINGS),
}


class StatesAfterValidation(Callback):
    """Keeps the state of each replica after each validation."""

    def __init__(self) -> None:
        self.states: list[Any] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.states.append(state(pl_module))


class BroadcastRecorder(Recorder):
    """Also keeps the names of what DDP broadcasts from the first process before each pass."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        wrapped: Any = trainer.strategy.model
        self.broadcast = list(wrapped.named_module_buffers)


class DoublePrecision(ImageDataModule):
    """Batches in double precision, whose strong views are functions of the image: random views differ by process."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        views = super().on_after_batch_transfer(batch, dataloader_idx)
        if isinstance(views, dict) and "unlabeled" in views:
            weak: Tensor = views["unlabeled"].weak
            views["unlabeled"] = views["unlabeled"]._replace(strong=weak.flip(-1) * 0.8, strong_2=weak.roll(2, -1))
        return apply_to_collection(views, Tensor, lambda t: t.double() if t.is_floating_point() else t)


class FixedTexts(TextDataModule):
    """Texts whose strong views are functions of the text: random views differ by process."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        views = super().on_after_batch_transfer(batch, dataloader_idx)
        if isinstance(views, dict) and "unlabeled" in views:
            weak = views["unlabeled"].weak
            hidden = torch.arange(weak["input_ids"].shape[1]) % 3 > 0
            views["unlabeled"] = views["unlabeled"]._replace(
                strong={**weak, "input_ids": weak["input_ids"] * hidden, "attention_mask": weak["attention_mask"]}
            )
        return views


def ddp(devices: int, **settings: Any) -> dict[str, Any]:
    """Settings of the trainer; those that one process has no use for are left out there."""
    return {"devices": devices, **({"strategy": "ddp", **settings} if devices > 1 else {})}


def run_classifiers(out: Path) -> dict[str, Any]:
    """Fit all classifiers; validate, test and predict with one of them."""
    os.chdir(out)  # where features are cached
    results: dict[str, Any] = {}
    for name, own in CLASSIFIERS.items():
        recorder, after = Recorder(), StatesAfterValidation()
        run = trainer([recorder, after, PredictionWriter(out)], max_epochs=3, **ddp(2))
        model = classifier(**{"backbone": name, **own})
        images = Pictures(model.backbone)
        before = state(model)
        data = sample(val_size=61, batch_size=5, eval_batch_size=10)
        run.fit(model, data)
        results[name] = {
            "before": before,
            "states": recorder.states,
            "after": after.states,
            "images": images.count,
            "metrics": {n: float(v) for n, v in run.callback_metrics.items()},
        }
        if name == "mlp":
            results["test"] = run.test(model, data, verbose=False)[0]
            run.predict(model, data, return_predictions=False)
            one = sample(predict_source=str(out / "one.png"))  # fewer files than processes
            trainer([PredictionWriter(out / "one")], **ddp(2)).predict(model, one, return_predictions=False)
    return results


def train_texts(name: str, devices: int) -> dict[str, Any]:
    """Train 10 steps; the batch of all processes together has 8 labeled texts, and 24 unlabeled ones, or 192 tokens."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"batch_size": 8 // devices, "num_labels": 60, "max_length": 24}
    if name == "budget":  # with these, batches are cut at the same places for one process and for two
        sizes = {"max_tokens": 192 // devices, "num_labels": 72, "max_length": 16}
    data = FixedTexts("sample-texts", unlabeled_ratio=3, steps_per_epoch=5, eval_batch_size=50, weak_view=TextView(),
                      **sizes)  # fmt: skip
    settings: dict[str, Any] = {"backbone": "fasttext", "num_classes": 6, "input_spec": data.input_spec}
    settings["optimizer"] = lambda p: torch.optim.SGD(p, 0.5, momentum=0.9)
    model: LightningModule = FineTuneClassifier(**settings)
    if name == "semi-supervised":
        model = SemiSupervisedModule(SoftMatch(momentum=0.9), **settings, warmup_steps=0, ramp_steps=0)
    recorder = Recorder()
    run = trainer([recorder], max_epochs=2, **ddp(devices))
    run.fit(model.double(), data)
    metrics = {n: float(v) for n, v in run.callback_metrics.items() if n.startswith("val/")}
    return {"state": state(model), "losses": recorder.losses, "metrics": metrics}


def run_texts(out: Path) -> dict[str, Any]:
    """Train on texts."""
    return {name: train_texts(name, 2) for name in TEXTS}


def train_sets(folder: Path, devices: int) -> dict[str, Any]:
    """Train 10 steps on texts of several classes; the batch of all processes has 8 labeled and 24 unlabeled ones."""
    torch.manual_seed(0)
    data = FixedTexts(
        str(folder / "texts.csv"), label_separator=";", num_labels=60, max_length=24, batch_size=8 // devices,
        unlabeled_ratio=3, steps_per_epoch=5, eval_batch_size=10, val_size=40, weak_view=TextView(),
    )  # fmt: skip
    model = SemiSupervisedModule(
        ClassAwarePseudoLabels(momentum=0.9, memory=64), backbone="fasttext", num_classes=3,
        input_spec=data.input_spec, target=data.target, ema_decay=0.9, warmup_steps=0, ramp_steps=0,
        optimizer=lambda p: torch.optim.SGD(p, 0.5, momentum=0.9),
    ).double()  # fmt: skip
    recorder = Recorder()
    run = trainer([recorder], max_epochs=2, **ddp(devices))
    run.fit(model, data)
    metrics = {n: float(v) for n, v in run.callback_metrics.items() if n.startswith("val/")}
    return {"state": state(model), "losses": recorder.losses, "metrics": metrics}


def run_sets(out: Path) -> dict[str, Any]:
    """Train on texts of several classes."""
    return {"sets": train_sets(out, 2)}


def train_decoupled(name: str, devices: int) -> dict[str, Any]:
    """Train 15 steps; the batch of all processes together has 8 images."""
    torch.manual_seed(0)
    loss, settings = DECOUPLED[name]
    model = DecoupledFeatureClassifier(
        loss(), backbone="mlp", num_classes=10, input_spec=SHAPE, optimizer=lambda p: torch.optim.SGD(p, 0.05),
        **settings,
    ).double()  # fmt: skip
    data = DoublePrecision("sample", num_labels=40, val_size=61, batch_size=8 // devices, eval_batch_size=20)
    recorder = Recorder()
    run = trainer([recorder], max_epochs=3, **ddp(devices))
    run.fit(model, data)
    metrics = {n: float(v) for n, v in run.callback_metrics.items() if n.startswith("val/")}
    return {"state": state(model), "losses": recorder.losses, "metrics": metrics}


def train_distilled(folder: Path, devices: int) -> dict[str, Any]:
    """Train 8 steps from the teacher in the folder; the batch of all processes has 8 and 16 images."""
    torch.manual_seed(0)
    model = DistillModule(
        str(folder / "teacher.ckpt"), feature_weight=1.0, backbone="mlp", num_classes=10, input_spec=SHAPE,
        optimizer=lambda p: torch.optim.SGD(p, 0.05),
    )  # fmt: skip
    data = sample(num_labels=40, batch_size=8 // devices, unlabeled_ratio=2, seed=1, steps_per_epoch=4)
    recorder = Recorder()
    run = trainer([recorder], max_epochs=2, **ddp(devices))
    run.fit(model, data)
    metrics = {n: float(v) for n, v in run.callback_metrics.items() if n.startswith("val/")}
    return {"state": state(model), "losses": recorder.losses, "metrics": metrics}


def run_decoupled(out: Path) -> dict[str, Any]:
    """Train all decoupled classifiers, and a distilled one."""
    return {name: train_decoupled(name, 2) for name in DECOUPLED} | {"distilled": train_distilled(out, 2)}


def train_semi_supervised(name: str, schedule: Schedule, devices: int) -> dict[str, Any]:
    """Train 12 steps; the batch of all processes together has 8 labeled and 24 unlabeled images."""
    torch.manual_seed(0)
    model = SemiSupervisedModule(
        getattr(strategies, name)(**GLOBAL_STATISTICS.get(name, {})), backbone="mlp", num_classes=10,
        input_spec=SHAPE, ema_decay=0.9, schedule=schedule, warmup_steps=0, ramp_steps=0, control=True,
        optimizer=lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01),
    )  # fmt: skip
    with torch.no_grad():  # confident predictions, so that some pseudo-labels are accepted
        for p in model.head.parameters():
            p.mul_(30)
    data = DoublePrecision("sample", num_labels=40, val_size=9860, batch_size=8 // devices, unlabeled_ratio=3, seed=1,
                           steps_per_epoch=6, eval_batch_size=1000)  # fmt: skip
    recorder, health = Recorder(), PseudoLabelHealth()
    run = trainer([recorder, health], max_epochs=2, log_every_n_steps=4, limit_val_batches=1, **ddp(devices))
    run.fit(model.double(), data)
    if devices > 1:
        run.strategy.barrier()
    logged = {n: float(v) for n, v in run.callback_metrics.items() if n.startswith("pseudo_labels/")}
    return {"state": state(model), "losses": recorder.losses, "health": logged}


def run_semi_supervised(out: Path) -> dict[str, Any]:
    """Train the strategies and schedules that `requested.json` in the folder names."""
    requested = json.loads((out / "requested.json").read_text())
    return {f"{name} {schedule}": train_semi_supervised(name, schedule, 2) for name, schedule in requested}


def train_synced(name: str, devices: int) -> dict[str, Any]:
    """Train 8 steps; the batch of all processes together has 8 labeled and 16 unlabeled images."""
    torch.manual_seed(0)
    model = SYNCED[name]().double()
    data = DoublePrecision("sample", num_labels=40, val_size=9860, batch_size=8 // devices, unlabeled_ratio=2, seed=1,
                           steps_per_epoch=4, eval_batch_size=4930)  # fmt: skip
    recorder = Recorder()
    run = trainer([recorder], max_epochs=2, limit_val_batches=0, **ddp(devices, sync_batchnorm=True))
    SyncBatchNormsOnCPU.install(run)
    run.fit(model, data)
    assert not any(type(module) is SyncBatchNormOnCPU for module in model.modules())
    return {"state": state(model), "losses": recorder.losses}


def run_synced(out: Path) -> dict[str, Any]:
    """Train all models with synchronized batch normalization, and keep the message about a single unlabeled image."""
    results: dict[str, Any] = {name: train_synced(name, 2) for name in SYNCED}
    data = DoublePrecision("sample", num_labels=9000, val_size=999, batch_size=8)
    try:
        trainer(**ddp(2)).fit(SYNCED["semi-supervised"](), data)
    except InputError as error:
        results["refused"] = str(error)
    return results


class FixedViews(ImageDataModule):
    """Batches in double precision, whose two views are functions of the image: random views differ by process."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        views = super().on_after_batch_transfer(batch, dataloader_idx)
        if isinstance(views, dict):
            weak: Tensor = views["unlabeled"].weak
            views["unlabeled"] = views["unlabeled"]._replace(crops=(weak, weak.roll(2, -1) * 0.8))
        return apply_to_collection(views, Tensor, lambda t: t.double() if t.is_floating_point() else t)


class HiddenByContent(pretraining.MAE):
    """Hides the patches whose pixels vary most: random ones differ by process."""

    def draw_visible(self, x: Any, seed: int) -> Tensor:
        order: Tensor = self.decoder.split(x).var(-1).argsort(1)
        return order[:, : self.num_visible]


def train_self_supervised(name: str, devices: int) -> dict[str, Any]:
    """Train 8 steps; the batch of all processes together has 16 images."""
    torch.manual_seed(0)
    objective = HiddenByContent() if name == "MAE" else getattr(pretraining, name)(**SMALL[name])
    backbone = "resnet8" if name in ("DenseCL", "MAE") else "mlp"
    model = SelfSupervisedModule(objective, backbone, SHAPE, num_classes=10, optimizer=_sgd).double()
    # Gray images have no color to lose.
    unchanged: dict[str, Any] = {"crop_scale": [1.0, 1.0], "flip": False, "jitter": 0.0, "blur": 0.0}
    data = FixedViews("sample", num_labels=40, val_size=100, batch_size=16 // devices, seed=1, steps_per_epoch=4,
                      eval_batch_size=20, pretrain_view=PretrainView(**unchanged))  # fmt: skip
    recorder = Recorder()
    run = trainer([recorder], max_epochs=2, **ddp(devices, sync_batchnorm=True))
    SyncBatchNormsOnCPU.install(run)
    run.fit(model, data)
    metrics = {n: float(v) for n, v in run.callback_metrics.items() if n.startswith("val/")}
    return {"state": state(model), "losses": recorder.losses, "metrics": metrics}


def run_self_supervised(out: Path) -> dict[str, Any]:
    """Train all self-supervised objectives."""
    return {name: train_self_supervised(name, 2) for name in pretraining.__all__}


def train_by_command(*words: str) -> tuple[SFTCLI, BroadcastRecorder]:
    """Train the fine-tuning quickstart through the command line."""
    two = ("--trainer.accelerator=cpu", "--trainer.strategy=ddp", "--trainer.devices=2")
    own = f"--trainer.callbacks={BroadcastRecorder.__module__}.{BroadcastRecorder.__name__}"
    done = cli("fit", "fine_tune", *two, own, *words)
    callbacks: list[Callback] = done.trainer.callbacks  # type: ignore[attr-defined]
    return done, next(c for c in callbacks if isinstance(c, BroadcastRecorder))


def run_fast_loop(out: Path) -> dict[str, Any]:
    """Train with the fast loop and with Lightning's."""
    os.chdir(out)
    results: dict[str, Any] = {}
    for is_lean in (True, False):
        with (
            patch.object(fast_loop, "CALLBACKS", fast_loop.CALLBACKS | ({BroadcastRecorder} if is_lean else set())),
            patch.object(distributed, "broadcast", wraps=distributed.broadcast) as broadcast,
        ):
            done, recorder = train_by_command("--model.init_args.class_weights=balanced")
        loop: Any = done.trainer.fit_loop.epoch_loop
        results["lean" if is_lean else "lightning"] = {
            "lean": loop._lean, "state": state(done.model), "losses": recorder.losses, "sent": recorder.broadcast,
            "asked": broadcast.call_count,
        }  # fmt: skip
    conv = train_by_command("--model.init_args.backbone=conv", "--trainer.max_epochs=1")[1]
    return {**results, "conv": conv.broadcast}


SCENARIOS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "classifiers": run_classifiers,
    "decoupled": run_decoupled,
    "self_supervised": run_self_supervised,
    "semi_supervised": run_semi_supervised,
    "synced": run_synced,
    "fast_loop": run_fast_loop,
    "texts": run_texts,
    "sets": run_sets,
}


def main(scenario: str, out: Path) -> None:
    """Run a scenario on this process and save its results.

    Args:
        scenario: Key of `SCENARIOS`.
        out: Folder for `rank{rank}.pt`.
    """
    results = SCENARIOS[scenario](out)
    torch.save(results, out / f"rank{os.environ['LOCAL_RANK']}.pt")

"""Killed at any moment and started again with `--ckpt_path last`, a run ends where an uninterrupted one does."""

import csv
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sft_lightning.__main__ import main
from tests.conftest import CONFIGS
from tests.promises.conftest import Whole
from tests.promises.killed import trained

KILLED = -signal.SIGKILL
SHORT = [
    "--data.init_args.steps_per_epoch=5",
    "--data.init_args.batch_size=4",
    "--data.init_args.val_size=50",
    "--data.init_args.num_labels=40",
    "--trainer.max_epochs=3",
    "--trainer.log_every_n_steps=2",
    "--trainer.accelerator=cpu",
    "--model.init_args.regularizer=tests.promises.killed.Dice",
    "--model.init_args.regularizer.init_args.weight=0.001",
    "--run_name=run",
]
SHARED = ["--config", str(CONFIGS / "semi_supervised" / "shared.yaml"), "--model.init_args.ema_decay=0.9"]
ALTERNATING = ["--model.init_args.schedule=alternating", "--model.init_args.warmup_steps=2"]
RUNS = {
    "autoencoder": ["--config", str(CONFIGS / "quickstart" / "autoencoder.yaml"), "--model.init_args.noise=0.2"],
    "fine-tuning": ["--config", str(CONFIGS / "quickstart" / "fine_tune.yaml"), "--model.init_args.backbone=conv"],
    "joint": [*SHARED, "--model.init_args.strategy=FreeMatch"],
    "alternating": [*SHARED, *ALTERNATING, "--model.init_args.strategy=FlexMatch"],
    "two stages": [
        "--config", str(CONFIGS / "quickstart" / "decoupled.yaml"), "--model.init_args.coupling=two_stage",
        "--model.init_args.feature_epochs=2",
    ],
    "self-supervised": [
        "--config", str(CONFIGS / "quickstart" / "self_supervised.yaml"), "--model.init_args.objective=BYOL",
        "--model.init_args.objective.init_args.hidden=32", "--model.init_args.backbone=mlp",
    ],
}  # fmt: skip


def everything(folder: Path) -> dict[str, Any]:
    """What the last checkpoint holds, but for the times and the loops' count of restarts."""
    run = folder / "lightning_logs" / "run" / "version_0"
    found: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert found["callbacks"]["RunCheckpoint"]["random"]
    names = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")
    return {**{name: found[name] for name in names}, "random": found["callbacks"]["RunCheckpoint"]["random"]}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def seen(folder: Path, rank: int = 0) -> dict[int, Any]:
    """What each step was shown the last time."""
    return dict(map(json.loads, (folder / f"seen{rank}.jsonl").read_text().splitlines()))


def metrics(folder: Path) -> list[list[str]]:
    """Of evaluations, and of training at the end; others are averages of steps that a stop tears apart."""
    with (folder / "lightning_logs" / "run" / "version_0" / "metrics.csv").open() as file:
        rows = [row for row in csv.reader(file) if not row[1].startswith(("train/", "pseudo_labels/"))]
    assert len({(row[0], row[1]) for row in rows}) == len(rows)
    return rows


def short(words: list[str]) -> list[str]:
    return ["fit", *words[:2], *SHORT, *words[2:]]


def check(
    words: list[str], tmp_path: Path, deaths: list[tuple[str, int]], ranks: int = 1, train: Whole | None = None
) -> None:
    words = short(words)
    for k, (moment, count) in enumerate(deaths):
        again = ["--ckpt_path=last"] if k else []
        assert KILLED in trained([*words, *again], tmp_path / "parts", moment, count, ranks)
    assert trained([*words, "--ckpt_path=last"], tmp_path / "parts", ranks=ranks) == [0] * ranks
    unbroken = tmp_path / "whole" if train is None else train(words, ranks)
    if train is None:
        assert trained(words, unbroken, ranks=ranks) == [0] * ranks
    whole, parts = everything(unbroken), everything(tmp_path / "parts")
    assert whole["global_step"] >= 15
    assert [name for name in whole if not same(whole[name], parts[name])] == []
    for rank in range(ranks):
        assert seen(unbroken, rank) == seen(tmp_path / "parts", rank)
    assert metrics(unbroken) == metrics(tmp_path / "parts")


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNS)
def test_killed_and_resumed_is_as_never_killed(kind: str, tmp_path: Path, whole: Whole) -> None:
    check(RUNS[kind], tmp_path, [("step", 5), ("step", 7), ("validation", 1), ("save", 2), ("step", 2)], train=whole)


def test_killed_in_a_step_a_validation_and_a_save(tmp_path: Path, whole: Whole) -> None:
    check(RUNS["joint"], tmp_path, [("step", 5), ("validation", 1), ("save", 2)], train=whole)


def test_killed_around_the_second_stage(tmp_path: Path, whole: Whole) -> None:
    """Step 10 begins it: in the first training two steps are missing, in the second a save around it is torn apart."""
    check(RUNS["two stages"], tmp_path, [("step", 8), ("save", 2)], train=whole)


@pytest.mark.slow
def test_files_and_workers(tmp_path: Path, write_folder: Callable[..., Path], whole: Whole) -> None:
    folder = write_folder(tmp_path / "images", {"train": 20, "val": 4, "test": 2, "unlabeled": 16})
    words = [*RUNS["joint"], f"--data.init_args.source={folder}", "--data.init_args.image_size=28"]
    words += ["--data.init_args.num_workers=2", "--data.init_args.channels=1"]
    check(words, tmp_path, [("step", 9), ("step", 3)], train=whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["joint", "alternating", "two stages"])
def test_two_processes(kind: str, tmp_path: Path, whole: Whole) -> None:
    """The one that lives on is ended by hand, as a cluster does."""
    check(RUNS[kind], tmp_path, [("step", 9), ("save", 2)], ranks=2, train=whole)


@pytest.mark.slow  # SIGTERM to one of two is resumed in every run of the suite
def test_two_processes_killed_in_a_save(tmp_path: Path, whole: Whole) -> None:
    check(RUNS["joint"], tmp_path, [("save", 2)], ranks=2, train=whole)


@pytest.mark.slow
def test_accumulated_gradients_are_not_torn_apart(tmp_path: Path, whole: Whole) -> None:
    """A checkpoint inside an epoch is taken right after an optimizer step, never between two."""
    words = [*RUNS["fine-tuning"], "--trainer.accumulate_grad_batches=3", "--data.init_args.steps_per_epoch=24"]
    check(words, tmp_path, [("step", 17)], train=whole)


def test_a_training_that_max_steps_ended_inside_an_epoch_goes_on_there(tmp_path: Path, workdir: Path) -> None:
    words = [*short(RUNS["fine-tuning"]), "--trainer.max_epochs=2"]
    assert main([*words, "--trainer.max_steps=7"]) == 0
    assert main([*words, "--ckpt_path=last"]) == 0
    parts = everything(workdir)
    (workdir / "lightning_logs").rename(tmp_path / "first")
    assert main(words) == 0
    whole = everything(workdir)
    assert whole["global_step"] == 10
    assert [name for name in whole if not same(whole[name], parts[name])] == []

"""What only a GPU shows: `./scripts/test --gpu` on a machine that has one; the other suites leave these out."""

import csv
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from sft_lightning.__main__ import main
from sft_lightning.cli.lightning_cli import SFTCLI, run
from sft_lightning.data.loaders import Stream
from sft_lightning.paradigms import feature_cache
from sft_lightning.utils import transfer
from tests.conftest import CONFIGS
from tests.promises.test_exact_resume import RUNS, check

pytestmark = pytest.mark.gpu

STRATEGIES = sorted(p.stem for p in (CONFIGS / "semi_supervised").glob("*.yaml") if p.stem != "shared")
PARADIGMS: dict[str, list[str]] = {
    **{name: [f"quickstart/{name}.yaml"] for name in ("autoencoder", "fine_tune", "decoupled")},
    **{name: ["semi_supervised/shared.yaml", f"semi_supervised/{name}.yaml"] for name in STRATEGIES},
}
SHORT = ["--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=10"]
STEPS = 24


def words(name: str, *more: str, steps: int = STEPS, accelerator: str = "gpu") -> list[str]:
    """A shipped config on the GPU for some steps."""
    given = [word for config in PARADIGMS[name] for word in ("--config", str(CONFIGS / config))]
    given += [*SHORT, f"--run_name={name}", "--trainer.max_epochs=1", f"--data.init_args.steps_per_epoch={steps}"]
    given += ["--trainer.devices=1", f"--trainer.accelerator={accelerator}", "--data.init_args.batch_size=16"]
    if name in STRATEGIES:
        given += ["--data.init_args.num_labels=40", "--data.init_args.unlabeled_ratio=3"]
    return ["fit", *given, *more]


def losses(done: SFTCLI) -> list[float]:
    """What was logged of the training."""
    with (Path(str(done.trainer.log_dir)) / "metrics.csv").open() as file:
        return [float(row[2]) for row in csv.reader(file) if row[1] == "train/loss"]


class NoWaiting(Callback):
    """From the third step on, whatever waits for the GPU is an error, but where the log is written."""

    def __init__(self) -> None:
        self.watched = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        logs = any(step % trainer.log_every_n_steps == 0 for step in (trainer.global_step, trainer.global_step + 1))  # type: ignore[attr-defined]
        quiet = not logs and 2 <= trainer.global_step < STEPS - 2
        self.watched += quiet
        torch.cuda.set_sync_debug_mode("error" if quiet else "default")


@pytest.mark.parametrize("name", list(PARADIGMS))
def test_no_step_waits_for_the_device(name: str, workdir: Path) -> None:
    try:
        done = run(words(name, "--trainer.callbacks=tests.gpu.test_gpu.NoWaiting"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    (watch,) = (c for c in done.trainer.callbacks if isinstance(c, NoWaiting))  # type: ignore[attr-defined]
    assert watch.watched == 16
    assert done.trainer.global_step == STEPS


@pytest.mark.parametrize("name", ["autoencoder", "fine_tune", "decoupled", "fixmatch", "flexmatch", "mixmatch"])
def test_it_learns_what_a_cpu_learns(name: str, workdir: Path) -> None:
    found = [losses(run(words(name, accelerator=accelerator))) for accelerator in ("cpu", "gpu")]
    assert len(found[0]) == 3
    assert found[1] == pytest.approx(found[0], rel=2e-2)


def test_pictures_on_the_gpu_change_nothing(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where, own, found = [], Stream.batches, []

    def watched(self: Stream, start: int, stop: int) -> Any:
        for batch in own(self, start, stop):
            where.append(batch.inputs.device.type)
            yield batch

    monkeypatch.setattr(Stream, "batches", watched)
    for share, kind in ((0.25, "cuda"), (0.0, "cpu")):
        monkeypatch.setattr(transfer, "MAX_MEMORY_SHARE", share)
        where.clear()
        found.append(losses(run(words("fixmatch", "--trainer.deterministic=true"))))
        assert len(where) >= 2 * STEPS
        assert set(where) == {kind}
    assert found[0] == found[1]


def test_a_cache_of_files_stays_on_the_gpu(workdir: Path, write_folder: Callable[..., Path]) -> None:
    folder = write_folder(workdir / "images", {"train": 20, "val": 4, "test": 2})
    more = [f"--data.init_args.source={folder}", "--data.init_args.image_size=28", "--data.init_args.channels=1"]
    more += ["--data.init_args.num_labels=null", "--trainer.deterministic=true"]
    found = [losses(run(words("fine_tune", *more, *cache))) for cache in ([], ["--data.init_args.cache=cache"])]
    assert found[0] == found[1]
    done = run(words("fine_tune", *more, "--data.init_args.cache=cache"))
    train = done.trainer.train_dataloader
    assert train is not None
    kept = train.streams["labeled"]._memory
    assert (kept.device.type, tuple(kept.shape)) == ("cuda", (60, 1, 28, 28))


def test_features_are_those_of_a_cpu(workdir: Path) -> None:
    done = run(words("fine_tune", "--data.init_args.eval_batch_size=32", "--model.init_args.backbone=conv"))
    backbone, data = done.model.backbone.eval(), done.datamodule
    there = feature_cache.features(backbone.cuda(), data, "labeled", Path("there"))
    here = feature_cache.features(backbone.cpu(), data, "labeled", Path("here"))
    assert there is not None
    assert here is not None
    torch.testing.assert_close(there, here, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("kind", ["joint", "two stages", "fine-tuning"])
def test_killed_and_resumed_is_as_never_killed(kind: str, tmp_path: Path) -> None:
    words = [*RUNS[kind], "--trainer.accelerator=gpu", "--trainer.devices=1", "--trainer.deterministic=true"]
    check(words, tmp_path, [("step", 5), ("save", 2)])


@pytest.fixture
def little_memory() -> Any:
    """A hundredth of the memory."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.01)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


HEAVY = ["--model.init_args.backbone=torchvision/resnet18", "--data.init_args.image_size=224"]


def test_out_of_memory_is_a_sentence(workdir: Path, little_memory: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words("fine_tune", *HEAVY, "--data.init_args.batch_size=100")) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.match(
        r"sft-lightning: GPU memory ran out in training at step 0, for [\d.]+ [MG]iB more \(batch_size", said
    )
    assert "lower batch_size or image_size, or set trainer.precision: bf16-mixed" in said


def test_a_batch_size_is_found(workdir: Path, little_memory: None, capsys: pytest.CaptureFixture[str]) -> None:
    more = [word for word in words("fine_tune", *HEAVY)[1:] if not word.startswith("--trainer.limit_val")]
    assert main(["find-batch-size", *more, "--seconds=0.3"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"ended +memory ran out at (16|32|64)\n", said), said


def test_a_precision_is_found(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = words("fine_tune", *HEAVY)[1:]
    assert main(["find-precision", *more, "--seconds=0.5", "--rounds=2"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^16-mixed +[\d,]+ ", said, re.MULTILINE), said
    assert "suggested" in said


class Poison(Callback):
    """One gradient becomes infinite; keeps the parameters as they are after each step."""

    def __init__(self) -> None:
        self.kept: list[torch.Tensor] = []

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 4:
            next(iter(pl_module.parameters())).grad.fill_(torch.inf)  # type: ignore[union-attr]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.kept.append(torch.cat([p.detach().flatten() for p in pl_module.parameters() if p.requires_grad]).clone())


@pytest.mark.parametrize("name", ["fine_tune", "fixmatch"])
def test_nothing_is_learned_from_what_is_not_finite(
    name: str, workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The optimizer is fused, whether the config says so (Adam) or not (SGD), and told on the device."""
    poison = Poison()
    own = SFTCLI._instantiate_trainer
    monkeypatch.setattr(SFTCLI, "_instantiate_trainer", lambda self, c, callbacks: own(self, c, [*callbacks, poison]))
    assert main(words(name)) == 2
    assert "at step 4 (learning rate" in capsys.readouterr().err
    changed = [not torch.equal(a, b) for a, b in pairwise(poison.kept)]
    assert changed == [True] * 4 + [False] * 5


def test_the_scaling_of_half_precision_is_not_taken_for_it(workdir: Path) -> None:
    done = run(words("fixmatch", "--trainer.precision=16-mixed"))
    scaler = done.trainer.precision_plugin.scaler  # type: ignore[attr-defined]
    assert scaler.get_scale() > 0
    assert all(value == value for value in losses(done))


@pytest.mark.parametrize("mode", ["true", "reduce-overhead"])
@pytest.mark.parametrize("name", ["fine_tune", "fixmatch"])
def test_compiled_learns_the_same(name: str, mode: str, workdir: Path) -> None:
    more = ["--model.init_args.backbone=conv"]
    eager, compiled = (losses(run(words(name, *more, f"--model.init_args.compile={how}"))) for how in ("false", mode))
    assert compiled == pytest.approx(eager, rel=2e-2)

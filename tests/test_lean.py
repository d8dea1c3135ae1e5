"""The lean step computes, counts, logs and saves what Lightning's does, and gives way where something is hooked in."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sft_lightning import lean
from sft_lightning.callbacks.checkpoint import RunCheckpoint
from sft_lightning.cli import SFTCLI
from sft_lightning.paradigms.fine_tune import FineTuneClassifier
from tests.paradigms.helpers import Recorder, classifier, cli, left_by_ranks, state, two_processes

SCHEDULE = "--model.init_args.lr_scheduler={class_path: WarmupCosine, init_args: {warmup_steps: 3}}"


def trained(
    monkeypatch: pytest.MonkeyPatch, config: str, is_lean: bool, *words: str, beside: Callback | None = None
) -> tuple[SFTCLI, Recorder]:
    recorder = Recorder()
    with monkeypatch.context() as patch:
        patch.setattr(RunCheckpoint, "SHARE", 1e9)  # saves at the same moments, however long each takes
        if not is_lean:
            patch.setattr(lean, "nothing_hooked", lambda trainer: False)
        install = lean.LeanEpochLoop.install
        patch.setattr(
            lean.LeanEpochLoop,
            "install",
            lambda t: (t.callbacks.extend([recorder] if beside is None else [recorder, beside]), install(t)),
        )
        done = cli("fit", config, "--trainer.log_every_n_steps=4", *words)
    assert done.trainer.fit_loop.epoch_loop._lean is is_lean
    return done, recorder


def scalars(folder: str) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(folder).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


HALF = "--trainer.precision=bf16-mixed"


@pytest.mark.parametrize("words", [("autoencoder",), ("fine_tune",), ("fine_tune", SCHEDULE), ("fine_tune", HALF)])
def test_equals_lightnings_step(words: tuple[str, ...], workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (a, seen_a), (b, seen_b) = (trained(monkeypatch, words[0], is_lean, *words[1:]) for is_lean in (True, False))
    assert len(seen_a.losses) == 12
    assert seen_a.losses == seen_b.losses
    assert seen_a.rates == seen_b.rates
    first, second = state(a.model), state(b.model)
    assert all(torch.equal(first[name], second[name]) for name in second)
    told = [scalars(str(done.trainer.log_dir)) for done in (a, b)]
    assert told[0] == told[1]
    assert len(told[0]["train/loss"]) == 3
    saved = [torch.load(Path(str(done.trainer.log_dir)) / "checkpoints" / "last.ckpt") for done in (a, b)]
    assert saved[0]["loops"] == saved[1]["loops"]
    assert saved[0]["global_step"] == saved[1]["global_step"] == 12


def test_two_processes_are_lean_and_the_same(tmp_path: Path) -> None:
    first, second = left_by_ranks(two_processes("lean_worker", tmp_path))
    a, b = first["lean"], first["lightning"]
    assert (a["lean"], b["lean"]) == (True, False)
    assert len(a["losses"]) == 12
    assert a["losses"] == b["losses"]
    assert first["lean"]["losses"] != second["lean"]["losses"]
    for other in (b, second["lean"]):
        assert all(torch.equal(a["state"][name], other["state"][name]) for name in a["state"])
    assert (a["asked"], b["asked"]) == (0, 0)  # Lightning would ask all in each step for a signal, and wait
    assert a["sent"] == []  # nothing that never changes is sent in each step
    statistics = {name.split(".")[-1] for name in first["conv"]}
    assert statistics == {"running_mean", "running_var", "num_batches_tracked"}


def test_a_resumed_training_is_lean_and_the_same(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = trained(monkeypatch, "fine_tune", True, "--trainer.max_epochs=3")
    half, _ = trained(monkeypatch, "fine_tune", True, "--trainer.max_epochs=2")
    go_on = ("--trainer.max_epochs=3", f"--ckpt_path={half.trainer.log_dir}")
    rest, _ = trained(monkeypatch, "fine_tune", True, *go_on)
    assert rest.trainer.global_step == whole.trainer.global_step == 18
    a, b = state(whole.model), state(rest.model)
    assert all(torch.equal(a[name], b[name]) for name in a)


class Talker(Callback):
    """Logs by itself, at steps when the log is not due, and reads what others see."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx % 3 == 1:
            module.log("own/start", float(trainer.global_step), prog_bar=True)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx % 3 == 2:
            module.log("own/mean", float(trainer.global_step), on_step=True, on_epoch=True, batch_size=2)
        shown = (trainer.callback_metrics, trainer.progress_bar_metrics, trainer.logged_metrics)
        self.seen.append([{name: float(value) for name, value in metrics.items()} for metrics in shown])


@pytest.mark.parametrize("words", [(), ("--trainer.val_check_interval=2",), ("--trainer.limit_val_batches=0",)])
def test_what_callbacks_log_arrives(words: tuple[str, ...], workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talkers = Talker(), Talker()
    a, b = (
        trained(monkeypatch, "fine_tune", is_lean, *words, beside=talker)[0]
        for is_lean, talker in zip((True, False), talkers, strict=True)
    )
    assert len(talkers[0].seen) == 12
    assert talkers[0].seen == talkers[1].seen
    told = [scalars(str(done.trainer.log_dir)) for done in (a, b)]
    assert told[0] == told[1]
    assert {"own/start", "own/mean_step", "own/mean_epoch"} <= set(told[0])
    assert ("val/accuracy" in told[0]) is (words != ("--trainer.limit_val_batches=0",))


class Hooked(Callback):
    def __init__(self) -> None:
        self.calls = 0

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.calls += 1


def test_what_is_hooked_in_is_called(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hooked = Hooked()
    install = lean.LeanEpochLoop.install
    monkeypatch.setattr(lean.LeanEpochLoop, "install", lambda t: (t.callbacks.append(hooked), install(t)))
    cli("fit", "fine_tune")
    assert hooked.calls == 12


def test_a_hook_of_the_module_is_called(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(FineTuneClassifier, "on_after_backward", lambda self: calls.append(1), raising=False)
    cli("fit", "fine_tune")
    assert len(calls) == 12


@pytest.mark.parametrize(
    "words",
    [
        ("--trainer.gradient_clip_val=0.1",),
        ("--trainer.accumulate_grad_batches=2",),
        ("--trainer.precision=bf16-true",),
        ("--trainer.detect_anomaly=true",),
        ("--model.init_args.optimizer={class_path: torch.optim.LBFGS, init_args: {lr: 0.01}}",),
    ],
)
def test_settings_that_need_lightnings_step_get_it(words: tuple[str, ...], workdir: Path) -> None:
    done = cli("fit", "fine_tune", *words)
    steps = 6 if "accumulate" in words[0] else 12
    assert done.trainer.global_step == steps
    if "accumulate" not in words[0]:
        assert done.trainer.fit_loop.epoch_loop._lean is False


class Wrapped(torch.optim.Adam):
    """As wrappers of optimizers write their step."""

    def step(self, *args: Any, **kwargs: Any) -> Any:
        return super().step(*args, **kwargs)


def test_an_optimizer_that_does_not_say_how_it_steps_gets_lightnings_step(workdir: Path) -> None:
    done = cli("fit", "fine_tune", "--model.init_args.optimizer={class_path: tests.test_lean.Wrapped}")
    assert done.trainer.global_step == 12
    assert done.trainer.fit_loop.epoch_loop._lean is False


def test_what_ddp_is_told_to_leave_out_is_added() -> None:
    model = classifier("mlp")
    own = ["backbone.mean", "backbone.std", "class_weight"]
    assert sorted(model._ddp_params_and_buffers_to_ignore) == own
    ddp: Any = torch.nn.parallel.DistributedDataParallel
    ddp._set_params_and_buffers_to_ignore_for_model(model, ["head.bias"])
    assert sorted(model._ddp_params_and_buffers_to_ignore) == sorted([*own, "head.bias"])

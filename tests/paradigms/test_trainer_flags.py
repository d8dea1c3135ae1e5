import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sft_lightning import WarmupCosine
from sft_lightning.cli.lightning_cli import run
from sft_lightning.utils.errors import InputError
from tests.paradigms.helpers import ROOT, Recorder, batches, classifier, cli, sample, state, trainer


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _cosine(step: int, warmup: int, total: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


@pytest.mark.parametrize("config", ["autoencoder", "fine_tune"])
def test_mixed_precision(config: str) -> None:
    seen: set[torch.dtype] = set()

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(module, nn.Linear):
            seen.add(output.dtype)

    hook = nn.modules.module.register_module_forward_hook(note)
    try:
        model = cli("fit", config, "--trainer.precision=bf16-mixed").model
    finally:
        hook.remove()
    assert seen == {torch.bfloat16}
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())


CONFIGS = [
    ("quickstart/decoupled",),
    ("semi_supervised/shared", "semi_supervised/mixmatch"),
    *(pytest.param(names, marks=pytest.mark.slow) for names in (
        ("quickstart/autoencoder",),
        ("quickstart/fine_tune",),
        ("semi_supervised/shared", "semi_supervised/freematch"),
        ("semi_supervised/shared", "semi_supervised/adamatch"),
    )),
]  # fmt: skip


@pytest.mark.parametrize("precision", ["bf16-true", pytest.param("64-true", marks=pytest.mark.slow)])
@pytest.mark.parametrize("names", CONFIGS)
def test_all_of_the_network_in_half_or_double_precision(names: Sequence[str], precision: str) -> None:
    """The data module knows nothing of it."""
    words = [word for name in names for word in ("--config", str(ROOT / "configs" / f"{name}.yaml"))]
    words += ["--data.init_args.steps_per_epoch=3", "--data.init_args.batch_size=4", "--trainer.max_epochs=1"]
    words += ["--data.init_args.eval_batch_size=20", "--data.init_args.unlabeled_ratio=1"]
    words += ["--trainer.accelerator=cpu", "--trainer.limit_val_batches=1", f"--trainer.precision={precision}"]
    done = run(["fit", *words, "--trainer.enable_progress_bar=false"])
    assert done.trainer.global_step == 3
    assert done.model.dtype == (torch.bfloat16 if precision == "bf16-true" else torch.float64)
    assert all(p.isfinite().all() for p in done.model.parameters())


@pytest.mark.slow
def test_two_processes() -> None:
    words = ["--config", str(ROOT / "configs" / "quickstart" / "autoencoder.yaml"), "--run_name=two"]
    words += ["--trainer.accelerator=cpu", "--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.max_epochs=1"]
    words += ["--data.init_args.steps_per_epoch=3", "--trainer.precision=bf16-mixed"]
    done = subprocess.run(
        [sys.executable, "-m", "sft_lightning", "fit", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        timeout=240,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    folder = Path("lightning_logs", "two", "version_0")
    assert [p.name for p in folder.parent.iterdir()] == ["version_0"]
    assert (folder / "encoder.safetensors").is_file()
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3


def test_accumulation_takes_the_step_of_the_whole_batch() -> None:
    results = []
    for size, every in ((10, 1), (5, 2)):
        model = classifier()
        run = trainer(accumulate_grad_batches=every, max_epochs=2)
        run.fit(model, sample(batch_size=size))
        assert run.global_step == 4
        results.append(state(model))
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor, atol=1e-6, rtol=1e-5, msg=name)


def test_clipping_bounds_the_step() -> None:
    model = classifier(optimizer=lambda p: torch.optim.SGD(p, 1.0))
    before = state(model)
    trainer(gradient_clip_val=1e-3, limit_train_batches=1).fit(model, sample())
    step = sum((p - before[n]).square().sum().item() for n, p in model.named_parameters())
    assert math.sqrt(step) == pytest.approx(1e-3, rel=1e-2)


def test_clipping_and_accumulation_from_the_command_line() -> None:
    run = cli("fit", "fine_tune", "--trainer.gradient_clip_val=0.1", "--trainer.accumulate_grad_batches=4").trainer
    assert (run.global_step, run.gradient_clip_val, run.accumulate_grad_batches) == (4, 0.1, 4)


@pytest.mark.slow
def test_compiled_backbone_gives_the_losses_of_the_eager_one() -> None:
    losses = []
    for compile in (False, True):
        run = cli("fit", "fine_tune", f"--model.init_args.compile={str(compile).lower()}")
        assert (run.model.backbone._compiled_call_impl is not None) is compile
        losses.append(float(run.trainer.callback_metrics["train/loss"]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize(
    ("flags", "total"),
    [
        ({}, 12),
        ({"accumulate_grad_batches": 4}, 4),  # 4 and 2 batches an epoch
        ({"limit_train_batches": 4}, 8),
        ({"limit_train_batches": 0.5}, 6),
        ({"max_steps": 5}, 5),
        ({"max_steps": 100}, 12),
    ],
)
def test_cosine_ends_with_the_training(flags: dict[str, Any], total: int) -> None:
    seen = Recorder()
    model = classifier(lr=0.5, lr_scheduler=lambda o: WarmupCosine(o, warmup_steps=2), backbone_lr_scale=0.1)
    run = trainer([seen], max_epochs=2, **flags)
    run.fit(model, sample(steps_per_epoch=6))
    assert run.global_step == total
    rates = [rates for i, rates in enumerate(seen.rates) if i == 0 or rates != seen.rates[i - 1]]
    expected = [0.5 * _cosine(k, 2, total) for k in range(total)]
    # the rise ends where the fall begins, with the same rate
    expected = [rate for k, rate in enumerate(expected) if k == 0 or rate != expected[k - 1]]
    assert [head for head, _ in rates] == pytest.approx(expected)
    assert [backbone for _, backbone in rates] == pytest.approx([rate / 10 for rate in expected])


def test_cosine_of_a_resumed_and_longer_training_ends_with_it() -> None:
    words = ["--run_name=long", "--model.init_args.lr_scheduler.init_args.warmup_steps=3"]
    cli("fit", "fine_tune", *words)
    words += ["--ckpt_path=lightning_logs/long/version_0", "--trainer.max_epochs=4"]
    run = cli("fit", "fine_tune", *words)
    scheduler: Any = run.trainer.lr_scheduler_configs[0].scheduler
    assert run.trainer.global_step == 24
    assert scheduler.total_steps == 24
    assert run.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-9)
    assert len(list(Path("lightning_logs", "long").iterdir())) == 1


def test_cosine_without_an_end_is_refused() -> None:
    batch = {"labeled": (torch.rand(2, 1, 28, 28), torch.tensor([0, 1]), torch.arange(2))}
    with pytest.raises(InputError, match=r"set total_steps in the schedule, or trainer\.max_steps"):
        trainer().fit(classifier(lr_scheduler=WarmupCosine), batches(batch))


def _schedule(class_path: str, **settings: Any) -> list[str]:
    key = "--model.init_args.lr_scheduler"
    return [f"{key}={class_path}", *[f"{key}.init_args.{name}={value}" for name, value in settings.items()]]


def test_step_lr_counts_epochs() -> None:
    words = _schedule("torch.optim.lr_scheduler.StepLR", step_size=1, gamma=0.5)
    run = cli("fit", "fine_tune", *words, "--trainer.max_epochs=3").trainer
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.001 * 0.5**3)


def test_reduce_on_plateau_watches_the_validation() -> None:
    words = _schedule("lightning.pytorch.cli.ReduceLROnPlateau", monitor="val/loss", patience=0, threshold=100.0)
    run = cli("fit", "fine_tune", *words, "--trainer.max_epochs=4").trainer
    assert run.optimizers[0].param_groups[0]["lr"] < 0.001


def test_one_cycle_counts_steps() -> None:
    words = _schedule("torch.optim.lr_scheduler.OneCycleLR", max_lr=0.1, total_steps=12)
    run = cli("fit", "fine_tune", *words).trainer
    assert run.lr_scheduler_configs[0].scheduler.last_epoch == 12

import csv
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from sft_lightning import FineTuneClassifier, SemiSupervisedModule, WarmupCosine
from sft_lightning.__main__ import main
from sft_lightning.losses.unlabeled import FixMatch
from sft_lightning.tuning.find_lr import FindLRCLI, LRSweep, find_lr
from sft_lightning.tuning.lr_range import LRCurve, format_curve, smooth, suggest_rate
from tests.conftest import CONFIGS
from tests.forks import both_ranks
from tests.paradigms.helpers import SHAPE, Recorder, classifier, sample, trainer

FINE_TUNE = str(CONFIGS / "quickstart" / "fine_tune.yaml")
AUTOENCODER = str(CONFIGS / "quickstart" / "autoencoder.yaml")
DECOUPLED = str(CONFIGS / "quickstart" / "decoupled.yaml")
SMALL = ["--trainer.accelerator=cpu", "--data.init_args.num_labels=40", "--run_name=a"]
SGD = ["--model.init_args.optimizer=torch.optim.SGD", "--model.init_args.optimizer.init_args.momentum=0.9"]


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def table(folder: Path) -> list[dict[str, float]]:
    with (folder / "lightning_logs" / "a_find_lr" / "find_lr.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def curve(losses: Callable[[float], float], steps: int = 100) -> LRCurve:
    made = LRCurve(1e-6, 10.0, steps)
    for rate in made.rates:
        if made.add(losses(rate)):
            break
    return made


def valley(rate: float, fastest: float = 1e-3, noise: float = 0.0) -> float:
    """From 2.3 to 1, falling fastest at a rate; beyond a hundred times of it up again."""
    fall = 1.3 / (1 + math.exp(-2 * math.log(rate / fastest)))
    return 2.3 - fall + 0.01 * (rate / fastest / 100) ** 3 + random.gauss(0, noise)


# --- what a curve says


@pytest.mark.parametrize("steps", [50, 100, 400])
@pytest.mark.parametrize("fastest", [1e-4, 1e-2])
def test_the_suggestion_is_where_the_loss_falls_fastest(fastest: float, steps: int) -> None:
    found = suggest_rate(curve(lambda rate: valley(rate, fastest), steps))
    assert found is not None
    assert fastest / 1.7 < found.rate < fastest * 1.7
    assert found.usable[0] < found.rate < found.usable[1]
    assert 8 < found.usable[1] / fastest < 120
    assert 0.01 < found.usable[0] / fastest < 0.6


def test_noise_moves_the_suggestion_by_less_than_a_factor_of_three() -> None:
    random.seed(0)
    found = [suggest_rate(curve(lambda rate: valley(rate, noise=0.08))) for _ in range(40)]
    assert all(one is not None and 1e-3 / 3 < one.rate < 3e-3 for one in found)


@pytest.mark.parametrize("steps", [30, 100])
def test_where_nothing_is_learned_nothing_is_suggested(steps: int) -> None:
    random.seed(0)
    found = [suggest_rate(curve(lambda rate: 2.3 + random.gauss(0, 0.1), steps)) for _ in range(100)]
    assert sum(one is not None for one in found) <= 3


def test_batches_of_a_few_left_over_examples_do_not_hide_the_fall() -> None:
    random.seed(0)
    made = LRCurve(1e-6, 10.0, 100)
    for k, rate in enumerate(made.rates):
        made.add(valley(rate, noise=0.03) * (0.4 if k % 4 == 3 else 1))
    found = suggest_rate(made)
    assert found is not None
    assert 1e-3 / 3 < found.rate < 3e-3


def test_what_falls_apart_at_the_end_does_not_hide_what_came_before() -> None:
    made = curve(lambda rate: valley(rate) if rate < 0.02 else 2.0 + 40 * rate)
    assert made.end == "diverged"
    assert len(made.losses) < 90
    found = suggest_rate(made)
    assert found is not None
    assert 1e-3 / 2 < found.rate < 2e-3
    assert found.fall[1] < 1.6


def test_the_noise_of_a_loss_near_zero_does_not_end_the_test() -> None:
    made = curve(lambda rate: 1.0 if rate < 1e-5 else 1e-6 if rate < 1e-1 else 0.1)
    assert (made.end, len(made.losses)) == ("", 100)


def test_one_bad_batch_does_not_end_the_test() -> None:
    made = LRCurve(1e-6, 10.0, 100)
    assert not any(made.add(12.0 if k == 40 else 2.3) for k in range(99))


@pytest.mark.parametrize("end", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_test_and_is_not_kept(end: float) -> None:
    made = curve(lambda rate: valley(rate) if rate < 0.1 else end)
    assert made.end == "not finite"
    assert made.losses
    assert all(map(math.isfinite, made.losses))
    assert suggest_rate(made) is not None


def test_averages_start_at_the_first_value_and_forget_by_the_share_they_keep() -> None:
    assert smooth([5.0, 5.0, 5.0], 0.9) == pytest.approx([5.0] * 3)
    assert smooth([1.0, 0.0], 0.9) == pytest.approx([1.0, 0.09 / 0.19])


def test_the_rates_rise_by_one_factor_from_the_first_to_the_last() -> None:
    rates = LRCurve(1e-4, 1e-1, 4).rates
    assert rates == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])


def test_a_range_that_starts_late_or_ends_early_is_reported() -> None:
    early = format_curve(curve(lambda rate: valley(rate, 6e-7)), "--lr")
    assert "a lower --min_lr may find a better one" in early
    late = format_curve(curve(lambda rate: valley(rate, 1.0)), "--lr")
    assert "a higher --max_lr may find a better one" in late
    assert "may find" not in format_curve(curve(valley), "--lr")


# --- what is set in training


class Rates(Callback):
    """The rates that the optimizer has when it steps."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.rates.append([group["lr"] for group in optimizer.param_groups])


def test_groups_keep_their_ratios_and_the_schedule_is_left_out() -> None:
    rates, seen = Rates(), Recorder()
    sweep = LRSweep(LRCurve(1e-4, 1e-1, 4))
    model = classifier(
        "conv", lr=0.5, backbone_lr_scale=0.1, layer_decay=0.5, lr_scheduler=lambda o: WarmupCosine(o, 10)
    )
    trainer([sweep, rates, seen], max_epochs=9).fit(model, sample())
    assert [own[0] for own in rates.rates] == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])
    for own in rates.rates:
        assert len(own) > 2
        assert [rate / own[0] for rate in own[1:]] == pytest.approx([0.1 * 0.5 ** (k + 1) for k in range(len(own) - 1)])
    assert sweep.curve.losses == pytest.approx(seen.losses)


def test_accumulated_batches_share_a_rate_and_their_mean_is_the_loss() -> None:
    rates, seen = Rates(), Recorder()
    sweep = LRSweep(LRCurve(1e-4, 1e-1, 4))
    trainer([sweep, rates, seen], max_epochs=9, accumulate_grad_batches=2).fit(classifier(), sample())
    assert [own[0] for own in rates.rates] == pytest.approx(sweep.curve.rates)
    assert len(seen.losses) == 8
    whole = [seen.losses[k] + seen.losses[k + 1] for k in range(0, 8, 2)]  # Lightning has halved each
    assert sweep.curve.losses == pytest.approx(whole)


def test_a_semi_supervised_step_records_the_labeled_loss() -> None:
    class Labeled(Recorder):
        """Keeps L_s."""

        def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
            super().on_train_batch_end(*args, **kwargs)
            loss = args[1].supervised_loss
            self.labeled.append(None if loss is None else float(loss))

        def __init__(self) -> None:
            super().__init__()
            self.labeled: list[float | None] = []

    seen, sweep = Labeled(), LRSweep(LRCurve(1e-4, 1e-1, 4), turn=3)
    model = SemiSupervisedModule(
        FixMatch(threshold=0.0), "alternating", supervised_steps=1, unsupervised_steps=2, backbone="mlp",
        num_classes=10, input_spec=SHAPE, optimizer=lambda p: torch.optim.SGD(p, 0.1),
    )  # fmt: skip
    trainer([sweep, seen], max_epochs=1).fit(model, sample(unlabeled_ratio=1, steps_per_epoch=50))
    assert len(seen.losses) == 12
    assert [loss is None for loss in seen.labeled] == [False, True, True] * 4
    assert sweep.curve.losses == pytest.approx(seen.labeled[::3])
    assert [own[0] for own in seen.rates[::3]] == pytest.approx(sweep.curve.rates)
    assert seen.rates[3] == seen.rates[5]


# --- the command


def test_the_command_suggests_an_option_that_fit_takes_and_leaves_two_files(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", FINE_TUNE, *SMALL, "--model.init_args.backbone=conv", *SGD]
    assert main(["find-lr", *words, "--steps=60"]) == 0
    shown = capsys.readouterr().out
    assert files(workdir) == [f"lightning_logs/a_find_lr/find_lr.{kind}" for kind in ("csv", "png")]
    lines = table(workdir)
    assert lines[0]["lr"] == pytest.approx(1e-6)
    assert lines[0]["loss"] == pytest.approx(2.3, abs=0.2)
    assert lines[1]["lr"] / lines[0]["lr"] == pytest.approx(1e7 ** (1 / 59))
    with Image.open(workdir / "lightning_logs" / "a_find_lr" / "find_lr.png") as picture:
        assert picture.width > 500
    option = shown.split("for fit    ")[1].splitlines()[0].split()
    assert option[0] == "--model.init_args.optimizer.init_args.lr"
    assert 1e-3 < float(option[1]) < 0.3
    assert main(["fit", *words, *option, "--trainer.max_epochs=1", "--data.init_args.steps_per_epoch=1"]) == 0
    written = (workdir / "lightning_logs" / "a" / "version_0" / "fit.yaml").read_text()
    assert f"lr: {option[1]}" in written
    assert "WarmupCosine" in written


@pytest.mark.parametrize(
    "words",
    [
        ["--config", AUTOENCODER],
        ["--config", FINE_TUNE, "--trainer.logger=lightning.pytorch.loggers.CSVLogger",
         "--trainer.logger.init_args.save_dir=.", "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint",
         "--trainer.max_steps=3", "--trainer.limit_train_batches=2", "--trainer.fast_dev_run=true"],
        ["--config", FINE_TUNE, "--trainer.gradient_clip_val=1", "--trainer.precision=bf16-mixed",
         "--model.init_args.optimizer.init_args.fused=false", "--trainer.accumulate_grad_batches=2"],
        ["--config", FINE_TUNE, "--model.init_args.lr_scheduler=lightning.pytorch.cli.ReduceLROnPlateau",
         "--model.init_args.lr_scheduler.init_args.monitor=val/loss"],
        ["--config", FINE_TUNE, "--trainer.max_epochs=2", "--model.init_args.head_only_epochs=1",
         "--data.init_args.steps_per_epoch=3"],
    ],
    ids=["autoencoder", "limits", "precision", "plateau", "head_first"],
)  # fmt: skip
def test_any_config_is_tried_at_every_rate_and_leaves_nothing_else(words: list[str], workdir: Path) -> None:
    assert main(["find-lr", *words, *SMALL, "--steps=12", "--max_lr=1e-3"]) == 0
    assert len(table(workdir)) == 12
    assert [*workdir.iterdir()] == [workdir / "lightning_logs"]
    assert files(workdir) == [f"lightning_logs/a_find_lr/find_lr.{kind}" for kind in ("csv", "png")]


def test_the_first_of_two_stages_lasts_and_the_backbone_is_not_released(
    workdir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    two = ["--model.init_args.coupling=two_stage", "--model.init_args.feature_epochs=1", "--trainer.max_epochs=2"]
    few = [*SMALL, "--steps=12", "--max_lr=1e-3", "--data.init_args.steps_per_epoch=4"]
    assert main(["find-lr", "--config", DECOUPLED, *two, *few]) == 0
    assert len(table(workdir)) == 12
    assert "the backbone is frozen" not in caplog.text


def test_warm_up_and_ramp_are_left_out_and_a_turn_shares_a_rate(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int, bool]] = []
    end = LRSweep.on_train_batch_end

    def watched(self: LRSweep, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        seen.append((module.warmup_steps, module.ramp_steps, "unlabeled" in batch))
        end(self, trainer, module, outputs, batch, index)

    monkeypatch.setattr(LRSweep, "on_train_batch_end", watched)
    shared, fixmatch = (str(CONFIGS / "semi_supervised" / f"{name}.yaml") for name in ("shared", "fixmatch"))
    words = ["--config", shared, "--config", fixmatch, *SMALL, "--model.init_args.backbone=mlp", "--steps=10"]
    words += ["--model.init_args.schedule=alternating", "--model.init_args.warmup_steps=50", "--max_lr=1e-3"]
    words += ["--model.init_args.unsupervised_steps=2", "--model.init_args.lambda_ramp=linear"]
    assert main(["find-lr", *words, "--model.init_args.ramp_steps=70", "--data.init_args.unlabeled_ratio=1"]) == 0
    assert seen == [(0, 0, k % 3 != 0) for k in range(30)]
    assert len(table(workdir)) == 10


def test_one_cycle_gets_its_own_option(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model.init_args.lr_scheduler=torch.optim.lr_scheduler.OneCycleLR", *SGD]
    words += ["--model.init_args.lr_scheduler.init_args.max_lr=0.1", "--model.init_args.backbone=conv"]
    words += ["--model.init_args.lr_scheduler.init_args.total_steps=5"]  # fewer than are tried
    assert main(["find-lr", "--config", FINE_TUNE, *SMALL, *words, "--steps=50"]) == 0
    assert "for fit    --model.init_args.lr_scheduler.init_args.max_lr 0." in capsys.readouterr().out


def test_where_no_rate_lowers_the_loss_it_says_so(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["find-lr", "--config", FINE_TUNE, *SMALL, "--min_lr=1e-12", "--max_lr=1e-9", "--steps=30"]) == 0
    shown = capsys.readouterr().out
    assert "No rate from 1e-12 to 1e-09 lowered the loss" in shown
    assert "raise --max_lr" in shown
    assert "suggested" not in shown
    assert len(table(workdir)) == 30


def test_a_network_that_falls_apart_ends_the_test(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model.init_args.regularizer=BSS", "--model.init_args.backbone=conv", *SGD]
    assert main(["find-lr", "--config", FINE_TUNE, *SMALL, *words, "--min_lr=1e15", "--max_lr=1e36", "--steps=12"]) == 0
    shown = capsys.readouterr().out
    assert "No rate from 1e+15" in shown
    assert "lower --min_lr" in shown
    assert 0 < len(table(workdir)) < 12


class Broken(FineTuneClassifier):
    """Fails in its third step, as a network whose weights are whole."""

    def step(self, batch: Any) -> Any:
        if self.trainer.global_step == 2:
            raise RuntimeError("out of memory")
        return super().step(batch)


class NotANumber(FineTuneClassifier):
    """Has no loss from the first step on, or cannot even compute one of weights that are no numbers."""

    def step(self, batch: Any) -> Any:
        torch.nn.init.constant_(self.head.weight, math.nan)
        raise RuntimeError("the input has no singular values")


def test_a_failure_of_another_kind_is_not_taken_for_divergence(workdir: Path) -> None:
    words = ["--config", FINE_TUNE, *SMALL, "--model.class_path=tests.tuning.test_find_lr.Broken"]
    with pytest.raises(RuntimeError, match="out of memory"):
        find_lr(words)


def test_no_loss_at_the_first_rate_writes_nothing(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", FINE_TUNE, *SMALL, "--model.class_path=tests.tuning.test_find_lr.NotANumber"]
    assert main(["find-lr", *words]) == 0
    assert "The loss is not finite at the first rate, 1e-06: lower --min_lr" in capsys.readouterr().out
    assert files(workdir) == []


OWN_DATA = """
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader
from sft_lightning.data.batches import Labeled


class Few(LightningDataModule):
    num_classes, class_names, image_shape = 3, ["a", "b", "c"], (1, 28, 28)

    def train_dataloader(self):
        torch.manual_seed(0)
        batch = Labeled(torch.rand(9, 1, 28, 28), torch.arange(9) % 3, torch.arange(9))
        return DataLoader([{"labeled": batch}] * 4, batch_size=None)
"""


def test_another_data_module_begins_anew_as_often_as_needed(workdir: Path) -> None:
    (workdir / "own_data.py").write_text(OWN_DATA)
    config = "model: {class_path: FineTuneClassifier, init_args: {backbone: mlp, optimizer: {class_path: "
    config += "torch.optim.SGD, init_args: {lr: 0.1}}}}\ndata: {class_path: own_data.Few}\ntrainer: {max_epochs: 1}\n"
    (workdir / "own.yaml").write_text(config)
    assert main(["find-lr", "--config", "own.yaml", "--run_name=a", "--steps=15", "--trainer.accelerator=cpu"]) == 0
    assert len(table(workdir)) == 15


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--ckpt_path=last"], "ckpt_path"),
        (["--min_lr=0"], "min_lr is 0.0: give a number above 0"),
        (["--max_lr=1e-7"], "max_lr is 1e-07: give a number above min_lr, which is 1e-06"),
        (["--max_lr=.inf"], "max_lr is inf: give a number above min_lr"),
        (["--steps=9"], "steps is 9: give a number of at least 10"),
        (["--model.init_args.optimizer.init_args.lr=0"], "optimizer Adam has lr 0.0: find-lr needs one optimizer"),
        (["--data.init_args.source=nowhere"], "source 'nowhere' is neither a folder"),
    ],
    ids=["checkpoint", "min", "order", "inf", "steps", "lr", "source"],
)
def test_bad_input_is_one_sentence(
    words: list[str], sentence: str, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["find-lr", "--config", FINE_TUNE, *SMALL, *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert files(workdir) == []


def test_a_checkpoint_is_refused_with_the_way_out(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workdir / "x.ckpt").touch()
    assert main(["find-lr", "--config", FINE_TUNE, *SMALL, "--ckpt_path=x.ckpt"]) == 2
    assert "find-lr looks at the start of a training, so leave it out" in capsys.readouterr().err


def test_two_processes_try_the_same_rates_and_one_reports(
    workdir: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    words = ["--config", FINE_TUNE, *SMALL, "--trainer.strategy=ddp", "--trainer.devices=2", "--max_lr=1e-3"]
    done = both_ranks(main, ["find-lr", *words, "--steps=12"], folder=workdir, files=tmp_path_factory.mktemp("output"))
    assert [rank.code for rank in done] == [0, 0], done[0].stderr[-3000:]
    told = done[0].stdout + done[1].stdout
    assert len(told.splitlines()) == len(told.strip().splitlines())
    assert told.count("Written: ") == 1
    assert len(table(workdir)) == 12


def test_the_trainer_keeps_what_shapes_a_step_and_no_more(workdir: Path) -> None:
    from sft_lightning.cli.lightning_cli import run

    words = ["--config", FINE_TUNE, *SMALL, "--trainer.precision=bf16-true", "--trainer.min_epochs=4"]
    made = run(["fit", *words, "--trainer.gradient_clip_val=2"], FindLRCLI).trainer
    assert made.precision == "bf16-true"
    assert made.gradient_clip_val == 2
    assert made.loggers == []
    assert made.min_epochs is None

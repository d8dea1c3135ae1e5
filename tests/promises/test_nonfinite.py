"""What is not finite changes no parameter, and is told with the step, its examples, its terms and the learning rate."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision

from sft_lightning import ImageDataModule, SemiSupervisedModule
from sft_lightning.losses.unlabeled import FixMatch, FlexMatch
from sft_lightning.losses.unlabeled.base import StrategyInputs, StrategyOutput
from sft_lightning.paradigms.base import StepResult
from sft_lightning.training import nonfinite
from sft_lightning.utils.errors import InputError
from tests.paradigms.helpers import SHAPE, Recorder, classifier, cli, moved, sample, state, trainer
from tests.promises.killed import Torn, trained
from tests.promises.test_exact_resume import RUNS, SHORT

TORN = "--model.init_args.regularizer={class_path: tests.promises.killed.Torn, init_args: {kind: KIND, steps: STEPS}}"


@pytest.mark.parametrize("lean", [True, False])
@pytest.mark.parametrize(("kind", "what"), [("value", "regularizer is inf"), ("gradient", "the gradient of backbone.")])
def test_first_nonfinite_step_stops_the_training_and_is_named(kind: str, what: str, lean: bool, workdir: Path) -> None:
    words = ["--data.init_args.steps_per_epoch=6", "--trainer.max_epochs=1", "--model.init_args.backbone=conv"]
    if not lean:
        words += ["--trainer.gradient_clip_val=5", "--model.init_args.optimizer.init_args.fused=false"]
    torn = TORN.replace("KIND", kind).replace("STEPS", "[4]")
    with pytest.raises(InputError) as stopped:
        cli("fit", "fine_tune", *words, torn, "--run_name=torn")
    said = str(stopped.value)
    folder = Path("lightning_logs/torn/version_0")
    assert said.startswith(what)
    assert " at step 4 (learning rate 0.0001, " in said
    assert f"{folder / 'nonfinite.json'} lists the examples" in said
    assert "the parameters are those before the step" in said
    told = json.loads((folder / "nonfinite.json").read_text())
    assert (told["step"], told["lr"]) == (4, 0.0001)
    assert 0 < told["terms"][0]["task"] < 10
    assert bool(told["gradients"]) is (kind == "gradient")
    whole = cli("fit", "fine_tune", *words, "--run_name=whole", "--trainer.max_steps=5")
    data = whole.datamodule
    plan = data.train_dataloader().streams["labeled"].plan
    assert told["examples"] == [{"labeled": [data.splits["labeled"].ids[i] for i in plan[4][0].tolist()]}]


@pytest.mark.parametrize("kind", ["value", "gradient"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_left_out_steps_change_neither_parameters_nor_statistics(kind: str, accumulate: int) -> None:
    model = classifier("conv", regularizer=Torn(kind, [2, 3]), on_nonfinite="skip", nonfinite_limit=2)
    states: list[dict[str, torch.Tensor]] = []

    class Before(Recorder):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx % accumulate == 0:
                states.append(state(pl_module))

    done = trainer([Before()], accumulate_grad_batches=accumulate)
    done.fit(model, sample(steps_per_epoch=6 * accumulate))
    assert done.global_step == 6
    states.append(state(model))
    changed = [{n for n in a if not torch.equal(a[n], b[n])} for a, b in pairwise(states)]
    assert [bool(names) for names in changed] == [True, True, False, False, True, True]
    assert any("running_mean" in name for name in changed[1])


class Remembers(SemiSupervisedModule):
    """What FlexMatch remembers before each step; the second one is not finite."""

    def step(self, batch: Any) -> StepResult:
        self.kept = [*getattr(self, "kept", []), self.strategy.get_buffer("predicted").clone()]
        result = super().step(batch)
        return result._replace(loss=result.loss * torch.inf) if len(self.kept) == 2 else result


def test_skipped_step_restores_buffers_of_the_strategy() -> None:
    model = Remembers(
        FlexMatch(threshold=0.1), backbone="mlp", num_classes=10, input_spec=SHAPE, on_nonfinite="skip",
        optimizer=lambda p: torch.optim.SGD(p, 0.05),
    )  # fmt: skip
    trainer().fit(model, sample(steps_per_epoch=3))
    first, second, third = model.kept
    assert not torch.equal(first, second)
    assert torch.equal(second, third)


class Steps(Callback):
    """Keeps the parameters and the optimizer's own state before each step."""

    def __init__(self) -> None:
        self.kept: list[dict[str, torch.Tensor]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        own = trainer.optimizers[0].state_dict()["state"]
        states = {f"{i}.{name}": value.clone() for i, of in own.items() for name, value in of.items()}
        self.kept.append({**{n: p.detach().clone() for n, p in pl_module.named_parameters()}, **states})


@pytest.mark.parametrize("kind", ["value", "gradient"])
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_nonfinite_step_on_a_device_changes_nothing_before_the_log_reports_it(
    kind: str, optimizer: Any, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a device: the step is told by the next entry of the log, with its number, its examples and its terms."""
    monkeypatch.setattr(nonfinite, "needs_sync", lambda device: True)
    momentum = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    settings: dict[str, Any] = {"optimizer": lambda p: optimizer(p, 0.01, fused=True, **momentum)}
    steps, data = Steps(), sample(steps_per_epoch=20)
    logged = trainer([steps], logger=CSVLogger("."), log_every_n_steps=8)
    with pytest.raises(InputError, match=r" at step 4 \(learning rate 0.01, .*: the parameters are") as stopped:
        logged.fit(classifier("conv", regularizer=Torn(kind, [4, 6]), **settings), data)
    what = "regularizer is inf" if kind == "value" else "the gradient of backbone."
    assert str(stopped.value).startswith(what)
    assert len(steps.kept) == 8
    changed = [
        {name for name in b if name not in a or not torch.equal(a[name], b[name])} for a, b in pairwise(steps.kept)
    ]
    assert [bool(names) for names in changed] == [True, True, True, True, False, False, False]
    (told,) = (json.loads(path.read_text()) for path in workdir.rglob("nonfinite.json"))
    plan = data.train_dataloader().streams["labeled"].plan
    assert told["examples"] == [{"labeled": [data.splits["labeled"].ids[i] for i in plan[4][0].tolist()]}]
    assert (told["step"], bool(told["gradients"])) == (4, kind == "gradient")


def test_deferred_check_trains_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for wait in (False, True):
        monkeypatch.setattr(nonfinite, "needs_sync", lambda device, wait=wait: wait)
        model = classifier("conv", optimizer=lambda p: torch.optim.Adam(p, 0.01, fused=True))
        trainer(max_epochs=2).fit(model, sample(steps_per_epoch=6))
        found.append(state(model))
    assert not moved(*found)


def test_no_checkpoint_is_saved_after_a_nonfinite_step(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint on the way comes before the log is due."""
    monkeypatch.setattr(nonfinite, "needs_sync", lambda device: True)
    words = ["--data.init_args.steps_per_epoch=6", "--run_name=torn"]
    with pytest.raises(InputError, match=r" at step 8 "):
        cli("fit", "fine_tune", *words, TORN.replace("KIND", "value").replace("STEPS", "[8]"))
    kept = torch.load("lightning_logs/torn/version_0/checkpoints/last.ckpt", weights_only=True)
    assert kept["global_step"] == 6


def test_one_step_more_than_the_limit_stops() -> None:
    model = classifier(regularizer=Torn("value", [1, 2, 4]), on_nonfinite="skip", nonfinite_limit=2)
    with pytest.raises(InputError, match=r"regularizer is inf at step 4 .* after 2 skipped steps: the parameters"):
        trainer().fit(model, sample(steps_per_epoch=6))
    with pytest.raises(InputError, match="nonfinite_limit is -1"):
        classifier(nonfinite_limit=-1)


class Poisoned(FixMatch):
    def loss(self, step: StrategyInputs) -> StrategyOutput:
        result = super().loss(step)
        return result._replace(loss=result.loss + torch.nan)


def test_the_unlabeled_part_is_named() -> None:
    model = SemiSupervisedModule(
        Poisoned(), backbone="mlp", num_classes=10, input_spec=SHAPE, optimizer=lambda p: torch.optim.SGD(p, 0.05),
        warmup_steps=0,
    )  # fmt: skip
    data = ImageDataModule("sample", num_labels=40, batch_size=8, steps_per_epoch=6, val_size=30)
    with pytest.raises(InputError, match=r"^unsupervised is nan at step 0 \(learning rate 0.05\)"):
        trainer().fit(model, data)


def test_a_learning_rate_that_is_too_high_is_told() -> None:
    model = classifier(lr=1e20)
    with pytest.raises(InputError, match=r"at step \d+ \(learning rate 1e\+20\): the parameters are those before"):
        trainer(max_epochs=3).fit(model, sample(steps_per_epoch=6))
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_the_scale_of_half_precision_is_not_mistaken_for_it() -> None:
    """The scaler finds infinite gradients, leaves out the step and scales less: its business."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    trainer(plugins=[MixedPrecision("16-mixed", "cpu", scaler)]).fit(classifier(), sample(steps_per_epoch=4))
    assert scaler.get_scale() < 2.0**127
    torn = classifier(regularizer=Torn("value", [1]))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    with pytest.raises(InputError, match="regularizer is inf at step 1"):
        trainer(plugins=[MixedPrecision("16-mixed", "cpu", scaler)]).fit(torn, sample(steps_per_epoch=4))


@pytest.mark.parametrize("kind", ["value", pytest.param("gradient", marks=pytest.mark.slow)])
def test_two_processes_stop_together(kind: str, tmp_path: Path) -> None:
    """Only the second has it."""
    own = [word for word in SHORT if "regularizer" not in word]
    torn = TORN.replace("KIND", kind).replace("STEPS", "[7]")
    words = ["fit", *RUNS["joint"][:2], *own, *RUNS["joint"][2:], torn]
    assert trained(words, tmp_path, ranks=2) == [2, 2]
    run = tmp_path / "lightning_logs" / "run" / "version_0"
    told, other = (json.loads((run / name).read_text()) for name in ("nonfinite.rank1.json", "nonfinite.json"))
    assert told["step"] == 7
    assert (told["terms"][0]["regularizer"] == float("inf")) is (kind == "value")
    assert other["terms"][0]["regularizer"] == 0
    assert other["examples"] != told["examples"]

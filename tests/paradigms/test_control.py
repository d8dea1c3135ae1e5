"""The control learns what the labels alone teach, changes nothing beside it, and is kept where it is better."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning import FineTuneClassifier, ImageDataModule, SemiSupervisedModule, WeakView
from sft_lightning.losses.regularizers import L2
from sft_lightning.losses.unlabeled import EntropyMinimization, FreeMatch
from sft_lightning.losses.unlabeled.base import Strategy, StrategyInputs, StrategyOutput
from sft_lightning.networks.adapters import LoRA
from sft_lightning.runs.checkpoints import check_checkpoint, read_checkpoint
from sft_lightning.runs.trained_network import load_trained_network
from sft_lightning.training.callbacks.roll_back import RollBack
from tests.paradigms.helpers import SHAPE, Recorder, moved, sample, state, trainer


class Taught(Strategy):
    """Teach given classes, the true ones or others."""

    def __init__(self, labels: Tensor, shift: int = 0) -> None:
        super().__init__()
        self._labels, self._shift = labels, shift

    def loss(self, step: StrategyInputs) -> StrategyOutput:
        classes = (self._labels[step.unlabeled.indices] + self._shift) % 10
        return StrategyOutput(F.cross_entropy(step.student.logits, classes))


def data(**settings: Any) -> ImageDataModule:
    views = {"weak_view": WeakView(flip=True, crop_padding=2)}
    return sample(**{**views, "batch_size": 4, "unlabeled_ratio": 4, "steps_per_epoch": 6, **settings})


def module(strategy: Strategy | None = None, lr: float = 0.05, **settings: Any) -> SemiSupervisedModule:
    torch.manual_seed(0)
    fixed: dict[str, Any] = {"backbone": "conv", "num_classes": 10, "input_spec": SHAPE, "ema_decay": 0.9}
    fixed |= {"control": True, "optimizer": lambda p: torch.optim.SGD(p, lr, momentum=0.9)}
    return SemiSupervisedModule(strategy or FreeMatch(), **{**fixed, **settings})


def taught(shift: int = 0, **settings: Any) -> tuple[SemiSupervisedModule, ImageDataModule]:
    """Return a module that gets classes of many unlabeled images, moved by `shift`, and few of its own."""
    source = data(num_labels=20, batch_size=8, val_size=200, steps_per_epoch=30)
    source.setup("fit")
    strategy = Taught(source.splits["unlabeled"].labels, shift)
    return module(strategy, 0.02, backbone="mlp", warmup_steps=0, ramp_steps=0, lambda_u=3.0, **settings), source


def part(module: nn.Module, name: str) -> dict[str, Tensor]:
    found = {n.removeprefix(name): t for n, t in state(module).items() if n.startswith(name)}
    return {n: t for n, t in found.items() if n.startswith(("backbone.", "head.", "average."))}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param({"ema_decay": 0.0}, marks=pytest.mark.slow),
        {"head_only_epochs": 1, "layer_decay": 0.5},
        pytest.param({"tune": "last_k_blocks"}, marks=pytest.mark.slow),
        {"adapter": LoRA(rank=2)},
        {"head_start": "ridge"},
    ],
    ids=lambda settings: "-".join(settings) or "plain",
)
def test_it_is_the_network_of_a_run_on_the_labels_alone(settings: dict[str, Any]) -> None:
    both = module(**settings)
    alone = module(EntropyMinimization(), control=False, schedule="alternating", warmup_steps=10**9, **settings)
    for model in (both, alone):
        trainer(max_epochs=2).fit(model, data())
    control = part(both, "control.")
    assert control.keys() == part(alone, "").keys()
    assert not moved(control, part(alone, ""))
    assert moved(control, part(both, ""))


def test_it_takes_the_steps_of_a_plain_loop_over_the_labeled_batches() -> None:
    model, seen = module(), Recorder()
    trainer([seen]).fit(model, data())
    torch.manual_seed(0)
    plain = FineTuneClassifier("conv", 10, SHAPE).train()
    sgd = torch.optim.SGD(plain.parameters(), 0.05, momentum=0.9)
    for batch in seen.batches:
        sgd.zero_grad()
        F.cross_entropy(plain(batch["labeled"].x), batch["labeled"].y).backward()
        sgd.step()
    for name, tensor in part(plain, "").items():
        torch.testing.assert_close(part(model, "control.")[name], tensor, msg=name)


def test_the_network_beside_it_learns_and_logs_the_same() -> None:
    runs = []
    for control in (True, False):
        model = module(control=control, ema_decay=0.0)
        model.backbone.net = nn.Sequential(model.backbone.net, nn.Dropout(0.3))  # takes random numbers in each step
        run = trainer(log_every_n_steps=2)
        run.fit(model, data())
        runs.append((part(model, ""), {name: float(value) for name, value in run.callback_metrics.items()}))
    (with_it, logs), (without, others) = runs
    assert not moved(with_it, without)
    assert logs.pop("train/control_loss") > 0
    assert 0 <= logs.pop("val/control_accuracy") <= 1
    assert logs == others


@pytest.mark.parametrize("ema_decay", [0.9, 0.0])
def test_the_better_one_on_validation_examples_is_kept(
    ema_decay: float, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    model, source = taught(shift=1, ema_decay=ema_decay)
    run = trainer([RollBack()])
    with caplog.at_level("INFO"):
        run.fit(model, source)
    assert not moved(part(model, ""), part(model, "control."))
    (said,) = [r.message for r in caplog.records if "on the labels alone" in r.message]
    accuracy = float(run.callback_metrics["val/accuracy"])
    assert said.startswith("Warning: with the unlabeled examples the accuracy on 200 validation examples is ")
    assert f"on the labels alone {accuracy:.3f}: the run keeps the network of the labels alone." in said
    run.save_checkpoint(tmp_path / "a.ckpt")
    started = FineTuneClassifier("mlp", 10, SHAPE, weights=str(tmp_path / "a.ckpt"))
    x = torch.rand(3, *SHAPE)
    torch.testing.assert_close(started.eval()(x), model.eval()(x))


def test_a_run_that_kept_it_goes_on_with_the_semi_supervised_network(tmp_path: Path) -> None:
    whole, source = taught(shift=1)
    trainer([RollBack()], max_epochs=2).fit(whole, source)
    half, source = taught(shift=1)
    run = trainer([RollBack()])
    run.fit(half, source)
    assert not moved(part(half, ""), part(half, "control."))
    run.save_checkpoint(tmp_path / "a.ckpt")
    parts, source = taught(shift=1)
    trainer([RollBack()], max_epochs=2).fit(parts, source, ckpt_path=str(tmp_path / "a.ckpt"), weights_only=True)
    assert not moved(state(whole), state(parts))


def test_unlabeled_examples_that_help_are_kept(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    model, source = taught()
    run = trainer([RollBack()])
    with caplog.at_level("INFO"):
        run.fit(model, source)
    assert moved(part(model, ""), part(model, "control."))
    (said,) = [r.message for r in caplog.records if "on the labels alone" in r.message]
    better, worse = (float(run.callback_metrics[f"val/{name}"]) for name in ("accuracy", "control_accuracy"))
    assert better > worse
    assert said == (
        f"Control: with the unlabeled examples the accuracy on 200 validation examples is {better:.3f}, on the labels "
        f"alone {worse:.3f}: the run keeps the former network."
    )
    run.save_checkpoint(tmp_path / "a.ckpt")
    network = load_trained_network(tmp_path / "a.ckpt")
    expected = {name: tensor for name, tensor in part(model, "average.").items() if name.startswith("backbone.")}
    assert not moved(expected, {f"backbone.{name}": tensor for name, tensor in network.backbone.items()})


def test_equal_networks_leave_the_semi_supervised_one(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        trainer([RollBack()]).fit(module(lr=0.0), data())
    assert "the run keeps the former network" in caplog.text


@pytest.mark.parametrize(
    ("settings", "flags", "source", "reason"),
    [
        ({}, {}, {"val_size": 0}, "the data holds out no validation example"),
        ({"regularizer": L2()}, {}, {}, "the regularizer belongs to one network"),
        ({}, {"gradient_clip_val": 1.0}, {}, "gradient_clip_val would count the gradients of both networks"),
    ],
)
def test_it_is_not_trained_where_it_could_not_be_compared(
    settings: dict[str, Any], flags: dict[str, Any], source: dict[str, Any], reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    model, run = module(**settings), trainer([RollBack()], limit_train_batches=1, **flags)
    with caplog.at_level("INFO"):
        run.fit(model, data(**source))
    assert f"Control: not trained, because {reason}" in caplog.text
    assert model.control is None
    assert not any("control" in group["name"] for group in run.optimizers[0].param_groups)


def test_a_resumed_run_ends_where_a_whole_one_does(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=4)
    whole, resumed = module(), module()
    trainer([keep], enable_checkpointing=True).fit(whole, data())
    path = tmp_path / "step=4.ckpt"
    check_checkpoint(path, read_checkpoint(path)[0], resumed)
    trainer().fit(resumed, data(), ckpt_path=str(path), weights_only=True)
    assert part(resumed, "control.")
    assert not moved(state(whole), state(resumed))


def test_a_checkpoint_is_tested_without_it_and_resumes_without_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = trainer(limit_test_batches=1)
    run.fit(module(), data())
    run.save_checkpoint(tmp_path / "with.ckpt")
    plain = module(control=False)
    plain.load_state_dict(torch.load(tmp_path / "with.ckpt", weights_only=True)["state_dict"])
    (metrics,) = run.test(plain, data(), ckpt_path=str(tmp_path / "with.ckpt"), weights_only=True, verbose=False)
    assert 0 <= metrics["test/accuracy"] <= 1
    again = trainer()
    again.fit(plain, data())
    again.save_checkpoint(tmp_path / "without.ckpt")
    with caplog.at_level("INFO"):
        resumed = module()
        trainer(max_epochs=2).fit(resumed, data(), ckpt_path=str(tmp_path / "without.ckpt"), weights_only=True)
    assert resumed.control is None
    assert "Control: not trained, because the checkpoint has none to go on with." in caplog.text


def test_its_batch_normalization_is_in_the_mode_of_the_other_after_validation_too() -> None:
    seen: list[tuple[list[bool], list[bool]]] = []

    class Modes(Recorder):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            networks = pl_module.backbone, pl_module.control.backbone
            ours, theirs = ([m.training for m in network.modules()] for network in networks)
            seen.append((ours, theirs))

    learner = module(backbone="resnet8", norm_stats="weights")
    trainer([Modes()], max_epochs=2, val_check_interval=2).fit(learner, data(val_size=20))
    assert len(seen) == 12
    for ours, theirs in seen:
        assert ours == theirs
        assert not all(ours)

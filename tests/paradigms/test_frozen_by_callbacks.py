"""What a user's callback freezes or releases stays so."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import nn

from sft_lightning import DecoupledFeatureClassifier, FineTuneClassifier
from sft_lightning.losses.features.supcon import SupCon
from sft_lightning.utils.errors import InputError
from tests.paradigms.helpers import SHAPE, Recorder, classifier, moved, sample, state, trainer

FIRST = "backbone.net.0.0.weight"


class At(Callback):
    """Does something to the model at a hook."""

    def __init__(self, hook: str, action: Callable[[Any], None]) -> None:
        setattr(self, hook, lambda trainer, pl_module, *_, **__: action(pl_module))


class Watch(Callback):
    """Keeps which normalizations train, and whether the first parameter does, at each step."""

    def __init__(self) -> None:
        self.norms: list[bool] = []
        self.first: list[bool] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.norms.append(any(m.training for m in pl_module.modules() if isinstance(m, nn.BatchNorm2d)))
        self.first.append(pl_module.get_parameter(FIRST).requires_grad)


def _freeze_first(module: Any) -> None:
    module.get_parameter(FIRST).requires_grad_(False)


def _still_norms(module: Any) -> None:
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()


@pytest.mark.parametrize("hook", ["setup", "on_fit_start", "on_train_start", "on_train_epoch_start"])
def test_a_parameter_that_a_callback_froze_does_not_move(hook: str) -> None:
    model, seen = classifier("conv"), Watch()
    before = state(model)
    trainer([At(hook, _freeze_first), seen], max_epochs=2, val_check_interval=1).fit(model, sample())
    assert seen.first == [False] * 4
    assert FIRST not in moved(before, state(model))
    assert "backbone.net.1.0.weight" in moved(before, state(model))


def test_what_a_callback_changed_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        trainer([At("on_train_epoch_start", _freeze_first)], max_epochs=3).fit(classifier("conv"), sample())
    assert caplog.text.count("changed by a callback and stay so: 1 frozen.") == 1


def test_a_parameter_frozen_before_training_is_not_released_with_the_others() -> None:
    model, seen = classifier("conv", head_only_epochs=1), Recorder()
    freeze = At("on_train_epoch_start", lambda m: _freeze_first(m) if m.current_epoch == 1 else None)
    before = state(model)
    trainer([freeze, seen], max_epochs=3).fit(model, sample())
    assert FIRST not in moved(before, state(model))
    assert "backbone.net.1.0.weight" in moved(seen.states[0], seen.states[1])


@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_epoch_start"])
@pytest.mark.parametrize("kind", [FineTuneClassifier, DecoupledFeatureClassifier])
def test_normalizations_that_a_callback_froze_stay_still(hook: str, kind: type[Any]) -> None:
    model: Any = classifier("conv")
    if kind is DecoupledFeatureClassifier:
        model = DecoupledFeatureClassifier(
            SupCon(), backbone="conv", num_classes=10, input_spec=SHAPE, optimizer=lambda p: torch.optim.SGD(p, 0.01)
        )
    seen = Watch()
    before = state(model)
    trainer([At(hook, _still_norms), seen], max_epochs=2, val_check_interval=1).fit(model, sample())
    assert seen.norms == [False] * 4
    assert not [name for name in moved(before, state(model)) if "running" in name]


def test_normalizations_stay_still_in_the_epoch_of_the_release() -> None:
    seen = Watch()
    model = classifier("conv", head_only_epochs=1)
    trainer([At("on_train_epoch_start", _still_norms), seen], max_epochs=2).fit(model, sample())
    assert seen.norms == [False] * 4
    assert seen.first == [False, False, True, True]


def test_backbone_finetuning_of_lightning_releases_at_its_epoch() -> None:
    model, seen = classifier("conv"), Recorder()
    finetuning = BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=0.005)
    before = state(model)
    run = trainer([finetuning, seen], max_epochs=3)
    run.fit(model, sample())
    weights = {name for name in before if name.startswith("backbone") and name.endswith("0.weight")}
    assert not weights & moved(before, seen.states[0])
    assert weights <= moved(seen.states[0], seen.states[1])
    assert seen.rates[0] == [0.05]
    assert seen.rates[2] == [0.05, 0.005]  # the head keeps its rate


def test_a_schedule_cannot_follow_backbone_finetuning() -> None:
    model = classifier("conv", lr_scheduler=lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda _: 1.0))
    with pytest.raises(InputError, match=r"BackboneFinetuning adds .* set lr_scheduler: null, or head_only_epochs"):
        trainer([BackboneFinetuning(unfreeze_backbone_at_epoch=1)]).fit(model, sample())


@pytest.mark.parametrize("tune", ["head", "last_k_blocks"])
def test_a_callback_that_releases_more_is_named(tune: Any, caplog: pytest.LogCaptureFixture) -> None:
    release = At("on_train_epoch_start", lambda m: m.get_parameter(FIRST).requires_grad_(True))
    with caplog.at_level("INFO"):
        trainer([release]).fit(classifier("conv", tune=tune, cache_features=False), sample())
    assert "changed by a callback and stay so: 1 released." in caplog.text


def test_training_mode_leaves_requires_grad_alone() -> None:
    model = classifier("conv", tune="last_k_blocks", last_k_blocks=2)
    model.head.weight.requires_grad_(False)
    _freeze_first(model)
    last = model.depth.blocks[-1].parameters[0].requires_grad_(False)
    model.eval().train()
    assert not last.requires_grad
    assert not model.head.weight.requires_grad
    assert not model.depth.blocks[0].modules[0].training


def test_a_frozen_head_stays_frozen_in_a_decoupled_stage() -> None:
    model = DecoupledFeatureClassifier(
        SupCon(), backbone="conv", num_classes=10, input_spec=SHAPE, optimizer=lambda p: torch.optim.SGD(p, 0.01)
    )
    before = state(model)
    trainer([At("on_fit_start", lambda m: m.head.requires_grad_(False))], max_epochs=2).fit(model, sample())
    assert not {"head.weight", "head.bias"} & moved(before, state(model))

"""Each check of the fast loop counts by itself: one difference, and Lightning's own code runs."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.optim import optimizer as torchs

from sft_lightning import FineTuneClassifier
from sft_lightning.cli import fast_loop
from tests.paradigms.helpers import classifier, sample, trainer

Change = Callable[[pytest.MonkeyPatch, Trainer], None]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    logger = CSVLogger(tmp_path_factory.mktemp("logs"))
    made = trainer([EarlyStopping("val/loss")], logger=logger)
    fast_loop.LeanEpochLoop.install(made)
    made.fit(classifier(), sample(steps_per_epoch=1))
    return made


@pytest.fixture
def proven(fitted: Trainer) -> Iterator[Trainer]:
    assert fast_loop.is_proven(fitted)
    yield fitted
    assert fast_loop.is_proven(fitted)  # so that one test cannot be the reason for the next


PARTS: dict[str, Callable[[Any], Any]] = {
    "trainer": lambda t: t,
    "module": lambda t: t.lightning_module,
    "data module": lambda t: t.datamodule,
    "strategy": lambda t: t.strategy,
    "precision": lambda t: t.strategy.precision_plugin,
    "profiler": lambda t: t.profiler,
    "callback": lambda t: t.callbacks[0],
    "logger": lambda t: t.logger,
    "fit loop": lambda t: t.fit_loop,
    "optimization": lambda t: t.fit_loop.epoch_loop.automatic_optimization,
    "optimizer": lambda t: t.optimizers[0],
}


@pytest.mark.parametrize("part", PARTS)
def test_a_subclass_is_not_proven(part: str, proven: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    thing = PARTS[part](proven)
    monkeypatch.setattr(thing, "__class__", type("Own", (type(thing),), {}))
    assert not fast_loop.is_proven(proven)
    monkeypatch.undo()


@pytest.mark.parametrize("part", PARTS)
def test_a_method_on_an_instance_is_not_proven(part: str, proven: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    thing = PARTS[part](proven)
    method = next(name for name in dir(thing) if name[:2] != "__" and callable(getattr(type(thing), name, 0)))
    monkeypatch.setitem(vars(thing), method, lambda *_: None)
    assert not fast_loop.is_proven(proven)
    monkeypatch.undo()


def on_trainer(name: str, value: Any) -> Change:
    return lambda patch, t: patch.setattr(t, name, value)


def hook(hooks: str) -> Change:
    return lambda patch, t: patch.setitem(getattr(t.optimizers[0], hooks), 7, print)


def hook_all(hooks: dict[int, Any]) -> Change:
    return lambda patch, t: patch.setitem(hooks, 7, print)


def replace_step(patch: pytest.MonkeyPatch, t: Trainer) -> None:
    patch.setitem(vars(t.optimizers[0]), "step", lambda closure=None: None)


def count_another_step(patch: pytest.MonkeyPatch, t: Trainer) -> None:
    """Put there what looks like a schedule's counter, around a step that is not the class's own."""

    step: Any = lambda closure=None: None  # noqa: E731
    step._wrapped_by_lr_sched, step.__wrapped__ = True, lambda self, closure=None: None
    patch.setitem(vars(t.optimizers[0]), "step", step)


CHANGES: dict[str, Change] = {
    "clipping": on_trainer("gradient_clip_val", 1.0),
    "accumulation": on_trainer("accumulate_grad_batches", 2),
    "step": replace_step,
    "before a step": hook("_optimizer_step_pre_hooks"),
    "after a step": hook("_optimizer_step_post_hooks"),
    "before all steps": hook_all(torchs._global_optimizer_pre_hooks),
    "after all steps": hook_all(torchs._global_optimizer_post_hooks),
    "manual": lambda patch, t: patch.setattr(t.lightning_module, "automatic_optimization", False),
}
BEFORE: dict[str, Change] = {
    **CHANGES,
    "another step": count_another_step,
    "anomalies": on_trainer("_detect_anomaly", True),
    "barebones": on_trainer("barebones", True),
    "two optimizers": lambda patch, t: patch.setattr(t.strategy, "optimizers", t.optimizers * 2),
    "averager": lambda patch, t: patch.setattr(t.strategy, "_model_averager", object(), raising=False),
    "scaler": lambda patch, t: patch.setattr(t.strategy.precision_plugin, "scaler", object(), raising=False),
    "training step": lambda patch, t: patch.setattr(FineTuneClassifier, "training_step", lambda *_: None),
}


@pytest.mark.parametrize("name", BEFORE)
def test_what_an_epoch_begins_with(name: str, proven: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    BEFORE[name](monkeypatch, proven)
    assert not fast_loop.is_proven(proven)
    monkeypatch.undo()


@pytest.mark.parametrize("kind", [FineTuneClassifier, EarlyStopping])
@pytest.mark.parametrize("name", fast_loop._INSIDE_A_STEP)
def test_a_hook_that_is_set_on_a_class(name: str, kind: type, proven: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kind, name, lambda *_: None)
    assert not fast_loop.is_proven(proven)
    monkeypatch.undo()


@pytest.mark.parametrize("name", [name for name in fast_loop._OF_THE_MODULE if name not in fast_loop._INSIDE_A_STEP])
def test_a_method_that_is_set_on_the_class_of_the_module(
    name: str, proven: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FineTuneClassifier, name, lambda *_: None)
    assert not fast_loop.is_proven(proven)
    monkeypatch.undo()


def other_optimizer(t: Trainer) -> torch.optim.Optimizer:
    return torch.optim.SGD(t.lightning_module.parameters(), 0.1)


WITHIN: dict[str, Change] = {
    **CHANGES,
    "a callback": lambda patch, t: patch.setattr(t, "callbacks", [*t.callbacks, Callback()]),  # type: ignore[attr-defined]
    "an optimizer": lambda patch, t: patch.setattr(t.strategy, "optimizers", [other_optimizer(t)]),
    "a group": lambda patch, t: patch.setattr(
        t.optimizers[0], "param_groups", [*t.optimizers[0].param_groups, {"params": [nn.Parameter(torch.zeros(1))]}]
    ),
    "a parameter": lambda patch, t: patch.setitem(
        t.optimizers[0].param_groups[0],
        "params",
        [*t.optimizers[0].param_groups[0]["params"], nn.Parameter(torch.zeros(1))],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WITHIN)
def test_what_changes_within_an_epoch(name: str, proven: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = proven.fit_loop.epoch_loop
    assert isinstance(loop, fast_loop.LeanEpochLoop)
    before = loop._state()
    assert before == loop._state()
    WITHIN[name](monkeypatch, proven)
    assert before != loop._state()
    monkeypatch.undo()


def test_an_optimizer_that_is_exchanged_in_the_list(proven: Trainer) -> None:
    loop, own = proven.fit_loop.epoch_loop, proven.optimizers[0]
    assert isinstance(loop, fast_loop.LeanEpochLoop)
    before = loop._state()
    proven.optimizers[0] = other_optimizer(proven)
    assert before != loop._state()
    proven.optimizers[0] = own

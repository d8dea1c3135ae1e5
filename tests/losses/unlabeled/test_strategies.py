"""Twenty steps of each strategy through the Trainer against its reference in a plain loop.

In double precision: in single, rounding differs between processors, and some strategies let it grow.
"""

import copy
from typing import Any

import pytest
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from sft_lightning import ImageDataModule, SemiSupervisedModule, StrongView, WeakView
from sft_lightning.losses import unlabeled as strategies
from tests.losses import references
from tests.paradigms.helpers import SHAPE, Recorder, trainer

# Settings under which an untrained network accepts some examples and rejects others.
# Words after the name of a strategy tell its variants apart.
SETTINGS: dict[str, dict[str, float]] = {
    "DST": {"threshold": 0.35, "reversal": 0.5, "reversal_steps": 10, "width": 16},
    "UDA": {"threshold": 0.35},
    "AdaMatch": {"momentum": 0.9},
    "CoMatch": {
        "threshold": 0.18, "memory": 100, "recent_batches": 6, "projection": 16, "graph_threshold": 0.12,
        "contrast": 0.5, "alpha": 0.7,
    },
    "DebiasMatch": {"threshold": 0.35, "momentum": 0.9},
    "EntropyMinimization": {},
    "FixMatch": {"threshold": 0.35},
    "FlexMatch": {"threshold": 0.35},
    "FreeMatch": {"momentum": 0.9, "fairness": 0.05},
    "MeanTeacher": {},
    "MixMatch": {},
    "PiModel": {},
    "PseudoLabel": {"threshold": 0.6},
    "SimMatch": {"threshold": 0.18, "recent_batches": 6, "projection": 16, "instance": 0.5},
    "SimMatch without average": {
        "threshold": 0.25, "recent_batches": 30, "projection": 16, "averaged_teacher": False, "bank_momentum": 0.7,
        "alpha": 0.6,
    },
    "SoftMatch": {"momentum": 0.9},
    "VirtualAdversarial": {"xi": 0.3},
}  # fmt: skip
SMOOTH = ("MeanTeacher", "PiModel", "VirtualAdversarial")  # their gradient vanishes where a network is too sure
DECAY, RATE = 0.9, 0.05


def module(name: str, **settings: Any) -> SemiSupervisedModule:
    torch.manual_seed(0)
    made = SemiSupervisedModule(
        getattr(strategies, name.split()[0])(**SETTINGS[name]), backbone="mlp", num_classes=10, input_spec=SHAPE,
        ema_decay=DECAY, optimizer=lambda p: torch.optim.SGD(p, RATE),
        **{"warmup_steps": 0, "ramp_steps": 0, **settings},
    )  # fmt: skip
    with torch.no_grad():  # a network with opinions
        for p in made.head.parameters():
            p.mul_(3 if name in SMOOTH else 30)
        made.average.head.load_state_dict(made.head.state_dict())  # type: ignore[union-attr]
    return made.double()


class Doubled(ImageDataModule):
    """A data module with batches in double precision."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        views = super().on_after_batch_transfer(batch, dataloader_idx)
        return apply_to_collection(views, Tensor, lambda t: t.double() if t.is_floating_point() else t)


def data(**settings: Any) -> Any:
    views = {"weak_view": WeakView(flip=True, crop_padding=2), "strong_view": StrongView()}
    sizes = {"batch_size": 8, "unlabeled_ratio": 3, "steps_per_epoch": 20, "num_labels": 40}
    return Doubled("sample", **{**views, **sizes, **settings})


class Plain:
    """A plain implementation of the network, its average and gradient descent."""

    def __init__(self, of: SemiSupervisedModule) -> None:
        self.net = nn.ModuleList([copy.deepcopy(of.backbone), copy.deepcopy(of.head)])
        self.mean = copy.deepcopy(self.net)
        self.steps = 0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.net[0](x)
        return features, self.net[1](features)

    def teacher(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            features = self.mean[0](x)
            return features, self.mean[1](features)

    def descend(self, loss: Tensor, extra: list[nn.Parameter]) -> None:
        parameters = [*self.net.parameters(), *extra]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                if g is not None:
                    p.sub_(RATE * g)
            decay = min(DECAY, (1 + self.steps) / (10 + self.steps))
            for m, p in zip(self.mean.parameters(), self.net.parameters(), strict=True):
                m.copy_(decay * m + (1 - decay) * p)
        self.steps += 1


def run(name: str, **settings: Any) -> tuple[SemiSupervisedModule, Recorder, Plain, Any]:
    model, seen = module(name, lambda_u=0.7, **settings), Recorder()
    plain = Plain(model)
    source = data(val_size=9860)  # 100 unlabeled examples: FlexMatch counts which of them are learned
    fit = trainer([seen], max_epochs=1, limit_val_batches=0, precision="64-true")
    heads = copy.deepcopy(model.strategy)
    fit.fit(model, datamodule=source)
    if hasattr(heads, "predicted"):
        heads.predicted = torch.full((len(source.splits["unlabeled"]),), -1)
    return model, seen, plain, getattr(references, name.split()[0])(heads, plain.teacher)


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_20_steps_equal_an_independent_loop_after_the_paper(name: str) -> None:
    model, seen, plain, reference = run(name)
    assert len(seen.losses) == 20
    for step, batch in enumerate(seen.batches):
        x, y, reference.positions, *_ = batch["labeled"]
        unsupervised, supervised = reference(plain.forward, batch["unlabeled"], x, y)
        if supervised is None:
            supervised = references.cross_entropy(references.hot(y), plain.forward(x)[1]).mean()
        loss = supervised + 0.7 * unsupervised
        assert seen.losses[step] == pytest.approx(loss.item(), rel=1e-6), step
        plain.descend(loss, reference.extra)
    for mine, theirs in zip(
        [*model.backbone.parameters(), *model.head.parameters()], plain.net.parameters(), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)
    assert model.average is not None
    for mine, theirs in zip(model.average.parameters(), plain.mean.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)
    if reference.accepted:
        assert 0.05 < sum(reference.accepted) / len(reference.accepted) < 0.995


@pytest.mark.parametrize("name", ["FixMatch", "AdaMatch", "MixMatch"])
def test_alternating_training_switches_between_the_losses(name: str) -> None:
    turns = {"schedule": "alternating", "warmup_steps": 3, "supervised_steps": 1, "unsupervised_steps": 2}
    _, seen, plain, reference = run(name, **turns)
    needs = name != "FixMatch"
    for step, batch in enumerate(seen.batches):
        is_supervised = step < 3 or (step - 3) % 3 == 0
        assert set(batch) == ({"labeled"} if is_supervised else {"labeled", "unlabeled"} if needs else {"unlabeled"})
        if is_supervised:
            x, y, *_ = batch["labeled"]
            loss = references.cross_entropy(references.hot(y), plain.forward(x)[1]).mean()
        else:
            x, y, *_ = batch["labeled"] if needs else (None, None, None)
            unsupervised, mixed = reference(plain.forward, batch["unlabeled"], x, y)
            loss = 0.7 * unsupervised + (0 if mixed is None else mixed)
        assert seen.losses[step] == pytest.approx(loss.item(), rel=1e-6), step
        plain.descend(loss, reference.extra)


def test_reconstruction_trains_its_decoder_on_features() -> None:
    torch.manual_seed(0)
    strategy = strategies.Reconstruction()
    model = SemiSupervisedModule(
        strategy, backbone="mlp", num_classes=10, input_spec=SHAPE, optimizer=lambda p: torch.optim.SGD(p, RATE),
        lambda_u=2.0, warmup_steps=0, ramp_steps=0,
    )  # fmt: skip
    start = copy.deepcopy(model).double()
    seen = Recorder()
    trainer([seen], max_epochs=1, limit_train_batches=3, precision="64-true").fit(model, datamodule=data())
    sgd = torch.optim.SGD([*start.backbone.parameters(), *start.head.parameters(), *start.strategy.parameters()], RATE)
    for step, batch in enumerate(seen.batches):
        (x, y, *_), weak = batch["labeled"], batch["unlabeled"].weak
        drawn = start.strategy.decoder(start.backbone(weak))  # type: ignore[operator]
        supervised = references.cross_entropy(references.hot(y), start.head(start.backbone(x))).mean()
        loss = supervised + 2.0 * ((drawn - weak) ** 2).mean()
        assert seen.losses[step] == pytest.approx(loss.item(), rel=1e-6)
        sgd.zero_grad()
        loss.backward()
        sgd.step()

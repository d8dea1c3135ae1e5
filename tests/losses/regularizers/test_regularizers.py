from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter, functional as F

from sft_lightning import AutoencoderModule, DecoupledFeatureClassifier, SemiSupervisedModule
from sft_lightning.losses.features import SupCon
from sft_lightning.losses.regularizers import BSS, DELTA, L2, L2SP
from sft_lightning.losses.regularizers.base import Regularizer, half_squared_norm_of_trained
from sft_lightning.losses.unlabeled import FixMatch, MixMatch
from sft_lightning.networks.vision.backbones import build_backbone
from sft_lightning.utils.errors import InputError
from tests.paradigms.helpers import SHAPE, Recorder, classifier, sample, state, trainer

ALL: list[Callable[[], Regularizer]] = [L2, L2SP, DELTA, BSS]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.05)


def test_l2_is_half_the_squared_norm_with_the_parameter_as_gradient() -> None:
    parameters = [Parameter(torch.randn(3, 4)), Parameter(torch.randn(5)), Parameter(torch.zeros(2))]
    penalty = half_squared_norm_of_trained(parameters)
    assert float(penalty) == pytest.approx(0.5 * sum(float((p.detach() ** 2).sum()) for p in parameters))
    penalty.backward()
    for p in parameters:
        torch.testing.assert_close(p.grad, p.detach())


def test_frozen_parameters_are_not_regularized() -> None:
    frozen = Parameter(torch.full((9,), 7.0), requires_grad=False)
    assert float(half_squared_norm_of_trained([frozen, Parameter(torch.ones(4))])) == 2.0
    assert float(half_squared_norm_of_trained([frozen])) == 0.0


def forward(weights: list[Tensor], x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return the hidden layers and the logits of the MLP."""
    maps, h = [], x.flatten(1)
    for w, b in zip(weights[0:6:2], weights[1:6:2], strict=True):
        h = F.relu(h @ w.T + b)
        maps.append(h)
    return maps, h @ weights[6].T + weights[7]


def l2sp_by_hand(now: list[Tensor], start: list[Tensor], x: Tensor) -> Tensor:
    near: Any = sum(((a - b) ** 2).sum() for a, b in zip(now[:6], start[:6], strict=True))
    rest: Any = sum((p**2).sum() for p in now[6:])
    return cast(Tensor, 0.3 / 2 * near + 0.02 / 2 * rest)


def delta_by_hand(now: list[Tensor], start: list[Tensor], x: Tensor) -> Tensor:
    mine, theirs = forward(now, x)[0], forward(start, x)[0]
    near: Any = sum(((a - b) ** 2).mean(1).mean(0) for a, b in zip(mine[::2], theirs[::2], strict=True))
    rest: Any = sum((p**2).sum() for p in now[6:])
    return cast(Tensor, 0.3 / 2 * near + 0.02 / 2 * rest)


def bss_by_hand(now: list[Tensor], start: list[Tensor], x: Tensor) -> Tensor:
    features = forward(now, x)[0][-1]
    smallest: Tensor = torch.linalg.eigvalsh(features @ features.T)[:2]
    return 0.3 * smallest.sum()  # squared singular values of 10 x 32


@pytest.mark.parametrize(
    ("regularizer", "by_hand"),
    [
        (L2SP(0.3, beta=0.02), l2sp_by_hand),
        (DELTA(0.3, beta=0.02, layers=2), delta_by_hand),
        (BSS(0.3, k=2), bss_by_hand),
    ],
    ids=["L2SP", "DELTA", "BSS"],
)
def test_20_steps_equal_a_plain_loop(regularizer: Regularizer, by_hand: Callable[..., Tensor]) -> None:
    model = classifier(regularizer=regularizer, optimizer=sgd)
    start = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    plain = [p.clone().requires_grad_() for p in start]
    seen = Recorder()
    trainer([seen], max_epochs=4).fit(model, sample(num_labels=50, steps_per_epoch=5))
    losses = []
    for batch in seen.batches:
        x, y, *_ = batch["labeled"]
        loss = F.cross_entropy(forward(plain, x)[1], y) + by_hand(plain, start, x)
        gradients = torch.autograd.grad(loss, plain)
        for p, g in zip(plain, gradients, strict=True):
            p.data -= 0.05 * g
        losses.append(loss.item())
    assert len(losses) == 20
    assert seen.losses == pytest.approx(losses, rel=1e-4)
    for mine, other in zip((p for p in model.parameters() if p.requires_grad), plain, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("regularizer", ALL)
def test_every_paradigm_accepts_every_regularizer(regularizer: Callable[[], Regularizer]) -> None:
    def made(**settings: Any) -> dict[str, Any]:
        return {"optimizer": sgd, **settings}

    conv = {"backbone": "conv", "num_classes": 10, "input_spec": SHAPE}
    for model in (
        AutoencoderModule("conv", SHAPE, **made(regularizer=regularizer())),
        SemiSupervisedModule(FixMatch(), **made(regularizer=regularizer(), **conv)),
        DecoupledFeatureClassifier(SupCon(), **made(regularizer=regularizer(), **conv)),
        classifier("conv", regularizer=regularizer()),
    ):
        before = state(model)
        run = trainer(max_epochs=1)
        run.fit(model, sample(steps_per_epoch=3, unlabeled_ratio=1))
        assert float(run.callback_metrics["train/regularizer"]) > 0
        kept = {name: t for name, t in state(model).items() if name.startswith("regularizer.source.")}
        assert bool(kept) == (regularizer in (L2SP, DELTA))
        assert all(torch.equal(t, before[name]) for name, t in kept.items())  # BatchNorm's statistics, too


def test_delta_sums_over_positions_and_averages_over_channels() -> None:
    backbone, _ = build_backbone("conv", SHAPE)
    backbone.eval()
    delta = DELTA(2.0, beta=0.0, layers=1)
    delta.build(backbone)
    x = torch.rand(3, *SHAPE)
    last = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)][-1]
    maps: list[Tensor] = []
    block = delta.select_modules(backbone)[0]
    handle = block.register_forward_hook(lambda *args: maps.append(args[-1]))
    backbone(x)
    with torch.no_grad():
        last.bias.add_(0.1)
    with delta.capture():
        backbone(x)
    handle.remove()
    expected: Any = sum(((maps[1] - maps[0]) ** 2)[k].sum() / maps[0].shape[1] for k in range(3)) / 3
    assert float(delta(backbone)) == pytest.approx(float(expected), rel=1e-5)
    assert float(delta(backbone)) == 0.0  # what was seen is used once
    with torch.no_grad(), delta.capture():
        backbone(x)
    assert float(delta(backbone)) == 0.0  # an evaluation is not looked at
    assert not backbone._forward_pre_hooks
    assert not block._forward_hooks


def test_frozen_backbone_contributes_no_distance() -> None:
    for regularizer, rest in ((L2SP(0.3, beta=0.0), 0.0), (DELTA(0.3, beta=0.0, layers=2), 0.0), (BSS(0.3), 0.0)):
        model = classifier(tune="head", regularizer=regularizer)
        run = trainer(max_epochs=1)
        run.fit(model, sample(steps_per_epoch=2))
        assert float(run.callback_metrics["train/regularizer"]) == rest


def test_initial_weights_survive_a_checkpoint(tmp_path: Any) -> None:
    model = classifier(regularizer=L2SP(0.3))
    start = state(model)
    run = trainer(max_epochs=1)
    run.fit(model, sample(steps_per_epoch=3))
    run.save_checkpoint(tmp_path / "model.ckpt")
    torch.manual_seed(7)
    other = classifier(regularizer=L2SP(0.3))
    torch.nn.init.ones_(next(other.backbone.parameters()))
    other.load_state_dict(torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"])
    regularizer: Any = other.regularizer
    for name, tensor in regularizer.source.state_dict().items():
        assert torch.equal(tensor, start[f"backbone.{name}"])
    taken, _ = build_backbone("mlp", SHAPE, str(tmp_path / "model.ckpt"))
    assert torch.equal(next(taken.parameters()), next(model.backbone.parameters()))  # the network, not its start


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: L2(-1.0), "weight is -1.0"),
        (lambda: L2SP(beta=-1.0), "beta is -1.0"),
        (lambda: BSS(k=0), "k is 0"),
        (lambda: classifier(regularizer=DELTA(layers=9)), "layers is 9: the backbone has 3 blocks"),
        (lambda: classifier(regularizer=BSS(), compile=True), "compile is True, but BSS looks into the backbone"),
        (
            lambda: SemiSupervisedModule(
                MixMatch(), backbone="mlp", num_classes=10, input_spec=SHAPE, regularizer=BSS()
            ),
            "BSS looks at the labeled examples' pass, and MixMatch mixes",
        ),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        make()

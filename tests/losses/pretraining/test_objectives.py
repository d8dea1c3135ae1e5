"""Self-supervised objectives against their papers' formulas in plain loops, and their networks by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sft_lightning.losses import pretraining
from sft_lightning.losses.pretraining.base import ObjectiveInputs, ObjectiveOutput
from sft_lightning.losses.pretraining.lejepa import epps_pulley
from sft_lightning.losses.pretraining.projectors import build_projector
from sft_lightning.utils.errors import InputError
from tests.losses.pretraining.references import REFERENCES, SMALL

FEATURES = 5


def built(name: str) -> Any:
    torch.manual_seed(0)
    objective = getattr(pretraining, name)(**SMALL[name])
    objective.build(FEATURES)
    return objective.double()


def views(count: int = 12, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(count, FEATURES, generator=generator, dtype=torch.float64)
    return [first, first + 0.3 * torch.randn(count, FEATURES, generator=generator, dtype=torch.float64)]


def test_every_objective_has_a_reference() -> None:
    assert set(REFERENCES) == set(SMALL) == set(pretraining.__all__) - {"MAE"}  # which has tests of its own


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_loss_equals_the_paper(name: str) -> None:
    objective = built(name)
    features = [x.requires_grad_() for x in views()]
    projections = [objective.projector(x) for x in features]
    outputs = (objective.predictor(projections[0]), objective.predictor(projections[1]))
    targets = None
    if objective.needs_momentum:
        targets = [torch.randn(12, 6, generator=torch.Generator().manual_seed(i)).double() for i in (1, 2)]
    expected = REFERENCES[name](objective, outputs, targets or [z.detach() for z in projections], 7)  # type: ignore[arg-type]
    result = objective(features, targets, 7)
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-9)
    gradients = torch.autograd.grad(result.loss, [*features, *objective.parameters()])
    for mine, theirs in zip(
        gradients, torch.autograd.grad(expected, [*features, *objective.parameters()]), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-10)
    assert all(float(g.abs().sum()) > 0 for g in gradients[:2])


def count_layers(network: nn.Module) -> list[str]:
    names = []
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            names.append(f"{layer.in_features}-{layer.out_features}{'' if layer.bias is None else ' bias'}")
        elif isinstance(layer, nn.BatchNorm1d):
            names.append("norm" if layer.affine else "plain norm")
        elif isinstance(layer, nn.ReLU):
            names.append("relu")
    return names


@pytest.mark.parametrize(
    ("name", "projector", "predictor"),
    [
        ("SimCLR", ["5-16 bias", "relu", "16-6 bias"], []),
        ("VICReg", ["5-16", "norm", "relu", "16-16", "norm", "relu", "16-6"], []),
        ("BarlowTwins", ["5-16", "norm", "relu", "16-16", "norm", "relu", "16-6"], []),
        ("BYOL", ["5-16", "norm", "relu", "16-6 bias"], ["6-16", "norm", "relu", "16-6 bias"]),
        ("MoCoV3", ["5-16", "norm", "relu", "16-6", "plain norm"], ["6-16", "norm", "relu", "16-6"]),
        (
            "SimSiam",
            ["5-16", "norm", "relu", "16-16", "norm", "relu", "16-6", "plain norm"],
            ["6-4", "norm", "relu", "4-6 bias"],
        ),
        ("LeJEPA", ["5-16", "norm", "relu", "16-16", "norm", "relu", "16-6 bias"], []),
    ],
)
def test_projector_and_predictor_have_the_layers_of_the_paper(
    name: str, projector: list[str], predictor: list[str]
) -> None:
    objective = built(name)
    assert count_layers(objective.projector) == projector
    assert count_layers(objective.predictor) == predictor


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_the_loss_is_in_full_precision(name: str) -> None:
    objective = built(name).float()
    features = [x.float() for x in views()]
    targets = [torch.randn(12, 6) for _ in range(2)] if objective.needs_momentum else None
    full = objective(features, targets, 0).loss
    with torch.autocast("cpu", torch.bfloat16):
        half = objective(features, targets, 0).loss
    assert half.dtype == full.dtype == torch.float32
    assert half.item() == pytest.approx(full.item(), rel=0.1)


def test_sigreg_is_small_for_a_gaussian_only() -> None:
    generator = torch.Generator().manual_seed(0)
    gaussian = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    uniform = torch.rand(4000, 3, generator=generator, dtype=torch.float64) * 12**0.5 - 3**0.5
    at_gaussian = float(epps_pulley(gaussian))
    assert at_gaussian < 2  # about 1.1 is expected
    for other in (uniform, 2 * gaussian, gaussian + 1, torch.zeros(4000, 3, dtype=torch.float64)):
        assert float(epps_pulley(other)) > 10 * at_gaussian


def test_lejepa_takes_any_number_of_views() -> None:
    objective = pretraining.LeJEPA(num_views=4, hidden=8, projection=3, directions=4)
    objective.build(FEATURES)
    assert objective.num_views == 4
    four = [*views(), *views(seed=1)]
    result = objective([x.float() for x in four], None, 0)
    z = torch.stack([objective.projector(x.float()) for x in four])
    assert result.logs["invariance"].item() == pytest.approx((z - z.mean(0)).square().mean().item(), rel=1e-5)


def test_lejepa_looks_in_new_directions_in_each_step() -> None:
    objective = built("LeJEPA")
    first, again, other = (objective(views(), None, step).loss.item() for step in (0, 0, 1))
    assert first == again != other


def test_a_target_gets_no_gradient() -> None:
    objective = built("SimSiam")
    seen: list[ObjectiveInputs] = []
    compute_loss = objective.loss

    def record(step: ObjectiveInputs) -> ObjectiveOutput:
        seen.append(step)
        output: ObjectiveOutput = compute_loss(step)
        return output

    objective.loss = record
    objective([x.requires_grad_() for x in views()], None, 0)
    assert all(z.requires_grad for z in seen[0].outputs)
    assert not any(z.requires_grad for z in seen[0].targets)


def test_projector_of_one_layer() -> None:
    assert count_layers(build_projector([4, 3])) == ["4-3 bias"]


@pytest.mark.parametrize(
    ("name", "setting", "words"),
    [
        ("SimCLR", {"temperature": 0}, "temperature is 0: give a number above 0"),
        ("SimCLR", {"projection": 0}, "projection is 0: give a number of at least 1"),
        ("VICReg", {"covariance": -1}, "covariance is -1: give a number of at least 0"),
        ("BarlowTwins", {"redundancy": -1}, "redundancy is -1"),
        ("BarlowTwins", {"scale": 0}, "scale is 0"),
        ("BYOL", {"decay": 1}, "decay is 1: give a share from 0 to below 1"),
        ("MoCoV3", {"temperature": -1}, "temperature is -1"),
        ("SimSiam", {"bottleneck": 0}, "bottleneck is 0"),
        ("LeJEPA", {"regularization": 2}, "regularization is 2: give a share from 0 to 1"),
        ("LeJEPA", {"num_views": 1}, "num_views is 1: give a number of at least 2"),
    ],
)
def test_settings_out_of_range_are_refused(name: str, setting: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        getattr(pretraining, name)(**setting)

"""Self-supervised objectives against their papers' formulas in plain loops, and their networks by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sft_lightning.losses import pretraining
from sft_lightning.losses.pretraining.base import ObjectiveInputs, ObjectiveOutput
from sft_lightning.losses.pretraining.lejepa import epps_pulley
from sft_lightning.losses.pretraining.projectors import build_projector
from sft_lightning.losses.pretraining.prototypes import Prototypes, compute_entropy, count_used
from sft_lightning.losses.pretraining.swav import assign_codes
from sft_lightning.utils.errors import InputError
from tests.losses.pretraining.references import REFERENCES, SMALL

FEATURES = 5


def built(name: str) -> Any:
    torch.manual_seed(0)
    trained = {"frozen_epochs": 0} if "prototypes" in SMALL[name] else {}
    objective = getattr(pretraining, name)(**SMALL[name], **trained)
    objective.build(FEATURES)
    return objective.double()


def views(count: int = 12, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(count, FEATURES, generator=generator, dtype=torch.float64)
    return [first, first + 0.3 * torch.randn(count, FEATURES, generator=generator, dtype=torch.float64)]


def test_every_objective_has_a_reference() -> None:
    dense = {"DenseCL"}  # which has tests of its own, as MAE has
    assert set(REFERENCES) == set(SMALL) - dense == set(pretraining.__all__) - dense - {"MAE"}


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_loss_equals_the_paper(name: str) -> None:
    objective = built(name)
    features = [x.requires_grad_() for x in views()]
    projections = [objective.projector(x) for x in features]
    outputs = (objective.predictor(projections[0]), objective.predictor(projections[1]))
    targets = None
    if objective.needs_momentum:
        width = outputs[0].shape[1]
        targets = [torch.randn(12, width, generator=torch.Generator().manual_seed(i)).double() for i in (1, 2)]
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
        elif isinstance(layer, (nn.ReLU, nn.GELU)):
            names.append(type(layer).__name__.lower())
        elif isinstance(layer, Prototypes):
            names.append(f"{len(layer.weight)} prototypes")
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
        ("DINO", ["5-16 bias", "gelu", "16-16 bias", "gelu", "16-6 bias"], ["7 prototypes"]),
        ("SwAV", ["5-16", "norm", "relu", "16-6 bias"], []),
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
    width = SMALL[name].get("prototypes", 6)
    targets = [torch.randn(12, width) for _ in range(2)] if objective.needs_momentum else None
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


@pytest.mark.parametrize("is_frozen", [False, True])
def test_prototypes_give_cosines_and_are_trained_unless_frozen(is_frozen: bool) -> None:
    prototypes = Prototypes(4, 3)
    prototypes.is_frozen = is_frozen
    z = torch.randn(5, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        cosines = prototypes(z)
    for i in range(5):
        for k in range(3):
            expected = z[i] @ prototypes.weight[k] / z[i].norm() / prototypes.weight[k].norm()
            assert cosines[i, k].item() == pytest.approx(expected.item(), abs=1e-6)
    cosines[:, 0].sum().backward()
    assert z.grad is not None
    assert prototypes.weight.grad is not None
    assert z.grad.abs().sum() > 0
    assert (prototypes.weight.grad.abs().sum() == 0) == is_frozen


def test_prototypes_in_use_are_counted() -> None:
    p = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    assert compute_entropy(p).tolist() == pytest.approx([0.6931472, 0.0])
    assert count_used(p[0]).item() == pytest.approx(2)
    assert count_used(p[1]).item() == pytest.approx(1)


def test_dino_sharpens_less_after_the_warm_up_and_moves_its_center() -> None:
    objective = pretraining.DINO(warmup_epochs=4)
    assert [objective.temperature_at(e) for e in (0, 2, 4, 9)] == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert pretraining.DINO(warmup_epochs=0).temperature_at(0) == 0.07
    objective = built("DINO")
    targets = [torch.rand(12, 7, dtype=torch.float64) for _ in range(2)]
    one_sided = [t + 9 * (torch.arange(7) == 3) for t in targets]
    found = [objective(views(), given, 0, epoch=5).logs for given in (one_sided, targets)]
    assert found[0]["target_entropy"] < 1e-6
    assert found[0]["prototypes_used"] == pytest.approx(1)
    assert found[1]["prototypes_used"] > 1
    mean = [torch.cat(given).mean(0) for given in (one_sided, targets)]
    torch.testing.assert_close(objective.center, 0.09 * mean[0] + 0.1 * mean[1])


def test_codes_share_examples_out_evenly() -> None:
    scores = torch.rand(40, 4, dtype=torch.float64) + torch.tensor([0.0, 0.0, 0.0, 1.0])
    codes = assign_codes(scores, 0.05, 100)
    torch.testing.assert_close(codes.sum(1), torch.ones(40, dtype=torch.float64))
    torch.testing.assert_close(codes.sum(0), torch.full((4,), 10.0, dtype=torch.float64), rtol=1e-3, atol=0)
    assert (assign_codes(scores, 0.05, 1).sum(0) - 10).abs().max() > 0.1
    weights = (torch.arange(40) < 30).double()
    torch.testing.assert_close(assign_codes(scores, 0.05, 3, weights)[:30], assign_codes(scores[:30], 0.05, 3))


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
        ("DINO", {"start_temperature": 0}, "start_temperature is 0: give a number above 0"),
        ("DINO", {"local_crops": -1}, "local_crops is -1: give a number of at least 0"),
        ("DINO", {"center_decay": 1}, "center_decay is 1"),
        ("SwAV", {"prototypes": 1}, "prototypes is 1: give a number of at least 2"),
        ("SwAV", {"epsilon": 0}, "epsilon is 0"),
        ("LeJEPA", {"num_views": 1}, "num_views is 1: give a number of at least 2"),
        ("DenseCL", {"dense": 2}, "dense is 2: give a share from 0 to 1"),
        ("DenseCL", {"queue": 0}, "queue is 0: give a number of at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(name: str, setting: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        getattr(pretraining, name)(**setting)

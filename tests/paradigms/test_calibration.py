"""How far a prediction can be trusted, by hand."""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning import DecoupledFeatureClassifier, SemiSupervisedModule
from sft_lightning.data.batches import Labeled
from sft_lightning.losses.features.supcon import SupCon
from sft_lightning.losses.unlabeled.pseudo_label import PseudoLabel
from sft_lightning.paradigms.calibration import (
    Calibration,
    _read,
    _write,
    fit_calibration,
    fit_temperature,
    neighbor_distance,
)
from sft_lightning.paradigms.fine_tune import FineTuneClassifier
from tests.paradigms.helpers import SHAPE, classifier, sample


class Plain:
    """Stands in for a trainer's precision."""

    forward_context = staticmethod(nullcontext)

    @staticmethod
    def convert_input(x: Tensor) -> Tensor:
        return x


def test_temperature_by_hand() -> None:
    # Two classes with log-odds of 2 where three of four are right: log(3) is what they should be.
    logits = torch.tensor([[2.0, 0.0]] * 4)
    assert fit_temperature(logits, torch.tensor([0, 0, 0, 1])) == pytest.approx(2 / math.log(3), abs=1e-4)


@pytest.mark.parametrize(("count", "k"), [(20, 1), (199, 1), (250, 2), (1000, 10), (3000, 10)])
def test_distance_to_the_kth_neighbor_by_hand(count: int, k: int) -> None:
    draw = torch.Generator().manual_seed(0)
    bank = torch.nn.functional.normalize(torch.randn(count, 4, generator=draw), dim=1)
    x = torch.randn(7, 4, generator=draw) * 5
    expected = [(bank - row / row.norm()).norm(dim=1).sort().values[k - 1] for row in x]
    torch.testing.assert_close(neighbor_distance(x, bank), torch.stack(expected), atol=1e-4, rtol=1e-4)
    others = [
        (torch.cat([bank[:i], bank[i + 1 :]]) - bank[i]).norm(dim=1).sort().values[k - 1] for i in range(min(count, 50))
    ]
    found = neighbor_distance(3 * bank, bank, among_themselves=True)[:50]
    torch.testing.assert_close(found, torch.stack(others), atol=1e-3, rtol=1e-3)


def test_a_bank_of_one_is_enough() -> None:
    distance = neighbor_distance(torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(distance, torch.tensor([0.0, math.sqrt(2)]))


def at(*distances: float) -> Tensor:
    """Points of the circle that are so far from (1, 0)."""
    angles = 2 * (torch.tensor(distances) / 2).asin()
    return torch.stack([angles.cos(), angles.sin()], 1)


def test_marked_is_what_is_farther_than_99_of_100_ordinary_images() -> None:
    ordinary = torch.arange(1, 101) / 100  # 0.01 to 1
    trust = Calibration(bank=torch.tensor([[1.0, 0.0]]), reference_distances=ordinary)
    found = trust.of(at(0.005, 0.505, 0.985, 0.995, 1.01, 1.9), torch.zeros(6, 2))
    assert found["distance_percentile"].tolist() == pytest.approx([0, 0.5, 0.98, 0.99, 1, 1])
    assert found["unlike_training"].tolist() == [False, False, False, False, True, True]


def test_one_in_a_hundred_ordinary_images_is_marked() -> None:
    draw = torch.Generator().manual_seed(0)
    bank = torch.nn.functional.normalize(torch.randn(2000, 8, generator=draw), dim=1)
    held_out, new = torch.randn(2, 3000, 8, generator=draw)
    trust = Calibration(bank=bank, reference_distances=neighbor_distance(held_out, bank).sort().values)
    marked = trust.of(new, torch.zeros(3000, 2))["unlike_training"].float().mean()
    assert 0.005 < float(marked) < 0.016


def test_probabilities_at_a_temperature() -> None:
    logits = torch.tensor([[2.0, 0.0]])
    assert list(Calibration().of(torch.zeros(1, 2), logits)) == ["probabilities"]
    torch.testing.assert_close(Calibration().of(torch.zeros(1, 2), logits)["probabilities"], logits.softmax(1))
    found = Calibration(temperature=4.0).of(torch.zeros(1, 2), logits)["probabilities"]
    torch.testing.assert_close(found[0, 0], torch.tensor(1 / (1 + math.exp(-0.5))))


def some(count: int, labels: int | None = None, seed: int = 0) -> Iterator[Labeled]:
    draw = torch.Generator().manual_seed(seed)
    for start in range(0, count, 40):
        size = min(40, count - start)
        y = torch.randint(10, (size,), generator=draw) if labels is None else torch.full((size,), labels)
        yield Labeled(torch.rand(size, *SHAPE, generator=draw), y, torch.arange(size))


def test_what_is_found_of_a_validation_split() -> None:
    model = classifier().eval()
    trust = fit_calibration(model, some(130), some(90, seed=1), Plain())
    x, y = (torch.cat(parts) for parts in zip(*((b.x, b.y) for b in some(90, seed=1)), strict=True))
    training = torch.cat([b.x for b in some(130)])
    with torch.no_grad():
        (bank, _), (features, logits) = model.evaluated(training), model.evaluated(x)
    bank = bank / bank.norm(dim=1, keepdim=True)
    torch.testing.assert_close(trust.bank, bank)
    torch.testing.assert_close(trust.reference_distances, neighbor_distance(features, bank).sort().values)
    assert trust.temperature == pytest.approx(fit_temperature(logits, y), rel=1e-4)
    assert (trust.calibrated_on, trust.held_out, trust.uncalibrated_reason) == (90, True, "")
    assert f"Calibrated on 90 validation examples: temperature {trust.temperature:.2f}." in str(trust)
    assert "farther from 130 training examples than 99 % of 90 validation examples" in str(trust)


def test_without_a_validation_split_the_bank_is_compared_with_itself() -> None:
    model = classifier().eval()
    trust = fit_calibration(model, some(130), iter(()), Plain())
    expected = neighbor_distance(trust.bank, trust.bank, among_themselves=True).sort().values
    torch.testing.assert_close(trust.reference_distances, expected, atol=1e-3, rtol=1e-3)
    assert (trust.temperature, trust.calibrated_on, trust.held_out) == (1.0, 0, False)
    assert str(trust).startswith("Not calibrated: the run has no validation example. Marked: farther from 130 ")
    assert str(trust).endswith("than 99 % of these from each other.")


def test_where_all_are_right_no_temperature_is_best() -> None:
    model = classifier().eval()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.arange(10.0))
    trust = fit_calibration(model, some(30), some(30, labels=9), Plain())
    assert (trust.temperature, trust.calibrated_on) == (1.0, 0)
    assert "Not calibrated: all of its 30 validation examples are right" in str(trust)
    assert len(trust.reference_distances) == 30


def test_examples_without_a_label_calibrate_nothing() -> None:
    model = classifier().eval()
    mixed = [*some(40, seed=1), *some(40, labels=-1, seed=2)]
    trust = fit_calibration(model, some(30), mixed, Plain())
    assert trust.calibrated_on == 40
    assert len(trust.reference_distances) == 80
    assert trust.temperature == pytest.approx(fit_calibration(model, some(30), some(40, seed=1), Plain()).temperature)


def of_each_kind() -> dict[str, FineTuneClassifier]:
    settings: dict[str, Any] = {"backbone": "mlp", "num_classes": 10, "input_spec": SHAPE}
    torch.manual_seed(1)
    found = {
        "fine-tuned": classifier(),
        "average": SemiSupervisedModule(strategy=PseudoLabel(), **settings),
        "no average": SemiSupervisedModule(strategy=PseudoLabel(), ema_decay=0.0, **settings),
        "class means": DecoupledFeatureClassifier(feature_loss=SupCon(), head="nearest_class_mean", **settings),
        "tau": DecoupledFeatureClassifier(feature_loss=SupCon(), head="tau_normalized", **settings),
    }
    with torch.no_grad():  # so that the network and its average differ
        for parameter in found["average"].backbone.parameters():
            parameter.mul_(1.5)
        found["average"].head.weight.mul_(-1)
    return found


@pytest.mark.parametrize("kind", of_each_kind())
def test_features_and_logits_are_those_of_the_evaluation(kind: str) -> None:
    model = of_each_kind()[kind].eval()
    data = sample()
    data.setup("fit")
    x = next(iter(data.batches_of("val", torch.device("cpu")))).x
    with torch.no_grad():
        features, logits = model.evaluated(x)
        torch.testing.assert_close(logits, model(x))
        own = getattr(model, "average", None)
        backbone = model.backbone if own is None else own.get_submodule("backbone")
        torch.testing.assert_close(features, backbone(x))
    assert not torch.equal(features, logits)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 5.0])
@pytest.mark.parametrize("name", ["bank", "reference_distances"])
def test_a_saved_calibration_with_invalid_tensors_is_not_used(name: str, value: float, tmp_path: Path) -> None:
    trust = Calibration(bank=F.normalize(torch.randn(4, 3), dim=1), reference_distances=torch.tensor([0.1, 0.2, 0.3]))
    _write(tmp_path / "x.safetensors", {}, trust)
    assert _read(tmp_path / "x.safetensors", {}, 3) is not None
    getattr(trust, name)[1] = value
    _write(tmp_path / "x.safetensors", {}, trust)
    with pytest.warns(UserWarning, match=f"saved calibration is not used .*: .*invalid values of {name}"):
        assert _read(tmp_path / "x.safetensors", {}, 3) is None


@pytest.mark.parametrize(
    "about", [{"temperature": torch.nan}, {"temperature": -1.0}, {"temperature": torch.inf}, {"calibrated_on": -1}]
)
def test_a_saved_calibration_with_invalid_numbers_is_not_used(about: dict[str, float], tmp_path: Path) -> None:
    trust = Calibration(bank=torch.eye(3), reference_distances=torch.tensor([0.1]), **about)  # type: ignore[arg-type]
    _write(tmp_path / "x.safetensors", {}, trust)
    with pytest.warns(UserWarning, match=f"invalid values of {next(iter(about))}"):
        assert _read(tmp_path / "x.safetensors", {}, 3) is None

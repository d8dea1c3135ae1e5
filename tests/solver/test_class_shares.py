"""Labels count as much as their class is frequent among the unlabeled examples, where that differs much."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sft_lightning import solve
from sft_lightning.solver import class_shares
from sft_lightning.solver.class_shares import ClassShares, predict_shares
from sft_lightning.solver.labels import read_source
from sft_lightning.solver.space import Space


def test_labels_weigh_what_their_class_is_worth() -> None:
    shares = ClassShares(torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.8, 0.2, 0.0]).double())
    weights = shares.weigh(torch.tensor([0, 0, 1, 2]))
    np.testing.assert_allclose(weights, [1.6, 1.6, 0.8, 0])
    right = np.array([1, 0, 1, 0])
    assert (weights * right).sum() / weights.sum() == pytest.approx(0.8 * 0.5 + 0.2)  # recall by share


@pytest.mark.parametrize(("unlabeled", "expected"), [((0.74, 0.26), False), ((0.76, 0.24), True), ((0.24, 0.76), True)])
def test_shares_are_uneven_from_a_quarter_on(unlabeled: tuple[float, float], expected: bool) -> None:
    assert ClassShares(torch.tensor([0.5, 0.5]), torch.tensor(unlabeled)).is_uneven is expected


def test_shares_are_those_of_predictions(workdir: Path, write_folder: Callable[..., Path]) -> None:
    write_folder(workdir / "few", {"train": 4, "unlabeled": 40})
    source = read_source("few", workdir, None, 16, 0, "data")
    space = Space("points", (), 2)
    space.labeled = 8.0 * torch.nn.functional.one_hot(source.labels, 3)
    space.pool = 8.0 * torch.eye(3)[torch.tensor([0] * 96 + [2] * 24)]
    found = predict_shares(space, source)
    assert found is not None
    torch.testing.assert_close(found.unlabeled, torch.tensor([97, 1, 25]).double() / 123)
    torch.testing.assert_close(found.labeled, torch.full((3,), 1 / 3).double())
    space.pool = space.pool[:99]  # too few
    assert predict_shares(space, source) is None


@pytest.mark.slow
def test_a_pool_of_other_shares_decides_what_labels_count(
    workdir: Path,
    write_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Four labels of each class do not say how right a model is on a pool that consists of one of them."""
    write_folder(workdir / "few", {"train": 4, "unlabeled": 120})
    write_folder(workdir / "others", {"train": 4, "unlabeled": 20})
    keep = {path.name for path in (workdir / "others" / "unlabeled").iterdir()}
    first = {path.name for path in (write_folder(workdir / "one", {"train": 124}) / "train" / "class_0").iterdir()}
    for path in (workdir / "few" / "unlabeled").iterdir():
        if path.name not in keep | first:
            path.unlink()
    found = solve("few", minutes=0.1, name="weighed", image_size=16)
    caveat = next(one for one in found.verdict if one.startswith("Of the unlabeled images"))
    assert "look like class_0, of the labels 33% are" in caveat
    assert "of images like the unlabeled ones." in found.verdict[0]
    assert caveat in capsys.readouterr().err
    assert caveat in (found.folder / "report.html").read_text()
    monkeypatch.setattr(class_shares, "_UNEVEN", 1.0)
    plain = solve("few", minutes=0.1, name="plain", image_size=16)
    assert not any(one.startswith("Of the unlabeled images") for one in plain.verdict)
    assert "of images like the 12 labeled ones." in plain.verdict[0]
    assert {*found.summary["recipes"]} == {*plain.summary["recipes"]}
    assert found.summary["recipes"] != plain.summary["recipes"]
    assert found.summary["accuracy"] != plain.summary["accuracy"]
    score = found.summary["recipes"][found.summary["recipe"]]
    assert score == max(found.summary["recipes"].values())

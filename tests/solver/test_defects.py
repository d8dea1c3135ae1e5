"""`solve` says whether a classifier of labeled defects is better than a detector that sees normal examples alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sft_lightning.anomaly.metrics import compute_auroc
from sft_lightning.networks.vision.backbones import build_backbone
from sft_lightning.networks.weights import write_weights
from sft_lightning.solver import defects
from sft_lightning.solver.defects import DefectComparison, _compare, compare_with_detector
from sft_lightning.solver.labels import LabeledSource, read_source
from sft_lightning.solver.solve import solve
from sft_lightning.solver.starts import Start
from sft_lightning.transfer.candidates import Candidate
from sft_lightning.utils.errors import InputError
from tests.defects import write_textures


def open_source(folder: Path, **counts: int) -> LabeledSource:
    write_textures(folder / "d", counts)
    return read_source(str(folder / "d"), folder / "solution", None, 32, 0, "data")


def make_start(folder: Path) -> Start:
    torch.manual_seed(0)
    backbone, _ = build_backbone("resnet8", (3, 32, 32))
    path = folder / "w.safetensors"
    write_weights(path, backbone.state_dict(), backbone.describe())
    return Start(Candidate("resnet8", str(path), 32), backbone.eval(), 1.0, 1.0)


def test_the_better_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, start = open_source(tmp_path, good=24, spot=8), make_start(tmp_path)
    names = source.data.class_names
    guesses = torch.full((32, 2), 0.5)
    noise = torch.rand(32, generator=torch.Generator().manual_seed(0))
    guesses[:, names.index("good")], guesses[:, names.index("spot")] = 1 - noise, noise
    learned: list[list[int]] = []

    def score(encoder: Any, data: Any, own: list[int], judged: list[int]) -> torch.Tensor:
        assert not {*own} & {*judged}
        learned.append(own)
        return original(encoder, data, own, judged)

    original = defects._score
    monkeypatch.setattr(defects, "_score", score)
    before = {name: tensor.clone() for name, tensor in start.backbone.state_dict().items()}
    found = compare_with_detector(source, guesses, [start], 30)  # which few examples fit in
    assert found is not None
    assert (found.normal_class, found.defects) == ("good", 8)
    assert found.detector > 0.9
    is_normal = source.labels == names.index("good")
    assert len(learned) == source.num_folds
    assert all(bool(is_normal[own].all()) for own in learned)
    assert found.classifier == pytest.approx(float(compute_auroc(noise[is_normal], noise[~is_normal])), abs=1e-6)
    assert found.high < 0
    assert "fit AnomalyDetector (docs/defects.md) until more defects are labeled" in str(found)
    assert before.keys() == start.backbone.state_dict().keys()  # the start itself keeps its layers
    assert compare_with_detector(source, guesses, [start], 0.1) is None  # takes too long
    assert compare_with_detector(source, guesses, [], 1000) is None
    other = open_source(tmp_path / "e", stripes=8, spot=8)
    assert compare_with_detector(other, guesses[:16], [start], 1000) is None


def test_the_interval_is_that_of_the_difference() -> None:
    is_normal = torch.arange(60) < 40
    right = (~is_normal).double()
    found = _compare("ok", right, torch.rand(60, generator=torch.Generator().manual_seed(0)).double(), is_normal)
    assert found is not None
    assert found.classifier == 1
    assert 0 < found.low < 1 - found.detector < found.high
    assert "100.0% of the pairs" in str(found)
    assert "the labels of defects help" in str(found)
    settled = DefectComparison("ok", 0.6, 0.6, -0.1, 0.1, 5)
    assert "whether the labels of defects help is not settled" in str(settled)


@pytest.mark.slow
def test_solve_adds_the_comparison_to_its_verdict(workdir: Path) -> None:
    write_textures(Path("d"), {"good": 16, "spot": 8})
    start = make_start(workdir)
    found = solve("d", minutes=0.5, image_size=32, candidates=[start.candidate])
    (sentence,) = [one for one in found.verdict if one.startswith("Defects: with 8 labeled ones")]
    summary = json.loads((found.folder / "summary.json").read_text())
    assert summary["defects"]["normal_class"] == "good"
    assert f"{summary['defects']['detector']:.1%}" in sentence


def test_normal_examples_alone_are_sent_to_the_detector(workdir: Path) -> None:
    write_textures(Path("d"), {"good": 6})
    with pytest.raises(InputError, match=r"labels of 1 class\(es\).*; or, if these are normal images, find defects"):
        solve("d", minutes=0.1)

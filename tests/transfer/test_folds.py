"""Cross-validation where images have copies: no score profits from them, and the user is informed."""

import csv
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from sft_lightning import ImageDataModule
from sft_lightning.__main__ import main
from sft_lightning.audit import label_checks
from sft_lightning.data.vision.image_stats import compute_image_stats
from sft_lightning.data.vision.images import Geometry
from sft_lightning.transfer.candidates import Candidate
from sft_lightning.transfer.folds import plan_folds
from sft_lightning.transfer.rank import score_candidates
from sft_lightning.transfer.scores import cross_validate, logme
from sft_lightning.tuning.degree import make_folds
from sft_lightning.utils.errors import InputError
from tests.doubles import make_image_checks


def write_copies(folder: Path, originals: int = 12, copies: int = 2, kind: str = "both") -> Path:
    """Write images whose classes are drawn by lot, each with copies: nothing but a copy tells its class."""
    for i in range(originals):
        pixels = np.random.default_rng(i).integers(0, 256, (6, 6, 3)).astype(np.uint8)
        image = Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC)
        place = folder / "train" / f"class_{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{i}.png")
        for k in range(copies):
            if kind == "exact" or (kind == "both" and k == 0):
                shutil.copy(place / f"{i}.png", place / f"{i}_copy_{k}.png")
            else:
                image.save(place / f"{i}_copy_{k}.jpg", quality=85 + k)
    return folder


def data(folder: Path | str, **settings: Any) -> Any:
    given = {"image_size": 32, "val_size": 0, "test_size": 0, "num_workers": 0, **settings}
    return lambda **changed: ImageDataModule(str(folder), **{**given, **changed})


def prepare(folder: Path | str) -> ImageDataModule:
    module: ImageDataModule = data(folder)()
    module.setup("fit")
    return module


@pytest.mark.parametrize("kind", ["exact", "near", "both"])
@pytest.mark.parametrize("probe", ["knn", "linear"])
def test_copies_do_not_inflate_a_score(workdir: Path, kind: str, probe: Literal["knn", "linear"]) -> None:
    module = prepare(write_copies(Path("images"), 60, 2, kind))
    split = module.splits["labeled"]
    plan = plan_folds(module, split, 5)
    storage: Any = split.part.storage
    pixels = torch.stack(
        [
            torch.from_numpy(np.array(Image.open(storage.paths[i]).convert("RGB").resize((16, 16)))).flatten()
            for i in split.indices
        ]
    ).float()
    assert cross_validate(pixels, split.labels, kind=probe)[0] > 0.9  # copies on both sides
    assert cross_validate(pixels, split.labels, plan.folds, 0, plan.groups, kind=probe)[0] < 0.7
    assert len(plan.distinct) == 60
    once = logme(pixels[plan.distinct], split.labels[plan.distinct], 2)
    assert once < logme(pixels, split.labels, 2)
    assert plan.copies.count == 120


def test_rank_says_how_many_copies_there_are(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_copies(Path("images"))
    words = ["--data=ImageDataModule", "--data.init_args.source=images", "--data.init_args.image_size=32"]
    words += ["--data.init_args.val_size=0", "--data.init_args.test_size=0", "--data.init_args.num_workers=0"]
    assert main(["rank", *words, "--candidates=[{backbone: conv, weights: none}]", "--out=found"]) == 0
    shown = capsys.readouterr().out
    assert "12 exact and 12 near copies of others among 36 labeled examples; copies stay in one fold" in shown
    assert "all scores but linear probe and k-NN count each set of copies once" in shown
    with Path("found/rank.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    (alone,) = score_candidates(data(write_copies(Path("alone"), copies=0)), [Candidate("conv", "none")], 5)
    assert float(row["logme"]) == pytest.approx(alone.scores["logme"], rel=1e-4)
    assert float(row["regularized_h_score"]) == pytest.approx(alone.scores["regularized_h_score"], rel=1e-4)


def test_fewer_groups_than_folds_make_for_fewer_folds(workdir: Path) -> None:
    module = prepare(write_copies(Path("images"), 6))
    split = module.splits["labeled"]
    plan = plan_folds(module, split, 5)
    assert plan.folds == 3
    assert plan.notes[1] == "3 folds in place of 5, since class 'class_0' has only 3 groups of different examples"


def test_groups_of_the_source_stay_together_and_copies_join_them(workdir: Path) -> None:
    folder = write_copies(Path("images"), 12, 0)
    module = prepare(folder)
    split = module.splits["labeled"]
    given = [str(k // 2) for k in range(len(split.part.ids))]
    split.part.groups = given
    plan = plan_folds(module, split, 3)
    assert plan.groups == [given[i] for i in split.indices]
    assert (plan.folds, plan.notes) == (3, [])
    first, other = split.part.ids[0], split.part.ids[2]  # of one class and of two groups
    shutil.copy(folder / first, folder / other)
    module = prepare(folder)
    split = module.splits["labeled"]
    split.part.groups = given
    joined = plan_folds(module, split, 2).groups
    assert joined is not None
    assert len(set(joined)) == 5
    of = dict(zip(split.ids, joined, strict=True))
    assert len({of[split.part.ids[k]] for k in range(4)}) == 1


def test_a_class_of_copies_of_one_image_is_refused(workdir: Path) -> None:
    write_copies(Path("images"), 2, 5)
    with pytest.raises(InputError, match="the labeled examples of class 'class_0' are copies of each other"):
        score_candidates(data("images"), [Candidate("mlp", "none")], 5)


def test_degree_holds_out_all_copies_the_unlabeled_ones_included(workdir: Path) -> None:
    write_copies(Path("images"))
    (Path("images") / "unlabeled").mkdir()
    for file in Path("images/train").glob("*/*_copy_1.jpg"):
        file.rename(Path("images/unlabeled") / file.name)
    module = data("images", on_leak="drop", unlabeled_ratio=1)()
    module.setup("fit")
    held: Counter[str] = Counter()
    parts = make_folds(module, 3, use_unlabeled=True)
    for part in parts:
        motifs = {name: {Path(i).stem.split("_")[0] for i in split.ids} for name, split in part.items()}
        assert motifs["val"]
        assert not motifs["val"] & (motifs["labeled"] | motifs["unlabeled"])
        assert motifs["unlabeled"] == motifs["labeled"]
        held.update(part["val"].ids)
    assert set(held.values()) == {1}
    assert len(held) == 24


def test_audit_keeps_copies_together(workdir: Path) -> None:
    module = prepare(write_copies(Path("images"), 40, 2))
    split = module.splits["labeled"]
    seen = compute_image_stats("labeled", split, Geometry())
    known = make_image_checks(2)
    judged = label_checks.check_labels([seen], known, None, 0)
    right = float((judged.probabilities.argmax(1) == judged.labels).mean())
    assert right < 0.7
    assert "40 exact and 40 near copies of others among them stay in one fold of the cross-validation" in judged.summary


@pytest.mark.parametrize(("originals", "judged"), [(2, 0), (4, 24)])
def test_audit_with_fewer_groups_than_folds(workdir: Path, originals: int, judged: int) -> None:
    seen = compute_image_stats(
        "labeled", prepare(write_copies(Path("images"), originals, 5)).splits["labeled"], Geometry()
    )
    known = make_image_checks(2)
    found = label_checks.check_labels([seen], known, None, 0)
    assert len(found.labels) == judged
    assert found.summary.startswith("not looked at: fewer than 2 classes have 5 labels in 2 groups") == (judged == 0)


def test_audit_of_a_few_groups_of_several_classes(workdir: Path) -> None:
    module = prepare(write_copies(Path("images"), 12, 0))
    split = module.splits["labeled"]
    known = make_image_checks(2)
    for groups, judged in ((["a", "b", "c"] * 4, 12), (["a"] * 12, 0), (["a"] * 6 + ["b"] * 6, 0)):
        split.part.groups = groups
        assert (
            len(label_checks.check_labels([compute_image_stats("labeled", split, Geometry())], known, None, 0).labels)
            == judged
        )

"""Odd folders and tables: what `solve` says, and that what it advises can be done."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sft_lightning import solve
from sft_lightning.__main__ import main
from sft_lightning.solver.deliver import EXPORTS
from sft_lightning.solver.labels import read_source
from sft_lightning.utils.errors import InputError


@pytest.fixture(autouse=True)
def _no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out exported files, which `test_deliver.py` tests."""
    for name in EXPORTS.copy():
        monkeypatch.delitem(EXPORTS, name)


@pytest.fixture
def images(workdir: Path, write_folder: Callable[..., Path]) -> Path:
    return write_folder(Path("images"), {"train": 4, "unlabeled": 4})


def test_classes_that_look_alike_are_listed(images: Path, cli_error: Callable[..., str]) -> None:
    (images / "train" / "class_1").rename(images / "train" / "Class_0")
    argv = ["solve", "images", "--minutes", "0.1", "--image_size", "16"]
    assert "list both in class_names" in cli_error(*argv)
    assert main([*argv, "--class_names", "[Class_0,class_0,class_2]"]) == 0


def test_pixels_are_read_as_the_user_says(workdir: Path) -> None:
    """Wide images of 12 bits, of which the first screen advises to set `resize` and `value_range`."""
    for c in range(2):
        for k in range(4):
            pixels = np.random.default_rng(10 * c + k).integers(0, 2000 + 2000 * c, (10, 40)).astype(np.uint16)
            path = Path(f"scans/{'ab'[c]}/{k}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    argv = ["solve", "scans", "--minutes", "0.1", "--image_size", "8"]
    assert main([*argv, "--resize", "pad", "--value_range", "[0,8000]"]) == 0
    config = Path("lightning_logs/solve/scans/model/version_0/fit.yaml").read_text()
    assert "resize: pad" in config
    assert "value_range:\n    - 0.0\n    - 8000.0" in config
    plain, changed = (read_source("scans", Path("out"), None, 8, 0, "data", resize=one).key for one in (None, "pad"))
    assert plain != changed


def test_a_data_set_is_fetched_where_asked(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[bool] = []

    def fetch(root: str, train: bool, download: bool = False) -> None:
        fetched.append(download)
        raise RuntimeError("offline")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", fetch)
    for download, said in ((False, "set download: true"), (True, "could not be downloaded")):
        with pytest.raises(InputError, match=said):
            solve("CIFAR10", download=download)
        assert fetched[-1] == download


def test_images_that_cannot_be_read_are_named(images: Path) -> None:
    for path in images.rglob("*.png"):
        path.write_bytes(b"junk")
    with pytest.raises(InputError, match=r"of 0 class\(es\), and 24 file\(s\) cannot be read, such as 'images/train"):
        solve("images", image_size=16)
    Path("gone.csv").write_text("path,label\nx/1.png,a\nx/2.png,b\n")
    with pytest.raises(InputError, match=r"such as 'x/1\.png' "):
        solve("gone.csv", image_size=16)


def test_a_folder_without_labels_can_be_labeled_as_advised(images: Path, cli_error: Callable[..., str]) -> None:
    said = cli_error("solve", "images/unlabeled")
    assert "of 0 class(es): label some" in said
    advice = said.partition("`sft-lightning ")[2].partition("`")[0].replace("[NAME,NAME]", "[cat,dog]")
    assert main([*advice.split(), "--static", "label.html"]) == 0
    names = sorted(path.name for path in (images / "unlabeled").iterdir())[:6]
    rows = "".join(f"{name},{'cat' if k % 2 else 'dog'}\n" for k, name in enumerate(names))
    Path("labels.csv").write_text(f"id,label\n{rows}")
    assert main(["solve", "images/unlabeled", "--labels", "labels.csv", "--minutes", "0.1", "--image_size", "16"]) == 0


def test_copies_of_a_label_do_not_judge_it(images: Path) -> None:
    """A label is not predicted by a classifier that has learned a copy of its image."""
    for folder in (images / "train").iterdir():
        for path in [*folder.iterdir()]:
            shutil.copy(path, folder / f"copy_{path.name}")
    source = read_source("images", Path("out"), None, 16, 0, "data")
    fold = dict(zip(source.data.splits["labeled"].ids, source.folds.tolist(), strict=True))
    assert len(fold) == 24
    assert all(fold[name] == fold[name.replace("copy_", "")] for name in fold)
    assert len(set(fold.values())) > 1


def test_labels_that_are_all_copies_are_refused(images: Path) -> None:
    content = next((images / "train/class_0").iterdir()).read_bytes()
    for path in [*(images / "train").rglob("*.png")]:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"one group of labeled .* \(11 labeled examples copy others\)"):
        solve("images", image_size=16)


def test_classes_that_cannot_be_judged_are_named(images: Path) -> None:
    for k, path in enumerate(sorted((images / "train" / "class_2").iterdir())):
        if k:
            path.unlink()
    lost = images / "train" / "<lost>"
    lost.mkdir()
    (lost / "0.png").write_bytes(b"junk")
    solution = solve("images", minutes=0.1, image_size=16)
    single = "This figure does not cover the class 'class_2', of which a single label"
    assert solution.verdict[1].startswith(single)
    assert solution.verdict[2] == "The model never predicts the class '<lost>', for lack of labels: add some."
    assert solution.summary["unjudged"] == ["class_2"]
    page = (solution.folder / "report.html").read_text()
    assert single.replace("'", "&#39;") in page
    assert "the class &#39;&lt;lost&gt;&#39;, for lack of labels" in page

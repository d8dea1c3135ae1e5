"""Odd folders and tables: what `solve` says, and that what it advises can be done."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sft_lightning import solve
from sft_lightning.__main__ import main
from sft_lightning.data.vision.image_files import FileFacts, inspect_images
from sft_lightning.solver.deliver import EXPORTS
from sft_lightning.solver.labels import read_source
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import InputSpec
from tests.solver.test_solve import read_table_below_header


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


@pytest.mark.parametrize(("num_labels", "used", "said"), [(None, 15, "are used"), (6, 6, "are not used, since")])
def test_labels_of_a_validation_split_are_used(
    images: Path, write_folder: Callable[..., Path], capfd: pytest.CaptureFixture[str],
    num_labels: int | None, used: int, said: str,
) -> None:  # fmt: skip
    shutil.rmtree(images)
    write_folder(images, {"train": 2, "val": 3, "unlabeled": 4})
    solution = solve("images", minutes=0.1, image_size=16, candidates="none", num_labels=num_labels)
    rows = read_table_below_header(Path(str(solution.run)) / "split.csv")
    assert [row["split"] for row in rows].count("labeled") == used
    assert f"the 9 labels of the validation split {said}" in capfd.readouterr().err


def test_a_solution_is_named_after_its_table_without_the_suffix(images: Path) -> None:
    names = sorted(str(path.relative_to(Path.cwd())) for path in images.resolve().glob("train/*/*.png"))
    Path("few.csv").write_text("path,label\n" + "".join(f"{name},{Path(name).parent.name}\n" for name in names))
    assert solve("few.csv", minutes=0.1, image_size=16, candidates="none").folder.name == "few"


def test_the_files_of_a_source_are_read_once(
    images: Path, write_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it is opened at another size; findings are those of the first time."""
    write_folder(images, {"val": 1})
    checked: list[int] = []

    def inspect(paths: Sequence[Path], measures: bool) -> tuple[FileFacts, dict[int, str]]:
        checked.append(len(paths))
        return inspect_images(paths, measures)

    monkeypatch.setattr("sft_lightning.data.vision.images.inspect_images", inspect)
    source = read_source("images", Path("out"), None, None, 0, "data")
    assert source.data.input_spec.shape == (1, 28, 28)
    view = source.view(InputSpec("image", (3, 32, 32), "float32"))
    assert sum(checked) == 27
    assert next(view.data.batches_of("labeled", torch.device("cpu"))).x.shape[1:] == (3, 32, 32)
    assert view.data.request.findings == source.data.request.findings
    assert [*map(str, view.data.request.findings)].count(
        "the 3 labels of the validation split are used like the others"
    ) == 1

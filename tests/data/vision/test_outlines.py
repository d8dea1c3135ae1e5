"""Masks from outlines: polygons of YOLO, polygons and run lengths of COCO."""

import json
import re
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.path import Path as Polygon
from PIL import Image

from sft_lightning import DetectionDataModule, SegmentationDataModule
from sft_lightning.data.open_data import find_data_class
from sft_lightning.data.vision.mask_storage import MaskedImages
from sft_lightning.data.vision.outlines import Outlines, Shape, decode_runs, fill_polygon
from sft_lightning.utils.errors import InputError
from tests.scenes import make_scene

SQUARE = [2, 2, 6, 2, 6, 6, 2, 6]


def compress(runs: list[int]) -> str:
    """Compress run lengths as COCO's reference does."""
    text = ""
    for i, run in enumerate(runs):
        value, more = run - (runs[i - 2] if i > 2 else 0), True
        while more:
            bits, value = value & 31, value >> 5
            more = value != -1 if bits & 16 else value != 0
            text += chr((bits | 32 if more else bits) + 48)
    return text


def save(path: Path, size: tuple[int, int] = (32, 24)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(sum(path.as_posix().encode())).integers(0, 255, (size[1], size[0], 3))
    Image.fromarray(noise.astype(np.uint8)).save(path)


def open_data(source: Path, **settings: Any) -> SegmentationDataModule:
    fixed: dict[str, Any] = {"image_size": 32, "num_workers": 0, "val_size": 0, "test_size": 0}
    data = SegmentationDataModule(str(source), **{**fixed, **settings})
    data.setup("fit")
    return data


def masks_of(data: SegmentationDataModule, name: str) -> dict[str, Any]:
    split = data.splits[name]
    storage = split.part.storage
    assert isinstance(storage, MaskedImages)
    return {split.part.ids[i]: storage.read_mask(i) for i in split.indices if storage.masks[i] is not None}


def test_polygons_cover_the_pixels_whose_centers_they_hold() -> None:
    draw = np.random.default_rng(0)
    centers = np.stack(np.meshgrid(np.arange(40) + 0.5, np.arange(30) + 0.5), -1).reshape(-1, 2)
    for count in (3, 4, 5, 9):
        angles = np.sort(draw.uniform(0, 2 * np.pi, count))
        reach = draw.uniform(4, 30, count)  # some leave the image
        points = np.stack([20 + reach * np.cos(angles), 15 + reach * np.sin(angles)], 1)
        expected = Polygon(points).contains_points(centers).reshape(30, 40)
        assert expected.any()
        assert np.array_equal(fill_polygon(points, 40, 30), expected)
    square = fill_polygon(np.reshape(SQUARE, (-1, 2)).astype(float), 10, 10)
    assert np.array_equal(square.nonzero()[0].reshape(4, 4)[:, 0], [2, 3, 4, 5])
    assert square.sum() == 16


def test_run_lengths_go_down_the_columns() -> None:
    mask = make_scene(3, 24)[1][:, :20] > 0
    flat = mask.T.ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *changes, len(flat)]).tolist()
    runs = runs if not flat[0] else [0, *runs]
    assert decode_runs(compress(runs)) == runs
    shape = Shape(1, runs=tuple(runs))
    assert np.array_equal(Outlines((shape,), sides=(20, 24)).draw(20, 24), mask)
    with pytest.raises(OSError, match=r"its run lengths cover 480 pixels, and the image has 500"):
        Outlines((shape,), sides=(20, 25)).draw(20, 25)
    for damaged in ("a", "\n", compress([5, 3])[:-1] + "o"):
        with pytest.raises(ValueError, match="damaged"):
            decode_runs(damaged)


def test_small_objects_lie_on_large_ones_whatever_their_order() -> None:
    large, small = Shape(1, (array("d", [0, 0, 10, 0, 10, 10, 0, 10]),)), Shape(2, (array("d", SQUARE),))
    for shapes in ((large, small), (small, large)):
        mask = Outlines(shapes, background=3, sides=(12, 12)).draw(12, 12)
        assert [int((mask == k).sum()) for k in range(4)] == [0, 84, 16, 44]


def write_yolo(folder: Path) -> None:
    for split, names in (("train", "abc"), ("val", "d")):
        for name in names:
            save(folder / "images" / split / f"{name}.png")
            (folder / "labels" / split).mkdir(parents=True, exist_ok=True)
    (folder / "labels/train/a.txt").write_text("1 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n")
    (folder / "labels/train/b.txt").write_text("")
    (folder / "labels/val/d.txt").write_text("0 0 0 1 0 1 1 0 1\n\n")
    (folder / "data.yaml").write_text("names: {0: cat, 1: dog}\n")


def test_yolo_folders_have_polygons(tmp_path: Path) -> None:
    write_yolo(tmp_path / "d")
    data = open_data(tmp_path / "d")
    assert data.class_names == ["background", "cat", "dog"]
    masks = masks_of(data, "labeled")
    assert {*masks} == {"images/train/a.png", "images/train/b.png"}
    expected = np.zeros((24, 32))
    expected[6:18, 8:24] = 2
    assert np.array_equal(masks["images/train/a.png"], expected)
    assert not masks["images/train/b.png"].any()
    assert (masks_of(data, "val")["images/val/d.png"] == 1).all()
    assert data.splits["unlabeled"].ids == ["images/train/c.png"]
    assert data.labeled_counts().tolist() == [2 * 24 * 32 - 192, 0, 192]
    other = open_data(tmp_path / "d", class_names=["dog", "cat", "background"])
    assert (masks_of(other, "labeled")["images/train/b.png"] == 2).all()
    before = data.source.load()["train"].storage.digest()
    (tmp_path / "d/labels/train/b.txt").write_text("0 0 0 1 0 1 1 0 1\n")
    assert open_data(tmp_path / "d").source.load()["train"].storage.digest() != before


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0 0.5 0.5 0.2 0.2", "line 1 is a box, and masks need polygons"),
        ("0 a b c d e f", "line 1 has a word that is not a number"),
        ("0 1 1 20 1 20 20", "line 1 is not a class and three or more points in shares"),
        ("2 0 0 1 0 1 1", "it has the class 2 in line 1, and 2 classes have names"),
    ],
)
def test_wrong_lines_of_yolo_are_named(line: str, said: str, tmp_path: Path) -> None:
    write_yolo(tmp_path / "d")
    (tmp_path / "d/labels/train/a.txt").write_text(line)
    with pytest.raises(InputError, match=said) as error:
        open_data(tmp_path / "d")
    assert "a.txt" in str(error.value)
    data = open_data(tmp_path / "d", on_bad_image="skip")
    assert {*masks_of(data, "labeled")} == {"images/train/b.png"}


def test_yolo_folders_name_their_classes(tmp_path: Path) -> None:
    write_yolo(tmp_path / "d")
    (tmp_path / "d/data.yaml").write_text("nc: 2\n")
    with pytest.raises(InputError, match=r"data.yaml' has no names of classes: add names"):
        open_data(tmp_path / "d")
    (tmp_path / "d/data.yaml").unlink()
    with pytest.raises(InputError, match=r"names no class of its objects: add data.yaml"):
        open_data(tmp_path / "d")
    (tmp_path / "d/classes.txt").write_text("cat\ndog\n")
    assert open_data(tmp_path / "d").class_names == ["background", "cat", "dog"]
    with pytest.raises(InputError, match=r"class_colors is .* has polygons: leave it out"):
        open_data(tmp_path / "d", class_colors={"cat": [1, 2, 3]})


def make_coco(names: str, **changed: Any) -> dict[str, Any]:
    images = [{"id": 10 + k, "file_name": f"{name}.png", "width": 32, "height": 24} for k, name in enumerate(names)]
    annotations = [
        {"id": 1, "image_id": 10, "category_id": 7, "segmentation": [SQUARE, [20, 2, 24, 2, 24, 6, 20, 6]]},
        {"id": 2, "image_id": 10, "category_id": 3, "segmentation": {"counts": [24 * 30, 48], "size": [24, 32]}},
    ]
    categories = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
    return {"images": images, "annotations": annotations, "categories": categories, **changed}


def test_coco_has_polygons_and_run_lengths(tmp_path: Path) -> None:
    for name in "abc":
        save(tmp_path / "d/images" / f"{name}.png")
    file = tmp_path / "d/all.json"
    file.write_text(json.dumps(make_coco("ab")))
    data = open_data(file)
    assert data.class_names == ["background", "cat", "dog"]
    masks = masks_of(data, "labeled")
    expected = np.zeros((24, 32))
    expected[2:6, 2:6] = expected[2:6, 20:24] = 2
    expected[:, 30:] = 1
    assert np.array_equal(masks["images/a.png"], expected)
    assert not masks["images/b.png"].any()
    assert data.splits["unlabeled"].ids == ["images/c.png"]
    x, y = data.read_pair("labeled", data.splits["labeled"].ids.index("images/a.png"))
    assert x.shape == (3, 32, 32)
    assert np.array_equal(y.numpy()[4:28], expected)  # padded
    assert (y[:4] == -1).all()


@pytest.mark.parametrize("layout", ["roboflow", "coco"])
def test_folders_of_coco_have_splits(layout: str, tmp_path: Path) -> None:
    for split, names in (("train", "abx"), ("val", "cd")):
        folder = tmp_path / "d" / (split if layout == "roboflow" else f"{split}2017")
        for name in names:
            save(folder / f"{name}.png")
        file = folder / "_annotations.coco.json"
        if layout == "coco":
            file = tmp_path / "d/annotations" / f"instances_{split}2017.json"
            file.parent.mkdir(exist_ok=True)
            (file.parent / f"captions_{split}2017.json").write_text("{}")
        file.write_text(json.dumps(make_coco(names[:2])))
    data = open_data(tmp_path / "d")
    assert {name: len(split) for name, split in data.splits.items()} == {
        "labeled": 2, "unlabeled": 1, "val": 2, "test": 0,
    }  # fmt: skip
    assert {Path(name).name for name in masks_of(data, "val")} == {"c.png", "d.png"}


def test_files_without_an_annotation_are_named(tmp_path: Path) -> None:
    for name in "ab":
        save(tmp_path / "train" / f"{name}.png")
    file = tmp_path / "train/_annotations.coco.json"
    file.write_text(json.dumps(make_coco("ab", annotations=[])))
    said = rf"'{re.escape(str(file))}' lists no annotation, so that each of its 2 images counts as one that shows"
    for cls in (SegmentationDataModule, DetectionDataModule):
        data = cls(str(tmp_path), image_size=32)
        data.setup("fit")
        assert [True for one in data.request.findings if re.match(said, one.message)] == [True]
    for source in (tmp_path, file):  # boxes or outlines? the file does not say
        with pytest.raises(InputError, match="lists no annotation: draw boxes or outlines in some of its images, or"):
            find_data_class(str(source))


def test_wrong_annotations_of_coco_are_named(tmp_path: Path) -> None:
    for name in "ab":
        save(tmp_path / "d" / f"{name}.png")
    file = tmp_path / "d/all.json"
    good = make_coco("ab")
    one = good["annotations"][0]

    def refuse(content: Any, said: str) -> None:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(InputError, match=said):
            open_data(file)

    refuse("{", r"cannot be read .*: give a JSON of COCO")
    refuse({"images": []}, "is not an annotation of COCO: it has no annotations: add a list")
    refuse(make_coco("ab", categories=[]), "lists no image or no category")
    refuse(make_coco("aa"), r"lists the image 'a.png' twice")
    refuse(make_coco("ab", images=[{"id": 1, "file_name": "../a.png"}]), "leads out of its folder")
    refuse(make_coco("xy"), r"no image of .*, such as 'x.png', is in")
    refuse(make_coco("ab", images=[{**good["images"][0], "width": 30}]), r"has 30 x 24 pixels, and the image 32 x 24")
    refuse(make_coco("ab", images=[{"id": 10, "file_name": "a.png"}]), "does not state its width and height")
    refuse(make_coco("ab", annotations=[{**one, "category_id": 9}]), "annotation 1: it has the category 9, which")
    refuse(make_coco("ab", annotations=[{**one, "segmentation": []}]), "annotation 1: it has a box alone")
    refuse(make_coco("ab", annotations=[{**one, "segmentation": [[1, 2]]}]), "fewer than three points")
    for segmentation, said in (
        ([1, 2, 3, 4, 5, 6], r"it has segmentation \[1, 2, 3, 4, 5, 6\]: give polygons, each of which is \[x1, y1"),
        ([[1, 2, 3, None, 5, 6]], r"it has segmentation \[\[1, 2, 3, null, 5, 6\]\]: give polygons"),
        ({"size": [24, 32]}, "its segmentation has no counts: add run lengths"),
        ({"counts": [-1, 24 * 32 + 1]}, r"its segmentation has counts \[-1, 769\]: give whole numbers from 0 on"),
        ({"counts": None}, "its segmentation has counts null: give whole numbers"),
    ):
        refuse(make_coco("ab", annotations=[{**one, "segmentation": segmentation}]), f"annotation 1: {said}")
    short = {"counts": [3, 4], "size": [24, 32]}
    refuse(make_coco("ab", annotations=[{**one, "segmentation": short}]), "its run lengths cover 7 pixels")
    file.write_text(json.dumps(make_coco("ab", annotations=[{**one, "segmentation": short}])))
    assert {*masks_of(open_data(file, on_bad_image="skip"), "labeled")} == {"b.png"}

"""Boxes in the forms of YOLO, Pascal VOC and a table; what is wrong with each; and the way from one form to another."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from sft_lightning import DetectionDataModule, ImageDataModule, SegmentationDataModule
from sft_lightning.__main__ import main
from sft_lightning.data.open_data import find_data_class, open_data
from sft_lightning.data.vision.box_storage import BoxedImages
from sft_lightning.data.vision.open_boxes import holds_boxes, open_box_source
from sft_lightning.utils.errors import InputError
from tests.boxes import write_boxes_folder
from tests.data.vision.test_boxes import change, messages, objects_of, opened
from tests.scenes import write_scenes


def save(path: Path, size: tuple[int, int] = (100, 50)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(sum(path.as_posix().encode())).integers(0, 255, (size[1], size[0], 3))
    Image.fromarray(noise.astype(np.uint8)).save(path)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


Contents = dict[str, dict[str, list[tuple[Any, ...]] | None]]


def contents(source: Path, **settings: Any) -> Contents:
    """Objects of each image by split and name of the file, as class, corners and whether they are ignored."""
    found: Contents = {}
    opened_source = open_box_source(str(source), **settings)
    for split, part in opened_source.load().items():
        assert isinstance(part.storage, BoxedImages)
        for i, one in enumerate(part.storage.objects):
            rows = None
            if one is not None:
                assert not one.problem, one.problem
                boxes = one.in_pixels(part.storage.sides_of(i)).round(6).tolist()
                names = [opened_source.class_names[k] for k in one.classes.tolist()]
                rows = sorted(
                    (name, *box, hard) for name, box, hard in zip(names, boxes, one.ignored.tolist(), strict=True)
                )
            assert (part.labels[i] >= 0) == (rows is not None)
            found.setdefault(split, {})[part.storage.paths[i].name] = rows
    return found


# --- YOLO


def write_yolo_folder(folder: Path, lines: str = "0 0.5 0.5 0.2 0.4\n") -> Path:
    save(folder / "images/train/a.png")
    save(folder / "images/train/b.png")
    save(folder / "images/train/c.png")
    write(folder / "labels/train/a.txt", lines)
    write(folder / "labels/train/b.txt", "")
    write(folder / "data.yaml", "names: {0: cat, 1: dog}\n")
    return folder


def test_yolo_has_boxes_and_polygons(tmp_path: Path) -> None:
    lines = "0 0.5 0.5 0.2 0.4\n\n1 0.1 0.2 0.3 0.2 0.2 0.6\n1 0.1 0.1 0.4 0.1 0.4 0.3 0.1 0.3\n"
    folder = write_yolo_folder(tmp_path / "d", lines)
    assert contents(folder) == {
        "train": {
            "a.png": [
                ("cat", 40, 15, 60, 35, False), ("dog", 10, 5, 40, 15, False), ("dog", 10, 10, 30, 30, False),
            ],
            "b.png": [],
            "c.png": None,
        }
    }  # fmt: skip
    assert contents(folder, class_names=["dog", "cat", "cow"]) == contents(folder)
    data = opened(folder, val_size=0, test_size=0, num_workers=0)
    assert len(data.splits["labeled"]) == 2
    assert len(data.splits["unlabeled"]) == 1


def test_upper_case_extensions_of_annotations_are_read(tmp_path: Path) -> None:
    yolo, voc = write_yolo_folder(tmp_path / "yolo", "0 0.5 0.5 0.2 0.4\n"), write_voc_folder(tmp_path / "voc")
    coco = write_boxes_folder(tmp_path / "coco", {"train": 3})
    found = contents(yolo), contents(voc), contents(coco)
    texts = *yolo.rglob("labels/train/*.txt"), *voc.rglob("Annotations/*.xml")
    for file in [*texts, *coco.rglob("annotations/*.json")]:
        file.rename(file.with_suffix(file.suffix.upper()))
    assert (contents(yolo), contents(voc), contents(coco)) == found
    assert holds_boxes(str(coco))
    assert holds_boxes(str(yolo))
    assert holds_boxes(str(voc))
    write(yolo / "labels/train/a.txt", "")
    with pytest.raises(InputError, match=r"labels/train/a\.TXT' and .*labels/train/a\.txt' have one name"):
        open_box_source(str(yolo))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("0 0.5 0.5 0.2", "line 1 has 3 numbers after the class: give cx cy w h"),
        ("0 0.5 0.5 0.2 0.1 0.9", "line 1 has 5 numbers after the class"),
        ("0 0.5 0.5 0.2 x", "line 1 has a word that is not a number"),
        ("2 0.5 0.5 0.2 0.1", "line 1 has the class 2, and 2 classes have names"),
        ("0.5 0.5 0.5 0.2 0.1", r"line 1 has the class 0.5"),
        ("inf 0.5 0.5 0.2 0.1", "line 1 has a word that is not a number"),
        ("0 50 25 20 20", "line 1 is not in shares of the image's sides, from 0 to 1"),
        ("0 nan 0.5 0.2 0.1", "line 1 is not in shares"),
        ("0 0.1 0.1 nan 0.1 0.2 0.3", "line 1 is not in shares"),
        ("0 0.5 0.5 0 0.1", "without an area"),
        ("0 1.1 0.5 0.2 0.1", "outside of the image of 100 x 50 pixels"),
    ],
)
def test_wrong_lines_of_yolo_are_named(tmp_path: Path, line: str, sentence: str) -> None:
    folder = write_yolo_folder(tmp_path / "d", line + "\n")
    with pytest.raises(InputError, match=rf"a.png' cannot be read: its annotation in '.*a.txt' .*{sentence}"):
        opened(folder, val_size=0, test_size=0)
    assert len(opened(folder, val_size=0, test_size=0, on_bad_image="skip").splits["labeled"]) == 1


def test_wrong_folders_of_yolo_are_named(tmp_path: Path) -> None:
    folder = write_yolo_folder(tmp_path / "d")
    write(folder / "labels/train/gone.txt", "")
    with pytest.raises(InputError, match=r"label file '.*gone.txt' has no image of its name in .*: add the image, or"):
        opened(folder)
    (folder / "labels/train/gone.txt").unlink()
    save(folder / "images/val/v.png")
    with pytest.raises(InputError, match=r"v.png' of the split val has no label file: add it, empty if it shows no"):
        opened(folder)
    (folder / "images/val/v.png").unlink()
    write(folder / "data.yaml", "names: [cat, dog]\nkpt_shape: [17, 3]\n")
    with pytest.raises(InputError, match=r"describes keypoints \(kpt_shape\)"):
        opened(folder)
    write(folder / "data.yaml", "names: [cat, cat]\n")
    with pytest.raises(InputError, match="the class 'cat' is listed twice"):
        opened(folder)


# --- Pascal VOC

VOC = """<annotation><filename>a.png</filename><size><width>{width}</width><height>50</height><depth>3</depth></size>
<object><name>dog</name>
<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
<truncated>1</truncated><difficult>{hard}</difficult>
<bndbox><xmin>{xmin}</xmin><ymin>6</ymin><xmax>40</xmax><ymax>15</ymax></bndbox></object>
</annotation>"""


def make_voc(**changed: Any) -> str:
    return VOC.format(**{"width": 100, "hard": 0, "xmin": 11, **changed})


def write_voc_folder(folder: Path, first: str = "") -> Path:
    for name in "abcd":
        save(folder / f"JPEGImages/{name}.png")
    write(folder / "Annotations/a.xml", first or make_voc())
    write(folder / "Annotations/b.xml", "<annotation></annotation>")
    write(folder / "Annotations/c.xml", make_voc(hard=1, xmin=0).replace("dog", "cat"))
    return folder


def test_voc_has_splits_and_difficult_objects(tmp_path: Path) -> None:
    folder = write_voc_folder(tmp_path / "d")
    dog, cat = [("dog", 10, 5, 40, 15, False)], [("cat", 0, 5, 40, 15, True)]
    assert contents(folder) == {"train": {"a.png": dog, "b.png": [], "c.png": cat}, "unlabeled": {"d.png": None}}
    assert open_box_source(str(folder)).class_names == ("cat", "dog")
    lists = folder / "ImageSets/Main"
    write(lists / "train.txt", "a\n")
    write(lists / "test.txt", "c 1\n")
    write(lists / "cat_train.txt", "a -1\n")
    data = opened(folder, val_size=0)
    assert "1 annotated image(s) of" in messages(data)
    assert "such as 'b', are in no list of ImageSets/Main and are left out" in messages(data)
    assert contents(folder) == {"train": {"a.png": dog}, "test": {"c.png": cat}, "unlabeled": {"d.png": None}}
    (lists / "train.txt").unlink()
    write(lists / "trainval.txt", "a\nb\nd\n")
    write(lists / "val.txt", "b\n")
    assert contents(folder) == {
        "train": {"a.png": dog}, "val": {"b.png": []}, "test": {"c.png": cat}, "unlabeled": {"d.png": None},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (make_voc(width=99), "is of an image of 99 x 50 pixels, and the file has 100 x 50"),
        (make_voc(xmin="x"), r"object 1, 'dog', has no bndbox with numbers in xmin"),
        (make_voc(xmin=60), "without an area"),
        (make_voc(xmin="nan"), "a corner that is not a number"),
        (make_voc(hard=2), "object 1, 'dog', has '2' as difficult: give 0 or 1"),
        (make_voc().replace("<name>dog</name>", ""), "object 1 has no name"),
        (make_voc()[:-5], "it is not XML"),
        (f"<?xml version='1.0' encoding='none'?>{make_voc()}", "it is not XML"),
        (make_voc(width="wide"), "its size is not a number"),
        (f"<!DOCTYPE a [<!ENTITY x 'y'>]>{make_voc()}", r"it declares a document type \(<!DOCTYPE>\)"),
    ],
)
def test_wrong_annotations_of_voc_are_named(tmp_path: Path, text: str, sentence: str) -> None:
    folder = write_voc_folder(tmp_path / "d", text)
    with pytest.raises(InputError, match=rf"a.png' cannot be read: its annotation in '.*a.xml' .*{sentence}"):
        opened(folder, val_size=0, test_size=0)
    assert len(opened(folder, val_size=0, test_size=0, on_bad_image="skip").splits["labeled"]) == 2


def test_entities_are_not_expanded(tmp_path: Path) -> None:
    lines = ['<!ENTITY e0 "xxxxxxxxxx">', *(f'<!ENTITY e{k} "{f"&e{k - 1};" * 10}">' for k in range(1, 12))]
    bomb = f"<!DOCTYPE a [{''.join(lines)}]><annotation><object><name>&e11;</name></object></annotation>"
    folder = write_voc_folder(tmp_path / "d", bomb)
    with pytest.raises(InputError, match="declares a document type"):
        opened(folder, val_size=0, test_size=0)


def test_wrong_folders_of_voc_are_named(tmp_path: Path) -> None:
    folder = write_voc_folder(tmp_path / "d")
    lists = folder / "ImageSets/Main"
    write(lists / "train.txt", "a\n")
    write(lists / "test.txt", "a\n")
    with pytest.raises(InputError, match=r"image 'a' is in train.txt and in test.txt of .*: list it once"):
        opened(folder)
    write(lists / "test.txt", "d\n")
    with pytest.raises(InputError, match=r"image 'd' of test.txt has no annotation in"):
        opened(folder)
    write(lists / "test.txt", "")
    write(lists / "train.txt", "a\nc\ngone\n")
    assert contents(folder)["unlabeled"].keys() == {"d.png", "gone.jpg"}
    with pytest.raises(InputError, match=r"gone.jpg' cannot be read: it does not exist"):
        opened(folder)
    write(folder / "Annotations/other.xml", make_voc())
    with pytest.raises(InputError, match=r"annotation '.*other.xml' has no image of its name"):
        opened(folder)


# --- table

ROWS = [
    "images/a.png,dog,10,5,40,15,train,anna", "images/a.png,cat,1.5,2,3,4,train,anna", "images/b.png,,,,,,train,ben",
    "images/c.png,dog,0,0,9,9,test,eve", "images/d.png,,,,,,unlabeled,dan",
]  # fmt: skip


def write_table(folder: Path, rows: list[str], header: str = "path,class,x1,y1,x2,y2,split,group") -> Path:
    for name in "abcd":
        save(folder / f"images/{name}.png")
    write(folder / "boxes.csv", "\n".join([header, *rows, ""]))
    return folder / "boxes.csv"


def test_a_table_has_one_object_a_row(tmp_path: Path) -> None:
    table = write_table(tmp_path, ROWS)
    assert contents(table) == {
        "train": {"a.png": [("cat", 1.5, 2, 3, 4, False), ("dog", 10, 5, 40, 15, False)], "b.png": []},
        "test": {"c.png": [("dog", 0, 0, 9, 9, False)]},
        "unlabeled": {"d.png": None},
    }
    data = opened(table, val_size=0)
    assert data.splits["labeled"].part.groups is not None
    assert {name: len(split) for name, split in data.splits.items()} == {
        "labeled": 2, "unlabeled": 1, "val": 0, "test": 1,
    }  # fmt: skip
    assert data.labeled_counts().tolist() == [1, 1]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("images/a.png,dog,,5,40,15,train,anna", "line 7: x1 is blank and the class is dog: give both"),
        ("images/a.png,,1,5,40,15,train,anna", "line 7: x1 is 1 and the class is blank: give both"),
        ("images/a.png,dog,one,5,40,15,train,anna", "line 7: x1 is 'one': give a number of pixels"),
        ("images/a.png,dog,1,5,40,15,test,anna", "line 7: 'images/a.png' has the split 'test', and 'train' on line 2"),
        ("images/a.png,dog,1,5,40,15,train,ben", "line 7: 'images/a.png' has the group 'ben', and 'anna' on line 2"),
        ("images/a.png,,,,,,train,anna", "line 7: 'images/a.png' is on line 2, too, and one of them has a blank class"),
        ("images/b.png,dog,1,5,40,15,train,ben", "line 7: 'images/b.png' is on line 4, too, and one of them has"),
        ("images/gone.png,dog,1,5,40,15,train,zoe", "line 7: file 'images/gone.png' does not exist"),
        ("../a.png,dog,1,5,40,15,train,zoe", "leads out of the folder"),
        ("images/c.png,Dog,1,5,40,15,test,eve", "which look alike"),
        ("images/c.png,dog,nan,5,40,15,test,eve", "c.png' cannot be read: .* a corner that is not a number"),
        ("images/c.png,dog,41,5,40,15,test,eve", "c.png' cannot be read: .* without an area"),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, row: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        opened(write_table(tmp_path, [*ROWS, row]), val_size=0)


def test_a_table_needs_its_columns(tmp_path: Path) -> None:
    table = write_table(tmp_path, ["images/a.png,dog,1,2"], "path,class,x1,y1")
    with pytest.raises(
        InputError, match=r"lacks the column 'x2' and 'y2'.*needed are path,class,x1,y1,x2,y2\[,split\]"
    ):
        opened(table)


# --- from one form to another


@pytest.mark.parametrize("form", ["coco", "yolo", "voc"])
def test_what_is_written_is_read_again(tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_boxes_folder(tmp_path / "d", {"train": 4, "val": 2, "test": 2}, unlabeled=2)

    def edit(content: dict[str, Any]) -> None:
        first, second = content["annotations"][:2]
        first["bbox"] = [1.25, 2.1, 30.123, 7.7]
        second["iscrowd"] = 1 if form != "yolo" else 0
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] != 3]

    change(folder / "annotations/instances_train.json", edit)
    before = contents(folder)
    assert before["train"]["s003.png"] == []
    assert sum(rows is None for rows in before["unlabeled"].values()) == 2
    assert main(["convert-boxes", str(folder), str(tmp_path / "out"), "--to", form]) == 0
    assert f"Written: {tmp_path / 'out'} (4 train, 2 val, 2 test, 2 unlabeled)" in capsys.readouterr().out
    after = contents(tmp_path / "out")
    if form == "yolo":  # an image without a label file lies among those of training
        after["unlabeled"] = {name: rows for name, rows in after["train"].items() if rows is None}
        after["train"] = {name: rows for name, rows in after["train"].items() if rows is not None}
    assert after == before
    for other in ("coco", "yolo", "voc"):
        assert main(["convert-boxes", str(tmp_path / "out"), str(tmp_path / other), "--to", other]) == 0
        assert f"Written: {tmp_path / other} (4 train, 2 val, 2 test, 2 unlabeled)" in capsys.readouterr().out
        again = contents(tmp_path / other)
        assert again["test"] == before["test"]
        assert {name: rows for name, rows in again["train"].items() if rows is not None} == before["train"] or (
            other == "yolo" and form != "yolo"  # which has no mark for the ignored object
        )


def test_numbers_of_coco_are_kept_for_results(tmp_path: Path) -> None:
    folder = write_boxes_folder(tmp_path / "d", {"train": 2, "test": 2})
    source = open_box_source(str(folder), class_names=["disc", "more", "square"])
    assert source.category_ids == {"square": 1, "disc": 4, "more": 5}
    assert source.image_ids["images/test/s003.png"] == 3
    assert main(["convert-boxes", str(folder), str(tmp_path / "out"), "--to", "voc"]) == 0
    other = open_box_source(str(tmp_path / "out"))
    assert other.category_ids == {"disc": 1, "square": 2}
    assert other.image_ids == {}


def test_what_a_form_cannot_hold_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_boxes_folder(tmp_path / "d", {"train": 3})
    change(folder / "annotations/instances_train.json", lambda c: c["annotations"][0].update(iscrowd=1))
    change(folder / "annotations/instances_train.json", lambda c: c["categories"].append({"id": 9, "name": "cow"}))
    assert main(["convert-boxes", str(folder), str(tmp_path / "y"), "--to", "yolo"]) == 0
    assert "1 object(s) that evaluation ignores are left out: YOLO has no mark for them." in capsys.readouterr().out
    counts = {
        form: len(contents(source)["train"]["s000.png"] or ())
        for form, source in (("coco", folder), ("yolo", tmp_path / "y"))
    }
    assert counts["yolo"] == counts["coco"] - 1
    assert main(["convert-boxes", str(folder), str(tmp_path / "v"), "--to", "voc"]) == 0
    assert "no object has the class 'cow', which VOC then does not name." in capsys.readouterr().out
    assert main(["convert-boxes", str(folder), str(tmp_path / "v"), "--to", "voc"]) == 2
    assert "exists and is not an empty folder: name a new one" in capsys.readouterr().err
    change(folder / "annotations/instances_train.json", lambda c: c["annotations"][1].update(bbox=[70, 0, 5, 5]))
    assert main(["convert-boxes", str(folder), str(tmp_path / "w"), "--to", "coco"]) == 2
    assert "outside of the image" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()
    words = ["convert-boxes", str(folder), str(tmp_path / "w"), "--to", "coco", "--on_bad_image", "skip"]
    assert main(words) == 0
    assert "1 unreadable file is skipped" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "w/annotations/instances_train.json").read_text())["images"]) == 2


def test_marks_of_voc_are_kept_in_voc_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_voc_folder(tmp_path / "d", make_voc().replace("<difficult>", "<occluded>1</occluded><difficult>"))
    assert main(["convert-boxes", str(folder), str(tmp_path / "v"), "--to", "voc"]) == 0
    assert "lose the mark" not in capsys.readouterr().out
    found = [ElementTree.parse(tmp_path / f"v/Annotations/{name}.xml").find("object") for name in "ac"]
    read = [[one.findtext(mark) for mark in ("truncated", "occluded", "difficult")] for one in found if one is not None]
    assert read == [["1", "1", "0"], ["1", None, "1"]]
    for form in ("coco", "yolo"):
        assert main(["convert-boxes", str(folder), str(tmp_path / form), "--to", form]) == 0
        said = capsys.readouterr().out
        assert f"2 object(s) lose the mark truncated: {form.upper()} has none." in said
        assert f"1 object(s) lose the mark occluded: {form.upper()} has none." in said


@pytest.mark.parametrize("form", ["coco", "yolo", "voc", "masks"])
def test_a_table_beside_a_folder_names_groups(tmp_path: Path, form: str) -> None:
    if form == "masks":
        folder = write_scenes(tmp_path / "d", 8)
    else:
        made = write_boxes_folder(tmp_path / "made", {"train": 8})
        folder = tmp_path / "d"
        assert main(["convert-boxes", str(made), str(folder), "--to", form]) == 0
    kind = SegmentationDataModule if form == "masks" else DetectionDataModule

    def open_folder() -> Any:
        data = kind(str(folder), image_size=64, val_size=2, test_size=2, num_workers=0)
        data.setup("fit")
        return data

    names = sorted({split.part.ids[i] for split in open_folder().splits.values() for i in split.indices})
    assert len(names) == 8
    rows = [f"{name},camera {k % 4}\n" for k, name in enumerate(names[:-1])]
    write(folder / "groups.csv", "path,group\n" + "".join(rows))
    found: dict[str, set[str]] = {}
    for name, split in open_folder().splits.items():
        for i in split.indices:
            assert split.part.groups is not None
            assert split.part.groups[i].startswith("camera") == (split.part.ids[i] != names[-1])
            found.setdefault(split.part.groups[i], set()).add(name)
    assert len(found) == 5
    assert all(len(where) == 1 for where in found.values())
    if form != "masks":
        assert main(["convert-boxes", str(folder), str(tmp_path / "out"), "--to", "coco"]) == 0
        lines = (tmp_path / "out/groups.csv").read_text().splitlines()
        assert sorted(line.split(",")[1] for line in lines[1:]) == sorted(row.strip().split(",")[1] for row in rows)
        source = open_box_source(str(tmp_path / "out")).load()["train"]
        assert sum(group.startswith("camera") for group in source.groups or ()) == 7
    for line, sentence in (
        ("gone.png,x", "line 9: the source has no file 'gone.png'"),
        (rows[0].strip(), r"line 9: .* is on line 2, too: remove one of them"),
        (f"{names[-1]},Camera 1", "which look alike"),
    ):
        write(folder / "groups.csv", "path,group\n" + "".join(rows) + line + "\n")
        with pytest.raises(InputError, match=sentence):
            open_folder()
    write(folder / "groups.csv", "file,group\na.png,north\n")
    with pytest.raises(InputError, match=r"groups.csv' lacks .*, needed are path,group: rename 'file' to 'path'"):
        open_folder()


def test_a_group_is_in_one_split(tmp_path: Path) -> None:
    folder = write_boxes_folder(tmp_path / "d", {"train": 3, "test": 2})
    write(folder / "groups.csv", "path,group\nimages/train/s000.png,north\nimages/test/s003.png,north\n")
    with pytest.raises(
        InputError, match=r"groups.csv': group 'north' is in train .* and test .*; keep it in one split"
    ):
        opened(folder)


def test_images_of_one_name_get_others(tmp_path: Path) -> None:
    rows = ["one/a.png,dog,1,2,30,40", "two/a.png,cat,1,2,30,40"]
    for name in ("one", "two"):
        save(tmp_path / f"t/{name}/a.png")
    write(tmp_path / "t/boxes.csv", "\n".join(["path,class,x1,y1,x2,y2", *rows, ""]))
    assert main(["convert-boxes", str(tmp_path / "t/boxes.csv"), str(tmp_path / "v"), "--to", "voc"]) == 0
    assert contents(tmp_path / "v")["train"] == {
        "a.png": [("dog", 1, 2, 30, 40, False)],
        "two_a.png": [("cat", 1, 2, 30, 40, False)],
    }


def test_other_data_modules_name_the_one_for_boxes(tmp_path: Path) -> None:
    folder = write_boxes_folder(tmp_path / "d", {"train": 3})
    for form in ("yolo", "voc"):
        assert main(["convert-boxes", str(folder), str(tmp_path / form), "--to", form]) == 0
    for source in (folder, tmp_path / "yolo", tmp_path / "voc"):
        with pytest.raises(InputError, match=r"holds images and .*: use DetectionDataModule.* list them in"):
            ImageDataModule(str(source))
    for source in (folder, tmp_path / "yolo"):
        with pytest.raises(InputError, match=r"masks need polygons.*: use DetectionDataModule for boxes"):
            SegmentationDataModule(str(source), val_size=0, test_size=0).setup("fit")


def test_all_forms_give_the_same_batches(tmp_path: Path) -> None:
    folder = write_boxes_folder(tmp_path / "d", {"train": 3, "val": 2, "test": 1})
    rows = {}
    for form in ("", "coco", "yolo", "voc"):
        if form:
            assert main(["convert-boxes", str(folder), str(tmp_path / form), "--to", form]) == 0
        data = DetectionDataModule(
            str(tmp_path / form if form else folder), image_size=64, num_workers=0, class_names=["square", "disc"]
        )
        data.setup("fit")
        split = data.splits["val"]
        names = [Path(split.part.ids[i]).name for i in split.indices]
        rows[form] = {name: objects_of(data.read_pair("val", k)[1]) for k, name in enumerate(names)}
    assert rows[""]
    assert all(one == rows[""] for one in rows.values())


def test_a_parquet_table_is_read_alike(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    table = write_table(tmp_path, ROWS)
    lines = [line.split(",") for line in table.read_text().split()]
    columns: dict[str, list[Any]] = {name: [row[k] or None for row in lines[1:]] for k, name in enumerate(lines[0])}
    for corner in ("x1", "y1", "x2", "y2"):
        columns[corner] = [None if cell is None else float(cell) for cell in columns[corner]]
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "boxes.parquet")
    assert contents(tmp_path / "boxes.parquet") == contents(table)


def test_boxes_are_those_of_the_upright_image(tmp_path: Path) -> None:
    folder = write_yolo_folder(tmp_path / "d", "0 0.25 0.8 0.3 0.3\n")
    image = Image.new("RGB", (100, 50))  # turned right by a viewer: 50 x 100
    image.paste((255, 255, 255), (65, 30, 95, 45))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(folder / "images/train/a.jpg", exif=exif, quality=100)
    (folder / "images/train/a.png").unlink()
    data = opened(folder, val_size=0, test_size=0, background=(0, 0, 0))
    position = [data.splits["labeled"].part.ids[i] for i in data.splits["labeled"].indices].index("images/train/a.jpg")
    x, y = data.read_pair("labeled", position)
    rows, columns = ((x[0] > 0.5).any(axis).nonzero()[[0, -1], 0].tolist() for axis in (1, 0))
    box = y[0, 1:5]
    assert (box - torch.tensor([columns[0], rows[0], columns[1] + 1, rows[1] + 1])).abs().max() <= 1
    back = data.original_boxes("labeled", [position], box[None, None])
    assert (back[0, 0] - torch.tensor([5.0, 65, 20, 95])).abs().max() < 1e-3


def test_commands_of_classes_and_masks_refuse_boxes(tmp_path: Path) -> None:
    """None of the forms is read as class folders or masks instead."""
    coco = write_boxes_folder(tmp_path / "coco", {"train": 4, "test": 2})
    sources = [coco, coco / "annotations/instances_train.json", write_yolo_folder(tmp_path / "yolo")]
    for form in ("voc", "yolo"):
        assert main(["convert-boxes", str(coco), str(tmp_path / f"made_{form}"), "--to", form]) == 0
        sources.append(tmp_path / f"made_{form}")
    write(tmp_path / "table.csv", "path,class,x1,y1,x2,y2\na.png,cat,1,1,2,2\n")
    sources.append(tmp_path / "table.csv")
    for source in sources:
        assert holds_boxes(str(source)), source
        with pytest.raises(InputError, match=f"source '{source}' holds images with boxes of objects, which this com"):
            open_data(str(source), {})
        assert find_data_class(str(source)) is DetectionDataModule
    polygons = write_yolo_folder(tmp_path / "polygons", "0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    outlines = write_boxes_folder(tmp_path / "outlines", {"train": 2})
    change(
        outlines / "annotations/instances_train.json",
        lambda c: [one.update(segmentation=[[1, 1, 9, 1, 9, 9]]) for one in c["annotations"]],
    )
    write(tmp_path / "texts/labels/a.txt", "5 stars for this film\n")
    write(tmp_path / "both/labels/a.txt", "5 stars for this film\n")
    (tmp_path / "both/images").mkdir()
    assert not any(holds_boxes(str(tmp_path / name)) for name in ("texts", "both", "missing"))
    for source in (polygons, outlines):
        assert not holds_boxes(str(source))
        assert find_data_class(str(source)) is SegmentationDataModule

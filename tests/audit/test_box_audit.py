"""Audits of images with boxes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sft_lightning.__main__ import main
from tests.boxes import make_annotation, write_boxes_folder
from tests.data.vision.test_boxes import change

WORDS = ["audit", "--model=AutoencoderModule", "--data=DetectionDataModule", "--data.source=d", "--data.image_size=32"]


def read() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return audit.json, and its findings by their names."""
    content = json.loads(Path("lightning_logs/mine_audit/audit.json").read_text())
    return content, {one["finding"]: one for one in content["findings"]}


def set_boxes(image: int, *annotations: dict[str, Any]) -> None:
    """Replace the boxes of a training image."""

    def edit(content: dict[str, Any]) -> None:
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] != image]
        content["annotations"] += [{"id": 1000 + image, **one} for one in annotations]

    change(Path("d/annotations/instances_train.json"), edit)


def test_what_is_wrong_with_boxes_is_listed(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_boxes_folder(Path("d"), {"train": 14, "val": 4, "test": 4}, unlabeled=3)
    box = (10, 10, 40, 40)
    set_boxes(0, make_annotation(0, 0, (70, 10, 90, 40)))
    set_boxes(1, make_annotation(1, 0, box, bbox=[5, 5, 0, 9]))
    set_boxes(2, make_annotation(2, 0, box, bbox=[5, float("nan"), 9, 9]))
    set_boxes(3, make_annotation(3, 0, box, category_id=77))
    change(Path("d/annotations/instances_train.json"), lambda c: c["images"][4].update(width=65))
    set_boxes(5, make_annotation(5, 0, (-2, 10, 40, 40)), make_annotation(5, 1, (50, 50, 60, 60)))
    set_boxes(6, make_annotation(6, 0, (10, 10, 14, 16)), make_annotation(6, 1, box))  # 2 x 3 pixels at 32
    set_boxes(7, make_annotation(7, 0, box), make_annotation(7, 0, (10, 10, 40, 41)))
    set_boxes(8, make_annotation(8, 0, box), make_annotation(8, 1, box))
    set_boxes(9)
    set_boxes(10, make_annotation(10, 1, box))
    set_boxes(11, make_annotation(11, 0, box, iscrowd=1))
    shutil.copy("d/images/train/s010.png", "d/images/train/s012.png")  # a copy with other boxes
    shutil.copy("d/images/train/s013.png", "d/images/test/s021.png")  # a copy in the test split
    assert main([*WORDS, "--run_name=mine"]) == 0
    text = capsys.readouterr().out
    content, findings = read()
    rows = {name: [Path(row["name"]).stem for row in one["examples"]] for name, one in findings.items()}
    assert rows["images with a box outside of them"] == ["s000"]
    assert rows["images with a box without an area"] == ["s001"]
    assert rows["images with a corner that is not a number"] == ["s002"]
    assert rows["annotations that cannot be used"] == ["s003"]
    assert "the category 77" in findings["annotations that cannot be used"]["examples"][0]["detail"]
    assert rows["annotations of an image of another size"] == ["s004"]
    assert rows["images with boxes that reach beyond the border"] == ["s005"]
    assert rows["images with a box drawn twice"] == ["s007"]
    assert findings["images with a box drawn twice"]["examples"][0]["detail"] == "1 box"
    assert rows["images with one object of two classes"] == ["s008"]
    assert "'square' and 'disc'" in str(findings["images with one object of two classes"]["examples"])
    assert rows["annotated images without an object"] == ["s009"]
    assert rows["images with tiny objects"][0] == "s006"
    assert findings["images with tiny objects"]["examples"][0]["detail"] == "1 box, the smallest of 2.4 pixels"
    assert rows["images that equal one with other boxes"] == ["s021", "s012"]
    assert "images that cannot be read" not in findings
    assert any("s021" in str(one["examples"]) and "test" in name for name, one in findings.items())
    assert content["contaminated"]
    assert content["splits"] == {"labeled": 9, "unlabeled": 3, "val": 4, "test": 4}
    counted = sum(sum(own.values()) for own in content["classes"].values())  # without the crowd
    assert content["files"]["objects"]["count"] == counted
    assert "fit stops at the first (on_bad_image: raise): give x1 < x2 and y1 < y2" in text
    assert "of boxes are not judged" in text
    assert "Objects of the class, and in brackets the images that show some" in text


def test_clean_boxes_are_counted(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_boxes_folder(Path("d"), {"train": 12, "val": 4, "test": 4})
    assert main([*WORDS[:-1], "--data.image_size=64", "--run_name=mine"]) == 0
    text = capsys.readouterr().out
    content, findings = read()
    assert not findings
    annotations = json.loads(Path("d/annotations/instances_train.json").read_text())["annotations"]
    squares = [one["image_id"] for one in annotations if one["category_id"] == 1]
    assert content["classes"]["labeled"] == {"square": len(squares), "disc": len(annotations) - len(squares)}
    assert f"{len(squares)} ({len({*squares})})" in text
    assert content["files"]["objects"]["count"] > len(annotations)
    assert 10 <= content["files"]["objects"]["sides"]["10%"] <= content["files"]["objects"]["sides"]["90%"] <= 21
    assert "objects  " in text

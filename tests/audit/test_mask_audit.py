"""Audits of images with masks."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sft_lightning.__main__ import main
from tests.scenes import make_scene, write_scenes

WORDS = ["audit", "--model=FineTuneClassifier", "--model.backbone=resnet8", "--data=SegmentationDataModule"]
WORDS += ["--data.source=d", "--data.image_size=32", "--run_name=mine"]


def save(path: str, pixels: Any) -> None:
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path)


def read() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return audit.json, and its findings by their names."""
    content = json.loads(Path("lightning_logs/mine_audit/audit.json").read_text())
    return content, {one["finding"]: one for one in content["findings"]}


def test_what_is_wrong_with_masks_is_listed(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, start, count in (("train", 0, 12), ("val", 20, 4), ("test", 30, 4)):
        write_scenes(Path("d", split), count, start=start)
    Path("d/classes.txt").write_text("background\nsquare\ndisc\nrare\n")
    mask = make_scene(0)[1]
    save("d/train/masks/s000.png", np.where(mask == 1, 9, mask))  # a value without a name
    save("d/train/masks/s001.png", make_scene(1, 16)[1])  # another size
    Path("d/train/masks/s002.png").write_bytes(b"no image")
    save("d/train/masks/s003.png", np.full((32, 32), 255))
    save("d/train/masks/s004.png", np.zeros((32, 32)))
    Path("d/train/masks/s005.png").unlink()  # without a mask: unlabeled, and no finding
    for k in (6, 7):  # copies: in training with another mask, and in the test split with the same one
        shutil.copy(f"d/train/images/s{k:03}.png", f"d/{'train' if k == 6 else 'test'}/images/copy.png")
    other = make_scene(6)[1]
    other[:4] = 1
    save("d/train/masks/copy.png", other)
    shutil.copy("d/train/masks/s007.png", "d/test/masks/copy.png")
    few = make_scene(8)[1]
    few[0, :2] = 3
    save("d/train/masks/s008.png", few)
    assert main(WORDS) == 0
    text = capsys.readouterr().out
    content, findings = read()
    rows = {name: [row["name"].partition("/")[2] for row in one["examples"]] for name, one in findings.items()}
    assert rows["masks with a value or color that no class has"] == ["images/s000.png"]
    assert "the value 9, which none of the 4 classes has" in findings["masks with a value or color that no class has"][
        "examples"
    ][0]["detail"]  # fmt: skip
    assert rows["masks of another size than their image"] == ["images/s001.png"]
    assert "has 16 x 16 pixels, and the image 32 x 32" in str(findings["masks of another size than their image"])
    assert rows["masks that cannot be read"] == ["images/s002.png"]
    assert rows["masks without a pixel that counts"] == ["images/s003.png"]
    assert rows["masks of one class alone"] == ["images/s004.png"]
    assert findings["masks of one class alone"]["examples"][0]["detail"] == "background"
    conflict = findings["images that equal one with another mask"]
    assert conflict["count"] == 1
    share = (other != make_scene(6)[1]).mean()
    assert f"{share:.1%} of the pixels differ" in conflict["examples"][0]["detail"]
    assert findings["test images that equal a labeled one"]["count"] == 1
    assert content["contaminated"]
    assert findings["classes without a test image"]["examples"][0]["name"] == "rare"
    assert "images that cannot be read" not in findings
    # Pixels are those of the files.
    kept = [*range(3, 5), *range(6, 12)]
    masks = [np.asarray(Image.open(f"d/train/masks/s{k:03}.png")) for k in kept] + [other]
    pixels = [int(sum((one == c).sum() for one in masks)) for c in range(4)]
    assert [*content["classes"]["labeled"].values()] == pixels
    assert content["splits"]["labeled"] == 9
    assert content["splits"]["unlabeled"] == 1
    assert re.search(rf"rare +1 \({pixels[3] / sum(pixels):.1%}\)", text)
    small = f"rare ({pixels[3] / sum(pixels):.4%} of the pixels)"
    assert f"classes of less than 0.1% of the pixels (1): {small}" in text
    assert "Masks that have the class, and its share of the pixels." in text
    assert "labels   of pixels are not judged" in text
    assert main([*WORDS, "--strict"]) == 1


def test_sound_masks_are_said_to_be(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scenes(Path("d"), 20)
    assert main([*WORDS, "--data.val_size=4", "--data.test_size=4"]) == 0
    text = capsys.readouterr().out
    _, findings = read()
    assert not {name for name in findings if "mask" in name}
    assert "Looked for and not found:" in text
    assert "masks" in text[text.index("Looked for and not found:") :]


def test_hidden_masks_are_not_looked_at(workdir: Path) -> None:
    write_scenes(Path("d"), 20)
    shutil.copy("d/images/s000.png", "d/images/s001.png")  # masks differ, but one image is never labeled
    for k in range(20):
        save(f"d/masks/s{k:03}.png", np.zeros((32, 32)) + k % 2)
    assert main([*WORDS, "--data.num_labels=2", "--data.val_size=0", "--data.test_size=0"]) == 0
    content, findings = read()
    assert sum(content["classes"]["labeled"].values()) == 2 * 32 * 32
    assert findings["masks of one class alone"]["count"] == 2
    assert not any(sum(own.values()) for name, own in content["classes"].items() if name != "labeled")
    assert "images that equal one with another mask" not in findings

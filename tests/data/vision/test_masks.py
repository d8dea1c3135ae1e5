"""Masks: what files mean, which are refused, how they follow their images, and how few of them are split."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sft_lightning import SegmentationDataModule
from sft_lightning.data.vision.images import Geometry
from sft_lightning.data.vision.mask_storage import MaskedImages, MaskGeometry
from sft_lightning.data.vision.masks import MaskCoding, cut_mask, make_palette, save_mask
from sft_lightning.utils.errors import InputError
from tests.paradigms.helpers import classifier, trainer
from tests.scenes import CLASSES, COLORS, make_scene, write_scenes


def module(source: Path, **settings: Any) -> SegmentationDataModule:
    return SegmentationDataModule(str(source), **{"image_size": 32, "batch_size": 4, "num_workers": 0, **settings})


def first(data: SegmentationDataModule, name: str = "val") -> Any:
    data.setup("fit")
    return next(data.batches_of(name, torch.device("cpu")))


def as_gray(mask: Any) -> Image.Image:
    return Image.fromarray(mask)


def as_palette(mask: Any) -> Image.Image:
    image = Image.fromarray(mask)
    image.putpalette([9, 9, 9, 1, 2, 3, 200, 100, 0])
    return image


def as_deep(mask: Any) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint16))


def as_color(mask: Any) -> Image.Image:
    return Image.fromarray(np.array([COLORS[name] for name in CLASSES], dtype=np.uint8)[mask])


@pytest.mark.parametrize("write", [as_gray, as_palette, as_deep, as_color])
def test_all_kinds_of_files_mean_the_same_classes(tmp_path: Path, write: Callable[[Any], Image.Image]) -> None:
    folder = write_scenes(tmp_path / "d", 6)
    for k in range(6):
        write(make_scene(k)[1]).save(folder / "masks" / f"s{k:03}.png")
    colors = COLORS if write is as_color else None
    data = module(folder, val_size=2, test_size=1, class_colors=colors)
    assert data.class_names == (CLASSES if colors else ["0", "1", "2"])
    batch = first(data)
    for name, x, y in zip(data.splits["val"].ids, batch.x, batch.y, strict=True):
        image, mask = make_scene(int(Path(name).stem[1:]))
        assert torch.equal(y, torch.from_numpy(mask).long())
        assert torch.equal((x * 255).round().byte(), torch.from_numpy(image).permute(2, 0, 1))


def test_names_and_colors_beside_the_data(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "d", 6)
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    assert module(folder).class_names == CLASSES
    turned = module(folder, class_names=[*CLASSES[::-1], "never seen"])
    assert torch.equal(first(turned, "labeled").y, 2 - first(module(folder), "labeled").y)
    with pytest.raises(InputError, match=r"the class 'disc' of classes\.txt is not known to the run or class_names"):
        module(folder, class_names=["background", "square", "disk"]).setup("fit")
    (folder / "classes.txt").unlink()
    rows = [f"{name},{','.join(map(str, COLORS[name]))}" for name in CLASSES]
    (folder / "classes.csv").write_text("\n".join(["name,r,g,b", *rows]))
    for k in range(6):
        as_color(make_scene(k)[1]).save(folder / "masks" / f"s{k:03}.png")
    assert module(folder).class_names == CLASSES
    assert {*first(module(folder), "labeled").y.unique().tolist()} == {0, 1, 2}


def test_ignored_pixels_are_not_counted_by_value_or_color(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "d", 4)
    for k in range(4):
        mask = make_scene(k)[1]
        mask[:5] = 255
        as_gray(mask).save(folder / "masks" / f"s{k:03}.png")
    data = module(folder, val_size=1, test_size=0)
    assert data.class_names == ["0", "1", "2"]
    y = first(data, "labeled").y
    assert (y[:, :5] == -1).all()
    assert (y[:, 5:] >= 0).all()
    counts = torch.bincount(y[y >= 0], minlength=3)
    assert torch.equal(data.labeled_counts(), counts)
    for k in range(4):
        colors = np.asarray(as_color(make_scene(k)[1])).copy()
        colors[:5] = [1, 1, 1]
        Image.fromarray(colors).save(folder / "masks" / f"s{k:03}.png")
    data = module(folder, val_size=1, test_size=0, class_colors={**COLORS, "ignore": [1, 1, 1]})
    assert data.class_names == CLASSES
    assert torch.equal(first(data, "labeled").y, y)


def test_classes_without_a_pixel_are_named(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "d", 6)
    for file in (folder / "masks").iterdir():
        Image.fromarray(((np.asarray(Image.open(file)) > 0) * 255).astype(np.uint8)).save(file)
    (folder / "classes.txt").unlink(missing_ok=True)
    data = module(folder, class_names=["other", "object"])
    data.setup("fit")
    found, *held_out = [one.message for one in data.request.findings if one.kind == "missing_class"]
    assert held_out == ["no test mask has a pixel of 'object', whose IoU is not measured there"]
    assert "no training mask has a pixel of 'object', which cannot be learned" in found
    assert "set class_colors, such as {other: [0, 0, 0], object: [255, 255, 255]}" in found
    data = module(folder, class_colors={"other": [0, 0, 0], "object": [255, 255, 255]})
    data.setup("fit")
    assert not [one.message for one in data.request.findings if "no training mask" in one.message]
    assert bool((data.labeled_counts() > 0).all())


def find_unlearned(folder: Path, **settings: Any) -> str:
    data = module(folder, **settings)
    data.setup("fit")
    (found,) = [one.message for one in data.request.findings if "no training mask" in one.message]
    return found


def test_evaluated_classes_without_a_training_pixel_are_named_with_file_and_value(tmp_path: Path) -> None:
    for k, split in enumerate(("train", "val", "test")):
        write_scenes(tmp_path / "d" / split, 3, start=10 * k)
    odd = tmp_path / "d" / "test" / "masks" / "s001.png"
    mask = np.asarray(Image.open(odd)).copy()
    mask[0, 0] = 4
    Image.fromarray(mask).save(odd)
    found = find_unlearned(tmp_path / "d")
    assert "no training mask has a pixel of '3', '4', which cannot be learned" in found
    assert "; the test mask of 'test/images/s001.png' has pixels of '4', all of which count as wrong" in found
    assert f"up to the largest value of the masks, 4 in '{odd}'" in found
    found = find_unlearned(tmp_path / "d", class_names=[*CLASSES, "road", "sky"])
    assert "; the test mask of 'test/images/s001.png' has pixels of 'sky' (value 4), all of which" in found
    assert "largest value" not in found
    as_color(mask.clip(0, 2)).save(odd)
    for file in [*(tmp_path / "d").glob("*/masks/*.png")]:
        values = np.asarray(Image.open(file).convert("L"))
        Image.fromarray(np.where(values == values[0, 0], 0, 9).astype(np.uint8)).save(file)
    Image.fromarray(np.full((32, 32), 7, dtype=np.uint8)).save(odd)
    colors = {"rest": [0, 0, 0], "thing": [9, 9, 9], "sky": [7, 7, 7]}
    assert "has pixels of 'sky' (color [7, 7, 7]), all of which" in find_unlearned(tmp_path / "d", class_colors=colors)


def spoil_size(folder: Path) -> None:
    Image.fromarray(make_scene(3, 16)[1]).save(folder / "masks" / "s003.png")


def spoil_value(folder: Path) -> None:
    Image.fromarray(make_scene(3)[1] + 7).save(folder / "masks" / "s003.png")


def spoil_color(folder: Path) -> None:
    as_color(make_scene(3)[1]).save(folder / "masks" / "s003.png")


def spoil_file(folder: Path) -> None:
    path = folder / "masks" / "s003.png"
    path.write_bytes(path.read_bytes()[:60])


def spoil_pages(folder: Path) -> None:
    masks = [Image.fromarray(make_scene(k)[1]) for k in (3, 4)]
    masks[0].save(folder / "masks" / "s003.png", save_all=True, append_images=masks[1:])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_size, r"has 16 x 16 pixels, and the image 32 x 32: give both one size"),
        (spoil_value, r"it has the value 7, which none of the 3 classes has .*: add the class to class_names"),
        (spoil_color, r"it is a color image, and masks hold numbers of classes: name their colors by class_colors"),
        (spoil_file, r"refused \("),
        (spoil_pages, r"it holds 2 images: write each, with the image that it belongs to, as a file of one"),
    ],
)
def test_unusable_masks_are_named_before_the_first_step(
    tmp_path: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    folder = write_scenes(tmp_path / "d", 8)
    spoil(folder)
    with pytest.raises(InputError, match=rf"(?s)s003\.png' cannot be read: its mask '.*masks/s003\.png' .*{reason}"):
        module(folder, class_names=CLASSES).setup("fit")
    data = module(folder, class_names=CLASSES, on_bad_image="skip")
    data.setup("fit")
    assert sum(map(len, data.splits.values())) == 7
    assert all("s003" not in name for split in data.splits.values() for name in split.ids)


def test_masks_without_a_meaning_are_refused(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "d", 4)
    for k in range(4):
        Image.fromarray((make_scene(k)[1] > 0).astype(np.uint8) * 255).save(folder / "masks" / f"s{k:03}.png")
    with pytest.raises(InputError, match=r"hold only 0 and 255 \(such as .*if 255 is a class, give class_colors"):
        module(folder)
    data = module(folder, class_colors={"background": [0, 0, 0], "object": [255, 255, 255]})
    assert {*first(data, "labeled").y.unique().tolist()} == {0, 1}
    with pytest.raises(InputError, match=r"class_colors gives \[0, 0, 0\] to 'a' and to 'b'"):
        module(folder, class_colors={"a": [0, 0, 0], "b": [0, 0, 0]})
    with pytest.raises(InputError, match=r"class_colors\[a\] is \[0, 0\]: give three numbers"):
        module(folder, class_colors={"a": [0, 0], "b": [0, 0, 0]})
    with pytest.raises(InputError, match=r"image_size is 30: give a multiple of 4"):
        module(folder, image_size=30)


def test_folders_of_splits_and_what_does_not_match(tmp_path: Path) -> None:
    root = tmp_path / "d"
    for k, split in enumerate(("train", "val", "test")):
        write_scenes(root / split, 4, 2 if split == "train" else None, start=10 * k)
    (root / "unlabeled").mkdir()
    Image.fromarray(make_scene(50)[0]).save(root / "unlabeled" / "u.png")
    data = module(root)
    data.setup("fit")
    assert {name: len(split) for name, split in data.splits.items()} == {
        "labeled": 2, "unlabeled": 3, "val": 4, "test": 4,
    }  # fmt: skip
    inner = tmp_path / "inner"
    for k, split in enumerate(("train", "val")):
        for kind in ("images", "masks"):
            (inner / kind / split).mkdir(parents=True)
        image, mask = make_scene(k)
        Image.fromarray(image).save(inner / "images" / split / "a.png")
        Image.fromarray(mask).save(inner / "masks" / split / "a.png")
    made = module(inner, test_size=0)
    made.setup("fit")
    assert (made.splits["labeled"].ids, made.splits["val"].ids) == (["images/train/a.png"], ["images/val/a.png"])
    (root / "val" / "masks" / "s001.png").unlink()
    with pytest.raises(InputError, match=r"image '.*s001\.png' of the split val has no mask: add it, or move"):
        module(root)
    Image.fromarray(make_scene(0)[1]).save(root / "train" / "masks" / "other.png")
    with pytest.raises(InputError, match=r"mask '.*other\.png' has no image of its name in '.*images'"):
        module(root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no image with a mask: expected images/a\.jpg with masks/a\.png"):
        module(tmp_path / "empty")


def write_table(folder: Path, rows: list[dict[str, str]]) -> Path:
    path = folder / "table.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_tables_with_groups_and_blank_masks(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "d", 12)
    rows = [
        {"path": f"images/s{k:03}.png", "mask": f"masks/s{k:03}.png" if k % 4 else "", "group": f"p{k // 3}"}
        for k in range(12)
    ]
    table = write_table(folder, rows)
    data = module(table, val_size=3, test_size=0, num_labels=4)
    data.setup("fit")
    assert len(data.splits["labeled"]) == 4
    group_of = {row["path"]: row["group"] for row in rows}
    held = {group_of[name] for name in data.splits["val"].ids}
    assert held.isdisjoint(group_of[name] for part in ("labeled", "unlabeled") for name in data.splits[part].ids)
    assert first(data, "labeled").y.min() >= 0
    rows[1]["mask"] = "masks/none.png"
    with pytest.raises(InputError, match=r"line 3: file 'masks/none\.png' does not exist"):
        module(write_table(folder, rows))
    with pytest.raises(InputError, match=r"lacks the column 'mask'.*needed are path,mask\[,split\]\[,group\]"):
        module(write_table(folder, [{"path": "images/s000.png", "label": "a"}]))


def test_few_masks_are_nested_by_the_seed_and_never_travel_with_unlabeled_images(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "d", 20, 16)
    few, more, other = (module(folder, num_labels=n, seed=s) for n, s in ((3, 1), (6, 1), (3, 2)))
    for data in (few, more, other):
        data.setup("fit")
    chosen = [{*data.splits["labeled"].ids} for data in (few, more, other)]
    assert [len(ids) for ids in chosen] == [3, 6, 3]
    assert chosen[0] < chosen[1]
    assert chosen[0] != chosen[2]
    assert not few.request.findings  # such as classes that no training label has
    split = few.splits["unlabeled"]
    assert (split.labels >= 0).any()  # some have a mask, which is not used
    _, how, _ = few.prepare_reading("unlabeled", split, train=True)
    assert isinstance(split.part.storage, MaskedImages)
    assert isinstance(split.part.storage.read(split.indices[0], how, None), torch.Tensor)
    with pytest.raises(InputError, match=r"num_labels is 60, but only 12 labeled training examples are left"):
        module(folder, num_labels=60).setup("fit")


def test_a_changed_mask_is_reported_and_equal_images_are_a_leak(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "d", 10)
    Image.fromarray(make_scene(0)[0]).save(folder / "images" / "copy.png")  # of s000, with another mask
    Image.fromarray(make_scene(5)[1]).save(folder / "masks" / "copy.png")
    data = module(folder, val_size=4, test_size=0)
    data.setup("fit")
    placed = {name: part for part, split in data.splits.items() for name in split.ids}
    held = {placed.get("images/copy.png"), placed.get("images/s000.png")}
    assert held != {"val", "labeled"}
    storage = data.splits["labeled"].part.storage
    before = storage.contents([0]), storage.fingerprints([0]), storage.digest()
    assert isinstance(storage, MaskedImages)
    assert storage.masks[0] is not None
    Image.fromarray(make_scene(9)[1]).save(storage.masks[0])
    assert storage.contents([0]) != before[0]
    assert storage.fingerprints([0]) == before[1]
    assert storage.digest() != before[2]


def test_the_mask_follows_the_box_of_its_image() -> None:
    mask = np.arange(6, dtype=np.int16).reshape(2, 3)
    assert cut_mask(mask, 6, (0, 0, 3, 2)).tolist() == [[0, 0, 1, 1, 2, 2]] * 3 + [[3, 3, 4, 4, 5, 5]] * 3
    padded = cut_mask(mask, 3, Geometry(3, resize="pad").box(3, 2, None))
    assert (padded == -1).any(1).tolist() in ([True, False, False], [False, False, True])
    assert [row for row in padded.tolist() if -1 not in row] == mask.tolist()


def test_a_padded_image_and_a_random_crop_keep_image_and_mask_together(tmp_path: Path) -> None:
    image = np.zeros((20, 40, 3), dtype=np.uint8)
    mask = np.zeros((20, 40), dtype=np.uint8)
    mask[5:15, 10:30] = 1
    image[mask == 1] = 255
    for name, content in (("i.png", image), ("m.png", mask)):
        Image.fromarray(content).save(tmp_path / name)
    coding = MaskCoding(("a", "b"), {0: 0, 1: 1})
    stored = MaskedImages([tmp_path / "i.png"], ["i"], [tmp_path / "m.png"], coding)
    for seed in (None, 1, 2, 3):
        geometry = MaskGeometry(40, resize="pad", background=(77, 77, 77), scale=(0.2, 0.9) if seed else None)
        made: Any = stored.read(0, geometry, seed)
        gray, classes = made["image"][0].float(), made["mask"].long()
        sure = (gray < 10) | (gray > 245) | (gray == 77)
        meant = torch.where(gray == 77, -1, (gray > 128).long())
        assert (meant == classes)[sure].all()
        assert sure.float().mean() > 0.7


def test_palettes_are_those_of_the_data_or_of_voc(tmp_path: Path) -> None:
    assert make_palette(4, {}) == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
    assert make_palette(2, {1: (9, 8, 7)})[1] == (9, 8, 7)
    mask = np.array([[0, 1], [-1, 2]], dtype=np.int16)
    save_mask(tmp_path / "m.png", mask, make_palette(3, {}))
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "P"
        assert np.asarray(image).tolist() == [[0, 1], [255, 2]]
        assert image.convert("RGB").getpixel((1, 0)) == (128, 0, 0)
    write_scenes(tmp_path / "d", 3)
    for file in (tmp_path / "d" / "masks").iterdir():
        as_color(np.asarray(Image.open(file))).save(file)
    lines = [f"{name},{','.join(map(str, COLORS[name]))}" for name in reversed(CLASSES)]
    (tmp_path / "d" / "classes.csv").write_text("\n".join(["name,r,g,b", *lines]))
    expected = [(*COLORS[name],) for name in reversed(CLASSES)]
    assert module(tmp_path / "d").palette == expected
    assert module(tmp_path / "d", class_names=CLASSES).palette == expected[::-1]


def test_classifiers_refuse_masks(tmp_path: Path) -> None:
    data = module(write_scenes(tmp_path / "d", 6))
    with pytest.raises(InputError, match=r"is for classification, and the examples have masks"):
        trainer().fit(classifier(), data)

"""`DetectionDataModule`: boxes of COCO as networks see them, splits, and what is wrong with an annotation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sft_lightning import DetectionDataModule, WeakView
from sft_lightning.data.vision.box_storage import BoxedImages
from sft_lightning.data.vision.open_boxes import open_box_source
from sft_lightning.utils.errors import InputError
from tests.boxes import CLASSES, make_annotation, make_boxes_scene, write_boxes_folder

CPU = torch.device("cpu")


def module(source: Path, **settings: Any) -> DetectionDataModule:
    return DetectionDataModule(str(source), **{"image_size": 64, "batch_size": 4, "num_workers": 0, **settings})


def opened(source: Path, **settings: Any) -> DetectionDataModule:
    data = module(source, **settings)
    data.setup("fit")
    return data


def messages(data: DetectionDataModule) -> str:
    return "\n".join(map(str, data.request.findings))


def change(file: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def objects_of(y: Tensor) -> list[list[float]]:
    return sorted(row for row in y.tolist() if row[0] >= 0)


def test_boxes_of_coco_as_networks_see_them(tmp_path: Path) -> None:
    data = opened(write_boxes_folder(tmp_path / "d", {"train": 6, "val": 5, "test": 3}, unlabeled=4))
    assert {name: len(split) for name, split in data.splits.items()} == {
        "labeled": 6, "unlabeled": 4, "val": 5, "test": 3,
    }  # fmt: skip
    assert data.class_names == CLASSES
    for batch in data.batches_of("val", CPU):
        assert isinstance(batch.x, Tensor)
        counts = []
        for index, x, y in zip(batch.indices.tolist(), batch.x, batch.y, strict=True):
            split = data.splits["val"]
            image, objects = make_boxes_scene(int(Path(split.part.ids[split.indices[index]]).stem[1:]))
            assert torch.equal((x * 255).round().byte(), torch.from_numpy(image).permute(2, 0, 1))
            assert objects_of(y) == sorted([float(number), *map(float, box), 0.0] for number, box in objects)
            counts.append(len(objects))
        assert batch.y.shape == (len(batch.x), max(counts), 6)
        assert batch.y.dtype == torch.float32
        assert data.name_targets(batch.y) == ["boxes"] * len(batch.x)
    hidden = opened(tmp_path / "d", num_labels=2)
    raw = next(hidden._stream("unlabeled", hidden.splits["unlabeled"], train=True).batches(0, 1))
    assert isinstance(raw.inputs, Tensor)  # boxes of unlabeled images are not read
    made = [make_boxes_scene(k)[1] for k in range(6)]
    assert data.labeled_counts().tolist() == [sum(n == k for one in made for n, _ in one) for k in (0, 1)]


@pytest.mark.parametrize("resize", ["pad", "squash"])
def test_boxes_follow_the_resize_and_back(tmp_path: Path, resize: Any) -> None:
    folder = write_boxes_folder(tmp_path / "d", {"train": 3, "val": 1, "test": 1})
    image = np.zeros((90, 150, 3), dtype=np.uint8)
    image[30:60, 50:125] = 255
    Image.fromarray(image).save(folder / "images/val/wide.png")
    box = (50, 30, 125, 60)
    content = {
        "images": [{"id": 1, "file_name": "wide.png", "width": 150, "height": 90}],
        "annotations": [{"id": 1, **make_annotation(1, 1, box)}],
        "categories": json.loads((folder / "annotations/instances_val.json").read_text())["categories"],
    }
    (folder / "annotations/instances_val.json").write_text(json.dumps(content))
    (folder / "images/val/s003.png").unlink()
    data = opened(folder, resize=resize)
    x, y = data.read_pair("val", 0)
    light = x[0] > 0.5
    if resize == "pad":
        light[:13] = light[-13:] = False  # the border is white
    rows, columns = light.any(1).nonzero()[:, 0], light.any(0).nonzero()[:, 0]
    seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert (y[0, 1:5] - torch.tensor(seen)).abs().max() <= 1
    back = data.original_boxes("val", [0], y[None, :, 1:5])
    assert (back[0, 0] - torch.tensor(box)).abs().max() < 1e-3
    far = data.original_boxes("val", torch.tensor([0]), torch.tensor([[[-9.0, -9, 99, 99]]]))
    assert far.tolist() == [[[0, 0, 150, 90]]]


def test_random_crops_of_workers_move_boxes_along(tmp_path: Path) -> None:
    folder = write_boxes_folder(tmp_path / "d", {"train": 8, "val": 1, "test": 1}, size=96)
    data = opened(folder, weak_view=WeakView(crop_scale=[0.3, 0.6]), min_visible=0.0)
    stream = data._stream("labeled", data.splits["labeled"], train=True)
    raw = next(stream.batches(0, 1))
    batch = data.on_after_batch_transfer(data.transfer_batch_to_device({"labeled": raw}, CPU, 0), 0)["labeled"]
    checked = 0
    for x, y in zip(batch.x, batch.y, strict=True):
        for number, x1, y1, x2, y2, _ in objects_of(y):
            if x2 - x1 > 4 and y2 - y1 > 4:
                middle = x[:, int((y1 + y2) / 2), int((x1 + x2) / 2)]
                assert middle[int(number)] > 0.5 > middle[1 - int(number)]  # red squares, green discs
                checked += 1
    assert checked > 3


def test_an_image_without_an_annotation_is_unknown_and_one_without_objects_is_not(tmp_path: Path) -> None:
    folder = write_boxes_folder(tmp_path / "d", {"train": 4, "val": 2, "test": 2}, unlabeled=2)

    def clear(content: dict[str, Any]) -> None:
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] != 0]

    change(folder / "annotations/instances_train.json", clear)
    data = opened(folder)
    positions = [i for i, k in enumerate(data.splits["labeled"].indices) if k == 0]
    _, y = data.read_pair("labeled", positions[0])
    assert y[:, 0].tolist() == [-1.0]
    _, y = data.read_pair("unlabeled", 0)
    assert y[:, 0].tolist() == [-2.0]
    assert data.name_targets(y[None]) == [""]
    data.splits["labeled"].indices = [0]
    with pytest.raises(InputError, match=r"the 1 annotated training image\(s\) of source .* hold no object"):
        data.train_dataloader()


def test_crowds_are_ignored_and_not_counted(tmp_path: Path) -> None:
    folder = write_boxes_folder(tmp_path / "d", {"train": 2, "val": 1, "test": 1})
    change(folder / "annotations/instances_train.json", lambda c: [one.update(iscrowd=1) for one in c["annotations"]])
    data = opened(folder)
    assert data.labeled_counts().tolist() == [0, 0]
    assert {row[5] for row in objects_of(data.read_pair("labeled", 0)[1])} == {1.0}


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    folder = write_boxes_folder(tmp_path / "d", {"train": 4, "val": 2, "test": 2})
    plain, turned = opened(folder), opened(folder, class_names=["disc", "never seen", "square"])
    assert turned.num_classes == 3
    first, second = plain.read_pair("val", 0)[1], turned.read_pair("val", 0)[1]
    assert second[:, 0].tolist() == [{0.0: 2.0, 1.0: 0.0, -1.0: -1.0}[k] for k in first[:, 0].tolist()]
    assert "has no object of 'never seen', so that it cannot be learned" in messages(turned)
    with pytest.raises(InputError, match=r"the class 'disc' of source .* is not known to the run or class_names"):
        opened(folder, class_names=["square"])


BAD: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "outside": (lambda c: c["annotations"][0].update(bbox=[70, 10, 9, 9]), r"box 1 of \d, \[70, 10, 79, 19\], outside"),
    "mostly outside": (lambda c: c["annotations"][0].update(bbox=[60, 10, 10, 9]), "mostly outside of the image of 64"),
    "no area": (lambda c: c["annotations"][0].update(bbox=[7, 10, 0, 9]), "without an area: give x1 < x2 and y1 < y2"),
    "negative": (lambda c: c["annotations"][0].update(bbox=[7, 10, -3, 9]), "without an area"),
    "nan": (lambda c: c["annotations"][0].update(bbox=[7, float("nan"), 3, 9]), "a corner that is not a number"),
    "three numbers": (
        lambda c: c["annotations"][0].update(bbox=[7, 3, 9]),
        r"annotation 1 has bbox \[7, 3, 9\]: give four numbers, \[x, y, width, height\]",
    ),
    "a text as box": (lambda c: c["annotations"][0].update(bbox="1234"), 'has bbox "1234": give four numbers'),
    "no box": (lambda c: c["annotations"][0].pop("bbox"), "annotation 1 has no bbox: add four numbers"),
    "null box": (lambda c: c["annotations"][0].update(bbox=None), "annotation 1 has bbox null: give four numbers"),
    "crowd": (lambda c: c["annotations"][0].update(iscrowd="no"), 'annotation 1 has iscrowd "no": give 0 or 1'),
    "null crowd": (lambda c: c["annotations"][0].update(iscrowd=None), "annotation 1 has iscrowd null: give 0 or 1"),
    "half a crowd": (lambda c: c["annotations"][0].update(iscrowd=0.5), "annotation 1 has iscrowd 0.5: give 0 or 1"),
    "infinite": (lambda c: c["annotations"][0].update(bbox=[7, 1e999, 3, 9]), "a corner that is not a number"),
    "class": (lambda c: c["annotations"][0].update(category_id=99), "the category 99, which categories does not list"),
    "sizes": (lambda c: c["images"][0].update(width=65), "is of an image of 65 x 64 pixels, and the file has 64 x 64"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_an_annotation_is_named_or_skipped(tmp_path: Path, name: str) -> None:
    folder = write_boxes_folder(tmp_path / "d", {"train": 4, "val": 2, "test": 2})
    edit, sentence = BAD[name]
    change(folder / "annotations/instances_train.json", edit)
    with pytest.raises(InputError, match=rf"file '.*s000.png' cannot be read: its annotation in .*{sentence}"):
        opened(folder)
    data = opened(folder, on_bad_image="skip")
    assert len(data.splits["labeled"]) == 3
    assert [Path(one).name for one in data.bad.reasons] == ["s000.png"]


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda c: c["annotations"][0].update(image_id=77), r"has annotation 1 of the image 77, which images does not"),
        (lambda c: c["images"].append({**c["images"][0], "id": 9}), r"lists the image 's000.png' twice"),
        (lambda c: c["images"][1].update(file_name="./s000.png"), r"lists the image 's000.png' twice"),
        (lambda c: c["images"][0].update(id=1), r"gives the id 1 to the images 's000.png' and 's001.png'"),
        (lambda c: c["images"][0].update(width="wide"), "image 's000.png' has width \"wide\": give a whole number"),
        (lambda c: c["images"][0].update(width=1e999), "image 's000.png' has width Infinity: give a whole number"),
        (lambda c: c["images"][0].update(height=None), "image 's000.png' has height null: give a whole number"),
        (lambda c: c["images"][0].update(id=[1]), r"COCO: entry 1 of images has id \[1\]: give a whole number"),
        (lambda c: c["images"][1].pop("file_name"), "COCO: entry 2 of images has no file_name: add a text"),
        (lambda c: c.update(annotations=["box"]), 'COCO: entry 1 of annotations is "box": give an object'),
        (lambda c: c.pop("annotations"), "COCO: it has no annotations: add a list"),
        (lambda c: c["annotations"][1].pop("image_id"), "annotation 2 has no image_id: add the id of an image"),
        (lambda c: c["annotations"][0].update(image_id="0"), "annotation 1 of the image '0', which images does not"),
        (lambda c: c["annotations"][0].update(category_id=1.5), "annotation 1 has category_id 1.5: give a whole"),
        (lambda c: c["categories"][0].update(name=None), "entry 1 of categories has name null: give a text"),
        (lambda c: c["categories"][0].update(id=4), r"gives the number 4 to the categories 'square' and 'disc'"),
        (lambda c: c["categories"][0].update(name="disc"), r"the class 'disc' is listed twice"),
    ],
)
def test_what_is_wrong_with_a_json_is_named(tmp_path: Path, edit: Any, sentence: str) -> None:
    folder = write_boxes_folder(tmp_path / "d", {"train": 4})
    change(folder / "annotations/instances_train.json", edit)
    with pytest.raises(InputError, match=sentence):
        opened(folder)


def test_boxes_that_stick_out_a_little_are_clipped_and_counted(tmp_path: Path) -> None:
    folder = write_boxes_folder(tmp_path / "d", {"train": 4, "val": 2, "test": 2})
    change(folder / "annotations/instances_train.json", lambda c: c["annotations"][0].update(bbox=[50, -1, 16, 9]))
    data = opened(folder)
    assert "1 box reaches beyond the border in 1 image(s), such as 'images/train/s000.png', and is clipped" in messages(
        data
    )
    rows = objects_of(data.read_pair("labeled", data.splits["labeled"].indices.index(0))[1])
    assert [50, 0, 64, 8] in [row[1:5] for row in rows]


def test_missing_images_are_named(tmp_path: Path) -> None:
    folder = write_boxes_folder(tmp_path / "d", {"train": 4, "val": 2, "test": 2})
    (folder / "images/train/s002.png").unlink()
    with pytest.raises(InputError, match=r"s002.png' cannot be read: it does not exist"):
        opened(folder)
    assert len(opened(folder, on_bad_image="skip").splits["labeled"]) == 3


def test_splits_are_made_followed_and_checked_for_copies(tmp_path: Path) -> None:
    folder = write_boxes_folder(tmp_path / "d", {"train": 20})
    data = opened(folder, num_labels=6, val_size=4, test_size=5)
    assert [len(data.splits[name]) for name in ("labeled", "unlabeled", "val", "test")] == [6, 5, 4, 5]
    data.write_splits(tmp_path / "split.csv", data.splits)
    again = opened(folder, split_file=str(tmp_path / "split.csv"), seed=9)
    for name, split in data.splits.items():
        assert [split.part.ids[i] for i in split.indices] == [
            again.splits[name].part.ids[i] for i in again.splits[name].indices
        ]
    other = write_boxes_folder(tmp_path / "e", {"train": 4, "test": 2})
    (other / "images/test/s004.png").write_bytes((other / "images/train/s000.png").read_bytes())
    change(other / "annotations/instances_test.json", lambda c: c["annotations"].clear())
    leaky = opened(other, val_size=0)
    assert len(leaky.splits["labeled"]) == 3
    with pytest.raises(InputError, match="on_leak"):
        opened(other, val_size=0, on_leak="raise")


def test_boxes_belong_to_the_digest(tmp_path: Path) -> None:
    folder = write_boxes_folder(tmp_path / "d", {"train": 2})
    before = opened(folder, val_size=0, test_size=0).splits["labeled"].part.storage
    change(folder / "annotations/instances_train.json", lambda c: c["annotations"][0].update(bbox=[1, 1, 5, 5]))
    after = opened(folder, val_size=0, test_size=0).splits["labeled"].part.storage
    assert isinstance(before, BoxedImages)
    assert before.digest() != after.digest()
    assert before.contents([0]) != after.contents([0])
    assert before.contents([1]) == after.contents([1])
    assert before.fingerprints([0]) == after.fingerprints([0])


def test_a_resumed_loader_repeats_views_and_boxes(tmp_path: Path) -> None:
    folder = write_boxes_folder(tmp_path / "d", {"train": 9, "val": 1, "test": 1})
    view = WeakView(flip=True, translation=0.2, scale=[0.7, 1.3])
    first, second = (opened(folder, weak_view=view, labeled_view="both", steps_per_epoch=6) for _ in range(2))
    loader, other = first.train_dataloader(), second.train_dataloader()
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    other.load_state_dict(loader.state_dict())
    rest = [*iter(other)]
    assert len(rest) == 3
    for one, two in zip(batches, rest, strict=True):
        a, b = first.on_after_batch_transfer(one, 0)["labeled"], second.on_after_batch_transfer(two, 0)["labeled"]
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)
        assert a.num_weak == len(a.y) // 2


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"image_size": 50}, "image_size is 50: give a multiple of 32"),
        ({"image_size": 16}, "image_size is 16"),
        ({"resize": "crop"}, "resize is 'crop': give pad or squash"),
        ({"min_visible": 1.5}, "min_visible is 1.5"),
        ({"weak_view": WeakView(rotation=5)}, "weak_view has rotation 5"),
        ({"strong_view": {"cutmix": 1}}, "strong_view has 'cutmix'"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path: Path, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        module(write_boxes_folder(tmp_path / "d", {"train": 2}), **settings)


def test_unknown_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no boxes in a known form: give a JSON of COCO"):
        opened(tmp_path)
    with pytest.raises(InputError, match=r"report takes classes of examples, and DetectionDataModule gives boxes"):
        module(write_boxes_folder(tmp_path / "d", {"train": 2})).require_classes("report")


def test_other_sources_give_unlabeled_images(tmp_path: Path) -> None:
    folder = write_boxes_folder(tmp_path / "d", {"train": 4, "val": 2, "test": 2})
    other = write_boxes_folder(tmp_path / "e", {"train": 5}, start=50, unlabeled=2)
    change(other / "annotations/instances_train.json", lambda c: c["categories"][0].update(name="other"))
    change(other / "annotations/instances_train.json", lambda c: c["annotations"][0].update(bbox=[99, 99, 1, 1]))
    plain = tmp_path / "plain"
    plain.mkdir()
    for path in (other / "images/train").iterdir():
        (plain / path.name).write_bytes(path.read_bytes())
    for source in (other, other / "annotations/instances_train.json", plain):
        data = opened(folder, unlabeled_source=str(source), class_names=["square", "disc"])
        assert [len(data.splits[name]) for name in ("labeled", "unlabeled")] == [4, 7]
        raw = next(data._stream("unlabeled", data.splits["unlabeled"], train=True).batches(0, 1))
        assert isinstance(raw.inputs, Tensor)  # boxes that are not to be known are not read


def test_predicted_boxes_go_back_to_files_of_any_size(tmp_path: Path) -> None:
    folder = write_boxes_folder(tmp_path / "d", {"train": 2, "val": 1, "test": 1})
    for name, size in (("a", (40, 80)), ("b", (300, 100))):
        (tmp_path / "new").mkdir(exist_ok=True)
        Image.new("RGB", size).save(tmp_path / f"new/{name}.png")
    data = module(folder, predict_source=str(tmp_path / "new"))
    data.setup("predict")
    batch = data.on_after_batch_transfer(next(iter(data.predict_dataloader())), 0)
    assert isinstance(batch.x, Tensor)
    whole = torch.tensor([[[16.0, 0, 48, 64]], [[0, 64 / 3, 64, 128 / 3]]])
    found = data.original_boxes(data.open_predicted(), batch.indices, whole)
    assert (found - torch.tensor([[[0.0, 0, 40, 80]], [[0, 0, 300, 100]]])).abs().max() < 3


def test_splits_may_share_a_folder_but_not_an_image(tmp_path: Path) -> None:
    folder = write_boxes_folder(tmp_path / "d", {"train": 4, "val": 2, "test": 2}, unlabeled=3)
    for split in ("train", "val", "test"):
        for path in (folder / "images" / split).iterdir():
            path.rename(folder / "images" / path.name)
        (folder / "images" / split).rmdir()
    assert len(open_box_source(str(folder)).load()["unlabeled"]) == 3
    data = opened(folder)
    assert {name: len(split) for name, split in data.splits.items()} == {
        "labeled": 4, "unlabeled": 3, "val": 2, "test": 2,
    }  # fmt: skip
    change(folder / "annotations/instances_test.json", lambda c: c["images"][0].update(file_name="s001.png"))
    with pytest.raises(InputError, match=r"test.json' and '.*train.json' both list the image '.*s001.png': leave it"):
        opened(folder)


def test_objects_at_the_border_are_whole(tmp_path: Path) -> None:
    folder = write_boxes_folder(tmp_path / "d", {"train": 2, "val": 1, "test": 1}, size=70)
    change(
        folder / "annotations/instances_train.json", lambda c: c["annotations"][0].update(bbox=[3.3, 1 / 3, 66.7, 69.4])
    )
    data = opened(folder, min_visible=1.0, weak_view=WeakView(flip=True))
    assert sum(len(objects_of(data.read_pair("labeled", k)[1])) for k in range(2)) == data.labeled_counts().sum()
    stream = data._stream("labeled", data.splits["labeled"], train=True)
    for raw in stream.batches(0, 8):
        batch = data.on_after_batch_transfer({"labeled": raw}, 0)["labeled"]
        assert (batch.y[:, :, 0] >= 0).sum() == (raw.inputs["boxes"][:, :, 0] >= 0).sum()

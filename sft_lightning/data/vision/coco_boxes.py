"""Source of images with boxes in COCO's JSON."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sft_lightning.data.source import Examples, relative
from sft_lightning.data.vision.box_sources import BoxSource, name_classes
from sft_lightning.data.vision.coco_entries import name_annotation, read_field, refuse_value
from sft_lightning.data.vision.coco_files import CocoFiles, ListedImage
from sft_lightning.data.vision.objects import Objects, make_objects, refuse_objects

_BOX = "four numbers, [x, y, width, height]"


class CocoBoxes(BoxSource):
    """Boxes of COCO annotations, with files as `CocoFiles` finds them.

    An image that a JSON lists without an object is annotated, and shows none; images beside the listed ones of `train`
    are unlabeled. `iscrowd` marks objects that evaluation ignores.
    """

    def __init__(self, path: Path, root: str = "data", class_names: Sequence[str] | None = None) -> None:
        """Read the annotations; no image is read.

        Args:
            path: Path of the JSON or the folder.
            root: Second folder that the images of one JSON may be in.
            class_names: Names of the classes in the order of their numbers; None for the categories by their numbers.

        Raises:
            InputError: A JSON is damaged, or its images are in none of the folders.
        """
        self.path, self.name = path, str(path)
        self._coco = CocoFiles(path, root)
        self.messages = self._coco.messages
        self.class_names = name_classes(self._coco.class_names, class_names, self.name)

    @property
    def category_ids(self) -> dict[str, int]:
        """Number of each category; classes of the user that the JSON lacks follow."""
        found = {name: number for number, name in self._coco.categories.items()}
        for name in self.class_names:
            found.setdefault(name, max(found.values()) + 1)
        return found

    @property
    def image_ids(self) -> dict[str, int | str]:
        """Number of each image in the JSON of its split."""
        images = [image for listed in self._coco.listed.values() for image in listed]
        return {relative(image.path, self.folder): image.entry["id"] for image in images}

    def load(self) -> dict[str, Examples]:
        """Return the examples of each split; no image is read."""
        coco = self._coco
        numbers = {number: self.class_names.index(name) for number, name in coco.categories.items()}
        listed: dict[str, list[tuple[Path, Objects | None]]] = {
            split: [(image.path, _read_objects(coco.files[split], image, numbers)) for image in images]
            for split, images in coco.listed.items()
        }
        listed.setdefault("unlabeled", []).extend((path, None) for path in coco.others)
        return self.make_parts(listed)


def _read_objects(file: Path, image: ListedImage, numbers: Mapping[int, int]) -> Objects:
    rows = []
    for one in image.annotations:
        name = name_annotation(one)
        if one["category_id"] not in numbers:
            problem = f"{name} has the category {one['category_id']}, which categories does not list: add or correct it"
            return refuse_objects(file, problem, image.sides)
        try:
            rows.append((numbers[one["category_id"]], _read_box(one, name), _read_crowd(one, name)))
        except ValueError as error:
            return refuse_objects(file, str(error), image.sides)
    return make_objects(file, rows, image.sides)


def _read_box(one: Mapping[str, Any], name: str) -> tuple[float, float, float, float]:
    value = read_field(one, "bbox", name, _BOX)
    try:
        left, top, width, height = map(float, value if isinstance(value, list) else ())
    except (TypeError, ValueError, OverflowError) as error:
        raise refuse_value("bbox", value, name, _BOX) from error
    return left, top, left + width, top + height


def _read_crowd(one: Mapping[str, Any], name: str) -> bool:
    value = one.get("iscrowd", 0)
    if value not in (0, 1, "0", "1"):
        raise refuse_value("iscrowd", value, name, "0 or 1")
    return value in (1, "1")

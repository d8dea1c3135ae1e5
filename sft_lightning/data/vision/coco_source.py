"""Source of images with outlines of objects in COCO's JSON."""

import math
import re
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sft_lightning.data.bad_examples import show_path
from sft_lightning.data.listed_files import find_files
from sft_lightning.data.source import SPLITS, Examples, relative, split_of_name
from sft_lightning.data.vision.file_kinds import IMAGES
from sft_lightning.data.vision.mask_sources import MaskSource, make_labels
from sft_lightning.data.vision.outlined_images import BACKGROUND, OutlinedImages, make_outline_coding, refuse_colors
from sft_lightning.data.vision.outlines import Outlines, Shape, decode_runs
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.json_files import read_json

_ROBOFLOW = "_annotations.coco.json"


class CocoSource(MaskSource):
    """COCO annotations: one JSON, or a folder with one for each split.

    A folder holds `train/_annotations.coco.json` with the images beside it, or `annotations/instances_train2017.json`
    with the images in `train2017` or `images/train2017`. An image that a JSON lists without an object shows background
    alone; images beside the listed ones are unlabeled.
    """

    def __init__(
        self,
        path: Path,
        root: str = "data",
        class_names: Sequence[str] | None = None,
        class_colors: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """Read the annotations; no image is read.

        Args:
            path: Path of the JSON or the folder.
            root: Second folder that the images of one JSON may be in.
            class_names: Names of the classes in the order of their numbers; None for background and the categories.
            class_colors: None; polygons have no colors.

        Raises:
            InputError: A JSON is damaged, or its images are in none of the folders.
        """
        self.path, self.name = path, str(path)
        refuse_colors(self.name, class_colors)
        self._files = find_coco_files(path)
        contents = {split: _read_coco(file) for split, file in self._files.items()}
        categories: dict[int, str] = {}
        for split, content in contents.items():
            for number, name in content["categories"].items():
                if categories.setdefault(number, name) != name:
                    where = show_path(self._files[split])
                    raise InputError(
                        f"category {number} is {name!r} in '{where}' and {categories[number]!r} in another split: give "
                        "each category one name"
                    )
        names = [categories[number] for number in sorted(categories)]
        self.coding = make_outline_coding(path, names, class_names)
        self.class_names = self.coding.class_names
        numbers = {number: self.class_names.index(name) for number, name in categories.items()}
        self._parts: dict[str, list[tuple[Path, Outlines | None]]] = {}
        for split, content in contents.items():
            folder = _find_images(self._files[split], content["images"], root)
            listed: list[tuple[Path, Outlines | None]] = [
                (folder / image["file_name"], _read_objects(image, content["objects"], numbers, self._background))
                for image in content["images"]
            ]
            self._parts[split] = listed
            if split == "train":
                self._parts["unlabeled"] = _list_others(folder, {path for path, _ in listed})

    @property
    def _background(self) -> int:
        return self.class_names.index(BACKGROUND)

    @property
    def masks(self) -> list[Path]:
        """Paths of the JSON files."""
        return [*self._files.values()]

    def load(self) -> dict[str, Examples]:
        """Return the examples of each split; no image is read."""
        base = self.path if self.path.is_dir() else self.path.parent
        parts = {}
        for split in SPLITS:
            if pairs := self._parts.get(split):
                paths = [path for path, _ in pairs]
                masks = [None if outlines is None else self._files[split] for _, outlines in pairs]
                ids = [relative(path, base) for path in paths]
                stored = OutlinedImages(paths, ids, masks, self.coding, [outlines for _, outlines in pairs])
                parts[split] = Examples(stored, ids, make_labels(masks))
        return parts


def _list_others(folder: Path, listed: set[Path]) -> list[tuple[Path, Outlines | None]]:
    """Return the images of a folder of training images that are not listed; nothing of a folder that holds others."""
    is_own = folder.name == "images" or split_of_name(re.sub(r"\d+$", "", folder.name)) == "train"
    found = [Path(path) for _, path in find_files(str(folder), IMAGES)] if is_own else []
    return [(path, None) for path in found if path not in listed]


def find_coco_files(path: Path) -> dict[str, Path]:
    """Return the JSON of each split; one by itself is `train`, and nothing where a folder has none.

    Args:
        path: Path of a JSON or a folder.
    """
    if path.suffix.lower() == ".json":
        return {"train": path}
    found: dict[str, Path] = {}
    for file in [*sorted(path.glob(f"*/{_ROBOFLOW}")), *sorted(path.glob("annotations/*.json"))]:
        word = file.parent.name if file.name == _ROBOFLOW else re.sub(r"^instances_|\d+$", "", file.stem)
        split = split_of_name(word)
        if split in found:
            raise InputError(
                f"'{show_path(found[split])}' and '{show_path(file)}' both hold the split {split}: remove one, or name "
                "a JSON as the source"
            )
        if split is not None:
            found[split] = file
    return found


def _read_coco(file: Path) -> dict[str, Any]:
    """Return images, categories by number, and objects by number of the image."""
    where, content = f"'{show_path(file)}'", read_json(file, "give a JSON of COCO")
    try:
        images = [{**one, "id": one["id"], "file_name": str(one["file_name"])} for one in content["images"]]
        categories = {int(one["id"]): str(one["name"]) for one in content["categories"]}
        objects: dict[Any, list[dict[str, Any]]] = {}
        for one in content["annotations"]:
            objects.setdefault(one["image_id"], []).append({**one, "category_id": int(one["category_id"])})
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{where} is not an annotation of COCO ({type(error).__name__}: {error}): it needs images, annotations and "
            "categories"
        ) from error
    for name, count in Counter(image["file_name"] for image in images).items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError(f"{where} lists the image {name!r}, which leads out of its folder: give a name inside it")
        if count > 1:
            raise InputError(f"{where} lists the image {name!r} twice: join their annotations under one id")
    if not images or not categories:
        raise InputError(f"{where} lists no image or no category: give one that does")
    return {"images": images, "categories": categories, "objects": objects}


def _find_images(file: Path, images: Sequence[Mapping[str, Any]], root: str) -> Path:
    """Return the folder in which the first image lies that is found."""
    stem, above = re.sub(r"^instances_", "", file.stem), file.parent.parent
    folders = [file.parent, file.parent / "images", above / stem, above / "images" / stem, above / "images", above]
    folders.append(Path(root))
    for image in images:
        for folder in folders:
            if (folder / image["file_name"]).is_file():
                return folder
    looked = ", ".join(f"'{show_path(folder)}'" for folder in folders)
    raise InputError(
        f"no image of '{show_path(file)}', such as {images[0]['file_name']!r}, is in {looked}: move them there, or set "
        "root"
    )


def _read_objects(
    image: Mapping[str, Any], objects: Mapping[Any, Sequence[Mapping[str, Any]]], numbers: Mapping[int, int], rest: int
) -> Outlines:
    if not {"width", "height"} <= image.keys():
        return Outlines((), rest, (1, 1), "the JSON does not state its width and height")
    sides, shapes = (int(image["width"]), int(image["height"])), []
    for one in objects.get(image["id"], ()):
        try:
            shapes.append(_read_shape(one, numbers))
        except (KeyError, TypeError, ValueError) as error:
            why = str(error) if isinstance(error, ValueError) else repr(error)
            return Outlines((), rest, sides, f"annotation {one.get('id', '?')}: {why}")
    return Outlines(tuple(shapes), rest, sides)


def _read_shape(one: Mapping[str, Any], numbers: Mapping[int, int]) -> Shape:
    segmentation = one.get("segmentation")
    if one["category_id"] not in numbers:
        raise ValueError(f"it has the category {one['category_id']}, which categories does not list")
    number = numbers[one["category_id"]]
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        return Shape(number, runs=tuple(decode_runs(counts) if isinstance(counts, str) else map(int, counts)))
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError("it has a box alone, and masks need polygons or run lengths in `segmentation`")
    rings = tuple(array("d", map(float, ring)) for ring in segmentation)
    if any(len(ring) < 6 or len(ring) % 2 or not all(map(math.isfinite, ring)) for ring in rings):
        raise ValueError("a polygon has fewer than three points, or half a point")
    return Shape(number, rings)

"""Write images with boxes in the forms of COCO, YOLO and Pascal VOC."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args
from xml.etree import ElementTree

import numpy as np

from sft_lightning.data.bad_examples import BadFiles, show_path
from sft_lightning.data.file_groups import GROUPS
from sft_lightning.data.frames import split_path
from sft_lightning.data.prepare_splits import readable
from sft_lightning.data.source import SPLITS, Examples
from sft_lightning.data.vision.box_storage import BoxedImages
from sft_lightning.data.vision.objects import Boxes, Objects, clip_corners
from sft_lightning.data.vision.open_boxes import open_box_source
from sft_lightning.data.vision.voc_boxes import ANNOTATIONS, LISTS, PICTURES
from sft_lightning.utils.atomic import open_atomic_folder, write_json, write_text
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.spreadsheet import format_csv

BoxForm = Literal["coco", "yolo", "voc"]
_DIGITS = 10  # significant ones of a number


class WrittenImage(NamedTuple):
    """Image that is written, with its objects.

    Attributes:
        path: Path of its file.
        name: Name of the copy, unique among all images.
        sides: Width and height in pixels.
        objects: Its objects, or None if it is unlabeled.
    """

    path: Path
    name: str
    sides: tuple[int, int]
    objects: Objects | None

    @property
    def boxes(self) -> Boxes:
        """Corners x1, y1, x2, y2 in pixels, within the image, (N, 4)."""
        assert self.objects is not None
        return clip_corners(self.objects.in_pixels(self.sides), self.sides)


def write_coco(folder: Path, parts: Mapping[str, Examples], class_names: Sequence[str]) -> list[str]:
    """Write `annotations/instances_train.json` with `images/train`, and the same for the other splits.

    Unlabeled images are copied to `images/train`, and not listed.

    Args:
        folder: Folder to make.
        parts: Examples of each split, as a `BoxSource` loads them.
        class_names: Names of the classes, in the order of their numbers.

    Returns:
        Sentences about what the form cannot hold: marks of objects that are truncated or occluded.

    Raises:
        InputError: The folder has content, or no image for training is annotated.
    """
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(class_names)]
    for split, images in _copy_images(folder, parts, lambda split: Path("images", split)).items():
        entries: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, image in enumerate(images, 1):
            if image.objects is None:
                continue
            width, height = image.sides
            entries.append({"id": number, "file_name": image.name, "width": width, "height": height})
            for kind, box, ignored in zip(image.objects.classes, image.boxes, image.objects.ignored, strict=True):
                annotations.append({
                    "id": len(annotations) + 1, "image_id": number, "category_id": int(kind) + 1,
                    "bbox": format_bbox(box), "area": _round((box[2] - box[0]) * (box[3] - box[1])),
                    "iscrowd": int(ignored),
                })  # fmt: skip
        content = {"images": entries, "annotations": annotations, "categories": categories}
        write_json(folder / "annotations" / f"instances_{split}.json", content)
    return _note_marks(parts, "COCO")


def write_yolo(folder: Path, parts: Mapping[str, Examples], class_names: Sequence[str]) -> list[str]:
    """Write `images/train` with `labels/train`, the same for the other splits, and `data.yaml`.

    Args:
        folder: Folder to make.
        parts: Examples of each split, as a `BoxSource` loads them.
        class_names: Names of the classes, in the order of their numbers.

    Returns:
        Sentences about what the form cannot hold: objects that evaluation ignores, and marks of others.

    Raises:
        InputError: The folder has content, or no image for training is annotated.
    """
    splits = _copy_images(folder, parts, lambda split: Path("images", split))
    lost = 0
    for split, images in splits.items():
        (folder / "labels" / split).mkdir(parents=True, exist_ok=True)
        for image in images:
            if image.objects is None:
                continue
            lines = []
            for kind, box, ignored in zip(image.objects.classes, image.boxes, image.objects.ignored, strict=True):
                lost += int(ignored)
                if not ignored:
                    x1, y1, x2, y2 = (value / side for value, side in zip(box, image.sides * 2, strict=True))
                    shares = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
                    lines.append(" ".join([str(int(kind)), *(f"{share:.{_DIGITS}g}" for share in shares)]) + "\n")
            write_text(folder / "labels" / split / f"{Path(image.name).stem}.txt", "".join(lines))
    settings = {**{split: f"images/{split}" for split in splits}, "names": [*class_names]}
    write_text(folder / "data.yaml", "".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items()))
    notes = [f"{lost:,} object(s) that evaluation ignores are left out: YOLO has no mark for them"] if lost else []
    return notes + _note_marks(parts, "YOLO")


def write_voc(folder: Path, parts: Mapping[str, Examples], class_names: Sequence[str]) -> list[str]:
    """Write `JPEGImages`, `Annotations` and `ImageSets/Main`.

    Args:
        folder: Folder to make.
        parts: Examples of each split, as a `BoxSource` loads them.
        class_names: Names of the classes, in the order of their numbers.

    Returns:
        Sentences about what the form cannot hold: classes without an object.

    Raises:
        InputError: The folder has content, or no image for training is annotated.
    """
    splits = _copy_images(folder, parts, lambda split: Path(PICTURES))
    (folder / ANNOTATIONS).mkdir()
    (folder / LISTS).mkdir(parents=True)
    seen = set()
    for split, images in splits.items():
        annotated = [image for image in images if image.objects is not None]
        for image in annotated:
            assert image.objects is not None
            names = [class_names[k] for k in image.objects.classes.tolist()]
            seen |= {*names}
            tree = _make_voc(image, names, image.objects)
            ElementTree.indent(tree)
            path = folder / ANNOTATIONS / f"{Path(image.name).stem}.xml"
            write_text(path, ElementTree.tostring(tree, encoding="unicode") + "\n")
        write_text(folder / LISTS / f"{split}.txt", "".join(f"{Path(image.name).stem}\n" for image in annotated))
    lacking = [name for name in class_names if name not in seen]
    return [f"no object has the class {', '.join(map(repr, lacking))}, which VOC then does not name"] if lacking else []


def _make_voc(image: WrittenImage, names: Sequence[str], objects: Objects) -> ElementTree.Element:
    root = ElementTree.Element("annotation")
    _add(root, "filename", image.name)
    size = _add(root, "size")
    for key, value in (("width", image.sides[0]), ("height", image.sides[1]), ("depth", 3)):
        _add(size, key, str(value))
    flags = {"truncated": np.zeros(len(objects), dtype=np.bool_), **objects.marks, "difficult": objects.ignored}
    for k, (name, box) in enumerate(zip(names, image.boxes, strict=True)):
        one = _add(root, "object")
        _add(one, "name", name)
        _add(one, "pose", "Unspecified")
        for key, values in flags.items():
            _add(one, key, str(int(values[k])))
        place = _add(one, "bndbox")
        corners = (box[0] + 1, box[1] + 1, box[2], box[3])  # the first pixel has the number 1
        for key, corner in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True):
            _add(place, key, f"{corner:.{_DIGITS}g}")
    return root


def _note_marks(parts: Mapping[str, Examples], form: str) -> list[str]:
    """Return a sentence about the marks of objects that a form cannot hold, if there are some."""
    counts: Counter[str] = Counter()
    for part in parts.values():
        assert isinstance(part.storage, BoxedImages)
        for objects in part.storage.objects:
            counts.update({} if objects is None else {name: int(on.sum()) for name, on in objects.marks.items()})
    return [f"{count:,} object(s) lose the mark {name}: {form} has none" for name, count in counts.items()]


def _add(parent: ElementTree.Element, name: str, text: str | None = None) -> ElementTree.Element:
    made = ElementTree.SubElement(parent, name)
    made.text = text
    return made


_WRITERS: dict[str, Callable[[Path, Mapping[str, Examples], Sequence[str]], list[str]]] = {
    "coco": write_coco,
    "yolo": write_yolo,
    "voc": write_voc,
}


def convert_boxes(
    source: str,
    out: str,
    to: BoxForm,
    root: str = "data",
    class_names: list[str] | None = None,
    on_bad_image: Literal["raise", "skip"] = "raise",
) -> str:
    """Write a source of images with boxes in another form, with copies of the images.

    Args:
        source: Folder or `.json` of COCO, folder of YOLO or of Pascal VOC, or a `.csv` / `.parquet` table.
        out: Folder to write; it must not exist.
        to: Form to write: `coco`, `yolo` or `voc`.
        root: Second folder that the files of a table or a JSON may be in.
        class_names: Names of the classes in the order of their numbers; null for those of the data.
        on_bad_image: `raise` to stop at an unreadable image or an annotation that does not fit, or `skip` to leave
            its image out and count it.

    Returns:
        What was written, and what the form cannot hold.

    Raises:
        InputError: The source is damaged, or the folder exists.
    """
    if to not in get_args(BoxForm):
        raise InputError(f"to is {to!r}: give {', '.join(get_args(BoxForm))}")
    bad, folder = BadFiles(on_bad_image, "on_bad_image"), Path(out)
    opened = open_box_source(source, root, on_bad_image == "skip", class_names)
    parts = {split: readable(part, bad) for split, part in opened.load().items()}
    _check_new(folder)
    with open_atomic_folder(folder) as staged:
        notes = [*map(str, opened.messages), *_WRITERS[to](staged, parts, opened.class_names)]
    notes += [bad.summarize()] if bad.reasons else []
    numbers: Counter[str] = Counter(dict.fromkeys(SPLITS, 0))
    for split, part in parts.items():  # that of YOLO holds unlabeled ones, too
        annotated = int((part.labels >= 0).sum())
        numbers.update({split: annotated, "unlabeled": len(part) - annotated})
    counts = ", ".join(f"{number:,} {split}" for split, number in numbers.items() if number)
    return "\n".join([f"Written: {out} ({counts})", *(f"{note}." for note in notes)])


def _copy_images(
    folder: Path, parts: Mapping[str, Examples], place: Callable[[str], Path]
) -> dict[str, list[WrittenImage]]:
    """Copy all images, and return them by the split that they are written to; unlabeled ones go to `train`.

    Groups are written to `groups.csv`, which all forms are read with.
    """
    _check_new(folder)
    if not any(bool((part.labels >= 0).any()) for split, part in parts.items() if split == "train"):
        raise InputError("none of the images for training is annotated: give a source with annotated ones")
    found: dict[str, list[WrittenImage]] = {}
    used: set[str] = set()
    groups: list[tuple[str, str]] = []
    for split, part in parts.items():
        storage, target = part.storage, "train" if split == "unlabeled" else split
        assert isinstance(storage, BoxedImages)
        (folder / place(target)).mkdir(parents=True, exist_ok=True)
        for i, path in enumerate(storage.paths):
            if split_path(path)[1] is not None:
                raise InputError(f"'{show_path(path)}' is a frame, and files are copied whole: write it to a file")
            name = _name_copy(part.ids[i], used)
            shutil.copyfile(path, folder / place(target) / name)
            if part.groups is not None and part.groups[i] != part.ids[i]:  # else a group of its own
                groups.append(((place(target) / name).as_posix(), part.groups[i]))
            objects = None if split == "unlabeled" else storage.objects[i]
            found.setdefault(target, []).append(WrittenImage(path, name, storage.sides_of(i), objects))
    if groups:
        write_text(folder / GROUPS, format_csv([("path", "group"), *groups]))
    return found


def _check_new(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"'{show_path(folder)}' exists and is not an empty folder: name a new one")


def _name_copy(name: str, used: set[str]) -> str:
    """Return a name for the copy of an image whose part before the extension nothing else has, and remember it."""
    path = Path(name)
    for stem in (path.stem, "_".join(path.with_suffix("").parts), "_".join(path.parts).replace(".", "_")):
        if stem not in used:
            break
    else:
        raise InputError(f"image {name!r} has the name of another one: rename one of them")
    used.add(stem)
    return f"{stem}{path.suffix}"


def format_bbox(box: Iterable[float]) -> list[float]:
    """Return corners x1, y1, x2, y2 as COCO has them: x, y, width and height.

    Args:
        box: Corners in pixels.
    """
    x1, y1, x2, y2 = map(float, box)
    return [_round(x1), _round(y1), _round(x2 - x1), _round(y2 - y1)]


def _round(value: float) -> float:
    return float(f"{float(value):.{_DIGITS}g}")

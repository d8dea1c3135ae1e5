"""Source of images with boxes in the form of Pascal VOC."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

from sft_lightning.data.bad_examples import show_path
from sft_lightning.data.class_names import sort_classes
from sft_lightning.data.issues import Finding
from sft_lightning.data.listed_files import find_files
from sft_lightning.data.source import Examples
from sft_lightning.data.vision.box_sources import BoxSource, name_classes
from sft_lightning.data.vision.file_kinds import IMAGES
from sft_lightning.data.vision.objects import Objects, make_objects, refuse_objects
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.xml_files import read_xml

MARKS = ("truncated", "occluded")  # which conversions keep, and nothing else reads
ANNOTATIONS, PICTURES, LISTS = "Annotations", "JPEGImages", Path("ImageSets", "Main")
XMLS = "*.[xX][mM][lL]"
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class VocBoxes(BoxSource):
    """Folder with `JPEGImages`, `Annotations` with an XML file for each annotated image, and perhaps `ImageSets/Main`.

    `ImageSets/Main` holds train.txt, val.txt and test.txt, or trainval.txt, with names without extension. Without it,
    all annotated images are for training. An image without an annotation is unlabeled. Difficult objects are ignored in
    evaluation; truncated and occluded ones count. The first pixel has the number 1, and xmax and ymax are the last
    pixels inside.
    """

    def __init__(self, path: Path, class_names: Sequence[str] | None = None) -> None:
        """Read the annotations; no image is read.

        Args:
            path: Path of the folder.
            class_names: Names of the classes in the order of their numbers; None for those of the data, sorted.

        Raises:
            InputError: A list names an image twice, an annotation has no image, or an evaluated image no annotation.
        """
        self.path, self.name = path, str(path)
        folder = path / PICTURES if (path / PICTURES).is_dir() else path / "images"
        self._images = _index(Path(file) for _, file in find_files(str(folder), IMAGES))
        files = _index(sorted((path / ANNOTATIONS).glob(XMLS)))
        for stem, file in files.items():
            if stem not in self._images:
                raise InputError(
                    f"annotation '{show_path(file)}' has no image of its name in {str(folder)!r}: add the image, or "
                    "remove the annotation"
                )
        self._splits = self._read_lists(folder, files)
        used = [stem for stems in self._splits.values() for stem in stems if stem in files]
        contents = {stem: _read_objects(files[stem]) for stem in used}
        names = {name for found in contents.values() if not isinstance(found, Objects) for name, *_ in found[1]}
        self.class_names = name_classes(sort_classes(names), class_names, self.name)
        self._objects = {stem: self._number(files[stem], found) for stem, found in contents.items()}

    def _number(self, file: Path, found: "Objects | _Found") -> Objects:
        if isinstance(found, Objects):
            return found
        sides, rows = found
        numbered = [(self.class_names.index(row.name), row.corners, row.is_difficult) for row in rows]
        marks = {name: [name in row.marks for row in rows] for name in MARKS if any(name in row.marks for row in rows)}
        return make_objects(file, numbered, sides, marks=marks)

    def _read_lists(self, folder: Path, files: dict[str, Path]) -> dict[str, list[str]]:
        """Return the names of the images of each split."""
        listed = {split: self._read_list(split) for split in ("train", "val", "test", "trainval")}
        if not any(listed.values()):
            unlabeled = [stem for stem in self._images if stem not in files]
            return {"train": [*files], "unlabeled": unlabeled}
        splits = {split: listed[split] for split in ("train", "val", "test")}
        splits["train"] = splits["train"] or [stem for stem in listed["trainval"] if stem not in {*listed["val"]}]
        place: dict[str, str] = {}
        for split, stems in splits.items():
            for stem in stems:
                if (other := place.setdefault(stem, split)) != split:
                    raise InputError(
                        f"image {stem!r} is in {other}.txt and in {split}.txt of '{show_path(self.path / LISTS)}': "
                        "list it once"
                    )
                if split != "train" and stem not in files:
                    raise InputError(
                        f"image {stem!r} of {split}.txt has no annotation in '{show_path(self.path / ANNOTATIONS)}': "
                        "add it, or take the image off the list"
                    )
                self._images.setdefault(stem, folder / f"{stem}.jpg")  # which does not exist, as reading it will say
        splits["unlabeled"] = [stem for stem in splits["train"] if stem not in files]
        splits["train"] = [stem for stem in splits["train"] if stem in files]
        rest = [stem for stem in self._images if stem not in place]
        splits["unlabeled"] += [stem for stem in rest if stem not in files]
        if left := [stem for stem in rest if stem in files]:
            message = (
                f"{len(left):,} annotated image(s) of {self.name!r}, such as {left[0]!r}, are in no list of "
                f"{LISTS.as_posix()} and are left out"
            )
            self.messages = [Finding("ignored", message, left)]
        return splits

    def _read_list(self, split: str) -> list[str]:
        file = self.path / LISTS / f"{split}.txt"
        if not file.is_file():
            return []
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, UnicodeError) as error:
            raise InputError(
                f"'{show_path(file)}' cannot be read ({error}): give one name of an image a line"
            ) from error
        return [line if line in self._images else line.split()[0] for line in dict.fromkeys(lines) if line]

    def load(self) -> dict[str, Examples]:
        """Return the examples of each split; no image is read."""
        return self.make_parts({
            split: [(self._images[stem], self._objects.get(stem)) for stem in stems]
            for split, stems in self._splits.items()
        })  # fmt: skip


class _Row(NamedTuple):
    """Object of an annotation: its class, corners, whether evaluation ignores it, and further marks."""

    name: str
    corners: tuple[float, float, float, float]
    is_difficult: bool
    marks: list[str]


_Found = tuple[tuple[int, int] | None, list[_Row]]


def _index(files: Iterable[Path]) -> dict[str, Path]:
    """Return files by their names without extension."""
    found: dict[str, Path] = {}
    for file in files:
        if (other := found.setdefault(file.stem, file)) != file:
            raise InputError(
                f"'{show_path(other)}' and '{show_path(file)}' have one name, so that images and annotations cannot be "
                "matched: rename or remove one"
            )
    return found


def _read_objects(file: Path) -> Objects | _Found:
    """Read an annotation: the sides of its image, and the names, corners and difficulty of its objects."""
    try:
        root = read_xml(file)
    except (OSError, ValueError) as error:
        return refuse_objects(file, str(error))
    try:
        width, height = (int(float(root.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
        sides = (width, height) if width > 0 and height > 0 else None
    except (ValueError, OverflowError):
        return refuse_objects(file, "its size is not a number")
    rows: list[_Row] = []
    for count, one in enumerate(root.iterfind("object"), 1):
        name = (one.findtext("name") or "").strip()
        if not name:
            return refuse_objects(file, f"object {count} has no name")
        try:
            marks = [mark for mark in MARKS if (one.findtext(mark) or "").strip() == "1"]
            rows.append(_Row(name, _read_corners(one), _read_flag(one, "difficult"), marks))
        except ValueError as error:
            return refuse_objects(file, f"object {count}, {name!r}, {error}")
    return sides, rows


def _read_corners(one: Element) -> tuple[float, float, float, float]:
    texts = [one.findtext(f"bndbox/{corner}") for corner in _CORNERS]
    try:
        left, top, right, bottom = (float(text or "") for text in texts)
    except ValueError as error:
        raise ValueError(f"has no bndbox with numbers in {', '.join(_CORNERS)}") from error
    # Files of some programs begin with the pixel 0.
    return max(left - 1, 0), max(top - 1, 0), right, bottom


def _read_flag(one: Element, name: str) -> bool:
    text = (one.findtext(name) or "0").strip()
    if text not in ("0", "1"):
        raise ValueError(f"has {text!r} as {name}: give 0 or 1")
    return text == "1"

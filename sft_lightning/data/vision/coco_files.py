"""Reading of COCO's JSON: images, categories and annotations of each split, for masks and for boxes."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sft_lightning.data.bad_examples import show_path
from sft_lightning.data.frames import list_frames, split_path
from sft_lightning.data.issues import Finding
from sft_lightning.data.listed_files import find_files
from sft_lightning.data.source import split_of_name
from sft_lightning.data.vision.coco_entries import name_annotation, read_id, read_list, read_text, read_whole
from sft_lightning.data.vision.dicom_header import count_frames
from sft_lightning.data.vision.file_kinds import IMAGES
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.json_files import read_json

_ROBOFLOW = "_annotations.coco.json"
_NO_ANNOTATION = re.compile(rb'"annotations"\s*:\s*\[\s*\]')


class ListedImage(NamedTuple):
    """Image of a JSON.

    Attributes:
        path: Path of its file, which may be missing.
        entry: What `images` says of it, such as `width` and `height`.
        annotations: Its entries in `annotations`.
    """

    path: Path
    entry: Mapping[str, Any]
    annotations: Sequence[Mapping[str, Any]]

    @property
    def sides(self) -> tuple[int, int] | None:
        """Width and height in pixels as the JSON states them; None where it does not."""
        has_both = {"width", "height"} <= self.entry.keys()
        return (self.entry["width"], self.entry["height"]) if has_both else None


class CocoFiles:
    """COCO annotations: one JSON, or a folder with one for each split.

    A folder holds `train/_annotations.coco.json` with the images beside it, or `annotations/instances_train2017.json`
    with the images in `train2017` or `images/train2017`.

    Attributes:
        files: JSON of each split; one by itself is `train`.
        categories: Name of each category by its number, the same in all splits.
        listed: Images of each split, in the order of the JSON.
        others: Images beside those of `train` that no JSON lists.
        messages: Findings about JSON files without an annotation.
        folder: Folder that names of images are relative to.
    """

    def __init__(self, path: Path, root: str = "data") -> None:
        """Read the annotations; no image is read.

        Args:
            path: Path of the JSON or the folder.
            root: Second folder that the images of one JSON may be in.

        Raises:
            InputError: A JSON is damaged, or its images are in none of the folders.
        """
        self.folder = path if path.is_dir() else path.parent
        self.files = find_coco_files(path)
        contents = {split: _read_coco(file) for split, file in self.files.items()}
        self.categories: dict[int, str] = {}
        for split, content in contents.items():
            for number, name in content["categories"].items():
                if self.categories.setdefault(number, name) != name:
                    where = show_path(self.files[split])
                    raise InputError(
                        f"category {number} is {name!r} in '{where}' and {self.categories[number]!r} in another split: "
                        "give each category one name"
                    )
        self.messages = [
            Finding(
                "missing_class",
                f"'{show_path(self.files[split])}' lists no annotation, so that each of its {len(content['images']):,} "
                "images counts as one that shows nothing to annotate",
                [str(self.files[split])],
            )
            for split, content in contents.items()
            if not content["annotations"]
        ]
        self.listed: dict[str, list[ListedImage]] = {}
        folders = {
            split: _find_images(self.files[split], content["images"], root) for split, content in contents.items()
        }
        place: dict[Path, str] = {}
        for split, content in contents.items():
            annotations = content["annotations"]
            self.listed[split] = [
                ListedImage(folders[split] / image["file_name"], image, annotations.get(image["id"], ()))
                for image in content["images"]
            ]
            for one in self.listed[split]:
                if (other := place.setdefault(one.path, split)) != split:
                    raise InputError(
                        f"'{show_path(self.files[other])}' and '{show_path(self.files[split])}' both list the image "
                        f"'{show_path(one.path)}': leave it in one split"
                    )
        self.others = _list_others(folders["train"], {*place}) if "train" in folders else []

    @property
    def class_names(self) -> list[str]:
        """Names of the categories in the order of their numbers."""
        return [self.categories[number] for number in sorted(self.categories)]


def _list_others(folder: Path, listed: set[Path]) -> list[Path]:
    """Return the images of a folder of training images that are not listed; nothing of a folder that holds others."""
    is_own = folder.name == "images" or split_of_name(re.sub(r"\d+$", "", folder.name)) == "train"
    found = [path for _, path in find_files(str(folder), IMAGES)] if is_own else []
    frames = (Path(frame) for path in found for frame in list_frames(path, count_frames(path)))
    return [path for path in frames if path not in listed]


def find_coco_files(path: Path) -> dict[str, Path]:
    """Return the JSON of each split; one by itself is `train`, and nothing where a folder has none.

    Args:
        path: Path of a JSON or a folder.
    """
    if path.suffix.lower() == ".json":
        return {"train": path}
    found: dict[str, Path] = {}
    for file in [*sorted(path.glob(f"*/{_ROBOFLOW}")), *sorted(path.glob("annotations/*.[jJ][sS][oO][nN]"))]:
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


def refuse_unannotated(files: Sequence[Path]) -> None:
    """Refuse JSON files none of which has an annotation, so that it is not known whether boxes or outlines are meant.

    Args:
        files: Paths of the JSON files of a source.

    Raises:
        InputError: All of their lists of annotations are empty.
    """
    if files and all(_NO_ANNOTATION.search(file.read_bytes()) for file in files):
        raise InputError(
            f"'{show_path(files[0])}' lists no annotation: draw boxes or outlines in some of its images, or name the "
            "folder of the images as the source"
        )


def _read_coco(file: Path) -> dict[str, Any]:
    """Return images, categories by number, and annotations by number of the image."""
    where, content = f"'{show_path(file)}'", read_json(file, "give a JSON of COCO")
    try:
        entries, drawn, kinds = (read_list(content, field) for field in ("images", "annotations", "categories"))
        images = [_read_image(one, f"entry {k + 1} of images") for k, one in enumerate(entries)]
        named = [(one, f"entry {k + 1} of categories") for k, one in enumerate(kinds)]
        listed = [(read_whole(one, "id", name), read_text(one, "name", name)) for one, name in named]
        annotations: dict[int | str, list[dict[str, Any]]] = {}
        for k, one in enumerate(drawn):
            name = name_annotation(one, k)
            own = annotations.setdefault(read_id(one, "image_id", name), [])
            own.append({**one, "category_id": read_whole(one, "category_id", name)})
    except ValueError as error:
        raise InputError(f"{where} is not an annotation of COCO: {error}") from error
    categories = dict(listed)
    for number, name in listed:
        if categories[number] != name:
            raise InputError(
                f"{where} gives the number {number} to the categories {name!r} and {categories[number]!r}: give each "
                "its own"
            )
    for name, count in Counter(image["file_name"] for image in images).items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError(f"{where} lists the image {name!r}, which leads out of its folder: give a name inside it")
        if count > 1:
            raise InputError(f"{where} lists the image {name!r} twice: join their annotations under one id")
    if not images or not categories:
        raise InputError(f"{where} lists no image or no category: give one that does")
    names = {image["id"]: image["file_name"] for image in images}
    if len(names) < len(images):
        one = next(image for image in images if names[image["id"]] != image["file_name"])
        raise InputError(
            f"{where} gives the id {one['id']} to the images {one['file_name']!r} and {names[one['id']]!r}: give each "
            "its own"
        )
    for owner, found in annotations.items():
        if owner not in names:
            raise InputError(
                f"{where} has {name_annotation(found[0])} of the image {owner!r}, which images does not list: list "
                "it, or remove the annotation"
            )
    return {"images": images, "categories": categories, "annotations": annotations}


def _read_image(one: Any, name: str) -> dict[str, Any]:
    number, file_name = read_id(one, "id", name), read_text(one, "file_name", name)
    sides = {key: read_whole(one, key, f"image {file_name!r}") for key in ("width", "height") if key in one}
    return {**one, "id": number, "file_name": Path(file_name).as_posix(), **sides}


def _find_images(file: Path, images: Sequence[Mapping[str, Any]], root: str) -> Path:
    """Return the folder in which the first image lies that is found."""
    stem, above = re.sub(r"^instances_", "", file.stem), file.parent.parent
    folders = [file.parent, file.parent / "images", above / stem, above / "images" / stem, above / "images", above]
    folders.append(Path(root))
    for image in images:
        for folder in folders:
            if Path(split_path(folder / image["file_name"])[0]).is_file():
                return folder
    looked = ", ".join(f"'{show_path(folder)}'" for folder in folders)
    raise InputError(
        f"no image of '{show_path(file)}', such as {images[0]['file_name']!r}, is in {looked}: move them there, or set "
        "root"
    )

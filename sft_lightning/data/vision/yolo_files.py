"""Files of YOLO: text files of annotations, and the names of their classes."""

from pathlib import Path

from sft_lightning.data.bad_examples import show_path
from sft_lightning.data.vision.mask_classes import CLASS_FILES, read_class_file
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.yaml_files import read_yaml

TEXTS = "*.[tT][xX][tT]"  # some programs write upper-case extensions
_YOLO_FILES = ("data.yaml", "dataset.yaml")


def list_label_files(folder: Path) -> dict[str, list[Path]]:
    """Return the text files of annotations by their names without extension.

    Args:
        folder: Folder of the text files.
    """
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob(TEXTS)):
        if path.name not in CLASS_FILES:
            files.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    return files


def read_yolo_names(folder: Path) -> list[str]:
    """Read the names of the classes from `data.yaml`, or from `classes.txt`.

    Args:
        folder: Folder of the source.

    Raises:
        InputError: Nothing names them, or the file is damaged or describes keypoints.
    """
    file = next((folder / name for name in _YOLO_FILES if (folder / name).is_file()), None)
    if file is None:
        names = read_class_file(folder)[0]
        if names is None:
            raise InputError(
                f"source {str(folder)!r} names no class of its objects: add data.yaml with names: [...], or classes.txt"
            )
        return names
    content = read_yaml(file)
    if isinstance(content, dict) and "kpt_shape" in content:
        raise InputError(
            f"'{show_path(file)}' describes keypoints (kpt_shape), whose numbers are not those of boxes or polygons: "
            "write lines of class cx cy w h, and remove kpt_shape"
        )
    listed = content.get("names") if isinstance(content, dict) else None
    if isinstance(listed, dict) and sorted(listed) == [*range(len(listed))]:
        listed = [listed[k] for k in range(len(listed))]
    if not isinstance(listed, list) or not listed:
        raise InputError(f"'{show_path(file)}' has no names of classes: add names: [cat, dog]")
    return [str(name) for name in listed]

"""Sources of images with boxes: what all of them share."""

from collections.abc import Sequence
from pathlib import Path

import torch

from sft_lightning.data.file_groups import group_files
from sft_lightning.data.source import SPLITS, Examples, relative
from sft_lightning.data.vision.box_storage import BoxedImages
from sft_lightning.data.vision.image_source import ImageSource
from sft_lightning.data.vision.mask_classes import order_names
from sft_lightning.data.vision.objects import Objects
from sft_lightning.utils.errors import InputError

HAS_BOXES = "boxes"  # name of the only label: an image has an annotation, label 0, or none, label -1


class BoxSource(ImageSource):
    """Source of images, some with annotated objects.

    Labels say whether an image has an annotation, which may hold no object: 0, or -1. `class_names` are those of the
    objects.
    """

    path: Path

    @property
    def label_names(self) -> Sequence[str]:
        """Name of the only label."""
        return (HAS_BOXES,)

    @property
    def folder(self) -> Path:
        """Folder that names of images are relative to."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def category_ids(self) -> dict[str, int]:
        """Number of each class in results that COCO's programs read."""
        return {name: k + 1 for k, name in enumerate(self.class_names)}

    @property
    def image_ids(self) -> dict[str, int | str]:
        """Number of each image in results that COCO's programs read, by its name; empty where the data has none."""
        return {}

    def make_parts(self, listed: dict[str, list[tuple[Path, Objects | None]]]) -> dict[str, Examples]:
        """Return the examples of each split; no image is read.

        Args:
            listed: Path and objects of each image, by split; objects are None where it has no annotation.
        """
        parts = {}
        for split in SPLITS:
            if pairs := listed.get(split):
                paths, objects = [path for path, _ in pairs], [one for _, one in pairs]
                ids = [relative(path, self.folder) for path in paths]
                stored = BoxedImages(paths, ids, objects, self.class_names)
                labels = torch.tensor([-1 if one is None else 0 for one in objects], dtype=torch.long)
                parts[split] = Examples(stored, ids, labels)
        return group_files(self, self.folder, parts)


def name_classes(known: Sequence[str], given: Sequence[str] | None, where: str) -> tuple[str, ...]:
    """Return the names of the classes of objects, in the order of the user or of the data.

    Args:
        known: Names that the data has.
        given: Setting `class_names`; None for those of the data.
        where: Source, for messages.

    Raises:
        InputError: A name is there twice, the user left one out, or no class is named.
    """
    for names, place in ((known, f"source {where!r}"), (given or (), "class_names")):
        if len(set(names)) < len(names):
            twice = next(name for name in names if [*names].count(name) > 1)
            raise InputError(f"the class {twice!r} is listed twice in {place}: give each class its own name")
    ordered = order_names(given, known, f"source {where!r}")
    if not ordered:
        raise InputError(f"source {where!r} names no class of its objects: annotate some, or list them in class_names")
    return tuple(ordered)

"""Storage of images whose masks are drawn from outlines of objects."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sft_lightning.data.bad_examples import show_path
from sft_lightning.data.file_storage import FileStorage
from sft_lightning.data.storage import Storage
from sft_lightning.data.vision.mask_classes import check_count, order_names
from sft_lightning.data.vision.mask_storage import MaskedImages
from sft_lightning.data.vision.masks import MASK_PROBLEM, WRONG_SIZE, MaskCoding, upright_size
from sft_lightning.data.vision.outlines import Outlines
from sft_lightning.utils.errors import InputError

BACKGROUND = "background"


class OutlinedImages(MaskedImages):
    """Storage of image files whose masks are drawn from outlines.

    Attributes:
        outlines: Objects of each image, or None for one without a mask.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        ids: Sequence[str],
        masks: Sequence[Path | None],
        coding: MaskCoding,
        outlines: Sequence[Outlines | None],
    ) -> None:
        """Keep the lists; no image is read.

        Args:
            paths: Paths of the images.
            ids: Name of each image in manifests and messages.
            masks: File that each mask stands in, or None.
            coding: Names of the classes.
            outlines: Objects of each image, or None.
        """
        super().__init__(paths, ids, masks, coding)
        self.outlines = list(outlines)

    def read_mask(self, index: int) -> npt.NDArray[np.int16] | None:
        """Draw a mask at the size of its image."""
        outlines = self.outlines[index]
        if outlines is None:
            return None
        if outlines.problem:
            raise OSError(outlines.problem)
        return outlines.draw(*upright_size(self.paths[index]))

    def find_problem(self, index: int) -> str | None:
        """Return what is wrong with the outlines, or with the size that they are for."""
        outlines, mask = self.outlines[index], self.masks[index]
        assert outlines is not None
        assert mask is not None
        name, sides = show_path(mask), upright_size(self.paths[index])
        if not outlines.problem and outlines.sides is not None and outlines.sides != sides:
            has = "{} x {} pixels, and the image {} x {}".format(*outlines.sides, *sides)
            return f"{MASK_PROBLEM} in '{name}' has {has}: {WRONG_SIZE}"
        try:
            self.read_mask(index)
        except OSError as error:
            return f"{MASK_PROBLEM} in '{name}' is refused ({error})"
        return None

    def digest_each(self, indices: Sequence[int]) -> list[bytes | None]:
        """Compute the SHA-256 of the outlines."""
        return [hashlib.sha256(repr(self.outlines[i]).encode()).digest() for i in indices if self.masks[i] is not None]

    @classmethod
    def joined(cls, pieces: Sequence[tuple[Storage, Sequence[int]]], ids: Sequence[str]) -> "OutlinedImages":
        """Join some images of several lists, those without outlines included."""
        paths: list[Path] = []
        masks: list[Path | None] = []
        outlines: list[Outlines | None] = []
        codings = [images.coding for images, _ in pieces if isinstance(images, MaskedImages)]
        for images, chosen in pieces:
            assert isinstance(images, FileStorage)
            paths += [images.paths[i] for i in chosen]
            drawn = isinstance(images, OutlinedImages)
            masks += [images.masks[i] if drawn else None for i in chosen]  # type: ignore[attr-defined]
            outlines += [images.outlines[i] if drawn else None for i in chosen]  # type: ignore[attr-defined]
        return cls(paths, ids, masks, codings[0], outlines)


def make_outline_coding(where: Path, names: Sequence[str], given: Sequence[str] | None) -> MaskCoding:
    """Return the coding of outlines of named classes, with the background first unless it is one of them.

    Args:
        where: Source, for messages.
        names: Names of the classes of the objects.
        given: Names in the order of the user; None for that of the data.
    """
    known = [*names] if BACKGROUND in names else [BACKGROUND, *names]
    return check_count(MaskCoding(tuple(order_names(given, known, f"'{show_path(where)}'")), {}), where)


def refuse_colors(name: str, class_colors: Mapping[str, Sequence[int]] | None) -> None:
    """Refuse colors, which outlines do not have.

    Args:
        name: Source, for messages.
        class_colors: Setting of the user.

    Raises:
        InputError: It is set.
    """
    if class_colors is not None:
        raise InputError(f"class_colors is {dict(class_colors)}, and source {name!r} has polygons: leave it out")

"""Masks of images: how the pixels of a file name classes, and how a mask follows its image to one size."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from sft_lightning.data.bad_examples import show_path
from sft_lightning.data.vision.image_files import open_image_file
from sft_lightning.data.vision.image_frames import count_pages
from sft_lightning.data.vision.images import place_box

IGNORED = -1  # number of a pixel that neither loss nor metric counts, whatever files call it
MASK_PROBLEM = "its mask"  # how the sentence about a mask begins, and what it says of a size and of a value
WRONG_SIZE, WRONG_VALUE = "give both one size", "it has the "
MOST_CLASSES = 2**15 - 1  # that int16 holds
Color = tuple[int, int, int]
_INDEX_MODES = ("1", "L", "P", "I;16", "I;16B", "I;16L", "I;16N", "I")
_COLOR_MODES = ("RGB", "RGBA", "LA", "PA")


@dataclass(frozen=True)
class MaskCoding:
    """Meaning of the values of mask files.

    Attributes:
        class_names: Names of the classes, in the order of their numbers.
        numbers: Class of each value, or of each color as `pack_color` packs it; `IGNORED` for one that is not counted.
        by_color: Whether values are colors, in whatever mode the file is.
        ignore_index: Value of pixels that are not counted; not used with colors.
        palette: Color of each class for people, where the data names one.
        largest: Mask of the largest value, where the values number the classes and nothing names them.
    """

    class_names: tuple[str, ...]
    numbers: dict[int, int]
    by_color: bool = False
    ignore_index: int = 255
    palette: dict[int, Color] = field(default_factory=dict)
    largest: Path | None = None

    def read(self, path: Path) -> npt.NDArray[np.int16]:
        """Read a mask as numbers of classes, int16, (H, W); -1 where a pixel is not counted.

        Args:
            path: Path of the file.

        Raises:
            OSError: It cannot be decoded, or has a value that no class has; the message says which.
        """
        values = read_values(path, self.by_color)
        kinds, places = np.unique(values, return_inverse=True)
        numbers = np.array([self._find(int(value)) for value in kinds], dtype=np.int16)
        return numbers[places].reshape(values.shape)

    def _find(self, value: int) -> int:
        if not self.by_color and value == self.ignore_index:
            return IGNORED
        number = self.numbers.get(value)
        if number is not None:
            return number
        if self.by_color:
            raise OSError(f"it has the color {list(unpack_color(value))}, which class_colors gives to no class: add it")
        raise OSError(
            f"it has the value {value}, which none of the {len(self.class_names)} classes has (0 to "
            f"{len(self.class_names) - 1}, and ignore_index {self.ignore_index}): add the class to class_names, or "
            "correct the mask"
        )


def pack_color(color: Sequence[int]) -> int:
    """Return a color as one number.

    Args:
        color: Red, green and blue from 0 to 255.
    """
    return color[0] << 16 | color[1] << 8 | color[2]


def unpack_color(value: int) -> Color:
    """Return red, green and blue of a number that `pack_color` gave.

    Args:
        value: Packed color.
    """
    return value >> 16, value >> 8 & 255, value & 255


def read_values(path: Path, by_color: bool) -> npt.NDArray[np.int64]:
    """Read the values of a mask, (H, W): of a palette or gray image its indices, or packed colors.

    Args:
        path: Path of the file.
        by_color: Whether to read colors, those of a palette or of gray included.

    Raises:
        OSError: It cannot be decoded, or is a color image where indices are expected.
    """
    with open_image_file(path) as file:
        if file.format == "DICOM":
            raise OSError("it is DICOM: write the mask of each frame as a PNG")
        if (count := count_pages(file)) > 1:
            raise OSError(f"it holds {count:,} images: write each, with the image that it belongs to, as a file of one")
        image = ImageOps.exif_transpose(file)
        if by_color:
            colors = np.asarray(image.convert("RGB"), dtype=np.int64)
            return colors[..., 0] << 16 | colors[..., 1] << 8 | colors[..., 2]
        if image.mode not in _INDEX_MODES:
            what = "a color image" if image.mode in _COLOR_MODES else f"an image of mode {image.mode}"
            raise OSError(
                f"it is {what}, and masks hold numbers of classes: name their colors by class_colors, such as "
                "{road: [128, 64, 128]}, or save them as gray or palette PNG"
            )
        return np.asarray(image).astype(np.int64)


def upright_size(path: Path) -> tuple[int, int]:
    """Return width and height of an image in pixels, turned as its EXIF says, without decoding it.

    Args:
        path: Path of the file.

    Raises:
        OSError: It is not an image.
    """
    with open_image_file(path) as file:
        turned = file.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        return (file.height, file.width) if turned else file.size


def find_mask_problem(image: Path, mask: Path, coding: MaskCoding) -> str | None:
    """Return why a mask cannot be used with its image, as a clause that names the mask, or None.

    Args:
        image: Path of the image.
        mask: Path of the mask.
        coding: Meaning of its values.
    """
    name = show_path(mask)
    try:
        height, width = coding.read(mask).shape
    except OSError as error:
        return f"{MASK_PROBLEM} '{name}' is refused ({str(error).strip()})"
    sides = upright_size(image)
    if (width, height) != sides:
        has = f"{width} x {height} pixels, and the image {sides[0]} x {sides[1]}"
        return f"{MASK_PROBLEM} '{name}' has {has}: {WRONG_SIZE}"
    return None


def cut_mask(mask: npt.NDArray[np.int16], size: int, box: tuple[float, float, float, float]) -> npt.NDArray[np.int16]:
    """Cut a rectangle out of a mask and resize it by the nearest pixel, where `cut_out` puts the same of its image.

    Args:
        mask: Numbers of classes, (H, W).
        size: Side of the result in pixels.
        box: Left, top, right and bottom in pixels of the mask, possibly fractional or beyond it.

    Returns:
        int16, (size, size); -1 beyond the mask.
    """
    inner, columns, rows = place_box((mask.shape[1], mask.shape[0]), size, box)
    made = np.full((size, size), IGNORED, dtype=np.int16)
    if inner[0] < inner[2] and inner[1] < inner[3]:
        across = _nearest(inner[0], inner[2], columns[1] - columns[0], mask.shape[1])
        down = _nearest(inner[1], inner[3], rows[1] - rows[0], mask.shape[0])
        made[rows[0] : rows[1], columns[0] : columns[1]] = mask[down[:, None], across[None]]
    return made


def _nearest(first: float, last: float, count: int, length: int) -> npt.NDArray[np.int64]:
    """Return the position of the pixel under the center of each of `count` equal steps from first to last."""
    centers = first + (np.arange(count) + 0.5) / count * (last - first)
    return np.clip(np.floor(centers), 0, length - 1).astype(np.int64)


def make_palette(count: int, named: dict[int, Color]) -> list[Color]:
    """Return a color for each class: those of the data, and otherwise those of PASCAL VOC, well apart.

    Args:
        count: Number of classes.
        named: Colors that the data names, by class.
    """
    return [named.get(k, _make_color(k)) for k in range(count)]


def _make_color(number: int) -> Color:
    channels = [0, 0, 0]
    for bit in range(8):  # three bits of the number give one bit of each channel, the highest first
        for channel in range(3):
            channels[channel] |= (number >> (3 * bit + channel) & 1) << (7 - bit)
    return channels[0], channels[1], channels[2]


def save_mask(path: Path, mask: npt.NDArray[np.int16], palette: Sequence[Color], ignored: int = 255) -> None:
    """Save a mask as a palette PNG of 8 bits, or as gray of 16 bits where there are more than 255 classes.

    Args:
        path: Path of the file; its folder exists.
        mask: Numbers of classes, (H, W); -1 where a pixel has none.
        palette: Color of each class.
        ignored: Value of pixels without a class.
    """
    if len(palette) > 255:
        Image.fromarray(np.where(mask < 0, 2**16 - 1, mask).astype(np.uint16)).save(path)
        return
    image = Image.fromarray(np.where(mask < 0, ignored, mask).astype(np.uint8))
    colors = [channel for color in palette for channel in color]
    image.putpalette(colors + [0] * (3 * 255 - len(colors)) + [255, 255, 255])
    image.save(path)

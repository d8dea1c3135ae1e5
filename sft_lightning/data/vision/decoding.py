"""Decode an image file to 8-bit gray or RGB, in bounded memory."""

from io import BytesIO
from pathlib import Path

from PIL import ExifTags, Image, ImageCms, ImageFile, ImageOps

from sft_lightning.data.vision.image_files import DEEP_MODES, LARGE, limit_large_images, open_image_file
from sft_lightning.data.vision.value_ranges import UNKNOWN, ValueRanges, to_eight_bits

DECODING = 3  # raised where files become other pixels than before: caches of them, or of features, are made anew


def open_image(
    path: str | Path | BytesIO,
    channels: int = 3,
    background: tuple[int, int, int] = (255, 255, 255),
    min_side: int | None = None,
    ranges: ValueRanges = UNKNOWN,
) -> Image.Image:
    """Decodes a file to 8-bit gray or RGB, upright, first frame, transparency laid over a background.

    Color profiles and gamma values in files are ignored.

    Args:
        path: PNG, JPEG, WebP, BMP, TIFF or GIF, in any mode that Pillow reads; or its bytes.
        channels: 1 or 3.
        background: Color under transparent pixels.
        min_side: A JPEG is decoded to an eighth, a quarter or half of its size where its shorter side stays that long
            and both are whole numbers, which takes a third of the time or less (libjpeg's scaled inverse DCT); None for
            the whole size. What is made of it then differs from what is made of the whole by 0.2 to 0.8 of 255 on
            average (photographs of 2000x1500 at 224, and of 640x424 with fine detail at 100). Any image of more than
            33 megapixels is reduced by averages of whole pixels as far as its shorter side stays that long.
        ranges: What is black and white in images of more than 8 bits.

    Raises:
        OSError: The file is missing, empty, truncated or no picture.
    """
    with open_image_file(path) as file:
        return convert_image(file, channels, background, min_side, ranges)


def convert_image(
    file: Image.Image,
    channels: int,
    background: tuple[int, int, int],
    min_side: int | None = None,
    ranges: ValueRanges = UNKNOWN,
) -> Image.Image:
    """Decode an open file as `open_image` does, for callers that ask more of the file than its pixels.

    Args:
        file: From `open_image_file`. Its pixels are loaded afterward.
        channels: 1 or 3.
        background: Color under transparent pixels.
        min_side: Least length of the shorter side, see `open_image`.
        ranges: What is black and white in images of more than 8 bits.

    Raises:
        OSError: The content cannot be decoded.
    """
    if min_side is not None and file.format in ("JPEG", "MPO"):
        # Sides that k does not divide would be rounded up, and the picture be shifted by a part of a pixel, which
        # does not count in a large one.
        large = file.width * file.height > LARGE
        parts = next(
            (k for k in (8, 4, 2) if min(file.size) >= k * min_side and (large or not any(n % k for n in file.size))),
            1,
        )
        if parts > 1:
            file.draft(None, (file.width // parts, file.height // parts))
    with limit_large_images(file.size):
        file.load()
        image: Image.Image = file
        if file.mode in DEEP_MODES:  # before the image is turned, which takes a second one of its size
            image = to_eight_bits(file, ranges)
            image.getexif()[ExifTags.Base.Orientation] = file.getexif().get(ExifTags.Base.Orientation, 1)
        ImageOps.exif_transpose(image, in_place=True)
        if image.width * image.height <= LARGE:
            return _flatten(image, channels, background)
        factor = 1 if min_side is None else max(1, min(image.size) // min_side)
        return _flatten_in_strips(image, channels, background, factor)


def _flatten(image: Image.Image, channels: int, background: tuple[int, int, int]) -> Image.Image:
    """Lays an image of 8 bits over a background, and converts it to gray or RGB."""
    if image.mode == "P" and image.has_transparency_data:
        image = _flatten_palette(image, background)
    elif image.has_transparency_data:
        image = _lay_over(image, background)
    if image.mode == "RGB" and channels == 3 and not isinstance(image, ImageFile.ImageFile):
        return image  # made here; `convert` would copy it
    if image.mode == "LAB":  # which Pillow converts by color profiles only
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, *profiles, outputMode="RGB") or image
    return image.convert("L" if channels == 1 else "RGB")


def _lay_over(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    over = image if image.mode == "RGBA" else image.convert("RGBA")
    made = Image.new("RGB", over.size, background)
    made.paste(over, mask=over)  # the same as `alpha_composite` over opaque pixels, in a third of the time
    return made


def _flatten_palette(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Lay the 256 colors over the background in place of all pixels."""
    colors = image.crop((0, 0, 256, 1))
    colors.putdata(range(256))
    made = image.copy()
    made.info.pop("transparency", None)
    made.putpalette(_lay_over(colors, background).tobytes())
    return made.convert("RGB")  # Pillow rounds gray otherwise where it is made of a palette


_STRIP = 2**22  # pixels


def _flatten_in_strips(image: Image.Image, channels: int, background: tuple[int, int, int], factor: int) -> Image.Image:
    """Does the same to a large image without a copy of it, and averages squares of pixels.

    Args:
        image: Loaded, of 8 bits.
        channels: 1 or 3.
        background: Color under transparent pixels.
        factor: Side of the squares in pixels.
    """
    size = image.width // factor, image.height // factor
    left, start = image.width % factor // 2, image.height % factor // 2  # what is left over goes from both borders
    made = Image.new("L" if channels == 1 else "RGB", size)
    rows = factor * max(1, _STRIP // (image.width * factor))
    for top in range(0, size[1] * factor, rows):
        height = min(rows, size[1] * factor - top)
        box = (left, start + top, left + size[0] * factor, start + top + height)
        strip = _flatten(image.crop(box), channels, background)
        made.paste(strip.reduce(factor) if factor > 1 else strip, (0, top // factor))
    return made

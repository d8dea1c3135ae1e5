"""Decode an image file to 8-bit gray or RGB, in bounded memory."""

from io import BytesIO
from pathlib import Path

from PIL import ExifTags, Image, ImageCms, ImageFile, ImageOps

from sft_lightning.data.vision.image_files import DEEP_MODES, LARGE, limit_large_images, open_image_file
from sft_lightning.data.vision.value_ranges import UNKNOWN, ValueRanges, to_eight_bits

DECODING = 4  # version of the decoder, part of the keys of caches of pixels and features: raise it when pixels change


def open_image(
    path: str | Path | BytesIO,
    channels: int = 3,
    background: tuple[int, int, int] = (255, 255, 255),
    min_side: int | None = None,
    ranges: ValueRanges = UNKNOWN,
) -> Image.Image:
    """Decode the first frame of a file to 8-bit gray or RGB, upright, with transparency laid over a background.

    Color profiles and gamma values in files are ignored.

    Args:
        path: Path of a PNG, JPEG, WebP, BMP, TIFF or GIF in any mode that Pillow reads, or its bytes.
        channels: Number of channels: 1 or 3.
        background: Color under transparent pixels.
        min_side: Minimum length of the shorter side in pixels, or None to decode at full size. A JPEG is decoded at an
            eighth, a quarter or half of its size where its shorter side stays that long and both sides are divisible,
            which takes a third of the time or less (libjpeg's scaled inverse DCT). Resized images then differ from
            those of a full decode by 0.2 to 0.8 of 255 on average (photographs of 2000x1500 at 224, and of 640x424 with
            fine detail at 100). An image of more than 33 megapixels is reduced by averaging squares of pixels as far
            as its shorter side stays that long.
        ranges: Values of black and white in images of more than 8 bits.

    Raises:
        OSError: The file is missing, empty, truncated or not an image.
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
    """Decode an open file as `open_image` does, for callers that need more from the file than its pixels.

    Args:
        file: Image from `open_image_file`, whose pixels are loaded by this call.
        channels: Number of channels: 1 or 3.
        background: Color under transparent pixels.
        min_side: Minimum length of the shorter side in pixels, as in `open_image`.
        ranges: Values of black and white in images of more than 8 bits.

    Raises:
        OSError: The content cannot be decoded.
    """
    if min_side is not None and file.format in ("JPEG", "MPO"):
        # Sides that k does not divide would be rounded up and shift the image by a fraction of a pixel, which is
        # negligible in a large image.
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
        if file.mode in DEEP_MODES:  # before the rotation, which needs memory for a second image
            image = to_eight_bits(file, ranges)
            image.getexif()[ExifTags.Base.Orientation] = file.getexif().get(ExifTags.Base.Orientation, 1)
        ImageOps.exif_transpose(image, in_place=True)
        if image.width * image.height <= LARGE:
            return _flatten(image, channels, background)
        factor = 1 if min_side is None else max(1, min(image.size) // min_side)
        return _flatten_in_strips(image, channels, background, factor)


def _flatten(image: Image.Image, channels: int, background: tuple[int, int, int]) -> Image.Image:
    """Lay an 8-bit image over a background, and convert it to gray or RGB."""
    if image.mode == "P" and image.has_transparency_data:
        image = _flatten_palette(image, background)
    elif image.has_transparency_data:
        image = _lay_over(image, background)
    if image.mode == "RGB" and channels == 3 and not isinstance(image, ImageFile.ImageFile):
        return image  # already a new image; `convert` would copy it
    if image.mode == "LAB":  # Pillow converts this mode only with color profiles
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
    return made.convert("RGB")  # converting a palette straight to gray would round differently


_STRIP = 2**22  # pixels


def _flatten_in_strips(image: Image.Image, channels: int, background: tuple[int, int, int], factor: int) -> Image.Image:
    """Lay a large image over a background without copying it, and average squares of pixels.

    Args:
        image: Loaded 8-bit image.
        channels: Number of channels: 1 or 3.
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

"""DICOM files as images of Pillow: each frame in the units of the file (such as Hounsfield), with its window.

Importing this module teaches Pillow to open them; pydicom (extra `dicom`) is imported with the first one.
"""

from typing import Any

import numpy as np
from PIL import Image, ImageFile

from sft_lightning.data.vision.dicom_header import EXTENSIONS, MAGIC, PREAMBLE, DicomHeader, FrameValues, read_header

WINDOW, WHITE_IS_ZERO = "window", "white_is_zero"  # entries of `Image.info`
_VIDEO = "1.2.840.10008.1.2.4.10"  # beginning of the names of MPEG and HEVC
_TOP = 2**31 - 1  # largest value that Pillow's mode `I` holds


def _shorten(error: Exception) -> str:
    """Return the first line of a message, which may list every package that pydicom has tried."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(":")


class DicomImageFile(ImageFile.ImageFile):
    """Frames of a DICOM file: `I` or `F` in the units of the file, `L` up to 8 bits without units, or `RGB`."""

    format = "DICOM"
    format_description = "Digital Imaging and Communications in Medicine"
    n_frames: int

    def _open(self) -> None:
        assert self.fp is not None
        if self.fp.read(PREAMBLE + len(MAGIC))[PREAMBLE:] != MAGIC:
            raise SyntaxError("not a DICOM file")
        try:
            self._file: DicomHeader = read_header(self.fp)  # type: ignore[arg-type]
            self._header = self._file.data
            self._size = int(self._header.Columns), int(self._header.Rows)
            has_color = int(self._header.get("SamplesPerPixel", 1)) > 1
        except OSError:
            raise
        except Exception as error:  # pydicom raises anything for damaged files
            raise OSError(f"its DICOM header cannot be read ({_shorten(error)})") from error
        self.n_frames = len(self._file.frames)
        kind = str(self._header.get("PhotometricInterpretation", ""))
        self._mode = "RGB" if has_color or kind == "PALETTE COLOR" else self._find_gray_mode()
        if kind == "MONOCHROME1":
            self.info[WHITE_IS_ZERO] = True
        self.tile = []
        self.seek(0)

    def seek(self, frame: int) -> None:
        """Go to a frame.

        Args:
            frame: Number of the frame, counted from 0.

        Raises:
            EOFError: There are fewer.
        """
        if not 0 <= frame < self.n_frames:
            raise EOFError(f"it has {self.n_frames} frames")
        self._frame, self._im = frame, None
        self.info.pop(WINDOW, None)
        if (window := self._values.window) is not None and self._mode in ("I", "F"):
            self.info[WINDOW] = window

    def tell(self) -> int:
        """Return the number of the frame, counted from 0."""
        return self._frame

    @property
    def _values(self) -> FrameValues:
        return self._file.frames[self._frame]

    def _find_gray_mode(self) -> str:
        """Return `L` for values of up to 8 bits that have no unit, `I` for whole numbers and `F` for others.

        All frames have one mode, so that one scale is right for them.
        """
        scales = {(one.slope, one.start) for one in self._file.frames}
        bits, is_signed = int(self._header.get("BitsStored", 16)), int(self._header.get("PixelRepresentation", 0))
        is_whole = all(slope.is_integer() and start.is_integer() for slope, start in scales)
        largest = 2 ** (bits - 1) if is_signed else 2**bits - 1
        is_large = any(abs(slope) * largest + abs(start) > _TOP for slope, start in scales)
        if "ModalityLUTSequence" in self._header or not is_whole or is_large:
            return "F"
        return "L" if scales == {(1.0, 0.0)} and bits <= 8 and not is_signed else "I"

    def load(self) -> Any:
        """Decode the pixels once."""
        if self._im is None:
            self.im = Image.fromarray(self._decode()).im
        return Image.Image.load(self)

    def _read_stored(self) -> Any:
        """Return the stored values of the frame."""
        from pydicom import dcmread
        from pydicom.pixels.utils import pixel_array

        assert self.fp is not None
        self.fp.seek(0)
        try:
            if self.n_frames == 1:
                return dcmread(self.fp).pixel_array
            # Other frames are not read, except where all of the file is compressed as one.
            source = dcmread(self.fp) if self._file.is_deflated else self.fp
            return pixel_array(source, index=self._frame)  # type: ignore[arg-type]
        except Exception as error:
            raise OSError(f"its pixels cannot be decoded ({_shorten(error)}){self._find_remedy()}") from error

    def _find_remedy(self) -> str:
        """Return what may help to decode the pixels."""
        syntax = self._header.file_meta.get("TransferSyntaxUID")
        if syntax is None or not self._file.is_compressed:
            return ""
        if syntax.startswith(_VIDEO):
            return "; it is a video: write its frames as images"
        package = "pylibjpeg-openjpeg" if "2000" in syntax.name else "pylibjpeg-libjpeg"
        return f"; it is compressed as {syntax.name}, which may need pip install pylibjpeg {package}"

    def _decode(self) -> Any:
        from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

        values = self._read_stored()
        if self.mode == "RGB":
            if str(self._header.PhotometricInterpretation) == "PALETTE COLOR":
                values = apply_color_lut(values, self._header)
            if values.dtype != np.uint8:
                values = (values >> (8 * values.dtype.itemsize - 8)).astype(np.uint8)
            return np.ascontiguousarray(values)
        if self.mode == "L":
            values = (values.astype(np.uint16) * 255 // (2 ** int(self._header.BitsStored) - 1)).astype(np.uint8)
            return 255 - values if self.info.get(WHITE_IS_ZERO) else values
        is_padding = self._find_padding(values)
        if "ModalityLUTSequence" in self._header:
            values = np.asarray(apply_modality_lut(values, self._header), dtype=np.float64)
        else:
            values = values.astype(np.float64) * self._values.slope + self._values.start
        if is_padding is not None and not is_padding.all():
            measured = values[~is_padding]  # the area around the body was not: it becomes black
            values[is_padding] = measured.max() if self.info.get(WHITE_IS_ZERO) else measured.min()
        return values.astype(np.int32 if self.mode == "I" else np.float32)

    def _find_padding(self, values: Any) -> Any:
        """Return where nothing was measured, by the stored values that the file names for it; None where it does not.

        Many files name a negative value as if it were unsigned, 63536 for -2000.
        """
        named = [self._header.get(f"PixelPadding{name}") for name in ("Value", "RangeLimit")]
        if named[0] is None:
            return None
        ends = np.array([int(end) for end in named if end is not None]).astype(values.dtype)
        return (values >= ends.min()) & (values <= ends.max())


Image.preinit()  # common formats are tried first
Image.register_open(DicomImageFile.format, DicomImageFile)
Image.register_extensions(DicomImageFile.format, [*EXTENSIONS])

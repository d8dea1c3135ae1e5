"""DICOM files as images of Pillow: one frame, in the units of the file (such as Hounsfield), with its window.

Importing this module teaches Pillow to open them; pydicom (extra `dicom`) is imported with the first one.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile

EXTENSIONS = (".dcm", ".dicom")
WINDOW, WHITE_IS_ZERO = "window", "white_is_zero"  # entries of `Image.info`
_PREAMBLE, _MAGIC = 128, b"DICM"
_PATIENT = ["PatientID", "StudyInstanceUID"]
_COMPRESSED = "rare ways of compression need pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"


def has_dicom_content(path: str | Path) -> bool:
    """Return whether a file has the marker of DICOM.

    Args:
        path: Path of the file.

    Raises:
        OSError: The file cannot be read.
    """
    with open(path, "rb") as file:
        return file.read(_PREAMBLE + len(_MAGIC))[_PREAMBLE:] == _MAGIC


def find_patients(paths: Sequence[Path]) -> list[str] | None:
    """Return the patient of each DICOM file, so that a split never divides one; None where no file is DICOM.

    A patient is a hash of the file's patient ID, or of its study where that is blank, so that no ID is written to the
    files of a run. Other files and unreadable ones get an empty text.

    Args:
        paths: Paths of the files.
    """
    found = [_find_patient(path) if path.suffix.lower() in ("", *EXTENSIONS) else "" for path in paths]
    return found if any(found) else None


def _find_patient(path: Path) -> str:
    try:
        if not has_dicom_content(path):
            return ""
        read = _import_pydicom().dcmread
        header = read(path, stop_before_pixels=True, specific_tags=_PATIENT)
    except Exception:  # a damaged file, which is reported when all files are inspected
        return ""
    name = next((str(header.get(tag)) for tag in _PATIENT if header.get(tag)), "")
    return hashlib.sha256(name.encode()).hexdigest()[:16] if name else ""


def _import_pydicom() -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise OSError("it is DICOM, which needs the extra 'dicom': pip install 'sft-lightning[dicom]'") from error
    return pydicom


def _shorten(error: Exception) -> str:
    """Return the first line of a message, which may list every package that pydicom has tried."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(":")


class DicomImageFile(ImageFile.ImageFile):
    """One frame of a DICOM file: `I` or `F` in the units of the file, `L` up to 8 bits without units, or `RGB`."""

    format = "DICOM"
    format_description = "Digital Imaging and Communications in Medicine"

    def _open(self) -> None:
        assert self.fp is not None
        if self.fp.read(_PREAMBLE + len(_MAGIC))[_PREAMBLE:] != _MAGIC:
            raise SyntaxError("not a DICOM file")
        self.fp.seek(0)
        self._pydicom = _import_pydicom()
        try:
            self._header = self._pydicom.dcmread(self.fp)
            if "Columns" not in self._header:
                raise ValueError("it describes no image")
            frames = int(self._header.get("NumberOfFrames") or 1)
            self._size = int(self._header.Columns), int(self._header.Rows)
            has_color = int(self._header.get("SamplesPerPixel", 1)) > 1
        except Exception as error:  # pydicom raises anything for damaged files
            raise OSError(f"its DICOM header cannot be read ({_shorten(error)})") from error
        if frames > 1:
            raise OSError(f"it holds {frames} frames: write each of them to a file of its own")
        kind = str(self._header.get("PhotometricInterpretation", ""))
        self._mode = "RGB" if has_color or kind == "PALETTE COLOR" else self._find_gray_mode()
        if kind == "MONOCHROME1":
            self.info[WHITE_IS_ZERO] = True
        if (window := self._find_window()) is not None and self._mode in ("I", "F"):
            self.info[WINDOW] = window
        self.tile = []

    def _find_gray_mode(self) -> str:
        """Return `L` for values of up to 8 bits that have no unit, `I` for whole numbers and `F` for others."""
        slope, start = float(self._header.get("RescaleSlope", 1)), float(self._header.get("RescaleIntercept", 0))
        bits, is_signed = int(self._header.get("BitsStored", 16)), int(self._header.get("PixelRepresentation", 0))
        if "ModalityLUTSequence" in self._header or not (slope.is_integer() and start.is_integer()):
            return "F"
        return "L" if (slope, start) == (1, 0) and bits <= 8 and not is_signed else "I"

    def _find_window(self) -> tuple[float, float] | None:
        """Return the values of black and white of the first window that the file states, if any."""
        center, width = (self._header.get(name) for name in ("WindowCenter", "WindowWidth"))
        try:
            first = [float(one[0] if isinstance(one, Sequence) and not isinstance(one, str) else one)
                     for one in (center, width)]  # fmt: skip
        except (TypeError, ValueError, IndexError):
            return None
        return (first[0] - first[1] / 2, first[0] + first[1] / 2) if first[1] > 0 else None

    def load(self) -> Any:
        """Decode the pixels once."""
        if self._im is None:
            self.im = Image.fromarray(self._decode()).im
        return Image.Image.load(self)

    def _decode(self) -> Any:
        from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

        try:
            values = self._header.pixel_array
        except Exception as error:
            raise OSError(f"its pixels cannot be decoded ({_shorten(error)}); {_COMPRESSED}") from error
        if self.mode == "RGB":
            if str(self._header.PhotometricInterpretation) == "PALETTE COLOR":
                values = apply_color_lut(values, self._header)
            if values.dtype != np.uint8:
                values = (values >> (8 * values.dtype.itemsize - 8)).astype(np.uint8)
            return np.ascontiguousarray(values)
        if self.mode == "L":
            values = (values.astype(np.uint16) * 255 // (2 ** int(self._header.BitsStored) - 1)).astype(np.uint8)
            return 255 - values if self.info.get(WHITE_IS_ZERO) else values
        padding = self._header.get("PixelPaddingValue")
        is_padding = None if padding is None else values == padding
        values = np.asarray(apply_modality_lut(values, self._header), dtype=np.float64)
        if is_padding is not None and not is_padding.all():
            values[is_padding] = values[~is_padding].min()  # the area around the body was not measured
        return values.astype(np.int32 if self.mode == "I" else np.float32)


Image.preinit()  # common formats are tried first
Image.register_open(DicomImageFile.format, DicomImageFile)

"""Headers of DICOM files: whether a file is one, its patient, its frames, and the units and window of each frame."""

import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from sft_lightning.data.frames import split_path

EXTENSIONS = (".dcm", ".dicom")
# Names of other formats, which are not opened to find out whether they are DICOM. All others are: files of a hospital
# are often named by their UID, whose last number looks like an extension.
OTHER_EXTENSIONS = frozenset((".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".pgm", ".ppm"))
PREAMBLE, MAGIC = 128, b"DICM"
_PATIENT = ["PatientID", "StudyInstanceUID"]
_COUNTED = ["NumberOfFrames", "Rows", "Columns", "SamplesPerPixel", "BitsAllocated"]
_LEAST = 8  # bytes that a frame takes at least: the header of a compressed one
_DEFLATED = "1.2.840.10008.1.2.1.99"
_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", _DEFLATED)
_INFLATED = 1032  # largest ratio by which deflate compresses


class FrameValues(NamedTuple):
    """What the values of a frame mean.

    Attributes:
        slope: Factor from stored values to the units of the file.
        start: What is added to the product.
        window: Values of black and white, or None.
    """

    slope: float
    start: float
    window: tuple[float, float] | None


@dataclass(frozen=True)
class DicomHeader:
    """Header of a file without its pixels.

    Attributes:
        data: Data set of pydicom.
        frames: What the values of each frame mean.
    """

    data: Any
    frames: list[FrameValues]

    @property
    def is_compressed(self) -> bool:
        """Whether each frame is compressed for itself."""
        return self.data.file_meta.get("TransferSyntaxUID") not in _NATIVE

    @property
    def is_deflated(self) -> bool:
        """Whether the file is compressed as a whole."""
        return bool(self.data.file_meta.get("TransferSyntaxUID") == _DEFLATED)


def import_pydicom() -> Any:
    """Import pydicom.

    Raises:
        OSError: It is not installed.
    """
    try:
        import pydicom
    except ImportError as error:
        raise OSError("it is DICOM, which needs the extra 'dicom': pip install 'sft-lightning[dicom]'") from error
    return pydicom


def has_dicom_content(path: str | Path) -> bool:
    """Return whether a file has the marker of DICOM.

    Args:
        path: Path of the file.

    Raises:
        OSError: The file cannot be read.
    """
    with open(path, "rb") as file:
        return file.read(PREAMBLE + len(MAGIC))[PREAMBLE:] == MAGIC


def find_patients(paths: Sequence[Path]) -> list[str] | None:
    """Return the patient of each DICOM file, so that a split never divides one; None where no file is DICOM.

    A patient is a hash of the file's patient ID, or of its study where that is blank, so that no ID is written to the
    files of a run. Other files and unreadable ones get an empty text.

    Args:
        paths: Paths of files or of frames.
    """
    found = [_identify(split_path(path)[0]).patient for path in paths]
    return found if any(found) else None


def count_frames(path: str | Path) -> int:
    """Return the number of frames of a DICOM file, and 1 for any other file, an unreadable one, and a frame.

    Args:
        path: Path of a file or of a frame.
    """
    file, number = split_path(path)
    return 1 if number is not None else _identify(file).frames


class _Identity(NamedTuple):
    patient: str = ""
    frames: int = 1


def _identify(path: str) -> _Identity:
    if os.path.splitext(path)[1].lower() in OTHER_EXTENSIONS:
        return _Identity()
    try:
        return _read_identity(path, *_read_state(path))
    except Exception:  # a damaged file, which is reported when all files are inspected
        return _Identity()


def _read_state(path: str) -> tuple[int, int, int]:
    at = os.stat(path)
    if not stat.S_ISREG(at.st_mode):  # a pipe would wait for its writer
        raise OSError(f"{path!r} is not a regular file")
    return at.st_size, at.st_mtime_ns, at.st_ino


@lru_cache(maxsize=2**16)
def _read_identity(path: str, size: int, *state: int) -> _Identity:
    if not has_dicom_content(path):
        return _Identity()
    header = import_pydicom().dcmread(path, stop_before_pixels=True, specific_tags=[*_PATIENT, *_COUNTED])
    name = next((str(header.get(tag)) for tag in _PATIENT if header.get(tag)), "")
    patient = hashlib.sha256(name.encode()).hexdigest()[:16] if name else ""
    try:
        return _Identity(patient, check_frames(header, size))
    except Exception:  # as above
        return _Identity(patient)


def check_frames(header: Any, size: int) -> int:
    """Return the number of frames that a header states.

    Args:
        header: Data set of pydicom with what describes the pixels.
        size: Length of the file in bytes.

    Raises:
        ValueError: The file is too short for them: it is cut off, or the number is wrong.
    """
    frames = int(header.get("NumberOfFrames") or 1)
    if frames <= 1:
        return 1
    syntax, least = header.file_meta.TransferSyntaxUID, float(_LEAST)
    if syntax in _NATIVE:
        pixels = int(header.Rows) * int(header.Columns) * int(header.get("SamplesPerPixel", 1))
        ratio = _INFLATED if syntax == _DEFLATED else 1
        chroma = 2 / 3 if header.get("PhotometricInterpretation") == "YBR_FULL_422" else 1
        least = pixels * int(header.get("BitsAllocated", 8)) / 8 * chroma / ratio
    if frames * least > size:
        raise ValueError(
            f"it states {frames:,} frames, which take {frames * least:,.0f} bytes or more, and has {size:,}: it is cut "
            "off or damaged"
        )
    return frames


def read_header(file: BinaryIO) -> DicomHeader:
    """Read the header of an open file; those of the last files are kept, as each of their frames asks for it.

    Args:
        file: File, at its beginning.

    Raises:
        Exception: The file is damaged; pydicom raises anything.
    """
    name = getattr(file, "name", None)
    if isinstance(name, str | Path):
        path = os.path.abspath(name)
        return _read_named(path, *_read_state(path))
    return _parse(file, file.seek(0, os.SEEK_END))


@lru_cache(maxsize=16)
def _read_named(path: str, size: int, *state: int) -> DicomHeader:
    with open(path, "rb") as file:
        return _parse(file, size)


def _parse(file: BinaryIO, size: int) -> DicomHeader:
    file.seek(0)
    data = import_pydicom().dcmread(file, stop_before_pixels=True)
    if "Columns" not in data:
        raise ValueError("it describes no image")
    count = check_frames(data, size)
    shared, own = (data.get(f"{kind}FunctionalGroupsSequence") or [] for kind in ("Shared", "PerFrame"))
    if own and len(own) < count:
        raise ValueError(f"its functional groups describe {len(own):,} frames, and it has {count:,}")
    for kind in ("Shared", "PerFrame"):  # which take most of the memory
        data.pop(f"{kind}FunctionalGroupsSequence", None)
    groups = [[*own[k : k + 1], *shared[:1]] for k in range(count)] if own else [[*shared[:1]]] * count
    return DicomHeader(data, [_read_values(data, found) for found in groups])


def _read_values(data: Any, groups: Sequence[Any]) -> FrameValues:
    """Return what values mean: by the functional groups of the frame, those of all frames, or the file itself."""

    def find(sequence: str) -> Any:
        return next((group.get(sequence)[0] for group in groups if group.get(sequence)), data)

    units = find("PixelValueTransformationSequence")
    slope, start = (float(value) if (value := units.get(f"Rescale{name}")) is not None else default
                    for name, default in (("Slope", 1.0), ("Intercept", 0.0)))  # fmt: skip
    return FrameValues(slope, start, _read_window(find("FrameVOILUTSequence")))


def _read_window(item: Any) -> tuple[float, float] | None:
    """Return the values of black and white of the first window that is stated, if any."""
    center, width = (item.get(name) for name in ("WindowCenter", "WindowWidth"))
    try:
        first = [float(one[0] if isinstance(one, Sequence) and not isinstance(one, str) else one)
                 for one in (center, width)]  # fmt: skip
    except (TypeError, ValueError, IndexError):
        return None
    return (first[0] - first[1] / 2, first[0] + first[1] / 2) if first[1] > 0 else None

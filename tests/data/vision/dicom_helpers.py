"""Write DICOM files: slices of 16 bits, and volumes of several frames with functional groups."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
REAL = Path(pydicom.__file__).parent / "data" / "test_files"


def write_slice(path: Path, values: Any, patient: str = "anna", **tags: Any) -> Path:
    """Write gray values of 16 bits as one frame, (H, W), or as several, (frames, H, W)."""
    made = pydicom.Dataset()
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = pydicom.uid.CTImageStorage
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = pydicom.uid.generate_uid()
    made.StudyInstanceUID = f"1.2.{len(path.name)}"
    made.PatientID, made.PatientName = patient, "Doe^Jane"
    pixels = np.asarray(values, dtype=np.int16)
    made.Rows, made.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        made.NumberOfFrames = len(pixels)
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 16, 15, 1
    made.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(made, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)
    return path


def ramp(start: int = 0) -> Any:
    """Return a slice of 8 x 8 different values."""
    return start + np.arange(64).reshape(8, 8)


def stack(*starts: int) -> Any:
    """Return a volume whose frames begin with these values."""
    return np.stack([ramp(start) for start in starts])


def groups(**values: Sequence[Any]) -> list[Any]:
    """Return the functional groups of frames: `units` are slopes and intercepts, `windows` centers and widths."""
    made = []
    for k in range(len(next(iter(values.values())))):
        item = pydicom.Dataset()
        for name, sequence, first, second in (
            ("units", "PixelValueTransformationSequence", "RescaleSlope", "RescaleIntercept"),
            ("windows", "FrameVOILUTSequence", "WindowCenter", "WindowWidth"),
        ):
            if name in values:
                inner = pydicom.Dataset()
                for tag, value in zip((first, second), values[name][k], strict=True):
                    setattr(inner, tag, value)
                setattr(item, sequence, [inner])
        made.append(item)
    return made

"""Decide which files hold images."""

import os
import re
import stat

from sft_lightning.data.bad_examples import UNREADABLE
from sft_lightning.data.listed_files import FileKind, is_system_folder as is_system_folder
from sft_lightning.data.vision.dicom_header import EXTENSIONS as DICOM, has_dicom_content
from sft_lightning.data.vision.image_files import open_image_file
from sft_lightning.data.vision.image_frames import SLICES, VOLUMES

# Files with these extensions are read as images, and refused if they are broken.
EXTENSIONS = (
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif",
    ".jfif", ".jpe", ".pjpeg", ".pjp", ".mpo", ".apng", ".dib", ".ico", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm",
    ".avif", ".avifs", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".tga", ".icb", ".vda", ".vst", ".qoi", ".pcx",
    ".sgi", ".ras", ".dds", *DICOM,
)  # fmt: skip
# Formats that Pillow cannot open, or of which it would open only a thumbnail.
UNSUPPORTED = (
    ".heic", ".heif", ".hif", ".jxl", ".jxr", ".dng", ".nef", ".nrw", ".cr2", ".cr3", ".crw", ".arw", ".srf", ".sr2",
    ".orf", ".rw2", ".raf", ".pef", ".srw", ".x3f", ".3fr", ".iiq", ".kdc", ".dcr", ".mrw", ".erf", ".rwl",
    *VOLUMES, ".svs", ".ndpi", ".mrxs", ".svg", ".eps", ".ai",
)  # fmt: skip
# Files that often accompany images, and are not opened to find out what they are: there may be 100,000 annotations.
_OTHERS = {
    ".txt", ".json", ".jsonl", ".xml", ".csv", ".tsv", ".md", ".rst", ".yaml", ".yml", ".toml", ".html", ".htm", ".pdf",
    ".doc", ".docx", ".xls", ".xlsx", ".npy", ".npz", ".pt", ".pth", ".pkl", ".h5", ".hdf5", ".mat", ".parquet", ".bin",
    ".safetensors", ".ckpt", ".zip", ".gz", ".tar", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".py", ".ipynb", ".sh", ".db",
    ".ini", ".log", ".lnk", ".url", ".xmp", ".aae", ".thm", ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mp3",
    ".wav", ".exe", ".dll", ".tmp", ".part", ".crdownload", ".sha256", ".md5",
}  # fmt: skip
_SIGNATURES = (
    b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+",
    b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51", b"8BPS", b"qoif",
)  # fmt: skip
_INDEX = "DICOMDIR"  # lists the files of a disc of scans, and is DICOM itself
_SHORT = re.compile(rb"BM|P[1-6fF][\s#]|\x00\x00\x01\x00")  # too short to be sure: such a file is opened


def has_image_content(path: str) -> bool:
    """Return whether a file without the extension of an image begins like one that Pillow reads.

    Args:
        path: Path of the file. Files with the extension of another known format are not opened.
    """
    extension = os.path.splitext(path)[1].lower()
    if extension in _OTHERS or path.lower().endswith(UNSUPPORTED) or os.path.basename(path).upper() == _INDEX:
        return False
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would wait for its writer
            return False
        with open(path, "rb") as file:
            head = file.read(16)
        if _SHORT.match(head):
            with open_image_file(path):
                return True
    except UNREADABLE:
        return False
    is_webp, is_avif = head[:4] == b"RIFF" and head[8:12] == b"WEBP", head[4:12] in (b"ftypavif", b"ftypavis")
    return head.startswith(_SIGNATURES) or is_webp or is_avif or has_dicom_content(path)


_OF_VOLUMES = dict.fromkeys(VOLUMES, f"of volumes, {SLICES}")
IMAGES = FileKind(
    "image", "an image", EXTENSIONS, UNSUPPORTED, "convert them to JPEG or PNG", has_image_content, _OF_VOLUMES
)
is_named_image = IMAGES.is_named

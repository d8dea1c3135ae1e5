"""Decide which files and folders hold images, and count the ignored ones by kind."""

import os
import re
import stat
from collections import Counter
from dataclasses import dataclass, field

from sft_lightning.data.bad_examples import UNREADABLE, show_path
from sft_lightning.data.issues import Finding
from sft_lightning.data.vision.image_files import open_image_file

# Files with these extensions are read as images, and refused if they are broken.
EXTENSIONS = (
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif",
    ".jfif", ".jpe", ".pjpeg", ".pjp", ".mpo", ".apng", ".dib", ".ico", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm",
    ".avif", ".avifs", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".tga", ".icb", ".vda", ".vst", ".qoi", ".pcx",
    ".sgi", ".ras", ".dds",
)  # fmt: skip
# Formats that Pillow cannot open, or of which it would open only a thumbnail.
UNSUPPORTED = (
    ".heic", ".heif", ".hif", ".jxl", ".jxr", ".dng", ".nef", ".nrw", ".cr2", ".cr3", ".crw", ".arw", ".srf", ".sr2",
    ".orf", ".rw2", ".raf", ".pef", ".srw", ".x3f", ".3fr", ".iiq", ".kdc", ".dcr", ".mrw", ".erf", ".rwl", ".dcm",
    ".dicom", ".nii", ".svs", ".ndpi", ".mrxs", ".svg", ".eps", ".ai",
)  # fmt: skip
# Files that often accompany images, and are not opened to find out what they are: there may be 100,000 annotations.
_OTHERS = {
    ".txt", ".json", ".jsonl", ".xml", ".csv", ".tsv", ".md", ".rst", ".yaml", ".yml", ".toml", ".html", ".htm", ".pdf",
    ".doc", ".docx", ".xls", ".xlsx", ".npy", ".npz", ".pt", ".pth", ".pkl", ".h5", ".hdf5", ".mat", ".parquet", ".bin",
    ".safetensors", ".ckpt", ".zip", ".gz", ".tar", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".py", ".ipynb", ".sh", ".db",
    ".ini", ".log", ".lnk", ".url", ".xmp", ".aae", ".thm", ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mp3",
    ".wav", ".exe", ".dll", ".tmp", ".part", ".crdownload", ".sha256", ".md5",
}  # fmt: skip
# Folders that file servers, archivers and operating systems create: thumbnails, deleted files, metadata.
_LITTER = {
    "@eadir", "@__thumb", "@recycle", "@recently-snapshot", "@tmp", "@sharebin", "#recycle", "#snapshot", "__macosx",
    "__pycache__", "$recycle.bin", "system volume information", "lost+found", "found.000", "network trash folder",
    "temporary items", "thevolumesettingsfolder",
}  # fmt: skip
_SIGNATURES = (
    b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+",
    b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51", b"8BPS", b"qoif",
)  # fmt: skip
_SHORT = re.compile(rb"BM|P[1-6fF][\s#]|\x00\x00\x01\x00")  # too short to be sure: such a file is opened
_FEW = 5  # kinds that a message lists


def is_named_image(name: str) -> bool:
    """Return whether a file has the extension of an image.

    Args:
        name: Name of the file.
    """
    return name.lower().endswith(EXTENSIONS)


def is_system_folder(name: str) -> bool:
    """Return whether a folder is hidden or belongs to the system.

    Args:
        name: Name of the folder.
    """
    return name.startswith(".") or name.casefold() in _LITTER


def has_image_content(path: str) -> bool:
    """Return whether a file without the extension of an image begins like one that Pillow reads.

    Args:
        path: Path of the file. Files with the extension of another known format are not opened.
    """
    extension = os.path.splitext(path)[1].lower()
    if extension in _OTHERS or extension in UNSUPPORTED:
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
    return head.startswith(_SIGNATURES) or is_webp or is_avif


@dataclass
class IgnoredFiles:
    """Files and folders that a listing of images ignored.

    Attributes:
        kinds: Number of files by extension.
        folders: Number of hidden and system folders by name.
        hidden: Hidden images, the first few by name.
        hidden_count: Number of all hidden images.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    folders: Counter[str] = field(default_factory=Counter)
    hidden: list[str] = field(default_factory=list)
    hidden_count: int = 0

    def add_file(self, name: str) -> None:
        """Count an ignored file.

        Args:
            name: Name of the file.
        """
        if not name.startswith("."):
            extension = os.path.splitext(name)[1].lower()
            self.kinds[extension if re.fullmatch(r"\.\w{1,12}", extension) else ""] += 1
        elif is_named_image(name) and not name.startswith("._"):  # a Mac keeps metadata of cat.png in ._cat.png
            self.hidden_count += 1
            self.hidden = [*self.hidden, show_path(name)][:_FEW]

    def add_folder(self, name: str) -> None:
        """Count a hidden or system folder, whose content is not examined.

        Args:
            name: Name of the folder.
        """
        self.folders[show_path(name)] += 1

    def merge(self, other: "IgnoredFiles") -> None:
        """Add the counts of another listing.

        Args:
            other: Counts of the other listing.
        """
        self.kinds += other.kinds
        self.folders += other.folders
        self.hidden = [*self.hidden, *other.hidden][:_FEW]
        self.hidden_count += other.hidden_count

    def describe(self, folder: str) -> list[Finding]:
        """Return one finding for each reason to ignore files, or nothing where all were read.

        Args:
            folder: Folder that was listed.
        """
        where = f"in {show_path(folder)!r}"
        findings = []
        closed = Counter({kind: n for kind, n in self.kinds.items() if kind in UNSUPPORTED})
        for kinds, what, remedy in (
            (closed, "of a format that cannot be read", "; convert them to JPEG or PNG"),
            (self.kinds - closed, "that are not images", ""),
        ):
            if count := kinds.total():
                files = f"1 file {where} {what.replace('are not images', 'is not an image')}"
                files = f"{count:,} files {where} {what}" if count > 1 else files
                message = f"ignored {files}: {_format_counts(kinds)}{remedy}"
                findings.append(Finding("ignored", message, [kind for kind in sorted(kinds) if kind]))
        if self.hidden_count:
            images = "1 hidden image" if self.hidden_count == 1 else f"{self.hidden_count:,} hidden images"
            more = ", ..." if self.hidden_count > len(self.hidden) else ""
            message = f"ignored {images} {where}: {', '.join(self.hidden)}{more}; rename them to use them"
            findings.append(Finding("ignored", message, self.hidden))
        if count := self.folders.total():
            folders = "1 hidden or system folder" if count == 1 else f"{count:,} hidden or system folders"
            message = f"ignored {folders} {where}: {_format_counts(self.folders)}"
            findings.append(Finding("ignored", message, sorted(self.folders)))
        return findings


def _format_counts(counts: Counter[str]) -> str:
    """Format counts by name, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{count:,} {name or 'without an extension'}" for name, count in ordered[:_FEW]]
    rest = sum(count for _, count in ordered[_FEW:])
    return ", ".join([*shown, f"{rest:,} others"] if rest else shown)

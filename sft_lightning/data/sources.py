"""Where examples come from: a torchvision name, class folders, a CSV manifest, or the sample inside the package.

`open_source` turns the one word that a user writes into a `Source`. What a source knows about its classes and picture
shape is known as soon as it is opened; pictures are only touched by `load`.
"""

import csv
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sft_lightning.data.images import EXTENSIONS, FileImages, Images, MemoryImages
from sft_lightning.data.torchvision_sources import DATASETS, load_dataset, read_idx
from sft_lightning.errors import InputError, near

SPLITS = ("train", "val", "test", "unlabeled")
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
SAMPLE = Path(__file__).parent / "sample"


@dataclass
class Part:
    """The examples that a source itself puts into one split.

    Attributes:
        images: The pictures.
        ids: Name of each, unique within the source and equal on every machine.
        labels: int64 of shape (N,), -1 where there is none.
        groups: Patient, video, ... of each, or None.
    """

    images: Images
    ids: list[str]
    labels: Tensor
    groups: list[str] | None = None

    def __len__(self) -> int:
        return len(self.ids)


class Source(ABC):
    """A set of pictures, some with labels.

    Attributes:
        name: What the user wrote.
        class_names: The classes, in the order of their numbers.
        image_shape: (C, H, W) when all pictures have one shape, else None.
    """

    name: str
    class_names: tuple[str, ...] = ()
    image_shape: tuple[int, int, int] | None = None

    @abstractmethod
    def load(self) -> dict[str, Part]:
        """Reads the parts that exist among `train`, `val`, `test` and `unlabeled`."""


def open_source(name: str, root: str = "data", download: bool = False) -> Source:
    """Finds out what kind of source a word names, and opens it.

    Args:
        name: `sample`, `sample-digits`, a torchvision data set, a folder, or a `.csv` / `.parquet` manifest.
        root: Folder that holds torchvision data sets.
        download: Fetch a torchvision data set that is not there.

    Raises:
        InputError: Nothing of that name exists, or what exists holds no usable picture.
    """
    if name in ("sample", "sample-digits"):
        return SampleSource(name)
    base = name.split("/")[0]
    if base in DATASETS:
        return TorchvisionSource(name, Path(root), download)
    path = Path(name)
    if path.suffix.lower() in (".csv", ".parquet"):
        return ManifestSource(path)
    if path.is_dir():
        return FolderSource(path)
    if path.is_file():
        raise InputError(f"source {name!r} is a single file: give a folder, a .csv manifest or a .parquet manifest")
    known = [*DATASETS, "sample", "sample-digits"]
    raise InputError(
        f"source {name!r} is neither a folder or manifest that exists nor a known data set{near(name, known)}; "
        f"known are {', '.join(known)}"
    )


class SampleSource(Source):
    """The pictures shipped inside the package: small, real, and there without a network.

    `sample` is 10,000 training and 2,000 test pictures of Fashion-MNIST; `sample-digits` is 10,000 MNIST digits
    without labels.
    """

    def __init__(self, name: str) -> None:
        """Opens one of the two.

        Args:
            name: `sample` or `sample-digits`.
        """
        self.name = name
        self.image_shape = (1, 28, 28)
        self.class_names = FASHION if name == "sample" else ()

    def load(self) -> dict[str, Part]:
        """Reads the compressed files (about 0.1 s)."""
        if self.name == "sample-digits":
            return {"unlabeled": _memory_part(read_idx(SAMPLE / "digits-images-idx3-ubyte.gz"), None, "digits")}
        return {
            split: _memory_part(
                read_idx(SAMPLE / f"fashion-{split}-images-idx3-ubyte.gz"),
                read_idx(SAMPLE / f"fashion-{split}-labels-idx1-ubyte.gz"),
                split,
            )
            for split in ("train", "test")
        }


def _memory_part(data: Tensor, labels: Tensor | None, prefix: str) -> Part:
    images = data[:, None] if data.ndim == 3 else data
    ids = [f"{prefix}/{i}" for i in range(len(images))]
    known = torch.full((len(images),), -1) if labels is None else labels.long()
    if len(known) != len(images):
        raise InputError(f"part {prefix!r} has {len(images)} images and {len(known)} labels: the files do not match")
    return Part(MemoryImages(images), ids, known)


class TorchvisionSource(Source):
    """A standard data set, read from disk by torchvision's own classes."""

    def __init__(self, name: str, root: Path, download: bool) -> None:
        """Looks for the data set.

        Args:
            name: One of `DATASETS`; EMNIST takes its split after a slash, as in `EMNIST/letters`.
            root: Folder that holds it.
            download: Fetch it when it is not there.

        Raises:
            InputError: It is not there and may not or cannot be downloaded.
        """
        self.name = name
        self._parts = load_dataset(name, root, download)
        self.class_names = self._parts.class_names
        self.image_shape = self._parts.image_shape

    def load(self) -> dict[str, Part]:
        """Reads the parts; the shared tensors are not copied."""
        parts = {}
        for split, (pictures, labels) in self._parts.splits().items():
            if isinstance(pictures, Tensor):
                parts[split] = _memory_part(pictures, labels, split)
            else:
                ids = [_relative(path, self._parts.root) for path in pictures]
                parts[split] = Part(FileImages(pictures, ids), ids, torch.as_tensor(labels).long())
        return parts


def _relative(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()


def _pictures(folder: Path) -> list[Path]:
    """All picture files below a folder, in the order of their names; hidden ones are left out."""
    found = []
    for here, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(here) / name
            for name in sorted(files)
            if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
        ]
    return found


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


class FolderSource(Source):
    """Class folders: `train/CLASS/...`, `val/CLASS/...`, `test/CLASS/...`, `unlabeled/...`, or `CLASS/...` alone.

    A folder without class folders holds unlabeled pictures only.
    """

    def __init__(self, path: Path) -> None:
        """Lists the classes.

        Args:
            path: The folder.

        Raises:
            InputError: No picture, an empty class, or a class in `val/` or `test/` that `train/` lacks.
        """
        self.path = path
        self.name = str(path)
        self._train = path / "train" if (path / "train").is_dir() else path
        self.class_names = tuple(p.name for p in _subfolders(self._train) if not self._reserved(p))
        self._files: dict[str, list[tuple[Path, int]]] = {}
        for split in SPLITS:
            folder = self._train if split == "train" else path / split
            if folder.is_dir():
                self._files[split] = list(self._labeled(folder) if split != "unlabeled" else self._bare(folder))
        if not any(self._files.values()):
            raise InputError(
                f"folder {self.name!r} holds no image: expected CLASS/picture.png, train/CLASS/picture.png or "
                f"pictures ({', '.join(EXTENSIONS)})"
            )

    def _reserved(self, folder: Path) -> bool:
        return self._train == self.path and folder.name in SPLITS

    def _bare(self, folder: Path) -> Iterator[tuple[Path, int]]:
        return ((path, -1) for path in _pictures(folder))

    def _labeled(self, folder: Path) -> Iterator[tuple[Path, int]]:
        classes = [p for p in _subfolders(folder) if not self._reserved(p)]
        loose = [p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in EXTENSIONS]
        if not classes and folder == self._train:  # a folder of pictures without classes
            yield from ((path, -1) for path in sorted(loose))
            return
        if loose:
            raise InputError(
                f"image {str(min(loose))!r} lies beside the class folders: move it into a class folder or to "
                f"{str(self.path / 'unlabeled')!r}"
            )
        for child in classes:
            if child.name not in self.class_names:
                raise InputError(
                    f"class {child.name!r} in {str(folder)!r} does not exist in {str(self._train)!r}"
                    f"{near(child.name, self.class_names)}: rename it or add training images"
                )
            pictures = _pictures(child)
            if not pictures:
                raise InputError(f"class folder {str(child)!r} holds no image: add some or remove the folder")
            label = self.class_names.index(child.name)
            yield from ((path, label) for path in pictures)

    def load(self) -> dict[str, Part]:
        """Makes the parts; no picture is read."""
        parts = {}
        for split, files in self._files.items():
            paths = [path for path, _ in files]
            ids = [_relative(path, self.path) for path in paths]
            labels = torch.tensor([label for _, label in files], dtype=torch.long)
            if files:
                parts[split] = Part(FileImages(paths, ids), ids, labels)
        return parts


class ManifestSource(Source):
    """A table with the columns `path,label[,split][,group]`; a blank label means unlabeled.

    Paths are relative to the table's folder. `split` is train, val, test, unlabeled or blank (train).
    """

    def __init__(self, path: Path) -> None:
        """Reads the table and checks every line.

        Args:
            path: `.csv` (UTF-8) or `.parquet` (extra `parquet`).

        Raises:
            InputError: A column, file or label is missing, or a line contradicts another one; the line is named.
        """
        self.path = path
        self.name = str(path)
        if not path.is_file():
            raise InputError(f"manifest {self.name!r} does not exist: give the path of a .csv or .parquet file")
        rows = _parquet_rows(path) if path.suffix.lower() == ".parquet" else _csv_rows(path)
        self._rows = [self._checked(line, row) for line, row in rows]
        if not self._rows:
            raise InputError(f"manifest {self.name!r} has no line below its header: list one image per line")
        self._refuse_contradictions()
        labels = sorted({row["label"] for row in self._rows if row["label"]}, key=_natural)
        if not labels:
            raise InputError(
                f"manifest {self.name!r} has no label at all: fill the column 'label' for some lines, "
                "or give the folder itself for training without labels"
            )
        self.class_names = tuple(labels)

    def _checked(self, line: int, row: dict[str, str]) -> dict[str, str]:
        where = f"manifest {self.name!r}, line {line}"
        if not row["path"]:
            raise InputError(f"{where}: the path is blank")
        if not (self.path.parent / row["path"]).is_file():
            raise InputError(f"{where}: file {row['path']!r} does not exist below {str(self.path.parent)!r}")
        row["path"] = Path(row["path"]).as_posix()  # ./a.png is a.png
        row["split"] = row["split"].lower() or ("train" if row["label"] else "unlabeled")
        if row["split"] not in SPLITS:
            raise InputError(f"{where}: split {row['split']!r} is none of {', '.join(SPLITS)} or blank")
        if not row["label"] and row["split"] in ("val", "test"):
            raise InputError(f"{where}: split {row['split']!r} needs a label; leave the split blank for unlabeled")
        return {**row, "line": str(line)}

    def _refuse_contradictions(self) -> None:
        paths: dict[str, str] = {}
        splits: dict[str, dict[str, str]] = {}
        for row in self._rows:
            if row["path"] in paths:
                raise InputError(
                    f"manifest {self.name!r}, line {row['line']}: {row['path']!r} stands on line "
                    f"{paths[row['path']]} already; list each image once"
                )
            paths[row["path"]] = row["line"]
            if row["group"]:
                split = "train" if row["split"] == "unlabeled" else row["split"]
                splits.setdefault(row["group"], {}).setdefault(split, row["line"])
        self._refuse_untrained()
        for group, found in splits.items():
            if len(found) > 1:
                places = " and ".join(f"{split} (line {line})" for split, line in found.items())
                raise InputError(f"manifest {self.name!r}: group {group!r} stands in {places}; keep it in one split")

    def _refuse_untrained(self) -> None:
        trained = sorted({row["label"] for row in self._rows if row["label"] and row["split"] == "train"})
        for row in self._rows if trained else []:
            if row["split"] in ("val", "test") and row["label"] not in trained:
                raise InputError(
                    f"manifest {self.name!r}, line {row['line']}: no training image has the class {row['label']!r} of "
                    f"this {row['split']} image{near(row['label'], trained)}; correct it or add training images"
                )

    def load(self) -> dict[str, Part]:
        """Makes the parts; no picture is read."""
        number = {name: i for i, name in enumerate(self.class_names)}
        grouped = any(row["group"] for row in self._rows)
        parts = {}
        for split in SPLITS:
            rows = [row for row in self._rows if row["split"] == split]
            if rows:
                ids = [row["path"] for row in rows]
                paths = [self.path.parent / row["path"] for row in rows]
                # A hidden label of a line marked `unlabeled` is read: it can be measured against, never trained on.
                labels = torch.tensor([number.get(row["label"], -1) for row in rows])
                groups = [row["group"] or row["path"] for row in rows] if grouped else None
                parts[split] = Part(FileImages(paths, ids), ids, labels, groups)
        return parts


_COLUMNS = ("path", "label", "split", "group")


def _need_columns(path: Path, names: Sequence[str], needed: Sequence[str]) -> None:
    missing = [name for name in needed if name not in names]
    if missing:
        raise InputError(
            f"manifest {str(path)!r} lacks the column {' and '.join(map(repr, missing))}; its columns are "
            f"{', '.join(map(repr, names)) or 'none'}, needed are path,label[,split][,group]"
        )


def _csv_rows(path: Path, needed: Sequence[str] = ("path", "label")) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            _need_columns(path, [(name or "").strip() for name in reader.fieldnames or []], needed)
            reader.fieldnames = [(name or "").strip() for name in reader.fieldnames or []]
            for row in reader:
                yield reader.line_num, {name: (row.get(name) or "").strip() for name in _COLUMNS}
    except UnicodeDecodeError as error:
        raise InputError(f"manifest {str(path)!r} is not UTF-8 text ({error.reason}): save it as UTF-8") from error
    except csv.Error as error:
        raise InputError(f"manifest {str(path)!r} is no readable CSV: {error}") from error


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise InputError(
            f"manifest {str(path)!r} needs the extra 'parquet': pip install 'sft-lightning[parquet]'"
        ) from error
    try:
        table = parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:
        raise InputError(f"manifest {str(path)!r} is no readable Parquet file: {error}") from error
    _need_columns(path, list(table[0]) if table else [], ("path", "label"))
    for number, row in enumerate(table, start=1):
        yield number, {n: "" if row.get(n) in (None, "") or row[n] != row[n] else str(row[n]).strip() for n in _COLUMNS}


def _natural(label: str) -> tuple[int, float, str]:
    """Sorts 2 before 10, and numbers before words."""
    try:
        value = float(label)
    except ValueError:
        value = math.nan
    return (0, value, label) if math.isfinite(value) else (1, 0.0, label)


def open_unlabeled(name: str, root: str = "data", download: bool = False) -> Part:
    """All training and unlabeled pictures of a source, without their labels.

    Args:
        name: As for `open_source`.
        root: As for `open_source`.
        download: As for `open_source`.

    Raises:
        InputError: It has neither.
    """
    parts = open_source(name, root, download).load()
    chosen = [parts[split] for split in ("train", "unlabeled") if split in parts]
    if not chosen:
        raise InputError(f"unlabeled_source {name!r} has no training or unlabeled image: give a source with some")
    part = chosen[0] if len(chosen) == 1 else concatenated(*[(p, list(range(len(p)))) for p in chosen])
    return Part(part.images, [f"{name}:{i}" for i in part.ids], torch.full((len(part),), -1))


def open_pictures(name: str, root: str = "data") -> Part:
    """The pictures to predict: all of a folder, those that a manifest lists, one file, or a data set's test part.

    Args:
        name: What the user wrote.
        root: Folder that holds torchvision data sets.

    Raises:
        InputError: There is no picture.
    """
    path = Path(name)
    if path.is_dir():
        paths = _pictures(path)
        ids = [_relative(p, path) for p in paths]
    elif path.suffix.lower() in (".csv", ".parquet") and path.is_file():
        rows = list(_parquet_rows(path) if path.suffix.lower() == ".parquet" else _csv_rows(path, ("path",)))
        paths, ids = [path.parent / row["path"] for _, row in rows], [row["path"] for _, row in rows]
        for (line, row), file in zip(rows, paths, strict=True):
            if not file.is_file():
                raise InputError(f"manifest {name!r}, line {line}: file {row['path']!r} does not exist")
    elif path.is_file():
        paths, ids = [path], [path.name]
    else:
        parts = open_source(name, root).load()
        return parts.get("test") or next(iter(parts.values()))
    if not paths:
        raise InputError(f"predict_source {name!r} holds no image: give a folder or manifest with some")
    return Part(FileImages(paths, ids), ids, torch.full((len(ids),), -1))


def concatenated(*pieces: tuple[Part, list[int]]) -> Part:
    """Some examples of several parts as one part.

    Args:
        pieces: Part and positions; all in memory or all files.
    """
    ids = [part.ids[i] for part, chosen in pieces for i in chosen]
    labels = torch.cat([part.labels[chosen] for part, chosen in pieces])
    memory = [(part.images.data, chosen) for part, chosen in pieces if isinstance(part.images, MemoryImages)]
    if len(memory) == len(pieces):
        return Part(MemoryImages(torch.cat([data[chosen] for data, chosen in memory])), ids, labels)
    files = [(part.images.paths, chosen) for part, chosen in pieces if isinstance(part.images, FileImages)]
    return Part(FileImages([paths[i] for paths, chosen in files for i in chosen], ids), ids, labels)

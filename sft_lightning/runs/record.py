"""What a run has recorded in its folder, in one place: settings, split, provenance and lineage."""

from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from sft_lightning.data.issues import Finding, parse_finding
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.json_files import read_json, read_json_header

CONFIG = "fit.yaml"
SPLIT = "split.csv"
LINEAGE = "lineage.json"
PROVENANCE = "run.json"
# Fields of `run.json` that may change a result, by the word that messages use for each.
COMPARED = {
    "folder": "folder", "seed": "seed", "data_sha256": "data", "split_sha256": "split.csv", "code": "code",
    "package_sha256": "package", "device": "device", "processes": "processes", "threads": "threads",
}  # fmt: skip
Link = dict[str, Any]
Provenance = dict[str, Any]

_TEXTS = ("run", "published", "file", "sha256", "model", "labels", "weights", "head_weights", "teacher", "date")
_MACHINE = {"system", "processor", "cores", "python", "torch", "lightning"}
_TRAIN_AGAIN = "remove it, or train again"


class RunRecord:
    """The files that a run has written about itself, each read when it is asked for.

    A file that is missing, as in runs of earlier versions or without a logger, gives an empty value.

    Attributes:
        folder: Folder of the run.
        config: File with the settings in use, `fit.yaml`.
        split: File with the split of each example, `split.csv`.
    """

    def __init__(self, folder: Path) -> None:
        """Read nothing yet.

        Args:
            folder: Folder of the run.
        """
        self.folder, self.config, self.split = folder, folder / CONFIG, folder / SPLIT

    def read_settings(self, part: str) -> dict[str, Any]:
        """Return the settings of the model or the data; none where the config cannot be read.

        Args:
            part: Name of what is set: `model` or `data`.
        """
        try:
            config = yaml.safe_load(self.config.read_text(encoding="utf-8"))
            settings = config[part]["init_args"]
        except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
            return {}
        return dict(settings) if isinstance(settings, dict) else {}

    @property
    def split_header(self) -> dict[str, Any]:
        """What `split.csv` says of the data as a whole.

        Raises:
            InputError: The file is damaged.
        """
        return read_json_header(self.split, _TRAIN_AGAIN) if self.split.is_file() else {}

    @property
    def class_names(self) -> Any:
        """Names of the classes in the order of the labels, or None.

        Raises:
            InputError: `split.csv` is damaged.
        """
        return self.split_header.get("class_names")

    @property
    def data_digest(self) -> str | None:
        """SHA-256 of the examples, or None.

        Raises:
            InputError: `split.csv` is damaged.
        """
        digest = self.split_header.get("sha256")
        return None if digest is None else str(digest)

    @property
    def chain(self) -> list[Link]:
        """What led to the run, the run itself last; the run alone where it recorded nothing.

        Raises:
            InputError: `lineage.json` is damaged.
        """
        path = self.folder / LINEAGE
        chain = check_chain(read_json(path, _TRAIN_AGAIN), str(path)) if path.is_file() else []
        return chain or [{"run": str(self.folder)}]

    @property
    def provenance(self) -> Provenance:
        """Circumstances of the training; empty where none were recorded.

        Raises:
            InputError: `run.json` is damaged.
        """
        path = self.folder / PROVENANCE
        if not path.is_file():
            return {}
        provenance = read_json(path, "remove it")
        if not isinstance(provenance, dict) or not _is_provenance(provenance):
            raise InputError(f"{str(path)!r} is not the record of a run: remove it")
        return provenance


def read_leaks(link: Link) -> list[Finding]:
    """Return findings about evaluated examples whose labels the weights of a link have learned, or may have.

    Args:
        link: Link of a lineage. Earlier versions wrote plain sentences.
    """
    return [leak for value in link.get("leaks", []) if (leak := parse_finding(value, "leak")) is not None]


def check_chain(chain: Any, name: str) -> list[Link]:
    """Return a lineage that was read from a file, if it is one.

    Args:
        chain: Content of the file.
        name: Name of the file, for the message.

    Raises:
        InputError: The content is not a list of links.
    """
    if not isinstance(chain, list) or not all(map(_is_link, chain)):
        raise InputError(f"{name!r} is not a list of links: {_TRAIN_AGAIN}")
    return chain


def _is_link(link: Any) -> bool:
    if not isinstance(link, dict) or not any(isinstance(link.get(name), str) for name in ("run", "published", "file")):
        return False
    machine = link.get("machine", {})
    has_machine = not machine or (isinstance(machine, dict) and machine.keys() >= _MACHINE)
    leaks = link.get("leaks", [])
    return (
        has_machine
        and all(link.get(name) is None or isinstance(link[name], str) for name in _TEXTS)
        and isinstance(leaks, list)
        and all(parse_finding(leak) is not None for leak in leaks)
        and ("file" not in link or isinstance(link.get("sha256"), str))
    )


def _is_provenance(record: Provenance) -> bool:
    argv, threads, code = record.get("command"), record.get("threads"), record.get("code", "missing")
    return (
        isinstance(argv, list)
        and all(isinstance(arg, str) for arg in argv)
        and type(threads) is int
        and threads > 0
        and all(isinstance(record.get(name), dict) for name in ("versions", "machine"))
        and not any(isinstance(record.get(name), dict) for name in COMPARED if name != "code")
        and (code is None or (isinstance(code, dict) and _is_code(code)))
    )


def _is_code(code: dict[str, Any]) -> bool:
    is_dirty = code.get("dirty")
    texts = ("commit", "patch_sha256") if is_dirty else ("commit",)
    return isinstance(is_dirty, bool) and all(isinstance(code.get(name), str) for name in texts)

"""Names of columns of tables, and what they may mean."""

import re
import unicodedata
from collections.abc import Sequence

KNOWN = ("path", "label", "split", "group")
# Names that other programs use, without the endings that `_get_stem` strips.
_SYNONYMS = {
    "path": {"path", "filepath", "file", "image", "imagepath", "imagefile", "img", "imgpath", "fname", "url", "id"},
    "label": {"label", "class", "classlabel", "category", "target", "y", "annotation", "groundtruth", "gt"},
    "split": {
        "split",
        "datasplit",
        "set",
        "subset",
        "fold",
        "partition",
        "phase",
        "stage",
        "usage",
        "dataset",
        "kfold",
        "cv",
    },
    "group": {
        "group",
        "patient",
        "subject",
        "participant",
        "person",
        "individual",
        "video",
        "clip",
        "mrn",
        "pid",
        "speaker",
    },
}
# Names of columns that may hold groups, but often do not.
_PERHAPS_GROUP = {
    "case",
    "study",
    "series",
    "session",
    "scan",
    "site",
    "location",
    "camera",
    "scene",
    "user",
    "slide",
    "animal",
    "lesion",
    "specimen",
    "donor",
    "plant",
    "tree",
    "plot",
    "field",
    "farm",
    "plate",
    "well",
    "sequence",
    "track",
    "burst",
    "identity",
    "author",
    "thread",
    "conversation",
}
_ENDINGS = re.compile("(ids?|uid|number|num|no|nr|index|idx|code|key|name|s)$")


def count_known(names: Sequence[str]) -> int:
    """Return the number of columns with a known name or a synonym of one.

    Args:
        names: Names of columns.
    """
    return sum(normalize_name(name) in KNOWN or get_stem(name) in set().union(*_SYNONYMS.values()) for name in names)


def normalize_name(name: str) -> str:
    """Return the name of a column in lower case without invisible characters, outer spaces and quotes.

    Args:
        name: Name as it is written.
    """
    composed = unicodedata.normalize("NFKC", name).casefold()
    return "".join(c for c in composed if unicodedata.category(c) not in ("Cf", "Cc")).strip(" '\"\u201c\u201d")


def get_stem(name: str) -> str:
    """Return the main word of the name of a column, such as `patient` for "Patient_ID".

    Args:
        name: Name as it is written.
    """
    word = re.sub(r"[\W_]+", "", normalize_name(name))
    is_known = word in _PERHAPS_GROUP or any(word in synonyms for synonyms in _SYNONYMS.values())
    return word if is_known else _ENDINGS.sub("", word) or word


def guess_kind(name: str) -> str | None:
    """Return which known column one may be by its name, or None.

    Args:
        name: Name as it is written.
    """
    stem = get_stem(name)
    kind = next((kind for kind, stems in _SYNONYMS.items() if stem in stems), None)
    return kind or ("group" if stem in _PERHAPS_GROUP else None)


def is_vague(name: str) -> bool:
    """Return whether a name may be that of groups, but often is not, such as `site`.

    Args:
        name: Name as it is written.
    """
    return get_stem(name) in _PERHAPS_GROUP


def is_synonym(name: str, kind: str) -> bool:
    """Return whether a name is another one for a known column.

    Args:
        name: Name as it is written.
        kind: Name of the known column.
    """
    return get_stem(name) in _SYNONYMS.get(kind, ())

"""Checks of class names, for tables and folders alike: names that look alike, and labels that say "missing"."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping

from sft_lightning.data.issues import Finding, report_fault
from sft_lightning.data.source import split_of_name

_DECIMAL = re.compile(r"[+-]?[0-9]+\.0+")
_FRACTION = re.compile(r"[+-]?[0-9]*\.[0-9]*[1-9][0-9]*(e[+-]?[0-9]+)?", re.IGNORECASE)
# A list, tuple, mapping, array or other object as a program prints it.
_PRINTED = re.compile(r"\[.*\]|\(.*,.*\)|\{.*\}|b'.*'|b\".*\"|(tensor|array|np\.\w+|Timestamp)\(.*\)", re.DOTALL)
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")
# Values that other tools write where a label is missing.
_MISSING = {
    "-", "--", "?", "??", ".", "-1", "na", "n/a", "n.a.", "#n/a", "<na>", "nan", "<nan>", "nat", "null", "nil", "todo",
    "tbd", "#ref!", "#value!", "#name?", "#div/0!", "#null!", "#num!", "unlabeled", "unlabelled", "not labeled",
    "not labelled", "no label", "nolabel",
}  # fmt: skip
# Values that may also be a class: "none" often means an example without a defect.
_PERHAPS_MISSING = {"none", "unknown", "undefined", "missing", "unspecified", "empty"}
_FILLERS = str.maketrans({"_": " ", "-": " "})


def check_class_names(
    where: str, names: Iterable[str], listed_classes: Iterable[str] = (), places: Mapping[str, str] = {}
) -> list[Finding]:
    """Refuse class names that differ only to a computer, and report characters that a reader cannot see.

    Names that differ in case, in composed and decomposed letters, in invisible characters, in spaces, in quotes around
    them or in how a number is written count as alike. Single letters may differ in case, as those of handwriting do.

    Args:
        where: Kind and name of the source, such as "folder 'shells'".
        names: Names of the classes.
        listed_classes: Names that the user listed as classes.
        places: Position of each name in the source, such as "line 3", where known.

    Returns:
        Findings about suspicious names.

    Raises:
        InputError: Two names look alike, outside of `collect_faults`.
    """
    findings = []
    listed = set(listed_classes)
    names = list(names)
    for twin, name, both in _find_alike(names, places):
        if len(name) == len(twin) == 1:
            message = f"{where}: the classes {both} differ in case alone"
            findings.append(Finding("class_name", message, [twin, name]))
        elif not {twin, name} <= listed:
            report_fault(
                "class names that look alike",
                "",
                name,
                f"looks like {quote_name(twin)}",
                f"{where} has the classes {both}, which look alike: spell them the same, or list both in class_names "
                "if they are two classes",
            )
    first: dict[str, str] = {}
    for name in dict.fromkeys(map(_normalize, names)):
        twin = first.setdefault(re.sub(r"[\s_-]+", " ", name), name)
        if twin != name:
            message = f"{where}: the classes {quote_name(twin)} and {quote_name(name)} differ only between their words"
            findings.append(Finding("class_name", message, [twin, name]))
    for name in names:
        if name in listed:
            continue
        if name != _strip_invisible(name):
            problem = f"{name!a} has characters that cannot be seen"
        elif len(name) > 1 and name[0] == name[-1] and name[0] in "'\"`":
            problem = f"{name!r} has quotes in it: remove them if they are not meant"
        elif _mixes_scripts(name):
            problem = f"{name!r} mixes Latin and Cyrillic letters ({name!a})"
        else:
            continue
        findings.append(Finding("class_name", f"{where}: the class name {problem}", [name]))
    return findings


def check_missing_labels(
    where: str, counts: Mapping[str, int], listed_classes: Iterable[str] = (), places: Mapping[str, str] = {}
) -> list[Finding]:
    """Refuse labels that stand for a missing label, such as `NA`.

    Args:
        where: Kind and name of the source, such as "manifest 'm.csv'".
        counts: Number of examples of each label.
        listed_classes: Names that the user listed as classes.
        places: Position of the first example of each label, such as "line 3", where known.

    Returns:
        Findings about labels that may be a class or may stand for a missing one, such as `unknown`.

    Raises:
        InputError: Labels stand for missing ones, outside of `collect_faults`.
    """
    findings = []
    listed = set(listed_classes)
    if counts and not {*counts} & listed and all(map(split_of_name, counts)):
        sentence = f"{where}: the labels ({', '.join(map(repr, counts))}) are names of splits: "
        sentence += "call their column 'split' and give labels, or list them in class_names if they are classes"
        report_fault("labels that are names of splits", "", next(iter(counts)), "in place of a class", sentence)
    if counts and not {*counts} & listed and all(_DECIMAL.fullmatch(label) for label in counts):
        message = (
            f"{where}: the labels are whole numbers written as decimals, such as {next(iter(counts))!r}, as some "
            "programs write them in a column with blanks: a class '0' in other data is a different class"
        )
        findings.append(Finding("unclear_label", message, list(counts)))
    if counts and not {*counts} & listed and all(map(_PRINTED.fullmatch, counts)):
        sentence = f"{where}: the labels are objects as a program prints them ({next(iter(counts))!r}): "
        sentence += "write only the name of the class, or list them in class_names if they are names"
        report_fault(
            "labels that are objects as a program prints them", "", next(iter(counts)), "in place of a name", sentence
        )
    fractions = sum(_FRACTION.fullmatch(label) is not None for label in counts)
    if fractions and all(_FRACTION.fullmatch(label) or _NUMBER.fullmatch(label) for label in counts):
        message = f"{where}: the labels are decimal numbers; each of the {len(counts):,} is read as a class"
        findings.append(Finding("unclear_label", message, list(counts)))
    for label in counts:
        pieces = re.split(r"\s*[|;,/&+]\s*", label)
        if len(pieces) > 1 and label not in listed and all(piece in counts for piece in pieces):
            message = f"{where}: the label {label!r} is read as one class, not as {len(pieces)} labels: "
            message += (
                "if examples have several classes, set label_separator (`fit`, `study`, `solve` and `label` take it)"
            )
            findings.append(Finding("unclear_label", message, [label]))
            break
    for label, count in counts.items():
        if label in listed:
            continue
        word = _normalize(label)
        # Labels of -1 and 1, or of - and +, are the two classes of a margin classifier.
        is_sign = word in ("-1", "-") and set(map(_normalize, counts)) in ({"-1", "1"}, {"-", "+"})
        is_doubtful = is_sign or (word in _PERHAPS_MISSING and label != "None")  # "None" is Python's missing value
        is_unseen = not _strip_invisible(label)
        if not (is_doubtful or is_unseen or label == "None" or {word, word.translate(_FILLERS)} & _MISSING):
            continue
        number = "1 label is" if count == 1 else f"{count:,} labels are"
        position = f" (first: {places[label]})" if label in places else ""
        if is_doubtful:
            message = f"{where}: {number} {label!r}{position}, which is read as a class"
            message += "; leave labels of unlabeled examples blank"
            findings.append(Finding("unclear_label", message, [label]))
            continue
        report_fault(
            "labels that stand for missing ones",
            "",
            label,
            number,
            f"{where}: {number} {quote_name(label)}{position}: leave the label blank for unlabeled examples, or list "
            "all classes in class_names if it is one of them",
        )
    return findings


def check_groups(where: str, counts: Mapping[str, int], places: Mapping[str, str]) -> list[Finding]:
    """Refuse groups that differ only to a computer, and report groups that stand for a missing one.

    Args:
        where: Kind and name of the source, such as "manifest 'm.csv'".
        counts: Number of examples of each group.
        places: Position of the first example of each group, such as "line 3".

    Returns:
        Findings about suspicious groups.

    Raises:
        InputError: Two groups look alike, outside of `collect_faults`.
    """
    for twin, name, both in _find_alike(counts, places):
        sentence = f"{where} has the groups {both}, which look alike: spell them the same, or more differently"
        report_fault("groups that look alike", "", name, f"looks like {quote_name(twin)}", sentence)
    why = "which keeps them together: leave it blank for no group"
    return [
        Finding("group_name", f"{where}: the group of {count:,} examples is {group!r}, {why}", [group])
        for group, count in counts.items()
        if count > 1 and _normalize(group) in _MISSING | _PERHAPS_MISSING
    ]


def _find_alike(names: Iterable[str], places: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield pairs of names that look alike, and a phrase that quotes both."""
    first: dict[str, str] = {}
    for name in names:
        twin = first.setdefault(_normalize(name), name)
        if twin != name:
            yield (
                twin,
                name,
                " and ".join(f"{quote_name(n)}{f' ({places[n]})' if n in places else ''}" for n in (twin, name)),
            )


def quote_name(name: str) -> str:
    """Quote a name with invisible and decomposed characters escaped.

    Args:
        name: Name of a class, column or file.
    """
    composed = unicodedata.normalize("NFC", name)
    return repr(name) if composed == name == _strip_invisible(name) and name.isprintable() else ascii(name)


def _strip_invisible(name: str) -> str:
    """Return a name with plain spaces and without invisible characters, except joiners, which some scripts need."""
    kept = "".join(
        " " if unicodedata.category(c) in ("Zs", "Zl", "Zp") else c
        for c in name
        if unicodedata.category(c) not in ("Cf", "Cc") or _is_joiner(c, name)
    )
    return kept.strip()


def _is_joiner(character: str, name: str) -> bool:
    return character in "\u200c\u200d" and any(ord(c) > 0x5FF for c in name if c not in "\u200b\u200c\u200d\ufeff")


def _normalize(name: str) -> str:
    """Return a name as a reader perceives it: without case, quotes, composition and spelling of numbers."""
    plain = "".join(c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) not in ("Cf", "Cc"))
    plain = " ".join(plain.split()).strip("'\"`\u2018\u2019\u201c\u201d").strip().casefold()
    if _NUMBER.fullmatch(plain) and len(plain) < 16:  # a float holds 15 digits exactly
        return repr(float(plain) + 0.0).removesuffix(".0")
    return unicodedata.normalize("NFC", plain)


def _mixes_scripts(name: str) -> bool:
    """Return whether a name mixes Latin and Cyrillic letters, many of which look the same."""
    scripts = {unicodedata.name(c, "").partition(" ")[0] for c in name if c.isalpha()}
    return {"LATIN", "CYRILLIC"} <= scripts

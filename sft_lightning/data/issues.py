"""Findings, which a run logs and goes on, and faults of a source: a run stops at the first, an audit collects them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sft_lightning.utils.errors import InputError

# The kinds of all findings, of a run and of an audit. Files hold them, so an existing one keeps its name and meaning.
FindingKind = Literal[
    "note",  # any other sentence, such as those of a source of one's own
    # Splits
    "leak",  # evaluated examples that training uses, has used or may have used
    "duplicate",  # equal examples, or two names of one example, that harm no evaluation
    "missing_class",  # classes without a labeled example in a split, or in the whole source
    "uneven_classes",  # splits in which one class outnumbers another many times
    "empty_split",  # splits without an example
    "split_size",  # splits of another size than requested
    "held_out_group",  # examples left out of training because their group is in validation or test
    "changed_data",  # differences between the data or settings and those of the run that is continued
    "evaluated_data",  # which examples of other data than the run's are evaluated
    # Labels
    "replaced_label",  # labels of the source that the setting `labels` replaces
    "label_conflict",  # equal examples with different labels
    "wrong_label",  # labels that contradict the content of their example
    "unclear_label",  # labels that may not be what they are read as, such as "unknown"
    "class_name",  # class names that are easily confused
    "group_name",  # groups that may stand for a missing one
    # Files
    "refused",  # data or settings that `fit` refuses
    "unreadable",  # examples that cannot be read
    "ignored",  # files, folders and columns that are not read
    "layout",  # folders that may not be what they are read as
    "file_format",  # files whose extension does not match their content
    # Content of images
    "value_range",  # scale of values of more than 8 bits
    "not_finite",  # values that are NaN or infinite
    "constant",  # images of one color, texts without a letter or digit
    "color",  # color modes that change or differ
    "cropped",  # images that lose much of their area
    "small_object",  # objects of few pixels in a network's input
    "extra_frames",  # animations and pages of which only the first is read
    "orientation",  # images that are turned upright
    # Content of texts
    "truncated",  # texts of which only the beginning is read
    "script",  # texts in another writing system than most
    "encoding",  # texts with characters that were read in a wrong encoding
]
KINDS: tuple[FindingKind, ...] = get_args(FindingKind)
MAX_EXAMPLES = 20  # names that a finding keeps

# Titles of faults that more than one type of source reports.
STRADDLING = "groups that are in two splits"
UNTRAINED = "examples of a class without a training example"


@dataclass(frozen=True)
class Finding:
    """Something about the data that a user should know: a probable mistake, or a decision that was made.

    Attributes:
        kind: Identifier of the kind, from `FindingKind`.
        message: Sentence for people, without its period.
        examples: Names of the examples, classes, files or columns concerned; of many, the first 20 are kept.

    Raises:
        ValueError: The kind does not exist.
    """

    kind: FindingKind
    message: str
    examples: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind of a finding is {self.kind!r}: give one of {', '.join(KINDS)}")
        object.__setattr__(self, "examples", tuple(self.examples[:MAX_EXAMPLES]))

    def __str__(self) -> str:
        return self.message

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON types."""
        return {"kind": self.kind, "message": self.message, "examples": list(self.examples)}


def as_finding(value: str | Finding) -> Finding:
    """Return a finding, of kind `note` if it is given as a plain sentence.

    Args:
        value: Finding, or the sentence of one.
    """
    return value if isinstance(value, Finding) else Finding("note", value)


def parse_finding(value: Any, kind: FindingKind = "note") -> Finding | None:
    """Return a finding that was read from JSON, or None if the value is not one.

    Args:
        value: Output of `Finding.to_json`, or a plain sentence, as earlier versions wrote it.
        kind: Kind of a plain sentence, and of a finding whose kind only a later version knows.
    """
    if isinstance(value, str):
        return Finding(kind, value)
    if not isinstance(value, dict):
        return None
    message, examples, own = value.get("message"), value.get("examples"), value.get("kind")
    if not isinstance(message, str) or not isinstance(own, str) or not isinstance(examples, list):
        return None
    if not all(isinstance(name, str) for name in examples):
        return None
    return Finding(next((known for known in KINDS if known == own), kind), message, examples)


@dataclass(frozen=True)
class Fault:
    """Reason why a run refuses the data.

    Attributes:
        title: Name that all faults of one kind share, in the plural.
        split: Split that the fault is in, as the source calls it; may be empty.
        name: Name of the example, class, group or file.
        detail: Short description of this fault.
        sentence: Error message of a run, with the remedy.
    """

    title: str
    split: str
    name: str
    detail: str
    sentence: str


_listed: ContextVar[list[Fault] | None] = ContextVar("faults", default=None)


@contextmanager
def collect_faults() -> Iterator[list[Fault]]:
    """Collect the faults reported inside the block in place of raising them.

    Yields:
        List that each fault is appended to.
    """
    faults: list[Fault] = []
    token = _listed.set(faults)
    try:
        yield faults
    finally:
        _listed.reset(token)


def report_fault(title: str, split: str, name: str, detail: str, sentence: str) -> None:
    """Record a fault inside a `collect_faults` block, and raise it elsewhere.

    Args:
        title: Name that all faults of one kind share, in the plural.
        split: Split that the fault is in; may be empty.
        name: Name of the example, class, group or file.
        detail: Short description of this fault.
        sentence: Error message with the remedy.

    Raises:
        InputError: The call is not inside a `collect_faults` block.
    """
    faults = _listed.get()
    if faults is None:
        raise InputError(sentence)
    faults.append(Fault(title, split, name, detail, sentence))

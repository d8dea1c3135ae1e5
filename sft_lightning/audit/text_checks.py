"""Checks of texts: lengths, writing systems, encodings, and words by which labels are judged."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from sft_lightning.audit.findings import CheckResult, CheckRow
from sft_lightning.audit.modality_checks import ModalityChecks, Places
from sft_lightning.data.copies import Copies
from sft_lightning.data.issues import Fault, FindingKind, as_finding
from sft_lightning.data.split_stats import Pair
from sft_lightning.data.text.datamodule import TextDataModule
from sft_lightning.data.text.near_duplicates import DIFFERENCE, find_copies, find_near_duplicates
from sft_lightning.data.text.source import TextSource
from sft_lightning.data.text.text_stats import TextSplitStats, TextStats, compute_text_stats

_SHORT = 20  # letters of a text in a finding
_MAX_SCRIPTS = 5
_MAIN = 0.9  # share of texts from which on one writing system is that of the source
_MIN_LETTERS = 3  # letters from which on a writing system says something
_MAX_WORDS = 100_000  # features by which labels are judged
# What UTF-8 becomes where it was read as Windows-1252, and the character for what could not be read.
_BROKEN = re.compile("\ufffd|[ÂÃ][\u0080-¿]|â€")


class TextChecks(ModalityChecks):
    """Checks of texts, which are compared word by word."""

    data: TextDataModule
    bounds: ClassVar[dict[str, float]] = {"difference": DIFFERENCE}

    def measure(self, name: str) -> TextSplitStats:
        """Count tokens, and find the writing system of each text."""
        return compute_text_stats(name, self.data.splits[name], self.data.encoding)

    def find_duplicates(self, stats: Sequence[TextSplitStats]) -> tuple[list[Pair], list[Pair]]:
        """Compare letters, and runs of words for near-duplicates."""
        return find_near_duplicates(stats)

    def find_copies(self, places: Places) -> Copies:
        """Find equal and nearly equal texts."""
        return find_copies(_get_texts(places))

    def make_features(self, places: Places) -> Any:
        """Return TF-IDF of words and pairs of words, a sparse matrix: Salton & Buckley 1988."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(
            ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+", max_features=_MAX_WORDS, dtype=np.float32
        )
        # One of the texts must have a word. Rows of length 1 would be regularized too strongly: of 1,000 glosses in 12
        # classes, the regression has 0.47 right with them, and 0.60 with rows of length 10.
        return 10 * vectorizer.fit_transform([*_get_texts(places), "word"])[:-1]

    def find_unreadable(self, stats: Sequence[TextSplitStats], policy: str, faults: Sequence[Fault]) -> CheckResult:
        """Find blank texts, which every run leaves out."""
        source = self._source
        rows = [CheckRow("", name) for name in ([] if source is None else source.blank)]
        return CheckResult("unreadable", "blank texts", "fit leaves them out: fill or remove them", rows)

    def find_odd(self, stats: Sequence[TextSplitStats]) -> list[CheckResult]:
        """Find texts that are cut off, in another writing system, without letters, or read in a wrong encoding."""
        limit = self.data.encoding.max_length
        total = sum(map(len, stats))
        cut = sum(one.tokens > limit for split in stats for _, one in split.readable)
        main = _find_main_script(stats)

        def of(kind: FindingKind, test: Callable[[TextStats], str | None], name: str, advice: str) -> CheckResult:
            rows = [
                CheckRow(split.name, split.id(i), detail)
                for split in stats
                for i, one in split.readable
                if (detail := test(one)) is not None
            ]
            return CheckResult(kind, name, advice, rows)

        def is_foreign(one: TextStats) -> str | None:
            letters = sum(map(str.isalpha, one.text))
            return one.script if main and one.script not in ("", main) and letters >= _MIN_LETTERS else None

        def find_broken(one: TextStats) -> str | None:
            match = _BROKEN.search(one.text)
            return None if match is None else repr(one.text[max(0, match.start() - _SHORT) : match.end() + _SHORT])

        return [
            of(
                "truncated",
                lambda one: f"{one.tokens:,} tokens" if one.tokens > limit else None,
                f"texts that are longer than {limit} tokens",
                f"{cut / max(1, total):.0%} of all texts are cut off there: raise max_length if their ends matter",
            ),
            of(
                "encoding",
                find_broken,
                "texts with characters that were read in a wrong encoding",
                "Save them as UTF-8 from where they are still right",
            ),
            of(
                "script",
                is_foreign,
                f"texts in another writing system than {main}, which most have",
                "A network that was trained on one language reads others poorly: remove them, or take a multilingual "
                "encoder",
            ),
            of(
                "constant",
                lambda one: None if any(map(str.isalnum, one.text)) else repr(one.text[:_SHORT]),
                "texts without a letter or digit",
                "They say little: remove them, unless emoji are what you classify",
            ),
        ]

    def find_strays(self, faults: Sequence[Fault]) -> list[CheckResult]:
        """Find columns and files that are not read, and those that are not UTF-8."""
        source = self._source
        findings = [] if source is None else [as_finding(message) for message in source.messages]
        names: dict[FindingKind, str] = {
            "file_format": "files that are not UTF-8",
            "ignored": "columns that are not read",
        }
        advice: dict[FindingKind, str] = {
            "file_format": "They are read as Windows-1252: save them as UTF-8 if letters are wrong",
            "ignored": "Rename them, or name them in the settings, if they should be read",
        }
        return [
            CheckResult(
                kind, name, advice[kind], [CheckRow("", one) for f in findings if f.kind == kind for one in f.examples]
            )
            for kind, name in names.items()
        ]

    @property
    def _source(self) -> TextSource | None:
        source = self.data.opened_source
        return source if isinstance(source, TextSource) else None

    def summarize(self, stats: Sequence[TextSplitStats]) -> dict[str, object]:
        """Summarize lengths and writing systems."""
        known = [one for split in stats for _, one in split.readable]
        if not known:
            return {}
        tokens, letters = (np.array([getattr(one, name) for one in known]) for name in ("tokens", "letters"))
        limit = self.data.encoding.max_length
        scripts = Counter(one.script or "none" for one in known)
        return {
            "texts": len(known),
            "tokens": _describe_numbers(tokens),
            "letters": _describe_numbers(letters),
            "tokenizer": self.data.encoding.tokenizer.name,
            "max_length": limit,
            "cut_off": round(float((tokens > limit).mean()), 4),
            "scripts": dict(scripts.most_common()),
        }

    def format_summary(self, facts: dict[str, Any]) -> list[str]:
        """Format lengths and writing systems."""
        if not facts:
            return []

        def show(name: str) -> str:
            of = facts[name]
            ends = f"{of['smallest']:,} to {of['largest']:,}"
            return f"{of['median']:,} (median), {ends}, 95% up to {of['percentile_95']:,}"

        shown = [*facts["scripts"].items()][:_MAX_SCRIPTS]
        more = ", ..." if len(facts["scripts"]) > len(shown) else ""
        return [
            f"tokens   {show('tokens')}; {facts['cut_off']:.0%} are longer than {facts['max_length']}, where they are "
            "cut off",
            f"letters  {show('letters')}",
            f"scripts  {', '.join(f'{name} ({count:,})' for name, count in shown)}{more}; "
            "languages of one script count together",
        ]


def _get_texts(places: Places) -> list[str]:
    return [stats.text for one, i in places if isinstance(stats := one.examples[i], TextStats)]


def _find_main_script(stats: Sequence[TextSplitStats]) -> str:
    """Return the writing system of nearly all texts with letters; empty if there are several."""
    counts = Counter(one.script for split in stats for _, one in split.readable if one.script)
    ((script, count),) = counts.most_common(1) or [("", 0)]
    return script if count >= _MAIN * counts.total() else ""


def _describe_numbers(numbers: Any) -> dict[str, int]:
    names = {"smallest": 0, "median": 50, "percentile_95": 95, "largest": 100}
    return {name: int(np.percentile(numbers, share, method="lower")) for name, share in names.items()}

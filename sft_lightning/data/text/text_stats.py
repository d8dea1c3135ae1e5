"""Statistics of each text for the audit: its tokens, and the writing system of most of its letters."""

import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sft_lightning.data.split_stats import SplitStats
from sft_lightning.data.splits import Split
from sft_lightning.data.text.storage import Encoding, TextStorage
from sft_lightning.networks.text.tokenizers import PADDING

_SAMPLED = 400  # letters of a text whose writing system is looked up
_ENCODED = 256  # texts at once: whole ones may be long
_WHOLE = 2**30  # tokens, more than any text has
# Scripts of which a name of Unicode begins with another word.
_SCRIPTS = {"HIRAGANA": "Japanese", "KATAKANA": "Japanese", "CJK": "Han"}


@dataclass
class TextStats:
    """Statistics of one text.

    Attributes:
        text: Text; of a pair, both on lines of their own.
        digest: Digest of the text.
        letters: Number of letters and other characters.
        tokens: Number of tokens before anything is cut off.
        script: Writing system of most of its letters, such as `Latin`; empty for a text without letters.
    """

    text: str
    digest: bytes
    letters: int
    tokens: int
    script: str


TextSplitStats = SplitStats[TextStats]


def compute_text_stats(name: str, split: Split, encoding: Encoding) -> TextSplitStats:
    """Compute the statistics of the texts of a split.

    Args:
        name: Name of the split.
        split: Split of a `TextDataModule`.
        encoding: How texts become tokens.
    """
    storage = split.part.storage
    assert isinstance(storage, TextStorage)
    pairs = [storage.texts[i] for i in split.indices]
    tokens: list[int] = []
    for first in range(0, len(pairs), _ENCODED):
        ids, _ = encoding.tokenizer.encode(pairs[first : first + _ENCODED], _WHOLE)
        tokens += np.count_nonzero(ids != PADDING, axis=1).tolist()
    made: list[TextStats | str] = []
    for pair, digest, count in zip(pairs, storage.fingerprints(split.indices), tokens, strict=True):
        text = "\n".join(pair)
        made.append(TextStats(text, digest, len(text), count, find_script(text)))
    return TextSplitStats(name, split, made)


def find_script(text: str) -> str:
    """Return the writing system of most letters of a text, by their names in Unicode; empty without letters.

    It is not the language: English, Turkish and Vietnamese are all `Latin`. Han letters beside Japanese ones are
    `Japanese`.

    Args:
        text: Text; of a long one, its beginning is looked at.
    """
    counts = Counter(map(_name_script, [letter for letter in text[: 4 * _SAMPLED] if letter.isalpha()][:_SAMPLED]))
    if counts["Japanese"]:
        counts["Japanese"] += counts.pop("Han", 0)
    return max(counts, key=lambda script: (counts[script], script)) if counts else ""


@lru_cache(4096)
def _name_script(letter: str) -> str:
    word = unicodedata.name(letter, "OTHER").split()[0].split("-")[0]
    return _SCRIPTS.get(word, word.capitalize())

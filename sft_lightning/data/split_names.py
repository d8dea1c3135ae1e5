"""Which split a word means, however it is spelled: the name of a folder, or a value in a table."""

import re
import unicodedata

_WORDS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "dev", "devel", "development"),
    "test": ("test", "testing", "tst"),
    "unlabeled": ("unlabeled", "unlabelled", "unlabled", "nolabel", "nolabels", "unannotated", "unsup", "unsupervised"),
}
_MEANT = {word: split for split, words in _WORDS.items() for word in words}
_UNCLEAR = ("eval", "evaluation", "holdout", "heldout")
# Words that say nothing: test_images, Training Set, val2017.
_FILLERS = re.compile(r"(data|set|dataset|split|images?|imgs?|files|folder|photos?|pictures?|examples?|samples?)+")
UNCLEAR = "unclear"


def find_split(name: str) -> str | None:
    """Return the split that a folder's name means: train, val, test or unlabeled.

    Args:
        name: Name of the folder, in any spelling, such as `Valid`, `test_images` or `unlabelled-data`.

    Returns:
        `UNCLEAR` where it means either val or test; None where it names no split.
    """
    joined = "".join(word for word in _split_words(name) if not _FILLERS.fullmatch(word))
    for word in _MEANT:
        if joined == word or (joined.startswith(word) and _FILLERS.fullmatch(joined, len(word))):
            return _MEANT[word]
    return UNCLEAR if joined in _UNCLEAR else None


def mentions_split(name: str) -> bool:
    """Return whether a name that means no split has the word for one in it, as `train_old` has.

    Args:
        name: Name of the folder.
    """
    return find_split(name) is None and any(word in _MEANT for word in _split_words(name))


def _split_words(name: str) -> list[str]:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", name))
    return re.findall(r"[^\W\d_]+", spaced.casefold())

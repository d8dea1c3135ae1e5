"""Find the split that the name of a folder or a value in a table means, in any spelling."""

import re
import unicodedata

_WORDS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "dev", "devel", "development"),
    "test": ("test", "testing", "tst"),
    "unlabeled": ("unlabeled", "unlabelled", "unlabled", "nolabel", "nolabels", "unannotated", "unsup", "unsupervised"),
}
_MEANT = {word: split for split, spellings in _WORDS.items() for word in spellings}
_UNCLEAR = ("eval", "evaluation", "holdout", "heldout")
# Words that carry no meaning next to a split: test_images, Training Set, val2017.
_FILLERS = re.compile(r"(data|set|dataset|split|images?|imgs?|files|folder|photos?|pictures?|examples?|samples?)+")
UNCLEAR = "unclear"


def find_split(name: str) -> str | None:
    """Return the split that a name means: train, val, test or unlabeled.

    Args:
        name: Name of a folder or value in a table, such as `Valid`, `test_images` or `unlabelled-data`.

    Returns:
        Name of the split; `UNCLEAR` if it may mean val or test; None if it does not name a split.
    """
    joined = "".join(word for word in _split_words(name) if not _FILLERS.fullmatch(word))
    for word in _MEANT:
        if joined == word or (joined.startswith(word) and _FILLERS.fullmatch(joined, len(word))):
            return _MEANT[word]
    return UNCLEAR if joined in _UNCLEAR else None


def mentions_split(name: str) -> bool:
    """Return whether a name contains the word for a split without meaning one, such as `train_old`.

    Args:
        name: Name of the folder.
    """
    return find_split(name) is None and any(word in _MEANT for word in _split_words(name))


def _split_words(name: str) -> list[str]:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", name))
    return re.findall(r"[^\W\d_]+", spaced.casefold())

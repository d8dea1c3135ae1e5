"""Tokenizers by name: hashed words, which need no training, or the tokenizer of a published encoder."""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from sft_lightning.networks.hugging_face import find_file
from sft_lightning.utils.errors import InputError

PADDING = -1
WORD = re.compile(r"\w+|[^\w\s]")
_DEFAULT_ROWS = 16_384


class Tokenizer(ABC):
    """Way from texts to token ids.

    Attributes:
        name: Name by which it is made again.
        num_tokens: Number of different ids.
        mask_id: Id that stands for a hidden token.
        has_frame: Whether the first and the last token of each text mark its beginning and end.
        special_ids: Ids that stand for no piece of a text, such as such marks.
        pair_mark: Id after which the second text of a pair begins, where networks get the number of the text, too.
    """

    name: str
    num_tokens: int
    mask_id: int
    has_frame: bool = False
    special_ids: tuple[int, ...] = ()
    pair_mark: int | None = None

    @property
    def digest(self) -> str:
        """Text that identifies how texts become ids."""
        return self.name

    @abstractmethod
    def encode(self, texts: Sequence[tuple[str, ...]], max_length: int) -> tuple[npt.NDArray[np.int32], int]:
        """Return the token ids of texts, (N, L) with L of at most `max_length`, and how many texts were longer.

        Args:
            texts: Texts, each with a second one that belongs to it or without.
            max_length: Number of tokens that are kept.

        Returns:
            Ids, padded with -1, and the number of truncated texts.
        """

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, as far as they tell it.

        Args:
            ids: Token ids without padding.
        """

    def locate(self, texts: tuple[str, ...], max_length: int) -> list[tuple[int, int]]:
        """Return where each token stands in a text, as begin and end; both are 0 for marks of beginning and end.

        Args:
            texts: Text, and perhaps a second one, which stand on lines of their own.
            max_length: Number of tokens that are kept.

        Returns:
            Begin and end of each token; nothing if the tokenizer does not know them.
        """
        return []


class HashTokenizer(Tokenizer):
    """Words and punctuation, lower case, each numbered by a hash: Weinberger et al. 2009, "Feature Hashing".

    Nothing is learned, so that texts of any language and of any later source have ids; different words may share one.
    """

    prefix: ClassVar[str] = "words"

    def __init__(self, num_tokens: int = _DEFAULT_ROWS) -> None:
        """Start without words.

        Args:
            num_tokens: Number of ids; 0 stands for hidden words.

        Raises:
            InputError: The number is below 2.
        """
        if num_tokens < 2:
            raise InputError(f"tokenizer is 'words:{num_tokens}': give at least 2 different ids, such as words:16384")
        self.num_tokens, self.mask_id, self.special_ids = num_tokens, 0, (0,)
        self.name = self.prefix if num_tokens == _DEFAULT_ROWS else f"{self.prefix}:{num_tokens}"
        self._ids: dict[str, int] = {}
        self._words: dict[int, str] = {}

    def encode(self, texts: Sequence[tuple[str, ...]], max_length: int) -> tuple[npt.NDArray[np.int32], int]:
        """Return the ids of the words, (N, L)."""
        rows = [[self._number(word) for text in pair for word in WORD.findall(text.lower())] for pair in texts]
        return pad([row[:max_length] for row in rows]), sum(len(row) > max_length for row in rows)

    def decode(self, ids: Sequence[int]) -> str:
        """Return words that this object has encoded to these ids."""
        return " ".join(self._words.get(i, "…") for i in ids)

    def locate(self, texts: tuple[str, ...], max_length: int) -> list[tuple[int, int]]:
        """Return where each word stands."""
        found, offset = [], 0
        for text in texts:
            # A few letters become two in lower case.
            origin = [i for i, letter in enumerate(text) for _ in letter.lower()]
            for match in WORD.finditer(text.lower()):
                found.append((offset + origin[match.start()], offset + origin[match.end() - 1] + 1))
            offset += len(text) + 1
        return found[:max_length]

    def _number(self, word: str) -> int:
        number = self._ids.get(word)
        if number is None:
            digest = hashlib.blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest()
            number = self._ids[word] = 1 + int.from_bytes(digest, "little") % (self.num_tokens - 1)
            self._words.setdefault(number, word)
        return number


class PublishedTokenizer(Tokenizer):
    """Tokenizer of a folder in the form of Hugging Face, with its `tokenizer.json` (extra `text`)."""

    def __init__(self, name: str) -> None:
        """Load the file; no code of the folder is run.

        Args:
            name: Name `hf/FOLDER`, or `hf/NAME` of a model in the cache of Hugging Face.

        Raises:
            InputError: The library or the file is missing, or the file is damaged.
        """
        self.name, file = name, find_file(name, "tokenizer.json")
        try:
            from tokenizers import Tokenizer as Rust
        except ImportError as error:
            raise InputError(f"{name!r} needs the extra 'text': pip install 'sft-lightning[text]'") from error
        try:
            self._rust: Any = Rust.from_file(str(file))
        except Exception as error:  # the library raises plain Exception
            raise InputError(f"tokenizer {str(file)!r} cannot be read ({error}): fetch it again") from error
        self._rust.no_padding()
        self.num_tokens = self._rust.get_vocab_size()
        known = self._rust.get_vocab()
        masks = [known[word] for word in ("[MASK]", "<mask>", "[UNK]", "<unk>") if word in known]
        self.mask_id = masks[0] if masks else 0
        framed = self._rust.encode("a").special_tokens_mask
        self.has_frame = len(framed) > 2 and bool(framed[0]) and bool(framed[-1])
        pair = self._rust.encode("a", "a")
        marks = {i for i, is_mark in zip(pair.ids, pair.special_tokens_mask, strict=True) if is_mark}
        marks |= {i for i, token in self._rust.get_added_tokens_decoder().items() if token.special}
        self.special_ids = (*sorted(marks),)
        if 1 in pair.type_ids and (first := pair.ids[pair.type_ids.index(1) - 1]) in marks:
            self.pair_mark = first

    def encode(self, texts: Sequence[tuple[str, ...]], max_length: int) -> tuple[npt.NDArray[np.int32], int]:
        """Return the ids with those that mark beginning and end, (N, L)."""
        self._rust.enable_truncation(max_length)
        given: list[Any] = [pair[0] if len(pair) == 1 else pair for pair in texts]
        encoded = self._rust.encode_batch(given)
        return pad([one.ids for one in encoded]), sum(bool(one.overflowing) for one in encoded)

    def locate(self, texts: tuple[str, ...], max_length: int) -> list[tuple[int, int]]:
        """Return where each token stands."""
        self._rust.enable_truncation(max_length)
        encoded = self._rust.encode(*texts)
        offsets = [0, len(texts[0]) + 1]
        return [
            (0, 0) if number is None else (offsets[number] + start, offsets[number] + end)
            for number, (start, end) in zip(encoded.sequence_ids, encoded.offsets, strict=True)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text without marks of beginning and end, and dots for hidden tokens."""
        pieces: list[list[int]] = [[]]
        for i in ids:
            if i == self.mask_id:
                pieces.append([])
            else:
                pieces[-1].append(i)
        return " … ".join(self._rust.decode(piece) for piece in pieces).strip()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the tokenizer."""
        return hashlib.sha256(self._rust.to_str().encode()).hexdigest()


def pad(rows: Sequence[Sequence[int]]) -> npt.NDArray[np.int32]:
    """Return rows of different lengths as one array, padded with -1 at their ends, with at least one column.

    Args:
        rows: Ids of each text.
    """
    made = np.full((len(rows), max([1, *map(len, rows)])), PADDING, np.int32)
    for row, filled in zip(rows, made, strict=True):
        filled[: len(row)] = row
    return made


def make_tokenizer(name: str) -> Tokenizer:
    """Return the tokenizer of a name.

    Args:
        name: `words`, `words:N` with N different ids, or `hf/FOLDER`.

    Raises:
        InputError: The name is unknown.
    """
    kind, _, size = name.partition(":")
    if kind == HashTokenizer.prefix and (not size or size.isdecimal()):
        return HashTokenizer(int(size)) if size else HashTokenizer()
    if name.startswith("hf/"):
        return PublishedTokenizer(name.partition(":")[0])
    raise InputError(f"tokenizer is {name!r}: give words, words:16384, or hf/ and the folder of a model")

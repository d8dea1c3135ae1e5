"""Tokenizers by name: hashed words, pieces of words learned from training texts, or those of a published encoder."""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from sft_lightning.networks.hugging_face import find_file
from sft_lightning.utils.atomic import open_atomic
from sft_lightning.utils.errors import InputError

PADDING = -1
WORD = re.compile(r"\w+|[^\w\s]")
_DEFAULT_ROWS, _DEFAULT_PIECES = 16_384, 8192
_LEAST_PIECES = 258  # a hidden token, the bytes and one piece
_LEARNED: dict[str, str] = {}  # content of the tokenizers that this process has learned or read, by its digest


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


class FileTokenizer(Tokenizer):
    """Tokenizer in the form of `tokenizer.json` (extra `text`)."""

    _rust: Any

    @property
    def digest(self) -> str:
        """SHA-256 of the tokenizer."""
        return hashlib.sha256(self._rust.to_str().encode()).hexdigest()

    def encode(self, texts: Sequence[tuple[str, ...]], max_length: int) -> tuple[npt.NDArray[np.int32], int]:
        """Return the ids with those that mark beginning and end, if it has some, (N, L).

        Raises:
            InputError: Such marks leave no room for a token of a text.
        """
        marks = self._rust.num_special_tokens_to_add(any(len(pair) > 1 for pair in texts))
        if max_length <= marks:
            raise InputError(
                f"max_length is {max_length}, and tokenizer {self.name!r} adds {marks} tokens to each text: give more"
            )
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


class PublishedTokenizer(FileTokenizer):
    """Tokenizer of a folder in the form of Hugging Face."""

    def __init__(self, name: str) -> None:
        """Load the file; no code of the folder is run.

        Args:
            name: Name `hf/FOLDER`, or `hf/NAME` of a model in the cache of Hugging Face.

        Raises:
            InputError: The library or the file is missing, or the file is damaged.
        """
        self.name = name
        self._rust = _parse(find_file(name, "tokenizer.json"), name)
        self._rust.no_padding()
        known = self._rust.get_vocab()
        self.num_tokens = max(self._rust.get_vocab_size(), 1 + max(known.values(), default=0))
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


class PieceTokenizer(FileTokenizer):
    """Pieces of words that are frequent in the training texts, lower case: byte-pair encoding (extra `text`).

    Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units", from bytes as in Radford et al.
    2019 (GPT-2), so that no text has unknown letters. The same texts always give the same pieces, on every process,
    which the trainers of WordPiece and unigram pieces in the library do not promise.

    Its name is `bpe:N` before it has learned, and `bpe:N:DIGEST` afterwards, so that whoever records the name records
    the content.
    """

    prefix: ClassVar[str] = "bpe"
    mask_id = 0
    special_ids = (0,)

    def __init__(self, num_tokens: int = _DEFAULT_PIECES, digest: str = "") -> None:
        """Start without pieces, or with those that were learned before.

        Args:
            num_tokens: Largest number of ids: the 256 bytes, a hidden token, and pieces. Few texts give fewer.
            digest: Digest of pieces that this process has learned or read (`read_pieces`); empty to learn them.

        Raises:
            InputError: The number is too small, or the pieces are unknown.
        """
        if num_tokens < _LEAST_PIECES:
            raise InputError(f"tokenizer is 'bpe:{num_tokens}': give at least {_LEAST_PIECES} ids, such as bpe:8192")
        self.num_tokens, self.name = num_tokens, f"{self.prefix}:{num_tokens}"
        if digest:
            self.use(f"{self.name}:{digest}")

    @property
    def is_trained(self) -> bool:
        """Whether pieces have been learned."""
        return self.name.count(":") > 1

    @property
    def digest(self) -> str:
        """SHA-256 of the pieces; the name as long as none were learned."""
        return super().digest if self.is_trained else self.name

    def train(self, texts: Iterable[str]) -> None:
        """Learn the pieces.

        Args:
            texts: Training texts.

        Raises:
            InputError: The library is missing.
        """
        rust = _import_tokenizers(self.name)
        made = rust.Tokenizer(rust.models.BPE())
        made.normalizer = rust.normalizers.Sequence([rust.normalizers.NFC(), rust.normalizers.Lowercase()])
        made.pre_tokenizer = rust.pre_tokenizers.ByteLevel(add_prefix_space=True)
        made.post_processor = rust.processors.ByteLevel(trim_offsets=True)
        made.decoder = rust.decoders.ByteLevel()
        trainer = rust.trainers.BpeTrainer(
            vocab_size=self.num_tokens, min_frequency=2, special_tokens=["[MASK]"], show_progress=False,
            initial_alphabet=sorted(rust.pre_tokenizers.ByteLevel.alphabet()),
        )  # fmt: skip
        made.train_from_iterator(texts, trainer)
        self.use(f"{self.name}:{_remember(made.to_str())}")

    def use(self, name: str) -> None:
        """Take pieces that were learned before.

        Args:
            name: Name `bpe:N:DIGEST`, with the same N.

        Raises:
            InputError: This process has not read them, or their number is another.
        """
        kind, digest = name.rpartition(":")[::2]
        if kind != f"{self.prefix}:{self.num_tokens}" or digest not in _LEARNED:
            raise InputError(
                f"tokenizer {name!r} was learned by a run, and its file encoder/tokenizer.json was not read: give the "
                f"folder of that run or export as weights or checkpoint, or {self.prefix}:{self.num_tokens} to learn "
                "another"
            )
        self._rust, self.name = _import_tokenizers(name).Tokenizer.from_str(_LEARNED[digest]), name

    def encode(self, texts: Sequence[tuple[str, ...]], max_length: int) -> tuple[npt.NDArray[np.int32], int]:
        """Return the ids of the pieces, (N, L)."""
        if not self.is_trained:
            raise InputError(f"tokenizer {self.name!r} has not learned from the training texts yet: call setup() first")
        return super().encode(texts, max_length)


def _import_tokenizers(name: str) -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise InputError(f"tokenizer {name!r} needs the extra 'text': pip install 'sft-lightning[text]'") from error
    return tokenizers


def _parse(file: Path, name: str) -> Any:
    """Return the tokenizer of a file."""
    rust = _import_tokenizers(name)
    try:
        return rust.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise InputError(f"tokenizer {str(file)!r} cannot be read ({error}): fetch it again") from error


def _remember(content: str) -> str:
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    _LEARNED[digest] = content
    return digest


def read_pieces(name: str, file: Path) -> None:
    """Read the pieces that a run has learned, so that `make_tokenizer` knows their name.

    Args:
        name: Name `bpe:N:DIGEST`; others are ignored.
        file: File that `write_pieces` wrote; nothing is read if it does not exist.

    Raises:
        InputError: The file is damaged, or holds other pieces.
    """
    kind, _, digest = name.partition(":")[2].partition(":")
    if not name.startswith(f"{PieceTokenizer.prefix}:") or not digest or digest in _LEARNED or not file.is_file():
        return
    made = _parse(file, name)
    if _remember(made.to_str()) != digest or made.get_vocab_size() > int(kind):
        raise InputError(f"tokenizer {str(file)!r} is not the one of the run, {name!r}: restore the file of the run")


def write_pieces(name: str, file: Path) -> None:
    """Write learned pieces; nothing for other tokenizers.

    Args:
        name: Name `bpe:N:DIGEST`.
        file: Path of the file.
    """
    content = _LEARNED.get(name.rpartition(":")[2])
    if name.startswith(f"{PieceTokenizer.prefix}:") and content is not None:
        with open_atomic(file) as staged:
            staged.write_text(content, encoding="utf-8")


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
        name: `words` or `words:N` with N different ids, `bpe` or `bpe:N`, perhaps with the digest of what was learned,
            or `hf/FOLDER`.

    Raises:
        InputError: The name is unknown.
    """
    kind, _, rest = name.partition(":")
    size, _, digest = rest.partition(":")
    is_number = size.isdecimal() and len(size) < 10
    if kind == HashTokenizer.prefix and not digest and (not rest or is_number):
        return HashTokenizer(int(size)) if size else HashTokenizer()
    if kind == PieceTokenizer.prefix and (not rest or is_number):
        return PieceTokenizer(int(size), digest) if size else PieceTokenizer()
    if name.startswith("hf/"):
        return PublishedTokenizer(name.partition(":")[0])
    raise InputError(f"tokenizer is {name!r}: give words, words:16384, bpe:8192, or hf/ and the folder of a model")

"""Storage of texts: equal texts are found by their letters, and tokens are made when they are first needed."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from sft_lightning.data.sample_orders import group_by_size
from sft_lightning.data.storage import Storage, TensorStorage
from sft_lightning.networks.text.tokenizers import PADDING, WORD, Tokenizer
from sft_lightning.utils.errors import InputError

Text = tuple[str, ...]  # a text, or a text and a second one that belongs to it


@dataclass
class Encoding:
    """How the texts of a data module become tokens.

    Attributes:
        tokenizer: Tokenizer.
        max_length: Number of tokens of a text that are kept.
        group: Number of training texts of similar length that follow one another; 0 for none.
        truncated: Number of texts that were longer, and of all that were encoded.
    """

    tokenizer: Tokenizer
    max_length: int
    group: int = 0
    truncated: tuple[int, int] = field(default=(0, 0))

    def encode(self, texts: Sequence[Text]) -> Tensor:
        """Return token ids, int32 (N, max_length), padded with -1.

        Args:
            texts: Texts.
        """
        made = torch.full((len(texts), self.max_length), -1, dtype=torch.int32)
        for start in range(0, len(texts), 4096):
            ids, longer = self.tokenizer.encode(texts[start : start + 4096], self.max_length)
            made[start : start + len(ids), : ids.shape[1]] = torch.from_numpy(ids)
            self.truncated = self.truncated[0] + longer, self.truncated[1] + len(ids)
        return made


class TextStorage(TensorStorage):
    """Texts, and their tokens as one tensor, int32 (N, max_length), made when it is first read.

    Where texts have W other wordings, which were made beforehand, rows are 1 + W times as long: the text comes first.
    """

    def __init__(self, texts: Sequence[Text], encoding: Encoding, augmented: Sequence[Text] = ()) -> None:
        """Keep the texts.

        Args:
            texts: Texts.
            encoding: How they become tokens.
            augmented: Other wordings of each first text, equally many; blank ones stand for the text itself.
        """
        self.texts, self.encoding = texts, encoding
        self.augmented = augmented if any(augmented) else ()
        self._there: dict[torch.device, Tensor] = {}
        self._tokens: Tensor | None = None

    @property
    def data(self) -> Tensor:  # type: ignore[override] # of the attribute
        """Token ids, int32 (N, (1 + W) max_length), padded with -1."""
        return self.encode()

    def encode(self) -> Tensor:
        """Return the tokens, made once."""
        if self._tokens is None:
            tokens = [self.encoding.encode(self.texts)]
            truncated = self.encoding.truncated
            for others in zip(*self.augmented, strict=True):
                pairs = zip(self.texts, others, strict=True)
                tokens.append(
                    self.encoding.encode([(new if new.strip() else text[0], *text[1:]) for text, new in pairs])
                )
            self.encoding.truncated = truncated  # of the texts themselves
            self._tokens = torch.cat(tokens, 1)
        return self._tokens

    def __len__(self) -> int:
        return len(self.texts)

    def digest(self) -> str:
        """Compute the SHA-256 of all texts and their other wordings."""
        digest = hashlib.sha256(repr(self.augmented).encode(errors="surrogatepass") if self.augmented else b"")
        for content in self.fingerprints(range(len(self))):
            digest.update(content)
        return digest.hexdigest()

    def sizes(self, indices: Sequence[int]) -> list[int]:
        """Return the number of letters of each text."""
        return [sum(map(len, self.texts[i])) for i in indices]

    def fingerprints(self, indices: Iterable[int]) -> list[bytes]:
        """Compute the SHA-256 of each text."""
        return [hashlib.sha256("\0".join(self.texts[i]).encode(errors="surrogatepass")).digest() for i in indices]

    def pass_order(self, indices: Sequence[int], window: int) -> Callable[[int], Tensor] | None:
        """Return how passes keep texts of similar length together, or None if they do not."""
        if not self.encoding.group:
            return None
        lengths = self.count_tokens(indices)
        return lambda seed: group_by_size(lengths, self.encoding.group, seed)

    def count_tokens(self, indices: Sequence[int]) -> Tensor:
        """Return the number of tokens of each text, or of its longest wording, int64, (N,).

        Args:
            indices: Positions of the texts.
        """
        given = self.encode()[torch.as_tensor(indices, dtype=torch.long)] != PADDING
        return given.view(len(given), -1, self.encoding.max_length).sum(2).amax(1)

    def fit_vectorizer(
        self, pieces: Sequence[tuple[Storage, Sequence[int]]]
    ) -> Callable[[Storage, Sequence[int]], Any]:
        """Return TF-IDF of the words of whole texts, whatever the tokenizer and the length that networks read.

        Each count is damped to 1 + its logarithm and weighed by how few training texts have the word, at length 1.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer

        def read(storage: Storage, indices: Sequence[int]) -> list[str]:
            assert isinstance(storage, TextStorage)
            return ["\n".join(storage.texts[i]) for i in indices]

        model = TfidfVectorizer(sublinear_tf=True, token_pattern=WORD.pattern)
        model.fit([text for piece in pieces for text in read(*piece)])
        return lambda storage, indices: model.transform(read(storage, indices))

    @classmethod
    def joined(cls, pieces: Sequence[tuple[Storage, Sequence[int]]], ids: Sequence[str]) -> Self:
        """Return some texts of several collections as one.

        Args:
            pieces: Collections, and the positions to take from each.
            ids: Names of all texts.
        """
        stored = [(one, chosen) for one, chosen in pieces if isinstance(one, TextStorage)]
        texts = [one.texts[i] for one, chosen in stored for i in chosen]
        augmented = [one.augmented[i] for one, chosen in stored for i in chosen if one.augmented]
        if len(augmented) not in (0, len(texts)):
            raise InputError("only some of the texts have augmented_columns: give them to all sources, or to none")
        return cls(texts, stored[0][0].encoding, augmented)

"""Encoders of texts by name: bags of words, a small transformer, or a published one of Hugging Face."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from sft_lightning.networks.encoder import get_architecture
from sft_lightning.networks.text.kept_files import use_kept_files
from sft_lightning.networks.text.masked_language import TokenDecoder
from sft_lightning.networks.text.published import PublishedEncoder
from sft_lightning.networks.text.token_encoder import CHANGE, TextEncoder, TokenEncoder, average_tokens
from sft_lightning.networks.text.tokenizers import make_tokenizer
from sft_lightning.networks.weights import Tensors, find_weights, load_encoder_weights, read_weights
from sft_lightning.utils.errors import InputError, did_you_mean
from sft_lightning.utils.inputs import Inputs, InputSpec

Numbers = float | Sequence[float]
_BINS = 4096  # numbers of a bag of words
_PAIR = 1_000_003  # a prime: the hash of a pair of words


def count_words(x: Inputs) -> Tensor:
    """Return bags of hashed words, 1 + log of each count at length 1, (B, 4096).

    Args:
        x: `input_ids` and `attention_mask`, (B, L) each.
    """
    ids = x["input_ids"] % _BINS
    counts = torch.zeros(
        ids.shape[0], _BINS, device=ids.device
    )  # `len` would make the batch size a constant of programs
    counts.scatter_add_(1, ids, x["attention_mask"].float())
    return nn.functional.normalize(_dampen(counts), dim=1)


def _dampen(counts: Tensor) -> Tensor:
    return torch.where(counts > 0, 1 + counts.clamp_min(1).log(), 0.0)


class BagOfWords(TextEncoder):
    """Counts of hashed words without any weights: 1 + log of each count, at length 1."""

    gives_counts: ClassVar[bool] = True
    num_features = _BINS

    def __init__(self, spec: InputSpec) -> None:
        """Build nothing.

        Args:
            spec: Inputs.
        """
        super().__init__()
        self.net = nn.Identity()

    def forward(self, x: Inputs) -> Tensor:
        """Count the words, (B, 4096)."""
        return count_words(x)


class TfIdf(TextEncoder):
    """Weights of the 4,096 words that most training texts have: 1 + log of each count, times idf, at length 1.

    idf is 1 + log((1 + N) / (1 + n)) of a word in n of N texts, as in scikit-learn, so that rare words count more.
    `FrozenFeatureClassifier` takes the words from its training examples. Few words share an id if the data's
    `tokenizer` is `words:1048576`.
    """

    gives_counts: ClassVar[bool] = True
    num_features = _BINS
    words: Tensor
    weights: Tensor

    def __init__(self, spec: InputSpec) -> None:
        """Start without words.

        Args:
            spec: Inputs.
        """
        super().__init__()
        self.net = nn.Identity()
        self._num_tokens = count_tokens(spec)
        self.register_buffer("words", torch.full((_BINS,), -1))
        self.register_buffer("weights", torch.zeros(_BINS))

    def fit_inputs(self, batches: Iterable[Inputs]) -> None:
        """Choose the words, and weigh them."""
        count, frequencies = 0, torch.zeros(self._num_tokens, dtype=torch.int64)
        for x in batches:
            ids, given = x["input_ids"].cpu(), x["attention_mask"].cpu().bool()
            texts = torch.arange(len(ids))[:, None] * self._num_tokens + ids
            present = texts[given].unique() % self._num_tokens  # once for each text
            frequencies += present.bincount(minlength=self._num_tokens)
            count += len(ids)
        most = frequencies.argsort(descending=True, stable=True)[:_BINS]
        most = most[frequencies[most] > 0].sort().values
        unused = torch.arange(_BINS - len(most)) + self._num_tokens
        self.words.copy_(torch.cat([most, unused]))
        self.weights.zero_()
        self.weights[: len(most)] = 1 + ((1 + count) / (1 + frequencies[most].double())).log().to(self.weights)

    def forward(self, x: Inputs) -> Tensor:
        """Weigh the words, (B, 4096).

        Raises:
            InputError: The words have not been chosen.
        """
        if not torch.compiler.is_exporting() and int(self.words[-1]) < 0:  # a program has no branches by content
            raise InputError(
                f"backbone {self.name!r} knows no words yet: use it with FrozenFeatureClassifier, which fits it"
            )
        ids = x["input_ids"]
        places = torch.arange(_BINS, device=ids.device)
        at = ids.new_full((self._num_tokens + _BINS,), -1).scatter(0, self.words, places)[ids]
        known = (at >= 0) & x["attention_mask"].bool()
        counts = torch.zeros(ids.shape[0], _BINS, device=ids.device).scatter_add(1, at.clamp_min(0), known.float())
        return nn.functional.normalize(_dampen(counts) * self.weights, dim=1)


def _embed(table: nn.Embedding, x: Inputs) -> Tensor:
    """Return the embeddings of tokens, (B, L, E), with the change that the inputs hold, if any."""
    embedded: Tensor = table(x["input_ids"])
    return embedded + x[CHANGE] if CHANGE in x else embedded


class _Average(nn.Module):
    """Mean of the embeddings of words and of pairs of neighbors."""

    def __init__(self, num_tokens: int, width: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.words, self.pairs = nn.Embedding(num_tokens, width), nn.Embedding(num_tokens, width)
        for table in (self.words, self.pairs):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, x: Inputs) -> Tensor:
        ids, mask = x["input_ids"], x["attention_mask"]
        both = (ids[:, :-1] * _PAIR + ids[:, 1:]) % self.num_tokens
        embedded = torch.cat([_embed(self.words, x), self.pairs(both)], 1)
        return average_tokens(embedded, torch.cat([mask, mask[:, 1:]], 1))


class FastText(TextEncoder):
    """Mean embedding of words and pairs: Joulin et al. 2017, "Bag of Tricks for Efficient Text Classification".

    Pairs are hashed, as in the paper. Vectors have 128 numbers and are normalized.
    """

    num_features = 128

    def __init__(self, spec: InputSpec) -> None:
        """Draw the embeddings.

        Args:
            spec: Inputs.
        """
        super().__init__()
        self.net = nn.Sequential(_Average(count_tokens(spec), self.num_features), nn.LayerNorm(self.num_features))

    @property
    def embedding(self) -> nn.Embedding:
        """Embedding of the words; that of pairs is left alone."""
        words: nn.Embedding = self.net[0].words  # type: ignore[index]
        return words

    def forward(self, x: Inputs) -> Tensor:
        """Compute features, (B, 128)."""
        features: Tensor = self.net(x)
        return features


class _Embedding(nn.Module):
    """Embeddings of tokens and of their places."""

    def __init__(self, num_tokens: int, length: int, width: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(num_tokens, width), nn.Embedding(length, width)
        self.norm = nn.LayerNorm(width)
        for table in (self.tokens, self.places):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, x: Inputs) -> Tensor:
        tokens = _embed(self.tokens, x)
        embedded: Tensor = self.norm(tokens + self.places(torch.arange(tokens.shape[1], device=tokens.device)))
        return embedded


class _Block(nn.TransformerEncoderLayer):
    """A block that calls layers with an adapter, where torch's fused kernel would read their weights and ignore it."""

    def forward(self, tokens: Tensor, padding: Tensor) -> Tensor:  # type: ignore[override] # without causal masks
        if type(self.linear1) is nn.Linear and type(self.linear2) is nn.Linear:
            return super().forward(tokens, src_key_padding_mask=padding)
        tokens = tokens + self._sa_block(self.norm1(tokens), None, padding)
        return tokens + self._ff_block(self.norm2(tokens))


class _Blocks(nn.Module):
    """Transformer blocks from tokens to features of tokens."""

    def __init__(self, num_tokens: int, length: int, width: int, depth: int) -> None:
        super().__init__()
        self.embedding = _Embedding(num_tokens, length, width)
        self.blocks = nn.ModuleList(
            _Block(width, width // 32, 4 * width, 0.1, "gelu", batch_first=True, norm_first=True) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Inputs) -> Tensor:
        mask = x["attention_mask"]
        tokens = self.embedding(x)
        for block in self.blocks:
            tokens = block(tokens, mask == 0)
        features: Tensor = self.norm(tokens)
        return features


class SmallTransformer(TokenEncoder):
    """Four blocks of 128 numbers: Vaswani et al. 2017, "Attention Is All You Need", with normalization first."""

    num_features = 128

    def __init__(self, spec: InputSpec) -> None:
        """Draw the weights.

        Args:
            spec: Inputs.
        """
        super().__init__()
        self.net: _Blocks = _Blocks(count_tokens(spec), spec.shape[0], self.num_features, 4)

    def encode_tokens(self, x: Inputs) -> Tensor:
        """Compute features of tokens, (B, L, 128)."""
        tokens: Tensor = self.net(x)
        return tokens

    @property
    def embedding(self) -> nn.Embedding:
        """Embedding of the tokens."""
        return self.net.embedding.tokens

    def build_decoder(self) -> nn.Module:
        """Build a head on the tokens, tied to their embeddings."""
        return TokenDecoder(self.embedding)


BUILT_IN: dict[str, Callable[[InputSpec], TextEncoder]] = {
    "bag_of_words": BagOfWords,
    "tfidf": TfIdf,
    "fasttext": FastText,
    "small_transformer": SmallTransformer,
}


def adapt_spec(name: str, spec: InputSpec) -> InputSpec:
    """Return the inputs that an encoder of texts takes in place of others: those of its own tokenizer.

    Args:
        name: Name of the encoder.
        spec: Inputs of the data.
    """
    if not name.startswith("hf/"):
        return spec
    return replace(spec, encoding=name.partition(":")[0])


def count_tokens(spec: InputSpec) -> int:
    """Return the number of different token ids of some inputs.

    Args:
        spec: Inputs.
    """
    return make_tokenizer(spec.encoding).num_tokens


def build_from_spec(
    name: str, spec: InputSpec, weights: str, mean: Numbers | None, std: Numbers | None
) -> tuple[TextEncoder, Tensors]:
    """Build an encoder of texts and load its weights.

    Args:
        name: `bag_of_words`, `tfidf`, `fasttext`, `small_transformer`, or `hf/` and the folder of a model or its name
            in the cache of Hugging Face.
        spec: Inputs.
        weights: `none`, `default` (those of the folder), or the path of a file or run.
        mean: None: texts are not normalized.
        std: None: texts are not normalized.

    Returns:
        The encoder, and all tensors of the file, which may contain a head.

    Raises:
        InputError: The name is unknown, or the weights are unavailable or do not fit.
    """
    if mean is not None or std is not None:
        raise InputError("mean or std is set, which texts do not take: leave it out")
    if weights not in ("none", "default"):
        spec = _choose_tokenizer(spec, find_weights(Path(weights)))
    encoder: TextEncoder
    if name.startswith("hf/"):
        encoder = PublishedEncoder(name, spec, weights == "default")
    elif (kind := get_architecture(name)) in BUILT_IN:
        if weights == "default":
            raise InputError(f"weights is 'default', but nobody publishes weights of {name!r}: give none or a path")
        encoder = BUILT_IN[kind](spec)
        if isinstance(encoder, TokenEncoder):
            encoder.choose_pool(name)
        elif kind != name:
            raise InputError(f"backbone {name!r} has features of whole texts alone, which are not pooled: give {kind}")
    else:
        known = ", ".join(BUILT_IN)
        raise InputError(
            f"backbone {name!r} is not known for texts{did_you_mean(name, [*BUILT_IN])}: give {known}, hf/ and the "
            "folder of a model, or the class path of an Encoder"
        )
    encoder.name, encoder.input_spec = name, spec
    if weights in ("none", "default"):
        return encoder, {}
    return encoder, load_encoder_weights(encoder, find_weights(Path(weights)))[1]


def _choose_tokenizer(spec: InputSpec, file: Path) -> InputSpec:
    """Return the inputs with the tokenizer with which the weights of a file were learned, and read it."""
    if spec.encoding.startswith("hf/"):
        use_kept_files(spec.encoding, file)
        return spec
    metadata = read_weights(file)[1]
    recorded = InputSpec.from_settings(metadata.get("hyper_parameters", metadata))
    learned = spec.encoding if recorded is None or recorded.modality != "text" else recorded.encoding
    plain, given = (name.split(":") for name in (learned, spec.encoding))
    if plain[:2] != given[:2]:
        raise InputError(
            f"weights {str(file)!r} read the tokens of {':'.join(plain[:2])}, and the data has those of "
            f"{':'.join(given[:2])}: set data.tokenizer to {':'.join(plain[:2])}"
        )
    use_kept_files(learned, file)
    return replace(spec, encoding=make_tokenizer(learned).name)

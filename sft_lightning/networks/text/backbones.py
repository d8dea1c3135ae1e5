"""Encoders of texts by name: bags of words, a small transformer, or a published one of Hugging Face."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sft_lightning.networks.encoder import Encoder
from sft_lightning.networks.text.kept_files import keep_files, use_kept_files
from sft_lightning.networks.text.tokenizers import find_file, make_tokenizer
from sft_lightning.networks.weights import Tensors, find_weights, load_encoder_weights
from sft_lightning.utils.errors import InputError, did_you_mean
from sft_lightning.utils.inputs import Inputs, InputSpec

Numbers = float | Sequence[float]
POOLS = ("mean", "cls")
_BINS = 4096  # numbers of a bag of words
_PAIR = 1_000_003  # a prime: the hash of a pair of words


class TextEncoder(Encoder):
    """An encoder of token ids with their mask, `input_ids` and `attention_mask`, int64 (B, L) each.

    Features do not depend on the padding.
    """

    modality: ClassVar[str] = "text"

    def keep_files(self, folder: Path) -> None:
        """Copy the configuration and the tokenizer of a published model."""
        keep_files(self.input_spec.encoding, folder)

    def make_example(self) -> Inputs:
        """Return two tokens of one text."""
        return self._make(1, 2)

    def make_batch(self, count: int) -> Inputs:
        """Return texts of half the longest length, at most 64 of them."""
        return self._make(min(count, 64), max(1, self.input_spec.shape[0] // 2))

    def _make(self, count: int, length: int) -> Inputs:
        ids = torch.zeros(count, length, dtype=torch.int64, device=self.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


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
    weights = torch.where(counts > 0, 1 + counts.clamp_min(1).log(), 0.0)
    return nn.functional.normalize(weights, dim=1)


def average_tokens(tokens: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the given tokens of each text, (B, F).

    Args:
        tokens: Features of tokens, (B, L, F).
        mask: Which tokens are given, (B, L).
    """
    weights = mask.to(tokens.dtype).unsqueeze(-1)
    return (tokens * weights).sum(1) / weights.sum(1).clamp_min(1)


class BagOfWords(TextEncoder):
    """Counts of hashed words without any weights: 1 + log of each count, at length 1."""

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
        embedded = torch.cat([self.words(ids), self.pairs(both)], 1)
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

    def forward(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self.norm(self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device)))
        return embedded


class _Blocks(nn.Module):
    """Transformer blocks, whose features are averaged over the given tokens."""

    def __init__(self, num_tokens: int, length: int, width: int, depth: int) -> None:
        super().__init__()
        self.embedding = _Embedding(num_tokens, length, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, width // 32, 4 * width, 0.1, "gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Inputs) -> Tensor:
        mask = x["attention_mask"]
        tokens = self.embedding(x["input_ids"])
        for block in self.blocks:
            tokens = block(tokens, src_key_padding_mask=mask == 0)
        features: Tensor = self.norm(average_tokens(tokens, mask))
        return features


class SmallTransformer(TextEncoder):
    """Four blocks of 128 numbers: Vaswani et al. 2017, "Attention Is All You Need", with normalization first."""

    num_features = 128

    def __init__(self, spec: InputSpec) -> None:
        """Draw the weights.

        Args:
            spec: Inputs.
        """
        super().__init__()
        self.net = _Blocks(count_tokens(spec), spec.shape[0], self.num_features, 4)

    def forward(self, x: Inputs) -> Tensor:
        """Compute features, (B, 128)."""
        features: Tensor = self.net(x)
        return features


class PublishedEncoder(TextEncoder):
    """An encoder of transformers in the form of Hugging Face: BERT, DistilBERT, RoBERTa, DeBERTa, MiniLM and others.

    No code of the model's folder is run, and weights are read from safetensors alone.
    """

    def __init__(self, name: str, spec: InputSpec, has_weights: bool) -> None:
        """Load the model.

        Args:
            name: Name `hf/FOLDER` or `hf/NAME`, with `:mean` (the default) or `:cls` for its pooling.
            spec: Inputs.
            has_weights: Whether to load the published weights, or to draw them.

        Raises:
            InputError: The model is missing, is not an encoder, or does not read these tokens.
        """
        super().__init__()
        where, _, pool = name.partition(":")
        self._pool = pool or POOLS[0]
        if self._pool not in POOLS:
            raise InputError(f"backbone {name!r} ends with {pool!r}{did_you_mean(pool, POOLS)}: give :mean or :cls")
        if spec.encoding != where:
            raise InputError(
                f"backbone {name!r} reads the tokens of its own tokenizer, and the data has those of "
                f"{spec.encoding!r}: set data.tokenizer to {where}"
            )
        folder = find_file(name, "config.json").parent
        self.net = _load(name, folder, has_weights)
        config: Any = self.net.config
        if getattr(config, "is_encoder_decoder", False):
            raise InputError(f"backbone {name!r} has an encoder and a decoder: give a model that is an encoder alone")
        most = getattr(config, "max_position_embeddings", None)
        if most is not None and spec.shape[0] > most:
            raise InputError(f"max_length is {spec.shape[0]}, and backbone {name!r} takes {most} tokens: lower it")
        self.num_features = int(config.hidden_size)

    def forward(self, x: Inputs) -> Tensor:
        """Compute features, (B, F)."""
        tokens: Tensor = self.net(input_ids=x["input_ids"], attention_mask=x["attention_mask"]).last_hidden_state
        return average_tokens(tokens, x["attention_mask"]) if self._pool == "mean" else tokens[:, 0]


def _load(name: str, folder: Path, has_weights: bool) -> Any:
    try:
        from transformers import AutoConfig, AutoModel
        from transformers.utils import logging
    except ImportError as error:
        raise InputError(f"backbone {name!r} needs the extra 'text': pip install 'sft-lightning[text]'") from error
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if has_weights:
            find_file(name, "model.safetensors")
            net = AutoModel.from_pretrained(
                folder, config=config, local_files_only=True, trust_remote_code=False, use_safetensors=True
            )
        else:
            net = AutoModel.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"backbone {name!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    if getattr(net, "pooler", None) is not None:
        net.pooler = None  # its output is not used, and DDP would wait for its gradients
    return net.float()


BUILT_IN: dict[str, Callable[[InputSpec], TextEncoder]] = {
    "bag_of_words": BagOfWords,
    "fasttext": FastText,
    "small_transformer": SmallTransformer,
}


def adapt_spec(name: str | None, spec: InputSpec) -> InputSpec:
    """Return the inputs that an encoder of texts takes in place of others: those of its own tokenizer.

    Args:
        name: Name of the encoder, or None.
        spec: Inputs of the data; those of other modalities are returned as they are.
    """
    if spec.modality != "text" or name is None or not name.startswith("hf/"):
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
        name: `bag_of_words`, `fasttext`, `small_transformer`, or `hf/` and the folder of a model or its name in the
            cache of Hugging Face.
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
        use_kept_files(spec.encoding, find_weights(Path(weights)))
    encoder: TextEncoder
    if name.startswith("hf/"):
        encoder = PublishedEncoder(name, spec, weights == "default")
    elif name in BUILT_IN:
        if weights == "default":
            raise InputError(f"weights is 'default', but nobody publishes weights of {name!r}: give none or a path")
        encoder = BUILT_IN[name](spec)
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

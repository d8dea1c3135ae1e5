"""What encoders of texts share: their inputs, their pooling, and learning to fill hidden tokens."""

import math
from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from sft_lightning.networks.encoder import Encoder, FilledEntries
from sft_lightning.networks.text.kept_files import keep_files
from sft_lightning.networks.text.masked_language import fill_tokens, hide_tokens
from sft_lightning.networks.text.tokenizers import Tokenizer, make_tokenizer
from sft_lightning.utils.errors import InputError, did_you_mean
from sft_lightning.utils.inputs import Inputs
from sft_lightning.utils.transfer import to_device

CHANGE = "change"  # key of a change of the embeddings, (B, L, E), beside the token ids
_ON_CPU, _ON_GPU = 16, 128  # texts of similar length that are evaluated together


class TextEncoder(Encoder):
    """An encoder of token ids with their mask, `input_ids` and `attention_mask`, int64 (B, L) each.

    Features do not depend on the padding.
    """

    modality: ClassVar[str] = "text"

    @property
    def embedding(self) -> nn.Embedding | None:
        """Embedding of the tokens; None where tokens are counted."""
        return None

    def find_perturbation_shape(self, x: Inputs) -> torch.Size:
        """Return the shape of the embeddings of the tokens, (B, L, E)."""
        if self.embedding is None:
            return super().find_perturbation_shape(x)
        return torch.Size([*x["input_ids"].shape, self.embedding.embedding_dim])

    def perturb(self, x: Inputs, change: Tensor) -> Inputs:
        """Add a change of the embeddings, which is in units of their standard deviation, as in Miyato et al. 2017.

        Their standard deviation is that of the table, so that larger embeddings do not make a change smaller.
        """
        assert self.embedding is not None
        return {**x, CHANGE: change * self.embedding.weight.detach().std()}

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


def average_tokens(tokens: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the given tokens of each text, (B, F).

    Args:
        tokens: Features of tokens, (B, L, F).
        mask: Which tokens are given, (B, L).
    """
    weights = mask.to(tokens.dtype).unsqueeze(-1)
    return (tokens * weights).sum(1) / weights.sum(1).clamp_min(1)


class AttentionPool(nn.Module):
    """Mean of tokens weighed by their similarity to a learned query, as in Yang et al. 2016; at first, the plain mean.

    Attributes:
        is_pooling: Whether the block before it, with which it is tuned, takes it in.
    """

    is_pooling: ClassVar[bool] = True

    def __init__(self, width: int) -> None:
        """Start with a query of zeros.

        Args:
            width: Number of features of a token.
        """
        super().__init__()
        self.query = nn.Parameter(torch.zeros(width))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Compute features of texts, (B, F).

        Args:
            tokens: Features of tokens, (B, L, F).
            mask: Which tokens are given, (B, L).
        """
        scores = tokens @ self.query / math.sqrt(len(self.query))
        weights = scores.masked_fill(mask == 0, torch.finfo(scores.dtype).min).softmax(1)
        return (tokens * weights.unsqueeze(-1)).sum(1)


class TokenEncoder(TextEncoder):
    """An encoder with features of each token, which are pooled; it can learn to fill hidden tokens.

    Attributes:
        pools: Names of the poolings that it takes after a colon, the default first.
    """

    pools: ClassVar[tuple[str, ...]] = ("mean", "attention")
    _pool = "mean"

    def choose_pool(self, name: str) -> None:
        """Choose how the features of tokens become those of texts.

        Args:
            name: Name of the encoder, perhaps with a pooling after a colon.

        Raises:
            InputError: The encoder does not take this pooling.
        """
        pool = name.partition(":")[2] or self.pools[0]
        if pool not in self.pools:
            known = " or ".join(f":{one}" for one in self.pools)
            raise InputError(f"backbone {name!r} ends with {pool!r}{did_you_mean(pool, self.pools)}: give {known}")
        self._pool = pool
        if pool == "attention":
            self.net.attention = AttentionPool(self.num_features)

    @abstractmethod
    def encode_tokens(self, x: Inputs) -> Tensor:
        """Compute features of tokens, (B, L, F).

        Args:
            x: `input_ids` and `attention_mask`, (B, L) each.
        """

    def pool(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Compute features of texts from those of their tokens, (B, F).

        Args:
            tokens: Features of tokens, (B, L, F).
            mask: Which tokens are given, (B, L).
        """
        if self._pool == "attention":
            pooled: Tensor = self.net.attention(tokens, mask)  # type: ignore[operator] # a module
            return pooled
        return average_tokens(tokens, mask) if self._pool == "mean" else tokens[:, 0]

    def forward(self, x: Inputs, is_pooled: bool = True) -> Tensor:
        """Compute features, (B, F), or those of tokens, (B, L, F).

        Args:
            x: `input_ids` and `attention_mask`, (B, L) each.
            is_pooled: Whether to compute one vector for each text.
        """
        if not is_pooled:
            return self.encode_tokens(x)
        group = _ON_CPU if x["input_ids"].device.type == "cpu" else _ON_GPU
        is_whole = self.training or torch.is_grad_enabled() or torch.compiler.is_compiling()
        if is_whole or len(x["input_ids"]) <= group:
            return self.pool(self.encode_tokens(x), x["attention_mask"])
        return self._encode_by_length(x, group)

    def _encode_by_length(self, x: Inputs, group: int) -> Tensor:
        """Compute features, (B, F), of some texts of similar length at a time, which takes less padding."""
        lengths, order = x["attention_mask"].sum(1).sort(stable=True)
        longest = [max(1, int(some[-1])) for some in lengths.cpu().split(group)]
        pieces = []
        for at, length in zip(order.split(group), longest, strict=True):
            piece = {name: x[name][at, :length] for name in ("input_ids", "attention_mask")}
            pieces.append(self.pool(self.encode_tokens(piece), piece["attention_mask"]))
        return torch.cat(pieces)[order.argsort()]

    # --- masked language modeling

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the inputs."""
        return make_tokenizer(self.input_spec.encoding)

    def check_corruption(self, noise: float, hidden: float, patch: int | None) -> None:
        """Refuse anything but hidden tokens."""
        if noise:
            raise InputError(f"noise is {noise}, which texts cannot have: leave it out and set hidden to 0.15, say")
        if patch is not None:
            raise InputError(f"patch is {patch}, but tokens of texts are hidden one by one: leave it out")
        if not hidden:
            raise InputError(
                "hidden is 0, but an autoencoder of texts learns to fill hidden tokens: set hidden to their share, "
                "such as 0.15"
            )

    def corrupt(self, x: Inputs, noise: float, hidden: float, patch: int, generator: torch.Generator) -> Inputs:
        """Hide tokens."""
        chance = torch.rand((3, *x["input_ids"].shape), generator=generator)
        return hide_tokens(x, hidden, to_device(chance, x["input_ids"].device), self.tokenizer)

    def corrupt_evaluated(self, x: Inputs, hidden: float, indices: Tensor) -> Inputs:
        """Hide tokens of each text by its position, whatever its batch and padding."""
        size, length = (3, self.input_spec.shape[0]), x["input_ids"].shape[1]
        rows = [torch.rand(size, generator=torch.Generator().manual_seed(i)) for i in indices.tolist()]
        chance = torch.stack([row[:, :length] for row in rows], 1)
        return hide_tokens(x, hidden, to_device(chance, x["input_ids"].device), self.tokenizer)

    def reconstruct(self, decoder: nn.Module, x: Inputs) -> FilledEntries:
        """Fill the hidden tokens."""
        texts = {name: x[name] for name in ("input_ids", "attention_mask")}
        tokens = self(texts, is_pooled=False)
        if self._pool == "attention":  # which is not trained here, and DDP waits for a gradient of each parameter
            tokens = tokens + 0 * self.pool(tokens, x["attention_mask"]).sum()
        return fill_tokens(decoder, tokens, x)

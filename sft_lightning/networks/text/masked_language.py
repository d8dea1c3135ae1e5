"""Masked language modeling: an encoder of texts learns to fill tokens that are hidden from it.

Devlin et al. 2019, "BERT". On the texts of a task, before its labels are learned: Gururangan et al. 2020, "Don't Stop
Pretraining". It is the denoising autoencoder of texts: the encoder sees a corrupted text, the target is the text.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning.networks.encoder import FilledEntries
from sft_lightning.networks.text.tokenizers import Tokenizer

Tokens = dict[str, Tensor]
TARGETS = "targets"  # key of the tokens to predict, int64 (B, L), -1 elsewhere
_MASKED, _RANDOM = 0.8, 0.1  # of the hidden tokens; the others stay as they are, as in BERT
_SHOWN = 8


def hide_tokens(x: Tokens, share: float, chance: Tensor, tokenizer: Tokenizer) -> Tokens:
    """Hide a share of the tokens of each text, at least one: 80% become the mask, 10% random tokens, 10% stay.

    Args:
        x: `input_ids` and `attention_mask`, (B, L) each.
        share: Share of the tokens, without marks of beginning and end.
        chance: Random numbers in [0, 1), (3, B, L): which tokens, how, and what stands in their place.
        tokenizer: Tokenizer of the ids.

    Returns:
        The texts as the encoder sees them, and `targets`.
    """
    ids, given = x["input_ids"], x["attention_mask"].bool()
    special = torch.tensor(tokenizer.special_ids, dtype=ids.dtype, device=ids.device)
    free = given & ~torch.isin(ids, special)
    count = (share * free.sum(1, keepdim=True)).round().clamp_min(1)
    rank = chance[0].masked_fill(~free, 2.0).argsort(1).argsort(1)
    hidden = free & (rank < count)
    other = (chance[2] * tokenizer.num_tokens).long().clamp_max(tokenizer.num_tokens - 1)
    replaced = torch.where(chance[1] < _MASKED, tokenizer.mask_id, other)
    seen = torch.where(hidden & (chance[1] < _MASKED + _RANDOM), replaced, ids)
    return {**x, "input_ids": seen, TARGETS: torch.where(hidden, ids, -1)}


def fill_tokens(decoder: nn.Module, tokens: Tensor, x: Tokens) -> FilledEntries:
    """Predict the hidden tokens of texts.

    Args:
        decoder: Network from the features of tokens, (M, F), to logits, (M, V).
        tokens: Features of all tokens, (B, L, F).
        x: Texts that `hide_tokens` returned.
    """
    hidden = x[TARGETS] >= 0
    logits: Tensor = decoder(tokens[hidden])

    def make_rows() -> tuple[Tokens, ...]:
        few = {name: x[name][:_SHOWN] for name in ("input_ids", "attention_mask")}
        ids, at = few["input_ids"], hidden[:_SHOWN]
        whole = torch.where(at, x[TARGETS][:_SHOWN], ids)
        filled = ids.masked_scatter(at, logits.detach().argmax(1)[: int(at.sum())])
        return {**few, "input_ids": whole}, few, {**few, "input_ids": filled}

    return FilledEntries(logits, x[TARGETS][hidden], hidden.nonzero()[:, 0], make_rows)


class TokenDecoder(nn.Module):
    """BERT's head: a layer of its own, then the similarity to the embedding of each token."""

    def __init__(self, embedding: nn.Embedding) -> None:
        """Draw the weights of the layer; those of the embedding are the encoder's own.

        Args:
            embedding: Embedding of the tokens.
        """
        super().__init__()
        width = embedding.embedding_dim
        self.layer = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.weight, self.bias = embedding.weight, nn.Parameter(torch.zeros(embedding.num_embeddings))

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute logits, (M, V).

        Args:
            tokens: Features of tokens, (M, F).
        """
        return F.linear(self.layer(tokens), self.weight, self.bias)


class PublishedDecoder(nn.Module):
    """The head with which a model of transformers was trained to fill tokens, with its weights where they are there."""

    def __init__(self, model: Any, net: Any) -> None:
        """Take the head of a model, and tie it to the embeddings of the encoder where the model ties them.

        Args:
            model: Model `...ForMaskedLM` of transformers.
            net: Encoder of the same architecture.
        """
        super().__init__()
        embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings()
        setattr(model, model.base_model_prefix, _Given())  # the features are computed outside
        if output is not None and output.weight is embedding:
            output.weight = net.get_input_embeddings().weight
        self.model = model.float()

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute logits, (M, V).

        Args:
            tokens: Features of tokens, (M, F).
        """
        logits: Tensor = self.model(inputs_embeds=tokens.unsqueeze(0)).logits
        return logits.squeeze(0)


class _Given(nn.Module):
    """Stands in for an encoder whose features are given."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutput

        return BaseModelOutput(last_hidden_state=inputs_embeds)

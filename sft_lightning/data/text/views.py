"""Views of token ids for whole batches: words that are left out, hidden or swapped.

The changes are those of Wei & Zou 2019, "EDA: Easy Data Augmentation Techniques", without synonyms, and the hidden
spans of Joshi et al. 2020, "SpanBERT". Each text of a batch has its own randomness, from the seed of the batch.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sft_lightning.data.modality import Views, seed_view
from sft_lightning.networks.text.backbones import count_words
from sft_lightning.networks.text.tokenizers import PADDING, Tokenizer
from sft_lightning.utils.errors import check_fraction
from sft_lightning.utils.inputs import Inputs

Tokens = dict[str, Tensor]


@dataclass(frozen=True)
class TextView:
    """Shares of the tokens of a text that a view changes.

    Attributes:
        delete: Share that is left out.
        hide: Share that a token for hidden words replaces.
        swap: Share that changes places with the next token.
        span: Share of the text that is hidden in one piece.
    """

    delete: float = 0.0
    hide: float = 0.0
    swap: float = 0.0
    span: float = 0.0

    def __post_init__(self) -> None:
        check_fraction(delete=self.delete, hide=self.hide, swap=self.swap, span=self.span)

    def __bool__(self) -> bool:
        return bool(self.delete or self.hide or self.swap or self.span)


class _Prepared(dict[str, Tensor]):
    """Tokens of a batch, and stored tokens of other wordings of its texts, (B, W, max_length), for strong views."""

    augmented: Tensor | None = None


class TextViews(Views):
    """Token ids and which of them are given: `input_ids` and `attention_mask`, int64 (B, L).

    L is the length of the longest text of the batch. Strong views of texts with other wordings that were made
    beforehand, such as back-translations, begin with one of these at random (Xie et al. 2020, "UDA").
    """

    inputs_name: ClassVar[str] = "words"

    def __init__(self, tokenizer: Tokenizer, weak: TextView, strong: TextView, text_length: int | None = None) -> None:
        """Keep the settings.

        Args:
            tokenizer: Tokenizer of the ids.
            weak: Changes of weak views.
            strong: Changes of strong views.
            text_length: Length of stored texts if other wordings of training texts follow them; None if none do.
        """
        self._tokenizer, self._weak, self._strong, self._text_length = tokenizer, weak, strong, text_length

    @property
    def has_strong(self) -> bool:
        """Whether the strong view changes anything."""
        return bool(self._strong) or self._text_length is not None

    def prepare(self, raw: Tensor) -> Tokens:
        """Return the tokens of a batch, without columns that are padding alone."""
        text, *others = raw.split(self._text_length or raw.shape[1], 1)
        if not others:
            return self._cut(raw)
        made = _Prepared(self._cut(text))
        made.augmented = torch.stack(others, 1)
        return made

    def _cut(self, raw: Tensor) -> Tokens:
        given = raw != PADDING
        longest = max(1, int(given.sum(1).max()))
        ids, given = raw[:, :longest].long(), given[:, :longest]
        return {"input_ids": ids.clamp_min(0), "attention_mask": given.long()}

    def weak(self, x: Tokens, seed: int | None, number: int = 0) -> Tokens:
        """Change texts slightly."""
        return x if seed is None else self._change(x, self._weak, seed_view(seed, 2 * number))

    def strong(self, x: Tokens, seed: int) -> Tokens:
        """Change texts strongly, beginning with another wording if they have some."""
        others = getattr(x, "augmented", None)
        if others is not None:
            generator = torch.Generator().manual_seed(seed_view(seed, 3))
            chosen = torch.randint(others.shape[1], (len(others),), generator=generator)
            x = self._cut(others[torch.arange(len(others)), chosen.to(others.device)])
        return self._change(x, self._strong, seed_view(seed, 1))

    def _change(self, x: Tokens, view: TextView, seed: int) -> Tokens:
        if not view:
            return x
        ids, given = x["input_ids"], x["attention_mask"].bool()
        generator = torch.Generator().manual_seed(seed)
        chance = torch.rand((4, *ids.shape), generator=generator).to(ids.device)
        free = given.clone()
        place = torch.arange(ids.shape[1], device=ids.device)
        count = given.sum(1, keepdim=True)
        free &= ~torch.isin(ids, torch.tensor(self._tokenizer.special_ids, dtype=ids.dtype, device=ids.device))
        if self._tokenizer.has_frame:
            free &= (place > 0) & (place < count - 1)
        swapped = free[:, :-1] & free[:, 1:] & (chance[0, :, :-1] < view.swap)
        swapped[:, 1:] &= ~swapped[:, :-1]  # each token changes places once
        order = place.repeat(len(ids), 1)
        order[:, :-1] += swapped.long()
        order[:, 1:] -= swapped.long()
        ids = ids.gather(1, order)
        hidden = free & (chance[1] < view.hide)
        length = (view.span * free.sum(1, keepdim=True)).round()
        begin = (chance[2, :, :1] * (count - length + 1)).floor()
        hidden |= free & (place >= begin) & (place < begin + length)
        ids = torch.where(hidden, self._tokenizer.mask_id, ids)
        kept = given & ~(free & (chance[3] < view.delete))
        kept |= given & ~kept.any(1, keepdim=True)  # a text keeps at least one token
        return self._compact(ids, kept)

    def _compact(self, ids: Tensor, kept: Tensor) -> Tokens:
        """Move the tokens that are kept together, in their order."""
        order = (~kept).long().argsort(dim=1, stable=True)
        kept = kept.gather(1, order)
        return {"input_ids": ids.gather(1, order) * kept, "attention_mask": kept.long()}

    def flatten(self, x: Inputs) -> Tensor:
        """Return bags of words, (B, 4096), as the backbone `bag_of_words`."""
        return count_words(x)

    def show(self, x: Inputs) -> list[str]:
        """Return the texts."""
        rows = zip(x["input_ids"].tolist(), x["attention_mask"].sum(1).tolist(), strict=True)
        return [self._tokenizer.decode(ids[:count]) for ids, count in rows]

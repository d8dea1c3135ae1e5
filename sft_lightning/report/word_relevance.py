"""Words of a text that support a class: gradient times input, or what changes when a word is left out.

Where a network embeds each token by itself and its head is linear, the relevance of a token is the product of its
embedding and the gradient of the logit with respect to it (Denil et al. 2014, "Extraction of Salient Sentences from
Labelled Documents"; Li et al. 2016, "Visualizing and Understanding Neural Models in NLP"), from one pass. Everywhere
else it is the fall of the logit when the token is left out (Li et al. 2016, "Understanding Neural Networks through
Representation Erasure"), from one pass for each token.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from markupsafe import Markup
from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning.data.text.storage import Text, TextStorage
from sft_lightning.networks.text.tokenizers import make_tokenizer
from sft_lightning.report.explainer import Explainer
from sft_lightning.utils.html import render_marked
from sft_lightning.utils.inputs import Inputs, select_inputs

_WORD = re.compile(r"\w+|\S")
_LEAST = 0.15  # share of the strongest word below which a word is not marked
_AT_ONCE = 64


class WordRelevance(Explainer):
    """Texts whose words are marked by how much they support a class."""

    title: ClassVar[str] = "Words that support the prediction"
    note: ClassVar[str] = (
        "The most confident right and wrong predictions. The stronger a word is marked, the more it supports the "
        "predicted class."
    )
    suits_tiles: ClassVar[bool] = True

    def draw(self, name: str, positions: Sequence[int], classes: Tensor) -> list[Markup]:
        """Return each text with its words marked."""
        if not len(positions):
            return []
        split = self.evaluation.data.splits[name]
        storage = split.part.storage
        assert isinstance(storage, TextStorage)
        x = self.evaluation.data.inputs_of(name, [*positions])
        relevance = self.measure(x, classes)
        drawn = []
        for position, row in zip(positions, relevance.tolist(), strict=True):
            index = split.indices[position]
            parts = self._mark(storage.texts[index], row)
            drawn.append(render_marked(parts, split.part.ids[index]))
        return drawn

    def measure(self, x: Inputs, classes: Tensor) -> Tensor:
        """Return the relevance of each token for a class, (B, L); 0 for padding.

        Args:
            x: `input_ids` and `attention_mask`, (B, L) each.
            classes: Classes, int64, (B,).
        """
        relevance = self._multiply_gradients(x, classes) if self.evaluation.head else None
        if relevance is None:
            relevance = self._leave_out(x, classes)
        given: Tensor = x["attention_mask"]
        return relevance * given

    def _multiply_gradients(self, x: Inputs, classes: Tensor) -> Tensor | None:
        """Return gradient times input, or None for a network that embeds more than each token by itself."""
        backbone, head = self.evaluation.backbone, self.evaluation.head
        ids, outputs, others = x["input_ids"], list[Tensor](), list[Tensor]()

        def record(_: nn.Module, given: Any, output: Tensor) -> Tensor:
            if not torch.equal(given[0], ids):
                if given[0].ndim > 1 and not _are_places(given[0], x["attention_mask"]):
                    others.append(output)
                return output
            outputs.append(output.detach().requires_grad_(True))
            return outputs[-1]

        tables = [module for module in backbone.net.modules() if isinstance(module, nn.Embedding)]
        hooks = [table.register_forward_hook(record) for table in tables]
        try:
            with torch.enable_grad():
                logits = F.linear(backbone(x), head["weight"], head["bias"])
                if len(outputs) != 1 or others:
                    return None
                (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), outputs)
        finally:
            for hook in hooks:
                hook.remove()
        return (gradient * outputs[0]).sum(2).detach()

    @torch.no_grad()
    def _leave_out(self, x: Inputs, classes: Tensor) -> Tensor:
        relevance = torch.zeros(x["input_ids"].shape)
        for row, label in enumerate(classes.tolist()):
            length = int(x["attention_mask"][row].sum())
            tokens = x["input_ids"][row, :length]
            rest = torch.stack([torch.cat([tokens[:k], tokens[k + 1 :], tokens[:1]]) for k in range(length)])
            mask = torch.ones_like(rest)
            mask[:, -1] = 0  # one token less
            if length == 1:
                mask[:] = 1
                rest[:] = 0
            without = {"input_ids": rest * mask, "attention_mask": mask}
            one = {name: tensor[row : row + 1, :length] for name, tensor in x.items()}
            logits = [self._classify(one)] + [
                self._classify(select_inputs(without, slice(k, k + _AT_ONCE))) for k in range(0, length, _AT_ONCE)
            ]
            scores = torch.cat(logits)[:, label]
            relevance[row, :length] = scores[0] - scores[1:]
        return relevance

    def _classify(self, x: Inputs) -> Tensor:
        return self.evaluation.classify(self.evaluation.backbone(x))

    @cached_property
    def _tokenizer(self) -> Any:
        return make_tokenizer(self.evaluation.data.input_spec.encoding)

    def _mark(self, text: Text, relevance: Sequence[float]) -> list[tuple[str, float]]:
        """Return a text in pieces, each with its weight from 0 to 1."""
        joined = "\n".join(text)
        spans = self._tokenizer.locate(text, len(relevance))
        words = [match.span() for match in _WORD.finditer(joined)]
        sums = [0.0] * len(words)
        k = 0
        for (start, end), value in zip(spans, relevance, strict=False):
            if end > start:  # not a mark of the beginning or end
                k = next((j for j in range(len(words)) if words[j][0] <= start < words[j][1]), k)
                if k < len(sums):
                    sums[k] += value
        most = max([*sums, 1e-12])
        pieces: list[tuple[str, float]] = []
        last = 0
        for (start, end), value in zip(words, sums, strict=True):
            weight = value / most
            pieces += [(joined[last:start], 0.0), (joined[start:end], weight if weight >= _LEAST else 0.0)]
            last = end
        return [piece for piece in [*pieces, (joined[last:], 0.0)] if piece[0]]


def _are_places(numbers: Tensor, mask: Tensor) -> bool:
    """Return whether numbers are those of places, or of the first and the second text, and not of tokens, (B, L)."""
    if numbers.shape[1] != mask.shape[1]:
        return False
    numbers = numbers.expand_as(mask)  # one row may stand for all
    steps = (numbers[:, 1:] - numbers[:, :-1])[mask[:, 1:].bool()]
    return bool(((steps == 0) | (steps == 1)).all())

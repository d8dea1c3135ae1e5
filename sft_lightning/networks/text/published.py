"""Encoders of texts in the form of Hugging Face, from a folder or its cache."""

from typing import Any, ClassVar

from torch import Tensor, nn

from sft_lightning.networks.hugging_face import load_model
from sft_lightning.networks.text.masked_language import PublishedDecoder
from sft_lightning.networks.text.token_encoder import CHANGE, TokenEncoder
from sft_lightning.networks.text.tokenizers import make_tokenizer
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import Inputs, InputSpec


class PublishedEncoder(TokenEncoder):
    """An encoder of transformers in the form of Hugging Face: BERT, DistilBERT, RoBERTa, DeBERTa, MiniLM and others.

    No code of the model's folder is run, and weights are read from safetensors alone.
    """

    pools: ClassVar[tuple[str, ...]] = ("mean", "cls", "attention")

    def __init__(self, name: str, spec: InputSpec, has_weights: bool) -> None:
        """Load the model.

        Args:
            name: Name `hf/FOLDER` or `hf/NAME`, with `:mean` (the default), `:cls` or `:attention` for its pooling.
            spec: Inputs.
            has_weights: Whether to load the published weights, or to draw them.

        Raises:
            InputError: The model is missing, is not an encoder, or does not read these tokens.
        """
        super().__init__()
        where = name.partition(":")[0]
        if spec.encoding != where:
            raise InputError(
                f"backbone {name!r} reads the tokens of its own tokenizer, and the data has those of "
                f"{spec.encoding!r}: set data.tokenizer to {where}"
            )
        self.net = load_model(name, has_weights)
        config: Any = self.net.config
        if getattr(config, "is_encoder_decoder", False):
            raise InputError(f"backbone {name!r} has an encoder and a decoder: give a model that is an encoder alone")
        self.num_features = int(config.hidden_size)
        self.choose_pool(name)
        most = getattr(config, "max_position_embeddings", None)
        places: Any = getattr(getattr(self.net, "embeddings", None), "position_embeddings", None)
        if most is not None and getattr(places, "padding_idx", None) is not None:
            most -= places.padding_idx + 1  # RoBERTa's places begin after that of padding
        if most is not None and spec.shape[0] > most:
            raise InputError(f"max_length is {spec.shape[0]}, and backbone {name!r} takes {most} tokens: lower it")
        tokenizer = make_tokenizer(spec.encoding)
        if tokenizer.num_tokens > self.embedding.num_embeddings:
            raise InputError(
                f"backbone {name!r} has embeddings of {self.embedding.num_embeddings:,} tokens, and its tokenizer "
                f"{tokenizer.num_tokens:,}: give a folder whose files belong together"
            )
        self._mark = tokenizer.pair_mark if (getattr(config, "type_vocab_size", 0) or 0) > 1 else None
        self._has_weights = has_weights

    def encode_tokens(self, x: Inputs) -> Tensor:
        """Compute features of tokens, (B, L, F)."""
        more = {}
        if self._mark is not None:  # 1 after the first mark, where the second text of a pair is
            marks = (x["input_ids"] == self._mark).long()
            more["token_type_ids"] = (marks.cumsum(1) - marks).clamp_max(1)
        if CHANGE in x:
            more["inputs_embeds"] = self.embedding(x["input_ids"]) + x[CHANGE]
        else:
            more["input_ids"] = x["input_ids"]
        outputs = self.net(attention_mask=x["attention_mask"], **more)
        tokens: Tensor = outputs.last_hidden_state
        return tokens

    @property
    def embedding(self) -> nn.Embedding:
        """Embedding of the tokens."""
        table: nn.Embedding = self.net.get_input_embeddings()  # type: ignore[operator] # of transformers
        return table

    def build_decoder(self) -> nn.Module:
        """Take the model's own head for hidden tokens, with its published weights if the encoder has its own.

        Raises:
            InputError: The architecture has no such head.
        """
        return PublishedDecoder(load_model(self.name, self._has_weights, "AutoModelForMaskedLM"), self.net)

"""Inputs of networks, whatever their modality: one tensor, or several under names, and what is known of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sft_lightning.modalities import get_modality
from sft_lightning.utils.errors import InputError

# A tensor, such as images (B, C, H, W), or a mapping of tensors, such as the `input_ids` and `attention_mask` (B, L) of
# texts. `Any`, so that the classes of one modality can say which of the two they take.
Inputs = Any


@dataclass(frozen=True)
class InputSpec:
    """What goes into a network, known before any example is read.

    Attributes:
        modality: Kind of the inputs, such as `image`.
        shape: Shape of one example, such as (C, H, W).
        dtype: Name of the type of its numbers in torch, such as `float32`.
        encoding: Name of what gives the numbers their meaning, such as a tokenizer; empty for measured values.
    """

    modality: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    encoding: str = ""

    @property
    def noun(self) -> str:
        """Word for one example, such as `image`; `example` for modalities that this package does not know."""
        return get_modality(self.modality).noun

    @property
    def plural(self) -> str:
        """Word for several examples, such as `images`."""
        return f"{self.noun}s"

    def count(self, number: int) -> str:
        """Return a number of examples in words, such as `1 image` or `2,000 images`.

        Args:
            number: Number of examples.
        """
        return f"{number:,} {self.noun if number == 1 else self.plural}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types, for checkpoints."""
        fields = {**asdict(self), "shape": list(self.shape)}
        return fields if self.encoding else {key: value for key, value in fields.items() if key != "encoding"}

    @classmethod
    def parse(cls, given: "InputSpec | Mapping[str, Any] | Sequence[int]") -> "InputSpec":
        """Return a specification from one of its forms.

        Args:
            given: Specification, its fields by name, or the shape (C, H, W) of an image.

        Raises:
            InputError: The value has none of these forms.
        """
        if isinstance(given, InputSpec):
            return given
        try:
            if isinstance(given, Mapping):
                fields = {**given}
                return cls(str(fields.pop("modality")), _shape(fields.pop("shape")), **fields)
            if len(shape := _shape(given)) == 3:
                return cls("image", shape)
        except (KeyError, TypeError, ValueError):
            pass
        raise InputError(
            f"input_spec is {given!r:.80}: give the input_spec of the data, or (channels, height, width) of images"
        )

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "InputSpec | None":
        """Return the specification that a checkpoint or an exported part records, or None if it records none.

        Args:
            settings: Settings of a model or metadata of a file; versions before 0.2 recorded `image_shape`.

        Raises:
            InputError: It records something else.
        """
        recorded = settings.get("input_spec") or settings.get("image_shape")
        return None if recorded is None else cls.parse(recorded)

    def __str__(self) -> str:
        return f"{self.modality} of {' x '.join(map(str, self.shape))}"


def _shape(given: Any) -> tuple[int, ...]:
    shape = tuple(int(n) for n in given)
    if any(n < 1 for n in shape):
        raise ValueError(f"a side of {shape} is not positive")
    return shape


def _tensors(x: Inputs) -> Iterator[Tensor]:
    return iter([x]) if isinstance(x, Tensor) else iter(x.values())


def count_inputs(x: Inputs) -> int:
    """Return the number of examples in a batch.

    Args:
        x: Batch of inputs, (B, ...) each.
    """
    return len(next(_tensors(x)))


def get_device(x: Inputs) -> torch.device:
    """Return the device of a batch.

    Args:
        x: Batch of inputs.
    """
    return next(_tensors(x)).device


def map_inputs(function: Callable[[Tensor], Tensor], x: Inputs) -> Inputs:
    """Apply a function to each tensor of a batch.

    Args:
        function: Function from tensor to tensor.
        x: Batch of inputs.
    """
    return function(x) if isinstance(x, Tensor) else {name: function(tensor) for name, tensor in x.items()}


def select_inputs(x: Inputs, index: Any) -> Inputs:
    """Select some examples of a batch.

    Args:
        x: Batch of inputs, (B, ...) each.
        index: Slice, list of positions or index tensor for the first dimension.
    """
    return map_inputs(lambda tensor: tensor[index], x)


def concatenate_inputs(batches: Sequence[Inputs]) -> Inputs:
    """Concatenate batches of one form.

    Args:
        batches: At least one batch; batches of several tensors have the same names and shapes but for the first side
            and that of sequences, (B, L), of which shorter ones are padded with zeros.
    """
    first = batches[0]
    if isinstance(first, Tensor):
        return torch.cat([*batches])
    return {name: torch.cat(_pad_sequences([x[name] for x in batches])) for name in first}


def _pad_sequences(tensors: list[Tensor]) -> list[Tensor]:
    lengths = {t.shape[1] for t in tensors if t.ndim == 2}
    if len(lengths) < 2:
        return tensors
    return [torch.nn.functional.pad(t, (0, max(lengths) - t.shape[1])) for t in tensors]

"""What a network without its head looks like to paradigms, losses and adapters, whatever goes in."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import Inputs, InputSpec


class MaskedDecoder(nn.Module, ABC):
    """A network that predicts the patches of an input which an encoder does not see.

    Attributes:
        num_patches: Number N of patches of an input.
    """

    num_patches: int

    @abstractmethod
    def forward(self, encoder: "Encoder", x: Inputs, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Encode the visible patches and predict all of them.

        Args:
            encoder: Encoder that built this decoder.
            x: Inputs as the modality's views give them, (B, ...) each.
            visible: Positions of the visible patches, int64, (B, V).

        Returns:
            Predicted patches, (B, N, P), and features of the visible ones, (B, F).
        """

    @abstractmethod
    def split(self, x: Inputs) -> Tensor:
        """Split inputs into patches of P numbers, (B, N, P).

        Args:
            x: Inputs as the modality's views give them, (B, ...) each.
        """

    @abstractmethod
    def merge(self, patches: Tensor) -> Inputs:
        """Put patches together, the inverse of `split`.

        Args:
            patches: Patches, (B, N, P).
        """


class FilledEntries(NamedTuple):
    """Answers for hidden entries of inputs that are entries of a list, such as tokens.

    Attributes:
        logits: Logits of all V entries of the list for each hidden one, (M, V).
        entries: Entries that were hidden, int64, (M,).
        examples: Example of the batch that each of them belongs to, int64, (M,).
        make_rows: Function to rows of some examples for people: whole, as the encoder sees them, and filled.
    """

    logits: Tensor
    entries: Tensor
    examples: Tensor
    make_rows: Callable[[], tuple[Inputs, ...]]


class Encoder(nn.Module, ABC):
    """A network from the inputs of one modality to features.

    A class of your own needs a constructor that takes the `InputSpec`, and `forward`. A setting `backbone` names it by
    its class path, such as `my_networks.VectorEncoder`.

    Attributes:
        modality: Kind of its inputs, such as `image`.
        gives_counts: Whether features are counts or weights of what the inputs consist of, such as words.
        constant_buffers: Names of buffers that no training step changes.
        name: Name as the user wrote it, by which it is built again.
        input_spec: Inputs that it was built for.
        net: The network itself, whose blocks are frozen, released and adapted.
        num_features: Number F of features of an example.
        classifier: Name of the layer of `net` that was removed, under which files of its library may hold it, or None.
        misfits: Tensors with another shape in the weights file, which were initialized randomly.
    """

    modality: ClassVar[str]
    gives_counts: ClassVar[bool] = False
    constant_buffers: ClassVar[tuple[str, ...]] = ()
    name: str
    input_spec: InputSpec
    net: nn.Module
    num_features: int
    classifier: str | None = None

    def __init__(self) -> None:
        """Start without weights that did not fit."""
        super().__init__()
        self.misfits: list[str] = []

    @abstractmethod
    def forward(self, x: Inputs) -> Tensor:
        """Compute features, (B, F).

        Args:
            x: Inputs as the modality's views give them, (B, ...) each.
        """

    @property
    def new_parts(self) -> Sequence[nn.Module]:
        """Parts beside `net` that start anew and learn like a head, such as the decoder of a map of features."""
        return ()

    def add_decoder(self, tensors: Mapping[str, Tensor]) -> None:
        """Make the features a map, (B, F, h, w), by a decoder on top of the network, for targets of pixels.

        Args:
            tensors: Tensors of the weights file, which may hold a decoder.

        Raises:
            InputError: The encoder has no maps.
        """
        raise InputError(f"backbone {self.name!r} gives no maps, from which pixels are classified: choose another one")

    def stack_maps(self) -> None:
        """Make the features a map, (B, F, h, w), of the network's own maps, on top of which nothing learns.

        Raises:
            InputError: The encoder has no maps.
        """
        raise InputError(f"backbone {self.name!r} gives no maps, from which pixels are classified: choose another one")

    def scale_maps(self, draw: Callable[[int, int], Tensor]) -> AbstractContextManager[None]:
        """Return a context in which the channels of the maps that enter the decoder are scaled.

        Args:
            draw: Function from the numbers of examples and channels of a map to factors, (B, C), on the CPU.

        Raises:
            InputError: The encoder has no decoder of maps.
        """
        raise InputError(f"backbone {self.name!r} has no maps whose channels could be scaled: choose another one")

    def list_strides(self) -> list[int]:
        """Return the strides of the maps that `select_maps` can choose, the smallest first.

        Those of a plain transformer are equal.

        Raises:
            InputError: The encoder has no maps.
        """
        raise InputError(f"backbone {self.name!r} gives no maps, in which objects are found: choose another one")

    def select_maps(self, strides: Sequence[int]) -> None:
        """Choose the maps that `forward_maps` gives, and drop the layers after the last one.

        Args:
            strides: Strides of the maps: size of an input divided by that of the map.

        Raises:
            InputError: The encoder has no maps, or none of such a stride.
        """
        raise InputError(f"backbone {self.name!r} gives no maps, of which places are compared: choose another one")

    def forward_maps(self, x: Inputs) -> list[Tensor]:
        """Compute the maps that `select_maps` has chosen, the finest first, (B, C, h, w) each.

        Args:
            x: Inputs as the modality's views give them, (B, ...) each.

        Raises:
            InputError: The encoder has no maps.
        """
        raise InputError(f"backbone {self.name!r} gives no maps, of which places are compared: choose another one")

    def forward_pooled(self, x: Inputs) -> tuple[Tensor, Tensor]:
        """Compute features, (B, F), and the last map, (B, C, h, w), which is pooled into them.

        Args:
            x: Inputs as the modality's views give them, (B, ...) each.

        Raises:
            InputError: The encoder pools no map.
        """
        raise InputError(f"backbone {self.name!r} pools no map, of which places are compared: choose another one")

    def find_perturbation_shape(self, x: Inputs) -> torch.Size:
        """Return the shape of a small change of inputs: by default theirs, (B, ...), if they are measured numbers.

        Args:
            x: Inputs as the modality's views give them, (B, ...) each.

        Raises:
            InputError: The encoder has nothing that changes by degrees, since inputs are entries of a list.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise InputError(
                f"backbone {self.name!r} has no embeddings, and entries of a list cannot be changed a little: choose "
                "another backbone, or another strategy, such as SoftMatch"
            )
        return x.shape

    def perturb(self, x: Inputs, change: Tensor) -> Inputs:
        """Return inputs with a small change, which `forward` takes; the gradient reaches the change.

        Args:
            x: Inputs as the modality's views give them, (B, ...) each.
            change: Change of the shape of `find_perturbation_shape`; of embeddings, in units of the standard deviation
                of all of them.
        """
        return x + change

    def fit_inputs(self, batches: Iterable[Inputs]) -> None:
        """Learn from the inputs of training examples what takes no gradient steps; by default nothing, unread.

        Args:
            batches: Inputs of labeled and unlabeled training examples, without random changes.
        """

    def describe(self) -> dict[str, Any]:
        """Return the primitives from which the encoder is built again, without its weights."""
        return {"backbone": self.name, **describe_spec(self.input_spec), "num_features": self.num_features}

    def make_example(self) -> Inputs:
        """Return inputs of one example, all zeros, to see which layers a pass goes through, (1, ...)."""
        dtype = getattr(torch, self.input_spec.dtype)
        return torch.zeros(1, *self.input_spec.shape, dtype=dtype, device=self.device)

    def make_batch(self, count: int) -> Inputs:
        """Return random inputs of some examples, to measure how long a pass takes, (count, ...).

        Args:
            count: Number of examples.
        """
        return torch.rand(count, *self.input_spec.shape, device=self.device)

    def keep_files(self, folder: Path) -> None:
        """Copy the files from which the encoder is built again, weights aside, into the folder of a run; none here.

        Args:
            folder: Folder of the run.
        """

    @property
    def architecture(self) -> str:
        """Name without its pooling, which has no weights: `resnet8` of `resnet8:flatten`."""
        return get_architecture(self.name)

    def build_decoder(self) -> nn.Module:
        """Build a network from the features, (B, F), back to inputs, for autoencoders.

        Raises:
            InputError: The encoder has no decoder.
        """
        raise InputError(f"backbone {self.name!r} has no decoder, so it cannot be an autoencoder: choose another one")

    def accept_smaller_inputs(self) -> None:
        """Let the encoder take smaller inputs, too, as local crops of an image are.

        Raises:
            InputError: The encoder takes inputs of one size only.
        """

    def build_masked_decoder(self, patch: int | None, width: int, depth: int) -> MaskedDecoder:
        """Build the decoder of a masked autoencoder.

        Args:
            patch: Side of a patch; None for that of a transformer, or a divisor of the side of the input.
            width: Number of channels of a transformer decoder.
            depth: Number of blocks of a transformer decoder.

        Raises:
            InputError: The encoder has no patches or map to decode.
        """
        raise InputError(f"backbone {self.name!r} has no masked decoder, so MAE cannot train it: choose another one")

    def reconstruct(self, decoder: nn.Module, x: Inputs) -> Inputs | FilledEntries:
        """Reconstruct inputs from their features, or fill what `corrupt` hides of inputs that are entries of a list.

        Args:
            decoder: Decoder that `build_decoder` has built.
            x: Inputs of a batch, perhaps corrupted, (B, ...) each.
        """
        return decoder(self(x))

    def check_corruption(self, noise: float, hidden: float, patch: int | None) -> None:
        """Refuse a corruption that inputs of this modality do not have; by default, none is refused.

        Args:
            noise: Standard deviation of Gaussian noise.
            hidden: Share of the input that is hidden, from 0 to 1.
            patch: Side of the pieces that are hidden; None where it is not set.

        Raises:
            InputError: The modality has no such corruption.
        """

    def corrupt_evaluated(self, x: Inputs, hidden: float, indices: Tensor) -> Inputs:
        """Corrupt the inputs of an evaluation, where only what was hidden can be judged; by default, not at all.

        Args:
            x: Inputs of a batch, (B, ...) each.
            hidden: Share of the input that is hidden, from 0 to 1.
            indices: Positions of the examples, which decide what is hidden, int64, (B,).
        """
        return x

    def corrupt(self, x: Inputs, noise: float, hidden: float, patch: int, generator: torch.Generator) -> Inputs:
        """Corrupt the inputs of a denoising or masked autoencoder.

        Args:
            x: Inputs of a batch, (B, ...) each.
            noise: Standard deviation of Gaussian noise.
            hidden: Share of the input that is hidden, from 0 to 1.
            patch: Side of the pieces that are hidden.
            generator: Generator on the CPU, from which all randomness comes.

        Raises:
            InputError: Inputs of this modality have no corruption.
        """
        raise InputError(f"{self.modality} inputs have no corruption: set noise and hidden to 0")

    @property
    def device(self) -> torch.device:
        """Device of the weights; the CPU without any."""
        tensor = next(chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if tensor is None else tensor.device


def get_architecture(name: str) -> str:
    """Return the name of an encoder without its pooling.

    Args:
        name: Name such as `resnet8` or `resnet8:flatten`.
    """
    return name.partition(":")[0]


def describe_spec(spec: InputSpec) -> dict[str, Any]:
    """Return the metadata that records the inputs of a network, of JSON types.

    Args:
        spec: Inputs of the network. Of images, their shape is recorded by itself, too, as in versions before 0.2.
    """
    shape = {"image_shape": list(spec.shape)} if spec.modality == "image" else {}
    return {**shape, "input_spec": spec.to_dict()}

"""The interface of R(theta), a penalty that is added to the loss of any paradigm."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from sft_lightning.networks.encoder import Encoder
from sft_lightning.utils.errors import check_min
from sft_lightning.utils.renamed import refuse_renamed


class Regularizer(nn.Module, ABC):
    """Base class of penalties lambda R(theta).

    Attributes:
        needs_activations: Whether the penalty depends on activations of the backbone, not only on parameters.
    """

    needs_activations: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse former names of hooks."""
        super().__init_subclass__(**kwargs)
        refuse_renamed(
            cls, watches="needs_activations", watching="capture", watched="select_modules", of_pass="penalize_pass"
        )

    def __init__(self, weight: float) -> None:
        """Check and store lambda.

        Args:
            weight: Weight lambda of the penalty.

        Raises:
            InputError: The weight is negative.
        """
        super().__init__()
        check_min(0, weight=weight)
        self.weight = weight

    def build(self, backbone: Encoder) -> None:
        """Store the network; called once, before training, when its weights are loaded.

        Args:
            backbone: Network from inputs to features.
        """
        # In a tuple: as a submodule it would be in checkpoints twice.
        self._backbone = (backbone,)

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Capture the activations of passes inside the block, where the penalty needs them."""
        yield

    def forward(self, network: nn.Module) -> Tensor:
        """Compute lambda R in full precision.

        Args:
            network: Module with all trained parameters, the backbone among them.

        Returns:
            Scalar with gradient.
        """
        device = next(network.parameters()).device
        with torch.autocast(device.type, enabled=False):
            return self.weight * self.penalty(network)

    @abstractmethod
    def penalty(self, network: nn.Module) -> Tensor:
        """Compute R.

        Args:
            network: Module with all trained parameters.
        """


class StartRegularizer(Regularizer):
    """Base class of penalties on the distance from the initial network theta_0.

    The initial backbone is a frozen copy that is part of checkpoints. Parameters outside the backbone, such as a new
    head, get the plain penalty beta/2 |w|^2.
    """

    source: Encoder

    def __init__(self, weight: float, beta: float) -> None:
        """Check and store both weights.

        Args:
            weight: Weight of the distance from the initial network.
            beta: Weight of the plain penalty on all parameters outside the backbone.

        Raises:
            InputError: A weight is negative.
        """
        super().__init__(weight)
        check_min(0, beta=beta)
        self.beta = beta

    def forward(self, network: nn.Module) -> Tensor:
        """Compute the weighted distance from the initial network plus the plain penalty.

        Args:
            network: Module with all trained parameters.
        """
        inside = {id(p) for p in list_started(self._backbone[0])}
        rest = half_squared_norm_of_trained(p for p in network.parameters() if id(p) not in inside)
        return super().forward(network) + self.beta * rest

    def build(self, backbone: Encoder) -> None:
        """Copy the initial backbone.

        Args:
            backbone: Network with the initial weights.
        """
        super().build(backbone)
        self.source = deepcopy(backbone).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "StartRegularizer":
        """Keep the initial network in eval mode."""
        super().train(mode)
        if hasattr(self, "source"):
            self.source.eval()
        return self


class ActivationRegularizer(Regularizer):
    """Base class of penalties on the activations of training passes."""

    needs_activations = True

    def build(self, backbone: Encoder) -> None:
        """Start without captured passes.

        Args:
            backbone: Network from inputs to features.
        """
        super().build(backbone)
        self._passes: list[tuple[Tensor, list[Tensor]]] = []

    @abstractmethod
    def select_modules(self, backbone: Encoder) -> list[nn.Module]:
        """Return the modules whose outputs the penalty needs.

        Args:
            backbone: Network from inputs to features.
        """

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Capture inputs of the backbone and outputs of the selected modules for the next penalty."""
        (backbone,) = self._backbone
        with record_outputs(backbone, self.select_modules(backbone)) as passes:
            yield
        if torch.is_grad_enabled():
            self._passes += passes

    def penalty(self, network: nn.Module) -> Tensor:
        """Compute the mean penalty of the passes since the last call; 0 if there were none.

        Args:
            network: Module with all trained parameters.
        """
        passes, self._passes = self._passes, []
        penalties = [self.penalize_pass(x, outputs) for x, outputs in passes if any(o.requires_grad for o in outputs)]
        return torch.stack(penalties).mean() if penalties else next(network.parameters()).new_zeros(())

    @abstractmethod
    def penalize_pass(self, x: Tensor, outputs: list[Tensor]) -> Tensor:
        """Compute R of one pass.

        Args:
            x: Inputs of the backbone, (B, ...).
            outputs: Outputs of each selected module, (B, ...).
        """


def list_started(backbone: Encoder) -> list[Parameter]:
    """List the parameters of a backbone that have a start to stay near, all but those of new parts such as a decoder.

    Args:
        backbone: Network or its initial copy.
    """
    new = {id(p) for part in backbone.new_parts for p in part.parameters()}
    return [p for p in backbone.parameters() if id(p) not in new]


@contextmanager
def record_outputs(network: nn.Module, modules: list[nn.Module]) -> Iterator[list[tuple[Tensor, list[Tensor]]]]:
    """Record the inputs of a network and the outputs of some of its modules.

    Args:
        network: Network that examples go into.
        modules: Submodules or the network itself, in the order of the forward pass.

    Yields:
        A list that gets an entry for each pass inside the block: the input, and the outputs of the modules.
    """
    passes: list[tuple[Tensor, list[Tensor]]] = []

    def record_input(_: nn.Module, args: tuple[Any, ...]) -> None:
        passes.append((args[0], []))

    def record_output(_: nn.Module, __: tuple[Any, ...], out: Tensor) -> None:
        passes[-1][1].append(out)

    handles: list[Any] = [network.register_forward_pre_hook(record_input)]
    handles += [module.register_forward_hook(record_output) for module in modules]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


def half_squared_norm_of_trained(parameters: Iterable[Parameter]) -> Tensor:
    """Compute half the squared Euclidean norm, whose gradient is the parameter itself.

    Args:
        parameters: Parameters; those that do not require gradients are left out.
    """
    return half_squared_norm([p for p in parameters if p.requires_grad])


def half_squared_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Compute half the squared Euclidean norm of all tensors together.

    Args:
        tensors: Tensors of any shapes; the result is 0 for an empty sequence.
    """
    return 0.5 * torch.stack(torch._foreach_norm(list(tensors))).square().sum() if tensors else torch.zeros(())

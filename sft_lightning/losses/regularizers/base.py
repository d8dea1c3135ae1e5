"""R(theta): what is added to a loss to keep a network in check. The interface; each regularizer has a file."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from sft_lightning.networks.vision.backbones import Backbone
from sft_lightning.utils.errors import check_min


class Regularizer(nn.Module, ABC):
    """lambda R(theta), for any paradigm.

    Attributes:
        needs_activations: Whether it looks at what passes through the backbone, and not at the parameters alone.
    """

    needs_activations: ClassVar[bool] = False

    def __init__(self, weight: float) -> None:
        """Sets lambda.

        Args:
            weight: lambda.

        Raises:
            InputError: It is negative.
        """
        super().__init__()
        check_min(0, weight=weight)
        self.weight = weight

    def build(self, backbone: Backbone) -> None:
        """Takes note of the network where training starts, once; its weights are loaded by then.

        Args:
            backbone: From examples to features.
        """
        # In a tuple, or it would be a part of the regularizer and stand in checkpoints twice.
        self._backbone = (backbone,)

    @contextmanager
    def capture(self) -> Iterator[None]:
        """The pass inside is looked at, where the regularizer looks at passes."""
        yield

    def forward(self, network: nn.Module) -> Tensor:
        """Lambda R, in full precision.

        Args:
            network: All that is trained, the backbone within.

        Returns:
            A scalar with gradient.
        """
        device = next(network.parameters()).device
        with torch.autocast(device.type, enabled=False):
            return self.weight * self.penalty(network)

    @abstractmethod
    def penalty(self, network: nn.Module) -> Tensor:
        """R.

        Args:
            network: As for `forward`.
        """


class StartRegularizer(Regularizer):
    """Compares with the network as it was at the start, theta_0: a frozen copy that checkpoints hold, too.

    What has no start, such as a new head, gets beta/2 |w|^2.
    """

    source: Backbone

    def __init__(self, weight: float, beta: float) -> None:
        """Sets both factors.

        Args:
            weight: Of the comparison.
            beta: Of the plain penalty on everything but the backbone.

        Raises:
            InputError: One is negative.
        """
        super().__init__(weight)
        check_min(0, beta=beta)
        self.beta = beta

    def forward(self, network: nn.Module) -> Tensor:
        """Both parts.

        Args:
            network: All that is trained.
        """
        inside = {id(p) for p in self._backbone[0].parameters()}
        rest = half_squared_norm_of_trained(p for p in network.parameters() if id(p) not in inside)
        return super().forward(network) + self.beta * rest

    def build(self, backbone: Backbone) -> None:
        """Copies the backbone.

        Args:
            backbone: With the weights of the start.
        """
        super().build(backbone)
        self.source = deepcopy(backbone).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "StartRegularizer":
        """The source stays in eval mode."""
        super().train(mode)
        if hasattr(self, "source"):
            self.source.eval()
        return self


class ActivationRegularizer(Regularizer):
    """Looks at what some modules of the backbone make of a training pass."""

    needs_activations = True

    def build(self, backbone: Backbone) -> None:
        """Nothing seen.

        Args:
            backbone: From examples to features.
        """
        super().build(backbone)
        self._seen: list[tuple[Tensor, list[Tensor]]] = []

    @abstractmethod
    def select_modules(self, backbone: Backbone) -> list[nn.Module]:
        """The modules whose outputs are looked at.

        Args:
            backbone: From examples to features.
        """

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Keeps what goes into the backbone and comes out of the modules, until the penalty is made of it."""
        (backbone,) = self._backbone
        with record_outputs(backbone, self.select_modules(backbone)) as passes:
            yield
        if torch.is_grad_enabled():
            self._seen += passes

    def penalty(self, network: nn.Module) -> Tensor:
        """The mean over the passes since the last time; 0 where there were none.

        Args:
            network: As for `forward`.
        """
        seen, self._seen = self._seen, []
        parts = [self.penalize_pass(x, outputs) for x, outputs in seen if any(o.requires_grad for o in outputs)]
        return torch.stack(parts).mean() if parts else next(network.parameters()).new_zeros(())

    @abstractmethod
    def penalize_pass(self, x: Tensor, outputs: list[Tensor]) -> Tensor:
        """R of one pass.

        Args:
            x: (B, ...): what went in.
            outputs: (B, ...) of each watched module.
        """


@contextmanager
def record_outputs(network: nn.Module, modules: list[nn.Module]) -> Iterator[list[tuple[Tensor, list[Tensor]]]]:
    """What went into a network, and what came out of some of its modules, for each pass inside.

    Args:
        network: That examples go into.
        modules: Parts of it, or the network itself, in the order in which they are passed.
    """
    passes: list[tuple[Tensor, list[Tensor]]] = []

    def enters(_: nn.Module, args: tuple[Any, ...]) -> None:
        passes.append((args[0], []))

    def leaves(_: nn.Module, __: tuple[Any, ...], out: Tensor) -> None:
        passes[-1][1].append(out)

    handles: list[Any] = [network.register_forward_pre_hook(enters)]
    handles += [module.register_forward_hook(leaves) for module in modules]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


def half_squared_norm_of_trained(parameters: Iterable[Parameter]) -> Tensor:
    """Half the squared Euclidean norm; its gradient is the parameter itself.

    Args:
        parameters: Those that do not require gradients are left out.

    Returns:
        A scalar.
    """
    return half_squared_norm([p for p in parameters if p.requires_grad])


def half_squared_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Half the squared Euclidean norm of all tensors together.

    Args:
        tensors: Any; 0 where there are none.
    """
    return 0.5 * torch.stack(torch._foreach_norm(list(tensors))).square().sum() if tensors else torch.zeros(())

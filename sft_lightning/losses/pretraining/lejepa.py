"""LeJEPA: Balestriero & LeCun 2025, "LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics"."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.losses.pretraining.base import ObjectiveInputs, ObjectiveOutput, ViewObjective
from sft_lightning.losses.pretraining.projectors import build_projector
from sft_lightning.utils.distributed import sum_over_ranks
from sft_lightning.utils.errors import check_fraction, check_min
from sft_lightning.utils.transfer import to_device

_END, _POINTS = 5.0, 17  # integration over [-5, 5] by the trapezoidal rule


class LeJEPA(ViewObjective):
    """Distance of each view from the mean of the views, plus SIGReg, which makes projections a standard Gaussian.

    SIGReg is the statistic of Epps & Pulley (1983) on random directions: the weighted distance of the empirical
    characteristic function from that of the Gaussian, times the number of examples. It needs no negatives, no momentum
    network and no stop-gradient; statistics are those of the examples of all processes.

    Reference setting: lambda .02 (.01 to .1), 256 directions or more, crops from .3, jitter .4, .4, .2, .1, AdamW with
    rate 5e-4 and weight decay 5e-4 for a ResNet.
    """

    def __init__(
        self,
        regularization: float = 0.02,
        directions: int = 256,
        hidden: int = 2048,
        projection: int = 64,
        num_views: int = 2,
    ) -> None:
        """Check and store the settings.

        Args:
            regularization: Weight lambda of SIGReg, from 0 to 1; the distance of the views weighs 1 - lambda.
            directions: Number of random directions, which are new in each step.
            hidden: Number of outputs of the projector's two hidden layers.
            projection: Number of outputs of the projector.
            num_views: Number of random views of each example.

        Raises:
            InputError: A setting is out of range.
        """
        super().__init__()
        check_fraction(regularization=regularization)
        check_min(1, directions=directions, hidden=hidden, projection=projection)
        check_min(2, num_views=num_views)
        self.regularization, self.directions = regularization, directions
        self.hidden, self.projection, self.num_views = hidden, projection, num_views

    def build(self, num_features: int) -> None:
        """Build the projector: two hidden layers with batch normalization."""
        self.projector = build_projector([num_features, self.hidden, self.hidden, self.projection])

    def loss(self, step: ObjectiveInputs) -> ObjectiveOutput:
        """Compute the loss over the examples of all processes."""
        z = torch.stack(step.outputs)
        invariance = (z - z.mean(0)).square().mean()
        generator = torch.Generator().manual_seed(step.global_step)  # the same directions on all processes
        direction = torch.randn(self.projection, self.directions, generator=generator, dtype=torch.float32)
        along = z @ to_device(F.normalize(direction, dim=0), z.device).to(z.dtype)
        gaussianity = torch.stack([epps_pulley(x) for x in along]).mean()
        loss = (1 - self.regularization) * invariance + self.regularization * gaussianity
        return ObjectiveOutput(loss, {"invariance": invariance, "gaussianity": gaussianity})


def epps_pulley(x: Tensor) -> Tensor:
    """Compute the statistic of Epps & Pulley (1983) for the examples of all processes; 0 for a standard Gaussian.

    Args:
        x: Values of the examples along each direction, (B, K).

    Returns:
        Mean over directions of N times the integral of |phi_N(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2).
    """
    # The integrand is even, so half of the points suffice.
    t = torch.linspace(0, _END, _POINTS // 2 + 1, dtype=x.dtype, device=x.device)
    phase = x.unsqueeze(-1) * t
    gaussian = (-t.square() / 2).exp()
    count = sum_over_ranks(x.new_full((), len(x)))
    real, imaginary = (sum_over_ranks(wave.sum(0)) / count for wave in (phase.cos(), phase.sin()))
    error = ((real - gaussian).square() + imaginary.square()) * gaussian
    return count * 2 * torch.trapezoid(error, t, dim=-1).mean()

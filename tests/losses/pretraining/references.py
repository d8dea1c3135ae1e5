"""Each objective once more, written from its paper alone: plain functions of plain tensors, one example at a time.

A reference gets the objective for its settings, the outputs and the targets of both views, and the number of the step.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]


def cosine(a: Tensor, b: Tensor) -> Tensor:
    lengths: Tensor = (a.square().sum() * b.square().sum()).sqrt()
    return (a * b).sum() / lengths


def simclr(of: Any, outputs: Pair, targets: Pair, step: int) -> Tensor:
    """Equation 1, for each view of each example."""
    z = torch.cat(outputs)
    count = len(z)
    losses = []
    for i in range(count):
        similar = torch.stack([(cosine(z[i], z[k]) / of.temperature).exp() for k in range(count)])
        losses.append(-(similar[(i + count // 2) % count] / (similar.sum() - similar[i])).log())
    return torch.stack(losses).mean()


def vicreg(of: Any, outputs: Pair, targets: Pair, step: int) -> Tensor:
    """The pseudocode of the paper."""
    a, b = outputs
    loss: Tensor = of.invariance * (a - b).square().mean()
    for z in outputs:
        covariance = torch.cov(z.T)
        hinge = (1 - (covariance.diag() + 1e-4).sqrt()).clamp(min=0)
        others = covariance[~torch.eye(len(covariance), dtype=torch.bool)]
        loss = loss + of.variance * hinge.mean() / 2 + of.covariance * others.square().sum() / len(covariance)
    return loss


def barlow_twins(of: Any, outputs: Pair, targets: Pair, step: int) -> Tensor:
    """The pseudocode of the paper, with the batch normalization of the authors' code."""
    a, b = (torch.nn.functional.batch_norm(z, None, None, training=True) for z in outputs)
    loss = torch.zeros((), dtype=a.dtype)
    for i in range(a.shape[1]):
        for j in range(a.shape[1]):
            correlation = (a[:, i] * b[:, j]).mean()
            loss = loss + ((1 - correlation) ** 2 if i == j else of.redundancy * correlation**2)
    scaled: Tensor = of.scale * loss
    return scaled


def byol(of: Any, outputs: Pair, targets: Pair, step: int) -> Tensor:
    """Equation 2, in both directions."""
    loss = torch.zeros((), dtype=outputs[0].dtype)
    for q, k in (outputs[0], targets[1]), (outputs[1], targets[0]):
        for i in range(len(q)):
            loss = loss + (q[i] / q[i].norm() - k[i] / k[i].norm()).square().sum() / len(q)
    return loss


def moco_v3(of: Any, outputs: Pair, targets: Pair, step: int) -> Tensor:
    """Algorithm 1."""
    loss = torch.zeros((), dtype=outputs[0].dtype)
    for q, k in (outputs[0], targets[1]), (outputs[1], targets[0]):
        for i in range(len(q)):
            similar = torch.stack([(cosine(q[i], k[j]) / of.temperature).exp() for j in range(len(k))])
            loss = loss - 2 * of.temperature * (similar[i] / similar.sum()).log() / len(q)
    return loss


def simsiam(of: Any, outputs: Pair, targets: Pair, step: int) -> Tensor:
    """Algorithm 1."""
    (p_a, p_b), (z_a, z_b) = outputs, targets
    losses = [-cosine(p_a[i], z_b[i]) / 2 - cosine(p_b[i], z_a[i]) / 2 for i in range(len(p_a))]
    return torch.stack(losses).mean()


def lejepa(of: Any, outputs: Pair, targets: Pair, step: int) -> Tensor:
    """Algorithm 1, with complex exponentials on all 17 points."""
    center = (outputs[0] + outputs[1]) / 2
    distance = torch.stack([(z - center) ** 2 for z in outputs]).mean()
    directions = torch.randn(
        of.projection, of.directions, generator=torch.Generator().manual_seed(step), dtype=torch.float32
    )
    directions = (directions / directions.norm(dim=0)).to(center)
    t = torch.linspace(-5, 5, 17, dtype=center.dtype)
    gaussian = (-(t**2) / 2).exp()
    statistics = []
    for z in outputs:
        for direction in directions.T:
            wave = (1j * (z @ direction)[:, None] * t).exp().mean(0)
            error = (wave - gaussian).abs() ** 2 * gaussian
            statistics.append(len(z) * ((error[1:] + error[:-1]) / 2 * (10 / 16)).sum())
    sigreg = torch.stack(statistics).mean()
    return torch.lerp(distance, sigreg, of.regularization)


REFERENCES: dict[str, Callable[[Any, Pair, Pair, int], Tensor]] = {
    "BYOL": byol,
    "BarlowTwins": barlow_twins,
    "LeJEPA": lejepa,
    "MoCoV3": moco_v3,
    "SimCLR": simclr,
    "SimSiam": simsiam,
    "VICReg": vicreg,
}
# Narrow networks, on which the plain loops are fast.
SMALL: dict[str, dict[str, Any]] = {
    "BYOL": {"hidden": 16, "projection": 6, "decay": 0.8},
    "BarlowTwins": {"hidden": 16, "projection": 6, "redundancy": 0.05},
    "LeJEPA": {"hidden": 16, "projection": 6, "directions": 8, "regularization": 0.1},
    "MoCoV3": {"hidden": 16, "projection": 6, "decay": 0.8},
    "SimCLR": {"hidden": 16, "projection": 6, "temperature": 0.5},
    "SimSiam": {"hidden": 16, "projection": 6, "bottleneck": 4},
    "VICReg": {"hidden": 16, "projection": 6},
}

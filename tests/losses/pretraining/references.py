"""Each objective once more, written from its paper alone: plain functions of plain tensors, one example at a time.

A reference gets the objective for its settings, the outputs and the targets of both views, and the number of the step.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]
EPOCH = 10  # steps


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


def dino(of: Any, outputs: Sequence[Tensor], targets: Pair, step: int) -> Tensor:
    """Algorithm 1 with local crops; the center of earlier steps is kept on the objective."""
    center = getattr(of, "kept_center", torch.zeros(targets[0].shape[1], dtype=targets[0].dtype))
    temperature = [0.04, 0.055, 0.07][min(step // EPOCH, 2)]  # rising in two epochs
    losses = []
    for i, k in enumerate(targets):
        for j, q in enumerate(outputs):
            for n in range(len(q) if i != j else 0):
                p, s = ((k[n] - center) / temperature).exp(), (q[n] / of.temperature).exp()
                losses.append(-(p / p.sum() * (s / s.sum()).log()).sum())
    of.kept_center = of.center_decay * center + (1 - of.center_decay) * torch.cat(targets).mean(0)
    return torch.stack(losses).mean()


def swav(of: Any, outputs: Pair, targets: Pair, step: int) -> Tensor:
    """Algorithm 1, with codes of a column for each example; the queues are kept on the objective, newest first."""
    directions = torch.stack([w / w.norm() for w in of.prototypes.weight])
    z = [torch.stack([row / row.norm() for row in output]) for output in outputs]
    queues = getattr(of, "kept_queues", [z[0][:0].detach()] * 2)
    codes = []
    for view, queue in zip(z, queues, strict=True):
        q = (torch.cat([view, queue]) @ directions.T / of.epsilon).exp().T.detach()
        q = q / q.sum()
        for _ in range(of.iterations):
            q = q / q.sum(1, keepdim=True) / q.shape[0]
            q = q / q.sum(0, keepdim=True) / q.shape[1]
        codes.append((q * q.shape[1]).T[: len(view)])
    if step // EPOCH >= of.queue_from_epoch:
        of.kept_queues = [torch.cat([v.detach(), queue])[: of.queue] for v, queue in zip(z, queues, strict=True)]
    losses = []
    for code, view in (codes[0], z[1]), (codes[1], z[0]):
        for n in range(len(view)):
            similar = torch.stack([(view[n] @ w / of.temperature).exp() for w in directions])
            losses.append(-(code[n] * (similar / similar.sum()).log()).sum())
    return torch.stack(losses).mean()


REFERENCES: dict[str, Callable[[Any, Any, Pair, int], Tensor]] = {
    "BYOL": byol,
    "BarlowTwins": barlow_twins,
    "DINO": dino,
    "LeJEPA": lejepa,
    "MoCoV3": moco_v3,
    "SimCLR": simclr,
    "SimSiam": simsiam,
    "SwAV": swav,
    "VICReg": vicreg,
}
# Narrow networks, on which the plain loops are fast.
SMALL: dict[str, dict[str, Any]] = {
    "BYOL": {"hidden": 16, "projection": 6, "decay": 0.8},
    "BarlowTwins": {"hidden": 16, "projection": 6, "redundancy": 0.05},
    "DINO": {"hidden": 16, "projection": 6, "prototypes": 7, "decay": 0.8, "local_crops": 0, "warmup_epochs": 2},
    "DenseCL": {"hidden": 16, "projection": 6, "decay": 0.8, "queue": 40},
    "LeJEPA": {"hidden": 16, "projection": 6, "directions": 8, "regularization": 0.1},
    "MoCoV3": {"hidden": 16, "projection": 6, "decay": 0.8},
    "SimCLR": {"hidden": 16, "projection": 6, "temperature": 0.5},
    "SimSiam": {"hidden": 16, "projection": 6, "bottleneck": 4},
    "SwAV": {"hidden": 16, "projection": 6, "prototypes": 7, "queue": 24, "queue_from_epoch": 1},
    "VICReg": {"hidden": 16, "projection": 6},
}

"""Each L_u once more, written from its paper alone: plain functions of plain tensors, nothing shared with the package.

A reference gets a forward function and one batch, and gives (L_u, L_s or None). Features are only asked for where the
paper's loss needs them.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]


def cross_entropy(p_target: Tensor, logits: Tensor) -> Tensor:
    """H(target, softmax(logits)) of each example."""
    shifted = logits - logits.max(1, keepdim=True).values
    log_q = shifted - shifted.exp().sum(1, keepdim=True).log()
    return -(p_target * log_q).sum(1)


def probabilities(logits: Tensor) -> Tensor:
    e = (logits - logits.max(1, keepdim=True).values).exp()
    return e / e.sum(1, keepdim=True)


def hot(labels: Tensor, classes: int = 10) -> Tensor:
    return torch.eye(classes)[labels]


class Reference(ABC):
    """Without memory; those that remember override `__init__`."""

    def __init__(self, strategy: Any, teacher: Forward) -> None:
        self.s, self.teacher = strategy, teacher
        self.accepted: list[float] = []
        self.extra: list[nn.Parameter] = []
        self.positions = torch.empty(0)  # of the labeled batch
        self.updates = 0

    def momentum(self) -> float:
        """Of the next update: a plain mean until as many values count as the momentum takes."""
        if not self.s.unbiased_means:
            return float(self.s.momentum)
        self.updates += 1
        return min(float(self.s.momentum), (self.updates - 1) / self.updates)

    def accept(self, weight: Tensor) -> Tensor:
        self.accepted += weight.tolist()
        return weight

    @abstractmethod
    def __call__(self, f: Forward, u: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """L_u, and L_s where the method replaces it."""


class EntropyMinimization(Reference):
    def __call__(self, f: Forward, u: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        p = probabilities(f(u.weak)[1])
        return -(p * p.log()).sum() / len(p), None


class PseudoLabel(Reference):
    def __call__(self, f: Forward, u: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        logits = f(u.weak)[1]
        p = probabilities(logits.detach())
        mask = self.accept((p.max(1).values >= self.s.threshold).float())
        return (mask * cross_entropy(hot(p.argmax(1)), logits)).sum() / len(p), None


class PiModel(Reference):
    def __call__(self, f: Forward, u: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        a, b = probabilities(f(u.weak)[1]), probabilities(f(u.weak_2)[1])
        return ((a - b) ** 2).sum() / a.numel(), None


class MeanTeacher(Reference):
    def __call__(self, f: Forward, u: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        a, b = probabilities(f(u.weak)[1]), probabilities(self.teacher(u.weak_2)[1]).detach()
        return ((a - b) ** 2).sum() / a.numel(), None


class VirtualAdversarial(Reference):
    def __call__(self, f: Forward, u: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        p = probabilities(f(u.weak)[1].detach())

        def divergence(r: Tensor) -> Tensor:
            q = probabilities(f(u.weak + r)[1])
            return (p * (p.log() - q.log())).sum() / len(p)

        def unit(d: Tensor) -> Tensor:
            return d / d.pow(2).sum((1, 2, 3), keepdim=True).sqrt()

        d = torch.randn(u.weak.shape, generator=torch.Generator().manual_seed(u.seed))
        for _ in range(self.s.steps):
            r = (self.s.xi * unit(d)).detach().requires_grad_()
            d = torch.autograd.grad(divergence(r), r)[0]
        return divergence(self.s.epsilon * unit(d).detach()), None


class UDA(Reference):
    def __call__(self, f: Forward, u: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        logits = f(u.weak)[1].detach()
        mask = self.accept((probabilities(logits).max(1).values >= self.s.threshold).float())
        target = probabilities(logits / self.s.temperature)
        return (mask * cross_entropy(target, f(u.strong)[1])).mean(), None


class FixMatch(Reference):
    def __call__(self, f: Forward, u: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        q = probabilities(f(u.weak)[1].detach())
        mask = self.accept((q.max(1).values >= self.s.threshold).float())
        return (mask * cross_entropy(hot(q.argmax(1)), f(u.strong)[1])).mean(), None


class FlexMatch(Reference):
    def __init__(self, strategy: Any, teacher: Forward) -> None:
        super().__init__(strategy, teacher)
        self.memory = dict.fromkeys(range(len(strategy.predicted)), -1)

    def __call__(self, f: Forward, u: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        q = probabilities(f(u.weak)[1].detach())
        sigma = [sum(v == c for v in self.memory.values()) for c in range(10)]
        unused = len(self.memory) - sum(sigma)
        beta = [s / max(*sigma, unused) for s in sigma]
        thresholds = torch.tensor([self.s.threshold * b / (2 - b) for b in beta])
        mask = self.accept((q.max(1).values >= thresholds[q.argmax(1)]).float())
        for i, p in zip(u.indices.tolist(), q, strict=True):
            if p.max() >= self.s.threshold:
                self.memory[i] = int(p.argmax())
        return (mask * cross_entropy(hot(q.argmax(1)), f(u.strong)[1])).mean(), None


class AdaMatch(Reference):
    def __init__(self, strategy: Any, teacher: Forward) -> None:
        super().__init__(strategy, teacher)
        self.of_known = self.of_free = torch.full((10,), 0.1)

    def __call__(self, f: Forward, u: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        known, free = probabilities(f(x)[1].detach()), probabilities(f(u.weak)[1].detach())
        m = self.momentum()
        self.of_known = m * self.of_known + (1 - m) * known.mean(0)
        self.of_free = m * self.of_free + (1 - m) * free.mean(0)
        q = free * self.of_known / self.of_free
        q = q / q.sum(1, keepdim=True)
        bar = self.s.threshold * known.max(1).values.mean()
        mask = self.accept((q.max(1).values >= bar).float())
        return (mask * cross_entropy(hot(q.argmax(1)), f(u.strong)[1])).mean(), None


class FreeMatch(Reference):
    def __init__(self, strategy: Any, teacher: Forward) -> None:
        super().__init__(strategy, teacher)
        self.tau, self.p, self.h = torch.tensor(0.1), torch.full((10,), 0.1), torch.full((10,), 0.1)

    def __call__(self, f: Forward, u: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        q = probabilities(f(u.weak)[1].detach())
        m = self.momentum()
        self.tau = m * self.tau + (1 - m) * q.max(1).values.mean()
        self.p = m * self.p + (1 - m) * q.mean(0)
        self.h = m * self.h + (1 - m) * hot(q.argmax(1)).mean(0)
        local = self.p / self.p.max() * self.tau
        mask = self.accept((q.max(1).values >= local[q.argmax(1)]).float())
        strong = f(u.strong)[1]
        loss = (mask * cross_entropy(hot(q.argmax(1)), strong)).mean()
        kept = probabilities(strong)[mask == 1]
        if len(kept):
            histogram = hot(kept.argmax(1)).mean(0)
            now = torch.stack(
                [kept.mean(0)[c] / histogram[c] if histogram[c] > 0 else torch.tensor(0.0) for c in range(10)]
            )
            running = torch.stack([self.p[c] / self.h[c] if self.h[c] > 0 else torch.tensor(0.0) for c in range(10)])
            loss = loss + self.s.fairness * (running / running.sum() * (now / now.sum() + 1e-12).log()).sum()
        return loss, None


class SoftMatch(Reference):
    def __init__(self, strategy: Any, teacher: Forward) -> None:
        super().__init__(strategy, teacher)
        self.mu, self.var, self.p = torch.tensor(0.1), torch.tensor(1.0), torch.full((10,), 0.1)

    def __call__(self, f: Forward, u: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        q = probabilities(f(u.weak)[1].detach())
        m = self.momentum()
        self.p = m * self.p + (1 - m) * q.mean(0)
        level = q * 0.1 / self.p
        best = (level / level.sum(1, keepdim=True)).max(1).values
        self.mu = m * self.mu + (1 - m) * best.mean()
        self.var = m * self.var + (1 - m) * best.var(unbiased=True)
        gauss = [
            1.0 if b >= self.mu else math.exp(-((b - self.mu) ** 2) / (2 * self.var / self.s.width**2)) for b in best
        ]
        weight = self.accept(torch.tensor(gauss))
        return (weight * cross_entropy(hot(q.argmax(1)), f(u.strong)[1])).mean(), None


def embed(a: Tensor, weights: list[Any]) -> Tensor:
    """Features after a projector of two layers, of length 1."""
    w, b, v, c = weights
    hidden = a @ w.T + b
    z: Tensor = hidden * (hidden > 0) @ v.T + c
    return z / z.pow(2).sum(1, keepdim=True).sqrt()


class CoMatch(Reference):
    def __init__(self, strategy: Any, teacher: Forward) -> None:
        super().__init__(strategy, teacher)
        self.extra = [nn.Parameter(p.detach().clone()) for p in strategy.projector.parameters()]
        self.memory: list[tuple[Tensor, Tensor]] = []
        self.batches: list[Tensor] = []

    def __call__(self, f: Forward, u: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        (features, logits), known = f(u.weak), f(x)[0]
        z, known, p = embed(features, self.extra).detach(), embed(known, self.extra).detach(), probabilities(logits)
        self.batches = [*self.batches, p.detach().mean(0)][-self.s.recent_batches :]
        p = p.detach() / torch.stack(self.batches).mean(0)
        p = p / p.sum(1, keepdim=True)
        q = p
        if len(self.memory) == self.s.memory_size:
            keys, values = (torch.stack([row[i] for row in self.memory]) for i in (0, 1))
            q = self.s.alpha * p + (1 - self.s.alpha) * probabilities(z @ keys.T / self.s.temperature) @ values
        rows = [*zip(z, p, strict=True), *zip(known, hot(y), strict=True)]
        self.memory = [*self.memory, *rows][-self.s.memory_size :]
        mask = self.accept((q.max(1).values >= self.s.threshold).float())
        first, logits = f(u.strong)
        similarities = embed(first, self.extra) @ embed(f(u.strong_2)[0], self.extra).T / self.s.temperature
        edges = torch.tensor(
            [
                [
                    1.0 if i == j else w if (w := float(a @ b)) >= self.s.graph_threshold else 0.0
                    for j, b in enumerate(q)
                ]
                for i, a in enumerate(q)
            ]
        )
        contrast = cross_entropy(edges / edges.sum(1, keepdim=True), similarities).mean()
        return (mask * cross_entropy(q, logits)).mean() + self.s.contrast * contrast, None


class SimMatch(Reference):
    """With the bank as a dictionary, and the average of the projector by the formula for that of the network."""

    def __init__(self, strategy: Any, teacher: Forward) -> None:
        super().__init__(strategy, teacher)
        self.extra = [nn.Parameter(p.detach().clone()) for p in strategy.projector.parameters()]
        self.mean = [p.detach().clone() for p in self.extra]
        self.bank: dict[int, tuple[int, Tensor]] = {}
        self.batches: list[Tensor] = []
        self.t = 0

    def __call__(self, f: Forward, u: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.t:
            decay = min(0.9, self.t / (9 + self.t))
            self.mean = [decay * m + (1 - decay) * p.detach() for m, p in zip(self.mean, self.extra, strict=True)]
        self.t += 1
        teach, weights = (self.teacher, self.mean) if self.s.averaged_teacher else (f, self.extra)
        keys = embed(teach(x)[0].detach(), weights).detach()
        features, logits = teach(u.weak)
        queries, p = embed(features.detach(), weights).detach(), probabilities(logits.detach())
        places = self.positions.tolist()
        m, before = self.s.bank_momentum, dict(self.bank)
        for i in sorted(set(places)):
            same = [k for k, place in enumerate(places) if place == i]
            z = keys[same].mean(0)
            z = m * before[i][1] + (1 - m) * z if i in before else z
            self.bank[i] = int(y[same[0]]), z / z.pow(2).sum().sqrt()
        self.batches = [*self.batches, p.mean(0)][-self.s.recent_batches :]
        p = p / torch.stack(self.batches).mean(0)
        p = p / p.sum(1, keepdim=True)
        labels = [label for label, _ in self.bank.values()]
        bank = torch.stack([z for _, z in self.bank.values()])
        q = probabilities(queries @ bank.T / self.s.temperature)
        unfolded = q * torch.stack([p[:, label] for label in labels], 1)
        aggregated = torch.stack([q[:, [label == c for label in labels]].sum(1) for c in range(10)], 1)
        target = self.s.alpha * p + (1 - self.s.alpha) * aggregated
        mask = self.accept((target.max(1).values >= self.s.threshold).float())
        features, logits = f(u.strong)
        similarities = embed(features, self.extra) @ bank.T / self.s.temperature
        instance = cross_entropy(unfolded / unfolded.sum(1, keepdim=True), similarities).mean()
        return (mask * cross_entropy(target, logits)).mean() + self.s.instance * instance, None


class DebiasMatch(Reference):
    def __init__(self, strategy: Any, teacher: Forward) -> None:
        super().__init__(strategy, teacher)
        self.p = torch.full((10,), 0.1)

    def __call__(self, f: Forward, u: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        logits = f(u.weak)[1].detach()
        shift = self.s.debias * self.p.log()
        q = probabilities(logits - shift)
        mask = self.accept((q.max(1).values >= self.s.threshold).float())
        loss = (mask * cross_entropy(hot(q.argmax(1)), f(u.strong)[1] + shift)).mean()
        m = self.momentum()
        self.p = m * self.p + (1 - m) * probabilities(logits).mean(0)
        return loss, None


class DST(Reference):
    """The gradient reversal as two losses: heads descend on it, features ascend."""

    def __init__(self, strategy: Any, teacher: Forward) -> None:
        super().__init__(strategy, teacher)
        heads = [strategy.pseudo_head, strategy.worst_head]
        self.extra = [nn.Parameter(p.detach().clone()) for head in heads for p in head.parameters()]
        self.t = 0

    def __call__(self, f: Forward, u: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        q = probabilities(f(u.weak)[1].detach())
        guess = q.argmax(1)
        mask = self.accept((q.max(1).values >= self.s.threshold).float())
        (known_features, known), (features, _) = f(x), f(u.strong)

        def head(a: Tensor, w: Tensor, b: Tensor, v: Tensor, c: Tensor) -> Tensor:
            hidden = a @ w.T + b
            return hidden * (hidden > 0) @ v.T + c

        def worst(a: Tensor, b: Tensor, *weights: Tensor) -> Tensor:
            right = cross_entropy(hot(known.argmax(1)), head(a, *weights)).mean()
            p = probabilities(head(b, *weights))[torch.arange(len(b)), guess]
            return self.s.trade_off * right - (1 - p).log().mean()  # type: ignore[no-any-return]

        heads = worst(known_features.detach(), features.detach(), *self.extra[4:])
        body = worst(known_features, features, *(w.detach() for w in self.extra[4:]))
        share = self.s.reversal * (2 / (1 + math.exp(-self.t / self.s.reversal_steps)) - 1)
        self.t += 1
        consistency = (mask * cross_entropy(hot(guess), head(features, *self.extra[:4]))).mean()
        # The value of the loss is that of the heads; of the body only the (negative) gradient counts.
        return consistency + self.s.worst * (heads - share * (body - body.detach())), None


class MixMatch(Reference):
    def __call__(self, f: Forward, u: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        mean = (probabilities(f(u.weak)[1].detach()) + probabilities(f(u.weak_2)[1].detach())) / 2
        guess = mean ** (1 / self.s.temperature)
        guess = guess / guess.sum(1, keepdim=True)
        all_x, all_y = torch.cat([x, u.weak, u.weak_2]), torch.cat([hot(y), guess, guess])
        share, order = self.s.sample_mixture(len(all_x), u.seed)  # the draw itself is checked elsewhere
        mixed_x = share[:, None, None, None] * all_x + (1 - share)[:, None, None, None] * all_x[order]
        mixed_y = share[:, None] * all_y + (1 - share)[:, None] * all_y[order]
        logits = f(mixed_x)[1]
        supervised = cross_entropy(mixed_y[: len(x)], logits[: len(x)]).mean()
        return ((probabilities(logits[len(x) :]) - mixed_y[len(x) :]) ** 2).mean(), supervised

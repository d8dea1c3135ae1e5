"""DenseCL against plain loops over places, and what it learns from and refuses."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from sft_lightning import SelfSupervisedModule
from sft_lightning.data.batches import Unlabeled
from sft_lightning.losses.pretraining import DenseCL
from sft_lightning.losses.pretraining.dense_cl import match_places
from sft_lightning.networks.vision.backbones import build_backbone
from sft_lightning.training.momentum_network import MomentumNetwork
from sft_lightning.utils.errors import InputError
from tests.losses.pretraining.references import SMALL, cosine
from tests.paradigms.helpers import SHAPE, Recorder, sample, trainer

SIDE = 3


def attached(backbone: str = "resnet8", **settings: Any) -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    encoder = build_backbone(backbone, SHAPE)[0]
    objective = DenseCL(**{**SMALL["DenseCL"], "grid": SIDE, **settings})
    objective.attach(encoder)
    encoder, objective = encoder.double(), objective.double()
    momentum = MomentumNetwork(objective.list_averaged(encoder), objective.decay)
    with torch.no_grad():
        for p in momentum.parameters():  # as after some steps
            p.add_(0.05 * torch.randn(p.shape, dtype=p.dtype))
    return encoder, objective, momentum


def batch_of(seed: int, count: int = 4) -> Unlabeled:
    generator = torch.Generator().manual_seed(seed)
    crops = tuple(torch.rand(count, *SHAPE, generator=generator, dtype=torch.float64) for _ in range(2))
    return Unlabeled(crops[0], torch.arange(count), seed, crops=crops)


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum().sqrt()


def contrast(query: Tensor, key: Tensor, negatives: list[Tensor], temperature: float) -> Tensor:
    """Equation 1 for one query: minus the log of the share of its own key among all."""
    own = (cosine(query, key) / temperature).exp()
    others = [(cosine(query, one) / temperature).exp() for one in negatives]
    return -(own / (own + torch.stack(others).sum())).log()


def plain_loss(encoder: Any, of: Any, momentum: Any, batch: Unlabeled, queues: list[list[Tensor]]) -> Tensor:
    """Equations 1 to 4, one example and one place at a time; the queues get the keys, the newest first."""
    (features, cells), total = encoder.forward_pooled(batch.crops[0]), []
    with torch.no_grad():
        other_features, other_cells = momentum.encoder.forward_pooled(batch.crops[1])
        maps = [torch.nn.functional.adaptive_avg_pool2d(x, SIDE).flatten(2) for x in (cells.detach(), other_cells)]
        keys = momentum.projector(other_features)
    grid = torch.nn.functional.adaptive_avg_pool2d(cells, SIDE).flatten(2)
    new: list[list[Tensor]] = [[], []]
    for i in range(len(features)):
        with torch.no_grad():
            place_keys = [momentum.place_projector(maps[1][i, :, s]) for s in range(SIDE**2)]
        losses = []
        for s in range(SIDE**2):
            similar = [float(cosine(maps[0][i, :, s], maps[1][i, :, j])) for j in range(SIDE**2)]
            match = place_keys[similar.index(max(similar))]
            losses.append(contrast(of.place_projector(grid[i, :, s]), match, queues[1], of.temperature))
        example = contrast(of.projector(features[i]), keys[i], queues[0], of.temperature)
        total.append((1 - of.dense) * example + of.dense * torch.stack(losses).mean())
        new[0].append(unit(keys[i]))
        new[1].append(unit(torch.stack(place_keys).mean(0)))
    for queue, latest in zip(queues, new, strict=True):
        queue[:] = [*latest, *queue][: of.queue]
    return torch.stack(total).mean()


@pytest.mark.parametrize("backbone", ["resnet8", "resnet8:flatten"])
def test_loss_equals_the_paper(backbone: str) -> None:
    encoder, objective, momentum = attached(backbone, queue=6, dense=0.3)
    for queue in (objective.queued, objective.queued_places):
        queue.copy_(torch.nn.functional.normalize(queue, dim=1))  # of length 1 in double precision, too
    plain, plain_encoder = copy.deepcopy((objective, encoder))
    queues = [[*objective.queued.clone()], [*objective.queued_places.clone()]]
    for step in range(3):  # keys of the first step leave the queue in the third
        batch = batch_of(step)
        result = objective.compute(encoder, momentum, batch, step, 0)
        expected = plain_loss(plain_encoder, plain, copy.deepcopy(momentum), batch, queues)
        assert result.loss.item() == pytest.approx(expected.item(), rel=1e-9)
        mine, theirs = (
            torch.autograd.grad(loss, [*net.parameters(), *of.parameters()])
            for loss, net, of in ((result.loss, encoder, objective), (expected, plain_encoder, plain))
        )
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-10)
        torch.testing.assert_close(objective.queued, torch.stack(queues[0]))
        torch.testing.assert_close(objective.queued_places, torch.stack(queues[1]))


def test_places_go_with_the_most_similar_ones() -> None:
    places = torch.randn(2, 9, 5)
    order = torch.stack([torch.randperm(9), torch.randperm(9)])
    moved = torch.stack([3 * x[o] for x, o in zip(places, order, strict=True)])  # a length says nothing
    assert torch.equal(match_places(places, moved), order.argsort(1))


def test_a_compiled_backbone_is_refused() -> None:
    with pytest.raises(InputError, match="compile is True, and DenseCL reads maps inside of the backbone"):
        SelfSupervisedModule(DenseCL(), "resnet8", SHAPE, compile=True)


@pytest.mark.slow
def test_it_learns_to_find_places() -> None:
    torch.manual_seed(0)
    objective = DenseCL(dense=1, hidden=64, projection=16, decay=0.9, queue=256)
    model = SelfSupervisedModule(objective, "resnet8", SHAPE, optimizer=lambda p: torch.optim.AdamW(p, 0.003))
    seen = Recorder()
    trainer([seen], max_epochs=1, limit_train_batches=60, limit_val_batches=0).fit(model, sample(batch_size=32))
    # Of keys that are all alike, the cross-entropy is log 257 = 5.55.
    assert sum(seen.losses[-10:]) < 0.7 * sum(seen.losses[:10]) < 10 * 4


@pytest.mark.parametrize(
    ("backbone", "settings", "words"),
    [
        ("timm/test_vit", {}, "backbone 'timm/test_vit' pools no map"),
        ("mlp", {}, "backbone 'mlp' pools no map"),
        ("resnet8", {"grid": 20}, "grid is 20, and the last map of backbone 'resnet8' has"),
    ],
)
def test_encoders_without_such_a_map_are_refused(backbone: str, settings: dict[str, Any], words: str) -> None:
    shape = (3, 64, 64) if "vit" in backbone else SHAPE
    with pytest.raises(InputError, match=words):
        DenseCL(**settings).attach(build_backbone(backbone, shape)[0])

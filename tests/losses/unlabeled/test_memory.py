"""The memories of strategies: what a queue and a bank of labeled examples hold, and in which precision."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning.losses import unlabeled as strategies
from sft_lightning.losses.unlabeled.base import Outputs, StrategyInputs
from sft_lightning.losses.unlabeled.memory import LabeledBank, Queue, align_with_recent
from tests.losses.unlabeled.test_strategies_by_hand import CONTEXT, Batch, Net


class LabeledBatch(NamedTuple):
    x: Tensor
    y: Tensor
    indices: Tensor
    num_weak: int | None = None


class StrongBatch(NamedTuple):
    weak: Tensor
    strong: Tensor
    weak_2: Tensor
    indices: Tensor
    seed: int = 0
    strong_2: Tensor | None = None


X, Y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])


def test_a_queue_keeps_what_was_pushed_last() -> None:
    queue = Queue(3, 1)
    assert queue.mean().tolist() == [0]
    queue.push(torch.tensor([[1.0], [2.0]]))
    assert queue.mean().tolist() == [1.5]
    queue.push(torch.tensor([[3.0], [4.0]]))
    assert sorted(queue.rows.flatten().tolist()) == [2, 3, 4]
    queue.push(torch.arange(5.0, 10)[:, None])
    assert sorted(queue.rows.flatten().tolist()) == [7, 8, 9]
    queue.push(torch.tensor([[10.0]]))
    assert sorted(queue.rows.flatten().tolist()) == [8, 9, 10]
    assert queue.mean().tolist() == [9]


def test_predictions_are_divided_by_their_recent_mean() -> None:
    recent = Queue(2, 2)
    first = torch.tensor([[0.8, 0.2], [0.4, 0.6]])  # mean (.6, .4)
    ratio = first / torch.tensor([0.6, 0.4])
    torch.testing.assert_close(align_with_recent(first, recent), ratio / ratio.sum(1, keepdim=True))
    second = torch.tensor([[0.2, 0.8]])  # mean of both batches (.4, .6)
    assert align_with_recent(second, recent)[0].tolist() == pytest.approx([0.5 / (0.5 + 4 / 3), 4 / 3 / (0.5 + 4 / 3)])


def test_a_bank_smooths_features_and_takes_the_mean_of_an_example_met_twice() -> None:
    bank = LabeledBank(2, 0.5)
    bank.start(3)
    bank.update(torch.tensor([2, 0]), torch.tensor([7, 5]), torch.stack([X, Y]))
    assert bank.labels.tolist() == [5, -1, 7]
    assert bank.features.tolist() == [[0, 1], [0, 0], [1, 0]]  # the first feature counts whole
    bank.update(torch.tensor([2]), torch.tensor([7]), Y[None])
    torch.testing.assert_close(bank.features[2], F.normalize(X + Y, dim=0))
    bank.update(torch.tensor([1, 1]), torch.tensor([6, 6]), torch.stack([X, Y]))
    torch.testing.assert_close(bank.features[1], F.normalize(X + Y, dim=0))
    assert bank.features[0].tolist() == [0, 1]


def test_a_bank_leaves_out_what_it_has_not_met() -> None:
    bank = LabeledBank(2, 0.0)
    bank.start(3)
    bank.update(torch.tensor([0, 2]), torch.tensor([1, 0]), torch.stack([X, Y]))
    share = bank.similarities(X[None], 0.5).softmax(1)[0]
    assert share.tolist() == pytest.approx([1 / (1 + torch.exp(torch.tensor(-2.0)).item()), 0, share[2].item()])
    assert bool(F.cross_entropy(bank.similarities(X[None], 0.5), share[None]).isfinite())


def test_a_bank_keeps_its_rows_when_it_is_started_again() -> None:
    bank, other = LabeledBank(2, 0.0), LabeledBank(2, 0.0)
    bank.start(2)
    bank.update(torch.tensor([1]), torch.tensor([300]), X[None])
    other.load_state_dict(bank.state_dict())
    other.start(2)
    assert other.labels.tolist() == [-1, 300]
    assert torch.equal(other.features, bank.features)
    other.start(4)
    assert other.labels.tolist() == [-1] * 4


def make_simmatch(**settings: float) -> strategies.SimMatch:
    strategy = strategies.SimMatch(projection=2, **settings)  # type: ignore[arg-type]
    strategy.build(CONTEXT)
    strategy.start_labeled(3)
    return strategy


def test_simmatch_targets_correct_each_other() -> None:
    strategy = make_simmatch(alpha=0.75)
    strategy.bank.update(torch.arange(3), torch.tensor([0, 1, 1]), torch.stack([X, Y, Y]))
    semantic, instance = strategy.propagate(torch.tensor([[0.9, 0.1]]), torch.tensor([[0.2, 0.5, 0.3]]))
    assert semantic[0].tolist() == pytest.approx([0.75 * 0.9 + 0.25 * 0.2, 0.75 * 0.1 + 0.25 * 0.8])
    unfolded = [0.2 * 0.9, 0.5 * 0.1, 0.3 * 0.1]
    assert instance[0].tolist() == pytest.approx([v / sum(unfolded) for v in unfolded])


def test_simmatch_remembers_weak_labeled_views_alone() -> None:
    strategy, net = make_simmatch(), Net()
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    labeled = LabeledBatch(x, torch.tensor([0, 1, 0, 1]), torch.tensor([2, 0, 2, 0]), 2)
    weak = torch.zeros(3, 2)
    batch = Batch(weak, weak, weak, torch.arange(3))
    strategy.loss(StrategyInputs(net, batch, net.outputs(weak), labeled, net.outputs(x)))
    assert strategy.bank.labels.tolist() == [1, -1, 0]
    assert strategy.averaged_projector is not None
    expected = F.normalize(strategy.averaged_projector(x[:2]), dim=1)
    torch.testing.assert_close(strategy.bank.features[[2, 0]], expected)


def test_simmatch_computes_similarities_in_full_precision() -> None:
    torch.manual_seed(0)
    strategy, net = make_simmatch(), Net()
    strategy.bank.update(torch.arange(3), torch.tensor([0, 1, 1]), F.normalize(torch.randn(3, 2), dim=1))
    p, z = torch.randn(8, 2), F.normalize(torch.randn(8, 2), dim=1)
    strategy._labeled_features = lambda step: p[:0]  # type: ignore[method-assign]
    strategy.averaged_projector = nn.Sequential()  # passes features on
    labeled = LabeledBatch(p[:0], torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long))
    step = StrategyInputs(net, None, Outputs(z, p), labeled, Outputs(p, p), weak=Outputs(z, p))
    exact = strategy.targets(p, step)[0]
    strategy.recent.pushed.zero_()
    with torch.autocast("cpu", torch.bfloat16):
        again = strategy.targets(p, step)[0]
    assert again.dtype == torch.float32
    assert torch.equal(again, exact)


def make_comatch(**settings: float) -> strategies.CoMatch:
    strategy = strategies.CoMatch(projection=2, **settings)  # type: ignore[arg-type]
    strategy.build(CONTEXT)
    return strategy


def test_comatch_smooths_over_a_full_memory_alone() -> None:
    strategy = make_comatch(memory=2, alpha=0.75, temperature=0.5)
    prediction = torch.tensor([[0.9, 0.1]])
    strategy.memory.push(torch.tensor([[1.0, 0.0, 0.3, 0.7]]))
    assert torch.equal(strategy.smooth(prediction, X[None]), prediction)
    strategy.memory.push(torch.tensor([[0.0, 1.0, 1.0, 0.0]]))
    near = 1 / (1 + torch.exp(torch.tensor(-2.0)).item())
    expected = 0.75 * 0.9 + 0.25 * (near * 0.3 + (1 - near) * 1.0)
    assert strategy.smooth(prediction, X[None])[0].tolist() == pytest.approx([expected, 1 - expected])


def test_comatch_connects_examples_of_like_pseudo_labels() -> None:
    strategy = make_comatch(graph_threshold=0.6)
    graph = strategy.build_graph(torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]]))
    edge = 0.9 * 0.7 + 0.1 * 0.3
    expected = torch.tensor([[1 / (1 + edge), edge / (1 + edge), 0], [edge / (1 + edge), 1 / (1 + edge), 0], [0, 0, 1]])
    torch.testing.assert_close(graph, expected)


def test_comatch_remembers_weak_labeled_views_with_their_labels() -> None:
    strategy, net = make_comatch(memory=5, temperature=1.0), Net()
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    labeled = LabeledBatch(x, torch.tensor([0, 1, 0, 1]), torch.tensor([2, 0, 2, 0]), 2)
    weak = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
    batch = StrongBatch(weak, weak, weak, torch.arange(3), strong_2=weak)
    strategy.loss(StrategyInputs(net, batch, net.outputs(weak), labeled, net.outputs(x)))
    assert strategy.memory.pushed == 5
    torch.testing.assert_close(strategy.memory.rows[:, :2], F.normalize(strategy.projector(torch.cat([weak, x[:2]]))))
    assert strategy.memory.rows[3:, 2:].tolist() == [[1, 0], [0, 1]]
    torch.testing.assert_close(strategy.memory.rows[:3, 2:], weak.softmax(1))  # whose mean is uniform


def test_comatch_learns_from_both_strong_views() -> None:
    strategy, net = make_comatch(temperature=1.0), Net()
    x = torch.rand(4, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    second = torch.rand(4, 2, generator=torch.Generator().manual_seed(1)).requires_grad_()
    labeled = LabeledBatch(x.detach(), torch.zeros(4, dtype=torch.long), torch.arange(4))
    batch = StrongBatch(x.detach(), x, x, torch.arange(4), strong_2=second)
    strategy.loss(StrategyInputs(net, batch, net.outputs(x), labeled, net.outputs(x.detach()))).loss.backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert second.grad is not None
    assert second.grad.abs().sum() > 0


def test_simmatch_averages_its_projector() -> None:
    strategy = make_simmatch()
    assert strategy.averaged_projector is not None
    before = [p.clone() for p in strategy.averaged_projector.parameters()]
    with torch.no_grad():
        for p in strategy.projector.parameters():
            p.add_(1)
    strategy.update_average(0.75)
    for mean, old in zip(strategy.averaged_projector.parameters(), before, strict=True):
        torch.testing.assert_close(mean.detach(), old + 0.25)
        assert not mean.requires_grad

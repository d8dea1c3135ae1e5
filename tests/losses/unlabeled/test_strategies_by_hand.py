"""Compare each strategy on a few logits with values computed by hand."""

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from sft_lightning.losses import unlabeled as strategies
from sft_lightning.losses.unlabeled.base import (
    Outputs,
    StrategyContext,
    StrategyInputs,
    align_distribution,
    masked_cross_entropy,
    sharpen,
)
from sft_lightning.networks.build import build_encoder

LOG = math.log
# Two classes, with probabilities (0.8, 0.2), (0.4, 0.6) and (0.05, 0.95).
WEAK = torch.tensor([[LOG(0.8), LOG(0.2)], [LOG(0.4), LOG(0.6)], [LOG(0.05), LOG(0.95)]])
STRONG = torch.tensor([[LOG(0.5), LOG(0.5)], [LOG(0.1), LOG(0.9)], [LOG(0.25), LOG(0.75)]])
CONTEXT = StrategyContext(2, 2, build_encoder("conv", (1, 4, 4))[0])


class Batch(NamedTuple):
    weak: Tensor
    strong: Tensor
    weak_2: Tensor
    indices: Tensor
    seed: int = 0


class Net(nn.Module):
    """A network whose logits are its inputs times a parameter that is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def outputs(self, x: Tensor) -> Outputs:
        return Outputs(x * self.scale, x * self.scale)

    def teacher_logits(self, x: Tensor) -> Tensor:
        return self.teacher_outputs(x).logits

    def teacher_outputs(self, x: Tensor) -> Outputs:
        return Outputs(*(t.detach() for t in self.outputs(x)))


def make_step(net: Net, batch: Any, student: Any = None, labeled: Any = None, known: Any = None) -> StrategyInputs:
    return StrategyInputs(net, batch, student, labeled, known)


def compute_loss(strategy: Any, labeled: Any = None) -> tuple[Any, float]:
    """Return the result of a strategy and the gradient of the network's parameter."""
    strategy.build(CONTEXT)
    strategy.start(3)
    net = Net()
    batch = Batch(WEAK, STRONG, STRONG, torch.arange(3))
    student = None if strategy.student is None else net.outputs(getattr(batch, strategy.student))
    known = None if labeled is None else net.outputs(labeled[0])
    result = strategy.loss(make_step(net, batch, student, None if labeled is None else Labeled(*labeled), known))
    result.loss.backward()
    return result, float(net.scale.grad)  # type: ignore[arg-type]


class Labeled(NamedTuple):
    x: Tensor
    y: Tensor
    num_weak: int | None = None


def test_fixmatch_loss_equals_hand_computed_value() -> None:
    result, _ = compute_loss(strategies.FixMatch(threshold=0.75))
    assert result.pseudo_labels.tolist() == [0, 1, 1]
    assert result.weight.tolist() == [1, 0, 1]
    assert result.loss.item() == pytest.approx(-(LOG(0.5) + LOG(0.75)) / 3)


def test_fixmatch_accepts_confidence_equal_to_the_threshold() -> None:
    exact = float(WEAK.softmax(1)[0, 0])
    assert compute_loss(strategies.FixMatch(threshold=exact))[0].weight[0] == 1


@pytest.mark.parametrize("name", ["FixMatch", "UDA", "FlexMatch", "FreeMatch", "SoftMatch", "DebiasMatch"])
def test_weak_view_receives_no_gradient(name: str) -> None:
    """With a constant student, a gradient could reach the network only through the weak view."""
    strategy = getattr(strategies, name)()
    strategy.build(CONTEXT)
    strategy.start(3)
    net = Net()
    constant = torch.zeros(3, 2, requires_grad=True)
    batch = Batch(WEAK * 9, STRONG, STRONG, torch.arange(3))
    strategy.loss(make_step(net, batch, Outputs(constant, constant))).loss.backward()
    assert net.scale.grad is None
    assert constant.grad is not None


def test_entropy_loss_equals_hand_computed_value() -> None:
    result, gradient = compute_loss(strategies.EntropyMinimization())
    rows = [(0.8, 0.2), (0.4, 0.6), (0.05, 0.95)]
    assert result.loss.item() == pytest.approx(-sum(p * LOG(p) for row in rows for p in row) / 3, rel=1e-5)
    assert gradient < 0  # larger logits, less entropy


def test_pseudo_label_loss_equals_hand_computed_value() -> None:
    result, _ = compute_loss(strategies.PseudoLabel(threshold=0.7))
    assert result.loss.item() == pytest.approx(-(LOG(0.8) + LOG(0.95)) / 3)
    assert compute_loss(strategies.PseudoLabel())[0].loss.item() == pytest.approx(
        -(LOG(0.8) + LOG(0.6) + LOG(0.95)) / 3
    )


def test_pi_model_and_mean_teacher_equal_hand_computed_loss_and_gradient() -> None:
    expected = (2 * 0.3**2 + 2 * 0.3**2 + 2 * 0.2**2) / 6
    pi, both = compute_loss(strategies.PiModel())
    teacher, one = compute_loss(strategies.MeanTeacher())
    assert pi.loss.item() == pytest.approx(expected) == teacher.loss.item()
    # The logits are scale * z, so dp/dscale = p (z - sum p z); loss = mean (p - q)^2 over 6 numbers.
    p, q = WEAK.softmax(1), STRONG.softmax(1)
    dp, dq = (s * (z - (s * z).sum(1, keepdim=True)) for s, z in ((p, WEAK), (q, STRONG)))
    assert both == pytest.approx(float((2 * (p - q) * (dp - dq)).mean()), rel=1e-4)
    assert one == pytest.approx(float((2 * (p - q) * dp).mean()), rel=1e-4)  # the teacher has none


def test_uda_loss_equals_hand_computed_value() -> None:
    result, _ = compute_loss(strategies.UDA(temperature=0.5, threshold=0.7))
    p = 0.8**2 / (0.8**2 + 0.2**2)
    q = 0.95**2 / (0.95**2 + 0.05**2)
    by_hand = -(p * LOG(0.5) + (1 - p) * LOG(0.5)) - ((1 - q) * LOG(0.25) + q * LOG(0.75))
    assert result.loss.item() == pytest.approx(by_hand / 3, rel=1e-5)


def test_flexmatch_thresholds_follow_the_counts_of_confident_examples() -> None:
    strategy = strategies.FlexMatch(threshold=0.75)
    first, _ = compute_loss(strategy)
    assert first.weight.tolist() == [1, 1, 1]  # nothing learned: all thresholds are 0
    assert strategy.predicted.tolist() == [0, -1, 1]
    logits = torch.tensor([[LOG(0.7), LOG(0.3)]])
    # One example each, one not used: beta = 1 / max(1, 1), M(1) = 1.
    _, weight = strategy.targets(logits, make_step(Net(), Batch(logits, logits, logits, torch.tensor([1]))))
    assert weight.tolist() == [0]
    strategy.predicted = torch.tensor([0, -1, -1])  # 1 used, 2 not: beta = 1/2 for class 0, M = 1/3
    _, weight = strategy.targets(logits, make_step(Net(), Batch(logits, logits, logits, torch.tensor([1]))))
    assert strategy.thresholds.tolist() == pytest.approx([0.25, 0.0])
    assert weight.tolist() == [1]


def test_adamatch_aligns_predictions_and_uses_the_labeled_confidence() -> None:
    known = torch.tensor([[LOG(0.9), LOG(0.1)], [LOG(0.7), LOG(0.3)]])
    strategy = strategies.AdaMatch(threshold=0.97, momentum=0.0)
    result, _ = compute_loss(strategy, (known, torch.tensor([0, 0])))
    mean = torch.tensor([0.8 + 0.4 + 0.05, 0.2 + 0.6 + 0.95]) / 3
    ratio = torch.tensor([0.8, 0.2]) / mean
    q = WEAK.softmax(1) * ratio
    q = q / q.sum(1, keepdim=True)
    assert strategy.threshold_now.item() == pytest.approx(0.97 * 0.8)
    assert result.weight.tolist() == (q.amax(1) >= 0.97 * 0.8).float().tolist() == [1, 1, 0]
    expected = -(LOG(0.5) + LOG(0.1)) / 3  # the second is class 0 after alignment
    assert result.loss.item() == pytest.approx(expected, rel=1e-5)
    assert result.pseudo_labels.tolist() == [0, 0, 1]  # what was learned, not what the network said


def test_adamatch_measures_confidence_only_on_weak_labeled_views() -> None:
    known = torch.tensor([[LOG(0.9), LOG(0.1)], [LOG(0.7), LOG(0.3)], [LOG(0.5), LOG(0.5)], [LOG(0.4), LOG(0.6)]])
    strategy = strategies.AdaMatch(momentum=0.0)
    compute_loss(strategy, (known, torch.tensor([0, 0, 0, 0]), 2))
    assert strategy.threshold_now.item() == pytest.approx(0.9 * 0.8)
    assert strategy.known_mean.tolist() == pytest.approx([0.8, 0.2])


def test_softmatch_resolves_variances_below_the_rounding_of_squares() -> None:
    strategy = strategies.SoftMatch(momentum=0.0, uniform_alignment=False)
    strategy.build(CONTEXT)
    sure = torch.tensor([[2.0, 0.0]]) + torch.tensor([[1e-4, 0.0]]) * torch.linspace(0, 1, 64)[:, None]
    _, weight = strategy.targets(sure, None)  # type: ignore[arg-type]
    expected = sure.double().softmax(1).amax(1).var().item()
    assert strategy.variance.item() == pytest.approx(expected, rel=0.05)
    assert bool(weight.isfinite().all())


def test_freematch_thresholds_equal_hand_computed_values() -> None:
    strategy = strategies.FreeMatch(momentum=0.0, fairness=0.0)
    result, _ = compute_loss(strategy)
    tau, p = (0.8 + 0.6 + 0.95) / 3, torch.tensor([1.25, 1.75]) / 3
    assert strategy.thresholds.tolist() == pytest.approx((p / p.max() * tau).tolist())
    assert result.weight.tolist() == [1, 0, 1]
    assert strategy.label_histogram.tolist() == pytest.approx([1 / 3, 2 / 3])


def test_softmatch_weights_equal_hand_computed_values() -> None:
    strategy = strategies.SoftMatch(momentum=0.0, uniform_alignment=False)
    result, _ = compute_loss(strategy)
    mean = (0.8 + 0.6 + 0.95) / 3
    variance = sum((c - mean) ** 2 for c in (0.8, 0.6, 0.95)) / 2
    assert strategy.mean.item() == pytest.approx(mean)
    assert strategy.variance.item() == pytest.approx(variance, rel=1e-4)
    expected = [1.0, math.exp(-((0.6 - mean) ** 2) / (2 * variance / 4)), 1.0]
    assert result.weight.tolist() == pytest.approx(expected, rel=1e-4)


OTHER = torch.tensor([[LOG(0.6), LOG(0.4)], [LOG(0.6), LOG(0.4)], [LOG(0.6), LOG(0.4)]])
# Of WEAK, then of OTHER, 3 examples each: confidence 2.35 / 3 and 0.6, class 0 with 1.25 / 3 and 0.6.
MEANS: dict[str, dict[str, list[Any]]] = {
    "FreeMatch": {
        "mean_confidence": [2.35 / 3, 0.6], "mean_prediction": [[1.25 / 3, 1.75 / 3], [0.6, 0.4]],
        "label_histogram": [[1 / 3, 2 / 3], [1.0, 0.0]],
    },
    "SoftMatch": {"mean": [2.35 / 3, 0.6]},
    "AdaMatch": {"known_mean": [[0.8, 0.2], [0.8, 0.2]], "unlabeled_mean": [[1.25 / 3, 1.75 / 3], [0.6, 0.4]]},
    "DebiasMatch": {"prediction_mean": [[1.25 / 3, 1.75 / 3], [0.6, 0.4]]},
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(MEANS))
def test_running_means_start_as_plain_means(name: str) -> None:
    plain = {"uniform_alignment": False} if name == "SoftMatch" else {}
    strategy = getattr(strategies, name)(momentum=0.6, unbiased_means=True, **plain)
    strategy.build(CONTEXT)
    known = Outputs(*[torch.tensor([[LOG(0.8), LOG(0.2)]])] * 2)
    labeled = Labeled(known.logits, torch.tensor([0]))
    # One value counts alone, the second as much as the first, the third with 1 - 0.6: t / (t + 1) is 2 / 3 by then.
    shares = [(1.0, 0.0), (0.5, 0.5), (0.5 * 0.6 + 0.4, 0.5 * 0.6)]
    for x, (first, second) in zip((WEAK, OTHER, WEAK), shares, strict=True):
        strategy.targets(x, StrategyInputs(Net(), Batch(x, x, x, torch.arange(3)), known, labeled, known))
        for buffer, (a, b) in MEANS[name].items():
            expected = first * torch.tensor(a) + second * torch.tensor(b)
            torch.testing.assert_close(getattr(strategy, buffer), expected, rtol=1e-5, atol=1e-7)


def test_freematch_rejects_answers_below_the_mean_of_a_random_head() -> None:
    """Means that start at 1 / C would accept all of them."""
    logits = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    strategy = strategies.FreeMatch(unbiased_means=True)
    strategy.build(CONTEXT._replace(num_classes=10))
    _, weight = strategy.targets(logits, make_step(Net(), None))
    assert 0.2 < weight.mean() < 0.8
    strategy = strategies.FreeMatch()
    strategy.build(CONTEXT._replace(num_classes=10))
    _, weight = strategy.targets(logits, make_step(Net(), None))
    assert weight.mean() == 1


@pytest.mark.parametrize("name", sorted(MEANS))
def test_a_state_without_the_count_loads_as_past_the_start(name: str) -> None:
    strategy = getattr(strategies, name)(momentum=0.75, unbiased_means=True)
    strategy.build(CONTEXT)
    old = {key: value for key, value in strategy.state_dict().items() if key != "warmup.updates"}
    assert len(old) == len(strategy.state_dict()) - 1
    strategy.load_state_dict(old)
    assert strategy.warmup.next_momentum(0.75).item() == 0.75


def test_debiasmatch_favors_rarely_predicted_classes() -> None:
    strategy = strategies.DebiasMatch(threshold=0.0, debias=1.0, momentum=0.0)
    strategy.build(CONTEXT)
    strategy.prediction_mean = torch.tensor([0.25, 0.75])
    label, _ = strategy.targets(WEAK, make_step(Net(), None))
    assert label.tolist() == [0, 0, 1]  # 0.4 / 0.25 > 0.6 / 0.75
    assert strategy.prediction_mean.tolist() == pytest.approx([1.25 / 3, 1.75 / 3])
    strong = strategy.adjusted(torch.zeros(1, 2))
    assert strong.tolist()[0] == pytest.approx([LOG(0.25), LOG(0.75)])


def test_mixmatch_weights_are_beta_distributed_and_at_least_one_half() -> None:
    share, order = strategies.MixMatch(alpha=0.75).sample_mixture(20000, 3)
    assert share.min() >= 0.5
    assert sorted(order.tolist()) == list(range(20000))
    # E|X - 1/2| of Beta(a, a) is 2^(1 - 2a) / (2 a B(a, a)).
    a = 0.75
    expected = 2 ** (1 - 2 * a) / (2 * a * math.gamma(a) ** 2 / math.gamma(2 * a))
    assert share.mean().item() - 0.5 == pytest.approx(expected, rel=0.02)


def test_shared_functions_equal_hand_computed_values() -> None:
    p = torch.tensor([[0.8, 0.2]])
    assert sharpen(p, 0.5).tolist()[0] == pytest.approx([0.64 / 0.68, 0.04 / 0.68])
    assert align_distribution(p, torch.tensor([0.5, 0.5]), torch.tensor([0.8, 0.2])).tolist()[0] == pytest.approx(
        [0.5, 0.5]
    )
    logits = torch.zeros(4, 2)
    value = masked_cross_entropy(logits, torch.zeros(4, dtype=torch.long), torch.tensor([1.0, 1.0, 0.0, 0.0]))
    assert value.item() == pytest.approx(LOG(2) / 2)  # divided by the batch, not by what is accepted


class Normed(Net):
    """A network with batch normalization whose logits are two pixels or a linear layer."""

    def __init__(self, head: nn.Module | None = None) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(1), head

    def outputs(self, x: Tensor) -> Outputs:
        z = self.norm(x).flatten(1)
        z = z[:, :2] if self.head is None else self.head(z)
        return Outputs(z, z)


IMAGES = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["FixMatch", "UDA", "FlexMatch", "FreeMatch", "SoftMatch", "DebiasMatch", "DST"])
@pytest.mark.parametrize("frozen", [False, True])
def test_targets_move_the_statistics_of_batch_normalization_unless_they_are_frozen(name: str, frozen: bool) -> None:
    net, once = Normed(), Normed()
    expected = once.outputs(IMAGES)
    student = net.outputs(IMAGES)
    strategy = getattr(strategies, name)(freeze_target_stats=frozen)
    strategy.build(CONTEXT)
    strategy.start(6)
    weak = IMAGES * 3
    result = strategy.loss(
        make_step(net, Batch(weak, IMAGES, IMAGES, torch.arange(6)), student, Labeled(IMAGES, torch.zeros(6)), student)
    )
    assert torch.equal(student.logits, expected.logits)
    assert torch.equal(net.norm.running_mean, once.norm.running_mean) is frozen  # type: ignore[arg-type]
    assert int(net.norm.num_batches_tracked) == (1 if frozen else 2)  # type: ignore[arg-type]
    assert net.norm.momentum == 0.1
    normed = nn.BatchNorm2d(1)(weak).flatten(1)[:, :2]  # by the batch's own statistics in either case
    if name != "DebiasMatch":
        assert result.pseudo_labels.tolist() == normed.argmax(1).tolist()


def test_adversarial_direction_leaves_batch_norm_statistics_unchanged() -> None:
    net, once = Normed(), Normed()
    once.outputs(IMAGES)  # the clean pass
    strategy = strategies.VirtualAdversarial(epsilon=5.0, steps=2)
    strategy.loss(make_step(net, Batch(IMAGES, IMAGES, IMAGES, torch.arange(6)))).loss.backward()
    assert all(torch.equal(a, b) for a, b in zip(net.norm.buffers(), once.norm.buffers(), strict=True))
    assert net.norm.momentum == 0.1


def test_virtual_adversarial_loss_vanishes_for_a_tiny_perturbation() -> None:
    """The comparison must not use logits from a batch with labeled images, whose batch statistics differ."""
    net = Normed()
    strategy = strategies.VirtualAdversarial(epsilon=1e-6)
    both = net.outputs(torch.cat([IMAGES + 3, IMAGES])).logits[6:]
    result = strategy.loss(make_step(net, Batch(IMAGES, IMAGES, IMAGES, torch.arange(6)), Outputs(both, both)))
    assert result.loss.item() == pytest.approx(0, abs=1e-6)


def test_adversarial_direction_is_computed_in_full_precision() -> None:
    torch.manual_seed(0)
    net = Normed(nn.Linear(16, 4))
    direction = strategies.VirtualAdversarial().find_direction(net, IMAGES, 0)
    exact = strategies.VirtualAdversarial(xi=1e-6).find_direction(net.double(), IMAGES.double(), 0)
    assert torch.allclose((direction * exact).flatten(1).sum(1), torch.ones(6, dtype=torch.float64), atol=1e-2)
    with torch.autocast("cpu", torch.bfloat16):
        again = strategies.VirtualAdversarial().find_direction(net.float(), IMAGES, 0)
    assert torch.equal(again, direction)


def test_adamatch_interpolates_labeled_logits_of_two_passes() -> None:
    net, still = Normed(), Normed()
    strategy = strategies.AdaMatch()
    strategy.build(CONTEXT)
    labeled = Labeled(IMAGES + 3, torch.zeros(6, dtype=torch.long))  # far from the others' statistics
    both = torch.cat([labeled.x, IMAGES])
    together, student = net.outputs(both).logits.chunk(2)
    still.outputs(both), still.outputs(IMAGES)  # what may move the statistics: those passes and the weak view's
    batch = Batch(IMAGES, IMAGES, IMAGES, torch.arange(6), seed=4)
    known = Outputs(together, together)
    result = strategy.loss(make_step(net, batch, Outputs(student, student), labeled, known))
    assert all(torch.equal(a, b) for a, b in zip(net.norm.buffers(), still.norm.buffers(), strict=True))
    alone = still.outputs(labeled.x).logits
    assert result.labeled_logits is not None
    share = (result.labeled_logits - alone) / (together - alone)
    assert torch.allclose(share, torch.rand(6, 2, generator=torch.Generator().manual_seed(4)), atol=1e-3)
    confidence = result.labeled_logits.softmax(1).amax(1).mean()
    assert strategy.threshold_now.item() == pytest.approx(0.9 * confidence.item(), rel=1e-5)
    result.labeled_logits.sum().backward()
    assert net.norm.weight.grad is not None  # L_s learns through both
    plain = strategies.AdaMatch(interpolation=False)
    plain.build(CONTEXT)
    assert plain.loss(make_step(net, batch, Outputs(student, student), labeled, known)).labeled_logits is None


def test_pi_model_normalizes_both_views_with_the_same_statistics() -> None:
    batch = Batch(IMAGES, IMAGES, IMAGES + 3, torch.arange(6))
    shifted = strategies.PiModel().loss(make_step(Normed(), batch)).loss
    norm = nn.BatchNorm2d(1)
    one, two = norm(torch.cat([IMAGES, IMAGES + 3])).flatten(1)[:, :2].softmax(1).chunk(2)
    assert shifted.item() == pytest.approx((one - two).square().mean().item())


def test_freematch_fairness_equals_hand_computed_value() -> None:
    strategy = strategies.FreeMatch(momentum=0.0, fairness=1.0)
    result, _ = compute_loss(strategy)
    plain, _ = compute_loss(strategies.FreeMatch(momentum=0.0, fairness=0.0))
    # Accepted are the first and the third: strong views (0.5, 0.5), class 0, and (0.25, 0.75), class 1.
    now = [(0.5 + 0.25) / 1, (0.5 + 0.75) / 1]  # mass over the share of answers, one of each class
    now = [v / sum(now) for v in now]
    running = [(1.25 / 3) / (1 / 3), (1.75 / 3) / (2 / 3)]
    running = [v / sum(running) for v in running]
    expected = sum(r * LOG(v) for r, v in zip(running, now, strict=True))
    assert (result.loss - plain.loss).item() == pytest.approx(expected, rel=1e-4)


def test_virtual_adversarial_loss_equals_hand_computed_value() -> None:
    """With two classes, the worst direction is (1, -1) or (-1, 1), depending on the draw."""
    result, _ = compute_loss(strategies.VirtualAdversarial(epsilon=0.5, xi=0.01))
    drawn = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    expected = 0.0
    for z, d in zip(WEAK.tolist(), drawn.tolist(), strict=True):
        way = math.copysign(0.5 / math.sqrt(2), d[0] - d[1])
        p = [math.exp(v) for v in z]  # the logits are logarithms of probabilities
        q = [math.exp(z[0] + way), math.exp(z[1] - way)]
        expected += sum(a * LOG(a / (b / sum(q))) for a, b in zip(p, q, strict=True)) / 3
    assert result.loss.item() == pytest.approx(expected, rel=1e-3)


def test_virtual_adversarial_adds_the_entropy() -> None:
    alone, _ = compute_loss(strategies.VirtualAdversarial(epsilon=0.5, xi=0.01))
    both, _ = compute_loss(strategies.VirtualAdversarial(epsilon=0.5, xi=0.01, entropy=2.0))
    entropy, _ = compute_loss(strategies.EntropyMinimization())
    assert (both.loss - alone.loss).item() == pytest.approx(2 * entropy.loss.item(), rel=1e-4)


class PlainHeads(strategies.DST):
    """DST whose heads return the features, after many steps or none."""

    def __init__(self, taken: int = 0, **settings: float) -> None:
        super().__init__(**settings)  # type: ignore[arg-type]
        self.taken = taken

    def build(self, context: StrategyContext) -> None:
        super().build(context)
        self.steps.fill_(self.taken)

    def _build_head(self, context: StrategyContext) -> nn.Module:
        head = nn.Linear(2, 2)
        head.weight.data.copy_(torch.eye(2))
        head.bias.data.zero_()
        return head


KNOWN = torch.tensor([[LOG(0.9), LOG(0.1)], [LOG(0.3), LOG(0.7)]])


def test_dst_loss_equals_hand_computed_value() -> None:
    strategy = PlainHeads(threshold=0.75, worst=2.0, trade_off=3.0)
    result, _ = compute_loss(strategy, (KNOWN, torch.tensor([0, 0])))
    consistency = -(LOG(0.5) + LOG(0.75)) / 3
    right = -(LOG(0.9) + LOG(0.7)) / 2  # its own answers count, not the labels
    wrong = -(LOG(0.5) + LOG(0.1) + LOG(0.25)) / 3
    assert result.weight.tolist() == [1, 0, 1]
    assert result.pseudo_labels.tolist() == [0, 1, 1]
    assert result.loss.item() == pytest.approx(consistency + 2 * (3 * right + wrong), rel=1e-4)
    assert strategy.steps == 1


def test_dst_uses_pseudo_labels_of_the_main_classifier() -> None:
    """The pseudo head predicts the opposite, which must not affect the worst head."""
    strategy = PlainHeads(threshold=0.99, trade_off=0.0)
    strategy._build_head = lambda context: nn.Linear(2, 2)  # type: ignore[method-assign]
    batch, net = Batch(WEAK, STRONG, STRONG, torch.arange(3)), Net()
    strategy.build(CONTEXT)
    strategy.pseudo_head.weight.data.copy_(-torch.eye(2))  # type: ignore[operator]
    strategy.worst_head.weight.data.copy_(torch.eye(2))  # type: ignore[operator]
    strategy.worst_head.bias.data.zero_()  # type: ignore[operator]
    known = net.outputs(KNOWN)
    result = strategy.loss(make_step(net, batch, net.outputs(STRONG), Labeled(KNOWN, torch.tensor([0, 0])), known))
    assert result.loss.item() == pytest.approx(-(LOG(0.5) + LOG(0.1) + LOG(0.25)) / 3, rel=1e-4)


@pytest.mark.parametrize(("taken", "share"), [(0, 0.0), (10, 0.3 * (2 / (1 + math.exp(-1)) - 1)), (10_000, 0.3)])
def test_dst_gradient_reversal_ramps_up(taken: int, share: float) -> None:
    strategy = PlainHeads(taken, threshold=0.99, worst=2.0, trade_off=3.0, reversal=0.3, reversal_steps=10)
    _, gradient = compute_loss(strategy, (KNOWN, torch.tensor([0, 0])))

    def slope(p: list[float], k: int) -> float:
        """Return the gradient of the probability of class k when all logits are scaled together."""
        return p[k] * (LOG(p[k]) - sum(q * LOG(q) for q in p))

    right = -(slope([0.9, 0.1], 0) / 0.9 + slope([0.3, 0.7], 1) / 0.7) / 2
    wrong = (slope([0.5, 0.5], 0) / 0.5 + slope([0.1, 0.9], 1) / 0.1 + slope([0.25, 0.75], 1) / 0.25) / 3
    assert gradient == pytest.approx(-share * 2 * (3 * right + wrong), rel=1e-4, abs=1e-6)


def test_reconstruction_loss_equals_hand_computed_value() -> None:
    class Half(strategies.Reconstruction):
        """Reconstruct images at half their brightness."""

        def build(self, context: StrategyContext) -> None:
            self.decoder = Halved()

    class Halved(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 2

    result, gradient = compute_loss(Half())
    mean_square = float(WEAK.square().mean())
    assert result.loss.item() == pytest.approx(mean_square / 4)
    assert gradient == pytest.approx(-mean_square / 2)  # d/ds (s/2 - 1)^2 at s = 1
    assert result.pseudo_labels is None


def test_mixmatch_loss_equals_hand_computed_value() -> None:
    class Swapped(strategies.MixMatch):
        """Mix three quarters of each example with one quarter of its neighbor."""

        def sample_mixture(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
            return torch.full((count,), 0.75), torch.arange(count).roll(1)

    strategy = Swapped(temperature=0.5)
    strategy.build(CONTEXT)
    weak, other = (torch.tensor([z]).view(1, 1, 1, 2) for z in ([LOG(0.8), LOG(0.2)], [LOG(0.6), LOG(0.4)]))
    known = torch.tensor([0.0, 2.0]).view(1, 1, 1, 2)

    class Flat(Net):
        def outputs(self, x: Tensor) -> Outputs:
            return super().outputs(x.flatten(1))

    net = Flat()
    batch = Batch(weak, weak, other, torch.arange(1))
    result = strategy.loss(make_step(net, batch, labeled=Labeled(known, torch.tensor([1]))))
    mean = 0.7
    guess = [mean**2 / (mean**2 + 0.3**2), 0.3**2 / (mean**2 + 0.3**2)]
    rows = [([0.0, 2.0], [0.0, 1.0]), ([LOG(0.8), LOG(0.2)], guess), ([LOG(0.6), LOG(0.4)], guess)]
    mixed = [
        [[0.75 * a + 0.25 * b for a, b in zip(rows[i][k], rows[i - 1][k], strict=True)] for k in (0, 1)]
        for i in range(3)
    ]
    probabilities, targets = [], []
    for logits, target in mixed:
        e = [math.exp(v) for v in logits]
        probabilities.append([v / sum(e) for v in e])
        targets.append(target)
    supervised = -sum(t * LOG(p) for t, p in zip(targets[0], probabilities[0], strict=True))
    squares = [(t - p) ** 2 for i in (1, 2) for t, p in zip(targets[i], probabilities[i], strict=True)]
    assert result.supervised is not None
    assert result.supervised.item() == pytest.approx(supervised, rel=1e-4)
    assert result.loss.item() == pytest.approx(sum(squares) / 4, rel=1e-4)

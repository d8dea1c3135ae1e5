"""L_f and L_g: who learns from which, in which stage, and what each part is judged by."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning import DecoupledFeatureClassifier, FineTuneClassifier, WeakView
from sft_lightning.classifiers import LinearClassifier, LogisticRegression, Ridge
from sft_lightning.data.splits import Split
from sft_lightning.losses.features import Center, CosinePrototype, SupCon
from sft_lightning.losses.features.base import FeatureLoss
from sft_lightning.paradigms.feature_metrics import FeatureMetrics, Spread
from sft_lightning.utils.errors import InputError
from tests.paradigms.helpers import SHAPE, Recorder, batches, moved, sample, state, trainer

TWO: dict[str, Any] = {"coupling": "two_stage", "feature_epochs": 1}


def module(loss: FeatureLoss | None = None, backbone: str = "mlp", lr: float = 0.05, **settings: Any) -> Any:
    torch.manual_seed(0)
    return DecoupledFeatureClassifier(
        loss or SupCon(), backbone=backbone, num_classes=10, input_spec=SHAPE,
        **{"optimizer": lambda p: torch.optim.SGD(p, lr, momentum=0.9), **settings},
    )  # fmt: skip


def gradients(model: Any, prefix: str) -> float:
    return sum(
        float(p.grad.abs().sum()) for n, p in model.named_parameters() if n.startswith(prefix) and p.grad is not None
    )


class Gradients(Callback):
    """Sums of absolute gradients by part, each step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.seen.append({p: gradients(pl_module, p) for p in ("backbone", "head", "feature_loss", "scale")})


# --- coupling


@pytest.mark.parametrize("coupling", ["joint", "detached"])
def test_20_steps_equal_a_plain_loop(coupling: str) -> None:
    model = module(CosinePrototype(), coupling=coupling, feature_weight=0.7, classifier_weight=0.4)
    plain = copy.deepcopy(nn.ModuleList([model.backbone, model.head, model.feature_loss]))
    seen = Recorder()
    trainer([seen], max_epochs=4).fit(model, sample(num_labels=24, steps_per_epoch=5))
    backbone, head, loss = plain
    sgd = torch.optim.SGD(plain.parameters(), 0.05, momentum=0.9)
    for batch, theirs in zip(seen.batches, seen.losses, strict=True):
        x, y, *_ = batch["labeled"]
        f = backbone(x)
        p = loss.prototypes / loss.prototypes.norm(dim=1, keepdim=True)  # type: ignore[operator]
        own = 1 - ((f / f.norm(dim=1, keepdim=True).clamp_min(1e-12)) * p[y]).sum(1).mean()
        of_g = F.cross_entropy(head(f.detach() if coupling == "detached" else f), y)
        total = 0.7 * own + 0.4 * of_g
        assert theirs == pytest.approx(total.item(), rel=1e-4)
        sgd.zero_grad()
        total.backward()
        sgd.step()
    after = state(nn.ModuleList([model.backbone, model.head, model.feature_loss]))
    for name, tensor in state(plain).items():
        torch.testing.assert_close(after[name], tensor, atol=1e-4, rtol=1e-3)


def test_detached_gives_the_features_no_gradient_of_the_classifier() -> None:
    detached, seen = module(coupling="detached", feature_weight=0.0), Gradients()
    trainer([seen]).fit(detached, sample())
    assert all(step["backbone"] == 0 and step["head"] > 0 for step in seen.seen)
    joint, seen = module(coupling="joint", feature_weight=0.0), Gradients()
    trainer([seen]).fit(joint, sample())
    assert all(step["backbone"] > 0 for step in seen.seen)


def test_two_stages_train_one_part_each() -> None:
    model, seen, steps = module(backbone="conv", **TWO), Recorder(), Gradients()
    before = state(model)
    trainer([seen, steps], max_epochs=3).fit(model, sample())
    first, _, last = seen.states
    parts = lambda names: {n.split(".")[0] for n in names if "metrics" not in n}  # noqa: E731
    assert parts(moved(before, first)) == {"backbone", "feature_loss"}
    # Running statistics of batch normalization are in the state, too.
    assert any("running_mean" in name for name in before)
    assert parts(moved(first, last)) == {"head", "stage"}
    assert all(s["head"] == 0 and s["feature_loss"] > 0 for s in steps.seen[:2])
    assert all(s["head"] > 0 and s["backbone"] == s["feature_loss"] == 0 for s in steps.seen[2:])
    assert not model.backbone.net[0][1].training


def test_the_parts_have_their_own_rates() -> None:
    model, seen = module(backbone_lr_scale=0.1), Recorder()
    trainer([seen]).fit(model, sample())
    assert sorted(set(seen.rates[0])) == pytest.approx([0.005, 0.05])
    groups = {g.name: g for g in model.groups()}
    assert {id(p) for p in groups["feature_loss"].parameters} == {id(p) for p in model.feature_loss.parameters()}
    trained = [p for g in groups.values() for p in g.parameters]
    assert len({id(p) for p in trained}) == len(trained) == len(list(model.parameters()))


# --- heads


def test_crt_starts_anew_on_balanced_batches() -> None:
    class Fresh(Callback):
        head: Tensor
        momentum: bool

        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if pl_module.current_epoch == 1 and batch_idx == 0:
                self.head = pl_module.head.weight.clone()
                self.momentum = bool(trainer.optimizers[0].state[pl_module.head.weight]["momentum_buffer"].any())

    model, seen, fresh = module(head="crt", backbone="conv", **TWO), Recorder(), Fresh()
    data = sample(num_labels=60, batch_size=20, steps_per_epoch=4)
    trainer([seen, fresh], max_epochs=2).fit(model, data)
    first, last = seen.states
    bound = 1 / model.backbone.num_features**0.5
    assert not torch.equal(fresh.head, first["head.weight"])
    assert fresh.head.abs().max() <= bound
    assert not fresh.momentum
    assert {n.split(".")[0] for n in moved(first, last) if "metrics" not in n} == {"head", "stage"}
    for batch in seen.batches[4:]:
        assert torch.bincount(batch["labeled"].y, minlength=10).tolist() == [2] * 10
    assert any(len(set(torch.bincount(b["labeled"].y, minlength=10).tolist())) > 1 for b in seen.batches[:4])


def test_the_new_classifier_follows_from_the_seed_alone() -> None:
    class Draw(Callback):
        def __init__(self, count: int) -> None:
            self.count = count

        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            torch.rand(self.count)

    one, two = module(head="crt", **TWO), module(head="crt", **TWO)
    for model, count in ((one, 1), (two, 9)):
        torch.manual_seed(3)
        trainer([Draw(count)], max_epochs=2).fit(model, sample())
    assert torch.equal(one.head.weight, two.head.weight)


def test_a_second_training_begins_with_the_first_stage() -> None:
    model, seen = module(head="crt", **TWO), Recorder()
    trainer(max_epochs=2).fit(model, sample())
    assert int(model.stage) == 2
    trainer([seen], max_epochs=2).fit(model, sample())
    bound = 1 / model.backbone.num_features**0.5
    assert seen.states[0]["stage"] == 1
    assert int(model.stage) == 2
    assert model.head.weight.abs().max() < bound + 0.1


def test_a_later_run_takes_scaled_weights_over(tmp_path: Path) -> None:
    model = module(head="lws", **TWO)
    run = trainer(max_epochs=2)
    run.fit(model, sample())
    assert not torch.equal(model.scale, torch.ones(10))
    run.save_checkpoint(tmp_path / "a.ckpt")
    later = FineTuneClassifier("mlp", 10, SHAPE, weights=str(tmp_path / "a.ckpt"))
    x = torch.rand(3, *SHAPE)
    torch.testing.assert_close(later.eval()(x), model.eval()(x))


def test_lws_learns_only_scales() -> None:
    model, seen, steps = module(head="lws", **TWO), Recorder(), Gradients()
    trainer([seen, steps], max_epochs=2).fit(model, sample())
    first, last = seen.states
    assert {n for n in moved(first, last) if "metrics" not in n} == {"scale", "stage"}
    assert torch.equal(first["scale"], torch.ones(10))
    assert all(s["head"] > 0 and s["scale"] == 0 for s in steps.seen[:2])
    x = torch.rand(5, *SHAPE)
    f = model.eval().backbone(x)
    expected = (f @ last["head.weight"].T) * last["scale"] + last["head.bias"]
    torch.testing.assert_close(model(x), expected)


def test_tau_normalized_evaluates_with_short_weights() -> None:
    model = module(head="tau_normalized", tau=0.5)
    trainer().fit(model, sample())
    x = torch.rand(5, *SHAPE)
    f, w = model.eval().backbone(x), model.head.weight
    torch.testing.assert_close(model(x), f @ (w / w.norm(dim=1, keepdim=True).sqrt()).T)
    torch.testing.assert_close(model.train().classify(f), model.head(f))


def pictures(split: Any) -> Tensor:
    images: Tensor = split.part.storage.data[split.indices]
    return images.float() / 255


def nearest(known: Tensor, labels: Tensor, new: Tensor) -> Tensor:
    means = torch.stack([known[labels == c].mean(0) for c in range(10)])
    return F.cosine_similarity(new[:, None], means, dim=2).argmax(1)


@pytest.mark.parametrize("backbone", ["mlp", "conv"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"limit_val_batches": 0},
        {"num_sanity_val_steps": 1, "check_val_every_n_epoch": 3},
        {"val_check_interval": 2},
    ],
)
def test_nearest_class_mean_takes_no_steps_and_is_of_the_last_network(backbone: str, settings: dict[str, Any]) -> None:
    model, steps = module(head="nearest_class_mean", backbone=backbone), Gradients()
    data = sample(num_labels=50, steps_per_epoch=3)
    trainer().validate(model, data, verbose=False)  # an earlier one must not count
    untouched = model.head.weight.clone()
    trainer([steps], **{"max_epochs": 2, **settings}).fit(model, data)
    assert all(s["head"] == 0 and s["backbone"] > 0 for s in steps.seen)
    known, test = data.splits["labeled"], data.splits["test"]
    with torch.no_grad():
        model.eval()
        features, new = model.backbone(pictures(known)), model.backbone(pictures(test)[:300])
        guess = model(pictures(test)[:300]).argmax(1)
    assert torch.equal(guess, nearest(features, known.labels, new))
    made = model.head.weight.clone()
    assert not torch.equal(made, untouched)
    model.backbone.net[-1 if backbone == "mlp" else 0][0].weight.data.mul_(2)
    trainer().validate(model, data, verbose=False)
    assert torch.equal(model.head.weight, made)


@pytest.mark.parametrize(("head", "classifier"), [("logistic_regression", LogisticRegression()), ("ridge", Ridge())])
def test_a_fitted_head_takes_no_steps_and_is_of_the_last_network(head: str, classifier: LinearClassifier) -> None:
    model, steps = module(head=head, backbone="mlp"), Gradients()
    data = sample(num_labels=50, steps_per_epoch=3)
    trainer([steps], max_epochs=2).fit(model, data)
    assert all(s["head"] == 0 and s["backbone"] > 0 for s in steps.seen)
    known, test = data.splits["labeled"], data.splits["test"]
    with torch.no_grad():
        model.eval()
        features, new = model.backbone(pictures(known)), model.backbone(pictures(test)[:300])
        guess = model(pictures(test)[:300]).softmax(1)
    assert torch.allclose(guess, classifier.fit(features, known.labels, num_classes=10).predict_proba(new), atol=1e-3)


# --- each part judged by itself


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_metrics_of_the_features_worked_out_again(precision: Any) -> None:
    model, data = module(neighbors=5), sample(num_labels=60)
    run = trainer(precision=precision)
    run.fit(model, data)
    told = run.test(model, data, verbose=False)[0]
    known, test = data.splits["labeled"], data.splits["test"]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision != "32-true"):
        model.eval()
        x, new = model.backbone(pictures(known)).float(), model.backbone(pictures(test)).float()
        guess = model(pictures(test)).argmax(1)
    y = test.labels
    assert told["test/class_mean_accuracy"] == pytest.approx(
        float((nearest(x, known.labels, new) == y).float().mean()), abs=2e-3
    )
    cos = F.normalize(new, dim=1) @ F.normalize(x, dim=1).T
    right = 0
    for row, label in zip(cos, y.tolist(), strict=True):
        votes = [0.0] * 10
        for j in row.argsort(descending=True)[:5].tolist():
            votes[int(known.labels[j])] += float((row[j] / 0.07).exp())
        right += votes.index(max(votes)) == label
    assert told["test/knn_accuracy"] == pytest.approx(right / len(y), abs=2e-3)
    means = torch.stack([new[y == c].mean(0) for c in range(10)])
    within = (new - means[y]).square().sum(1).mean()
    between = (means[y] - new.mean(0)).square().sum(1).mean()
    assert told["test/spread"] == pytest.approx(float(within / between), rel=1e-3)
    assert told["test/accuracy"] == pytest.approx((guess == y).float().mean().item(), abs=1e-3)


def test_spread_by_hand_and_over_batches() -> None:
    spread = Spread(2, 1)
    spread.update(torch.tensor([[0.0], [2.0]]), torch.tensor([0, 0]))
    spread.update(torch.tensor([[9.0], [11.0]]), torch.tensor([1, 1]))
    assert spread.compute().item() == pytest.approx(1 / 4.5**2)


def test_fewer_examples_than_neighbors() -> None:
    metrics = FeatureMetrics(3, 2, neighbors=20)
    metrics.remember(torch.eye(2), torch.tensor([0, 2]))
    metrics.update(torch.tensor([[1.0, 0.1], [0.1, 1.0]]), torch.tensor([0, 2]))
    assert metrics.compute()["knn_accuracy"] == 1


def test_remembered_examples_are_bounded_and_no_class_is_left_out() -> None:
    data = sample(num_labels=100, weak_view=WeakView(crop_padding=4))
    data.setup("fit")
    split = data.splits["labeled"]
    keep = [i for i, y in zip(split.indices, split.labels.tolist(), strict=True) if y < 2] + [
        next(i for i, y in zip(split.indices, split.labels.tolist(), strict=True) if y == c) for c in range(2, 10)
    ]
    data.splits["labeled"] = Split(split.part, keep)  # 10, 10 and one of each of the others
    known = data.splits["labeled"]
    y = torch.cat([b.y for b in data.labeled_batches(14, torch.device("cpu"))])
    assert torch.bincount(y, minlength=10).tolist() == [3, 3, *[1] * 8]
    everything = list(data.labeled_batches(28, torch.device("cpu")))
    assert torch.equal(torch.cat([b.y for b in everything]), known.labels)
    assert torch.equal(torch.cat([b.x for b in everything]), pictures(known))  # no random view


def test_data_without_labels_to_compare_with_tells_the_rest() -> None:
    model, data = module(), sample()
    trainer().fit(model, data)
    loader = batches(*data.labeled_batches(10, torch.device("cpu")))
    told = trainer().test(model, loader, verbose=False)[0]
    assert "test/spread" in told
    assert "test/accuracy" in told
    assert "test/knn_accuracy" not in told
    with pytest.raises(InputError, match="labeled_batches"):
        trainer().fit(module(head="nearest_class_mean"), loader)


# --- resume, parts, bad input


class Stop(Callback):
    """Ends a training after an epoch, as a signal would."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch == self.epoch


@pytest.mark.parametrize("head", ["linear", "crt", "lws"])
@pytest.mark.parametrize("stop", [0, 1])
def test_resumed_runs_end_where_others_do(head: str, stop: int, tmp_path: Path) -> None:
    def run(seed: int, *callbacks: Callback, **resume: Any) -> tuple[Any, Trainer]:
        loss = CosinePrototype("mean") if head == "linear" else Center()
        model, fit = module(loss, head=head, backbone="conv", **TWO), trainer([*callbacks], max_epochs=3)
        torch.manual_seed(seed)  # crt draws a new classifier when its stage begins
        fit.fit(model, sample(num_labels=40, steps_per_epoch=3), **resume)
        return model, fit

    whole, _ = run(5)
    _, stopped = run(5, Stop(stop))
    stopped.save_checkpoint(tmp_path / "a.ckpt")
    # Once the stage has begun, nothing is drawn again.
    resumed, _ = run(5 if stop == 0 else 99, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert not {n for n in moved(state(whole), state(resumed)) if "metrics" not in n}


def test_swapped_heads_and_backbones_give_the_original_logits() -> None:
    a, b = module(backbone="mlp"), module(SupCon(projection=0), backbone="mlp", lr=0.01)
    for model, seed in ((a, 0), (b, 1)):
        trainer().fit(model, sample(seed=seed))
        model.eval()
    x = torch.rand(4, *SHAPE)
    first, second = a(x), b(x)
    assert not torch.allclose(first, second)
    a.backbone, b.backbone = b.backbone, a.backbone
    a.head, b.head = b.head, a.head
    assert torch.equal(a(x), second)
    assert torch.equal(b(x), first)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"coupling": "two_stage"}, "feature_epochs is 0: two_stage needs"),
        ({"feature_epochs": 2}, "feature_epochs is 2, but coupling is 'joint'"),
        ({**TWO, "head_only_epochs": 1}, "head_only_epochs is 1, but two_stage"),
        ({"head": "crt"}, "head is 'crt', which a second stage makes"),
        ({"head": "lws", "coupling": "detached"}, "head is 'lws', which a second stage makes"),
        ({**TWO, "head": "nearest_class_mean"}, "leaves a stage of its own nothing to train"),
        ({**TWO, "head": "ridge"}, "head is 'ridge', which leaves a stage of its own nothing to train"),
        ({"head_only_epochs": 1, "head": "nearest_class_mean"}, "leaves a stage of its own nothing to train"),
        ({"tune": "head", "coupling": "detached"}, "tune is 'head', but L_f alone"),
        ({"tau": 1.5}, "tau is 1.5"),
        ({"feature_weight": -1.0}, "feature_weight is -1.0"),
        ({"classifier_weight": float("nan")}, "classifier_weight is nan"),
        ({"neighbors": 0}, "neighbors is 0"),
        ({"remembered": 0}, "remembered is 0"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        module(**settings)


def test_a_second_stage_that_never_comes() -> None:
    with pytest.raises(InputError, match=r"feature_epochs is 1, but training ends before \(max_epochs 1"):
        trainer(max_epochs=1).fit(module(**TWO), sample())
    with pytest.raises(InputError, match="max_steps 2"):
        trainer(max_epochs=9, max_steps=2).fit(module(**TWO), sample())
    trainer(fast_dev_run=True).fit(module(**TWO), sample())


@pytest.mark.parametrize(
    ("loss", "settings", "warned"),
    [
        (CosinePrototype(), {"coupling": "detached"}, True),
        (Center(), TWO, True),
        (CosinePrototype(), {"head": "nearest_class_mean"}, True),
        (CosinePrototype(), {}, False),
        (CosinePrototype("simplex"), {"coupling": "detached"}, False),
        (Center(), {**TWO, "head": "crt"}, False),
    ],
)
def test_what_may_collapse_is_said(loss: Any, settings: Any, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    trainer(max_epochs=2, limit_train_batches=1, limit_val_batches=0).fit(module(loss, **settings), sample())
    assert ("keeps none apart" in caplog.text) == warned

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score
from timm.optim._param_groups import param_groups_layer_decay
from torch import Tensor
from torch.nn import functional as F

from sft_lightning import FineTuneClassifier
from sft_lightning.losses.regularizers import L2
from sft_lightning.networks.weights import write_weights
from sft_lightning.training.callbacks.predictions import PredictionWriter
from sft_lightning.training.figures import ConfusionMatrix
from sft_lightning.utils.errors import InputError
from tests.paradigms.helpers import SHAPE, Recorder, batches, classifier, moved, sample, state, trainer

Optimizer = Callable[[Any], torch.optim.Optimizer]


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.05, momentum=0.9)


def _adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 0.01, eps=1e-3)  # a smaller one turns rounding into steps


def _by_hand(logits: Tensor, y: Tensor, weight: Tensor, smoothing: float) -> Tensor:
    log_p = logits - logits.logsumexp(1, keepdim=True)
    hit = -(weight[y] * log_p[torch.arange(len(y)), y]).sum()
    spread = -(weight[y] * log_p.mean(1)).sum()
    return ((1 - smoothing) * hit + smoothing * spread) / weight[y].sum()


@pytest.mark.parametrize("optimizer", [_sgd, _adam])
@pytest.mark.parametrize(
    ("smoothing", "weights", "penalty"),
    [(0.0, None, 0.0), (0.1, None, 0.0), (0.1, [0.5 + 0.1 * k for k in range(10)], 0.01), (0.0, "balanced", 0.01)],
)
def test_20_steps_equal_a_plain_loop(optimizer: Optimizer, smoothing: float, weights: Any, penalty: float) -> None:
    model = classifier(optimizer=optimizer, label_smoothing=smoothing, class_weights=weights, regularizer=L2(penalty))
    names = [n for n, _ in model.named_parameters()]
    plain = [p.detach().clone().requires_grad_() for p in model.parameters()]
    seen = Recorder()
    data = sample(num_labels=24, steps_per_epoch=5)
    trainer([seen], max_epochs=4).fit(model, data)

    weight = torch.tensor(weights) if isinstance(weights, list) else torch.ones(10)
    if weights == "balanced":
        weight = 24 / (10 * data.labeled_counts())
    theirs, losses = optimizer(plain), []
    assert names[-2:] == ["head.weight", "head.bias"]
    for batch in seen.batches:
        h = batch["labeled"].x.flatten(1)
        for w, b in zip(plain[0:6:2], plain[1:6:2], strict=True):
            h = F.relu(h @ w.T + b)
        loss = _by_hand(h @ plain[6].T + plain[7], batch["labeled"].y, weight, smoothing)
        loss = loss + penalty * 0.5 * sum((p**2).sum() for p in plain)
        theirs.zero_grad()
        loss.backward()
        theirs.step()
        losses.append(loss.item())
    assert len(losses) == 20
    assert seen.losses == pytest.approx(losses, rel=1e-4)
    for name, mine, other in zip(names, model.parameters(), plain, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        ({"tune": "head"}, None),
        ({"tune": "last_k_blocks", "last_k_blocks": 1}, 4),
        ({"tune": "last_k_blocks", "last_k_blocks": 3}, 2),
        ({"tune": "all"}, 0),
    ],
)
def test_exactly_the_tuned_blocks_move(settings: dict[str, Any], first: int | None) -> None:
    model = classifier("conv", **settings)
    before = state(model)
    trainer(max_epochs=2).fit(model, sample())
    expected = {"head.weight", "head.bias"}
    for name in before:  # running statistics, too
        block = name.removeprefix("backbone.net.").split(".")[0]
        if name.startswith("backbone.net.") and first is not None and int(block) >= first:
            expected.add(name)
    assert moved(before, state(model)) - {n for n in before if n.startswith("_metrics")} == expected


class Modes(Callback):
    def __init__(self) -> None:
        self.seen: list[list[bool]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        assert isinstance(pl_module, FineTuneClassifier)
        self.seen.append(
            [all(m.training for b in block.modules for m in b.modules()) for block in pl_module.depth.blocks]
        )


def test_frozen_blocks_stay_in_eval_mode_also_after_validation() -> None:
    model, modes = classifier("conv", tune="last_k_blocks", last_k_blocks=2), Modes()
    trainer([modes], max_epochs=2, val_check_interval=1).fit(model, sample())
    model.train()
    assert [all(m.training for m in block.modules[0].modules()) for block in model.depth.blocks] == [False] * 3 + [
        True
    ] * 2
    assert modes.seen == [[False] * 3 + [True] * 2] * 4


def test_a_class_token_is_tuned_with_all_and_frozen_otherwise() -> None:
    for tune, trained in (("all", True), ("last_k_blocks", False), ("head", False)):
        model = FineTuneClassifier("vit_tiny_patch16_224", 3, (3, 32, 32), tune=tune)  # type: ignore[arg-type]
        assert model.backbone.net.cls_token.requires_grad is trained
        inside = {id(p) for group in model.groups() for p in group.parameters}
        assert inside == {id(p) for p in model.parameters() if p.requires_grad}


def test_backbone_moves_only_after_its_release() -> None:
    model, seen = classifier("conv", head_only_epochs=2), Recorder()
    before = state(model)
    trainer([seen], max_epochs=3).fit(model, sample())
    assert moved(before, seen.states[1]) == {"head.weight", "head.bias"}
    assert {f"backbone.net.{k}.0.weight" for k in range(5)} <= moved(seen.states[1], seen.states[2])


def test_release_restores_dropout_between_the_blocks() -> None:
    model = FineTuneClassifier("alexnet", 10, (1, 64, 64), head_only_epochs=1)
    dropout = [m for m in model.backbone.modules() if isinstance(m, torch.nn.Dropout)]
    assert dropout
    assert not any(m.training for m in dropout)
    model.depth.release(True)
    assert all(m.training for m in model.modules())


class SaveAt(Callback):
    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def test_a_resumed_epoch_is_released_too(tmp_path: Path) -> None:
    def fresh() -> FineTuneClassifier:
        return classifier("conv", head_only_epochs=1)

    trainer([SaveAt(3, tmp_path / "a.ckpt")], max_epochs=2).fit(fresh(), sample())  # inside epoch 1 of 2 steps
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    model = fresh()
    trainer(max_epochs=2).fit(model, sample(), ckpt_path=tmp_path / "a.ckpt")
    assert "backbone.net.0.0.weight" in moved(saved, state(model))


def _rates(**settings: Any) -> dict[str, float]:
    model = classifier(lr=1.0, **settings)
    run = trainer(limit_train_batches=1)
    run.fit(model, sample())
    names = {id(p): n for n, p in model.named_parameters()}
    return {names[id(p)]: g["lr"] for g in run.optimizers[0].param_groups for p in g["params"]}


def test_layer_decay_sets_the_rate_of_each_block() -> None:
    rates = _rates(layer_decay=0.5, backbone_lr_scale=0.2)
    expected = {"head": 1.0, "backbone.net.3.0": 0.1, "backbone.net.2.0": 0.05, "backbone.net.1.0": 0.025}
    assert rates == pytest.approx({f"{n}.{p}": lr for n, lr in expected.items() for p in ("weight", "bias")})


def test_layer_decay_begins_at_the_last_tuned_block() -> None:
    rates = _rates(layer_decay=0.5, tune="last_k_blocks", last_k_blocks=2)
    assert {n: lr for n, lr in rates.items() if n.endswith("weight")} == {
        "head.weight": 1.0,
        "backbone.net.3.0.weight": 0.5,
        "backbone.net.2.0.weight": 0.25,
    }


def test_layer_decay_of_a_timm_network_is_that_of_timm() -> None:
    model = FineTuneClassifier("timm/vit_tiny_patch16_224", 3, (3, 32, 32), layer_decay=0.75)
    ours = {id(p): group.scale for group in model.groups() for p in group.parameters}
    theirs = param_groups_layer_decay(model.backbone.net, layer_decay=0.75)
    expected = {id(p): 0.75 * group["lr_scale"] for group in theirs for p in group["params"]}  # the head is above
    assert len(set(expected.values())) == 13
    assert {k: ours[k] for k in expected} == pytest.approx(expected)


def test_backbone_lr_scale_is_a_share_of_the_head() -> None:
    rates = _rates(backbone_lr_scale=0.1)
    assert {lr for n, lr in rates.items() if n.startswith("backbone")} == {0.1}
    assert rates["head.weight"] == 1.0


def test_balanced_weights_are_the_inverse_of_the_counts() -> None:
    model, data = classifier(class_weights="balanced"), sample(num_labels=24)
    trainer(limit_train_batches=1).fit(model, data)
    counts = data.labeled_counts()
    torch.testing.assert_close(model.class_weight * counts, torch.full((10,), 2.4))
    assert len(set(counts.tolist())) == 2


def test_balanced_weights_need_loaders_that_count() -> None:
    batch = {"labeled": (torch.rand(2, *SHAPE), torch.tensor([0, 1]), torch.arange(2))}
    with pytest.raises(InputError, match="'balanced', but the loaders do not count the labels"):
        trainer().fit(classifier(class_weights="balanced"), batches(batch))


def _scores(logits: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> dict[str, float]:
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    confidence, predicted = p.max(1), p.argmax(1)
    error = 0.0
    for k in range(15):
        inside = (confidence > k / 15) & (confidence <= (k + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(confidence[inside].mean() - (predicted == y)[inside].mean())
    return {
        "loss": float(-np.log(p[np.arange(len(y)), y]).mean()),
        "accuracy": float((predicted == y).mean()),
        "balanced_accuracy": float(balanced_accuracy_score(y, predicted)),
        "macro_f1": float(f1_score(y, predicted, average="macro")),
        "calibration_error": float(error),
    }


def test_metrics_of_validation_and_test_equal_those_of_sklearn() -> None:
    model, data = classifier(lr=0.2), sample(num_labels=200, val_size=61, eval_batch_size=16)
    run = trainer(max_epochs=3)
    run.fit(model, data)
    results: dict[str, Any] = {"val": dict(run.callback_metrics), "test": run.test(model, data, verbose=False)[0]}
    model.eval()
    for stage, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        seen = [data.on_after_batch_transfer(raw, 0) for raw in loader]
        logits, y = torch.cat([model(b.x).detach() for b in seen]).numpy(), torch.cat([b.y for b in seen]).numpy()
        found = {n.split("/")[1]: float(v) for n, v in results[stage].items() if n.startswith(stage)}
        assert found == pytest.approx(_scores(logits, y), abs=1e-5)
        figure = model.figures(stage)["confusion"]
        assert isinstance(figure, ConfusionMatrix)
        confusion = figure.counts
        assert (confusion.numpy() == confusion_matrix(y, logits.argmax(1), labels=range(10))).all()


def test_predictions_are_probabilities_of_each_picture(tmp_path: Path) -> None:
    model, data = classifier(), sample(eval_batch_size=500)
    trainer([PredictionWriter(tmp_path)]).predict(model, data, return_predictions=False)
    rows = list(csv.reader((tmp_path / "predictions.csv").open()))
    assert len(rows) == 2001
    raw = next(iter(data.predict_dataloader()))
    with torch.no_grad():
        expected = model.eval()(data.on_after_batch_transfer(raw, 0).x).softmax(1)
    found = torch.tensor([[float(v) for v in row[2:]] for row in rows[1:501]])
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


def test_a_checkpoint_stands_alone(tmp_path: Path) -> None:
    source = classifier()
    torch.save({"state_dict": source.state_dict()}, tmp_path / "source.ckpt")
    run = trainer()
    run.fit(classifier(weights=str(tmp_path / "source.ckpt")), sample())
    run.save_checkpoint(tmp_path / "a.ckpt")
    (tmp_path / "source.ckpt").unlink()
    again = FineTuneClassifier.load_from_checkpoint(tmp_path / "a.ckpt")
    assert not moved(state(again), state(run.lightning_module))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_classes": 1}, "num_classes is 1"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"layer_decay": 0.0}, "layer_decay is 0.0"),
        ({"class_weights": [1.0]}, "class_weights has 1 numbers for 10"),
        ({"class_weights": [1.0] * 9 + [0.0]}, r"class_weights\[9\] is 0.0"),
        ({"class_weights": [-1.0] + [1.0] * 9}, r"class_weights\[0\] is -1.0"),
        ({"class_weights": [float("nan")] * 10}, r"class_weights\[0\] is nan"),
        ({"tune": "last_k_blocks", "last_k_blocks": 9}, "'mlp' has 3 blocks"),
        ({"head_only_epochs": -1}, "head_only_epochs is -1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        FineTuneClassifier(**{"backbone": "mlp", "num_classes": 10, "input_spec": SHAPE, **settings})


def test_training_without_an_optimizer_is_refused() -> None:
    with pytest.raises(InputError, match="FineTuneClassifier has no optimizer"):
        trainer().fit(classifier(optimizer=None), sample())


def test_whole_numbers_are_class_weights() -> None:
    model = classifier(class_weights=[1, 2] * 5)
    trainer(limit_train_batches=1).fit(model, sample())
    assert model.class_weight.tolist() == [1.0, 2.0] * 5


def test_a_fit_after_a_validate() -> None:
    model, data = classifier(), sample()
    trainer().validate(model, data, verbose=False)
    run = trainer()
    run.fit(model, data)
    told = run.validate(model, data, verbose=False)[0]
    assert told == pytest.approx({n: float(v) for n, v in run.callback_metrics.items() if n in told})


def test_a_fused_sgd_takes_parameters_that_are_released_later() -> None:
    def trained(fused: bool) -> dict[str, Tensor]:
        def make(parameters: Any) -> torch.optim.Optimizer:
            return torch.optim.SGD(parameters, 0.05, momentum=0.9, nesterov=True, fused=fused)

        model = classifier(optimizer=make, head_only_epochs=1)
        trainer(max_epochs=3).fit(model, sample(steps_per_epoch=3))
        return state(model)

    fused, plain = trained(True), trained(False)
    for name, tensor in plain.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(fused[name], tensor, msg=name)


def _write_start(path: Path) -> str:
    """Write an encoder with batch normalization, as a file of weights."""
    made = classifier("resnet8").backbone
    write_weights(path, made.state_dict(), {"part": "encoder", **made.describe()})
    return str(path)


def _find_norms(module: torch.nn.Module) -> list[torch.nn.BatchNorm2d]:
    return [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]


@pytest.mark.parametrize(("given", "has_weights", "head_start", "stays"), [
    ("auto", True, "ridge", True), ("auto", True, "random", False), ("auto", False, "ridge", False),
    ("batch", True, "ridge", False), ("weights", False, "random", True),
])  # fmt: skip
def test_statistics_of_batch_normalization_stay_as_the_setting_says(
    given: str, has_weights: bool, head_start: str, stays: bool, tmp_path: Path
) -> None:
    weights = _write_start(tmp_path / "start.safetensors") if has_weights else "none"
    model = classifier("resnet8", 0.001, weights=weights, norm_stats=given, head_start=head_start)
    before = state(model)
    trainer(max_epochs=2, val_check_interval=1).fit(model, sample())
    changed = {n for n in moved(before, state(model)) if "norm" in n or ".1." in n}
    assert any(name.endswith("running_mean") for name in changed) is not stays
    assert any(name.endswith("weight") for name in changed), "scales and shifts learn in either case"
    model.train()
    assert {m.training for m in _find_norms(model.backbone)} == {not stays}


def test_a_resumed_run_keeps_its_statistics_although_its_weights_are_not_read_again(tmp_path: Path) -> None:
    weights = _write_start(tmp_path / "start.safetensors")
    whole = classifier("resnet8", 0.001, weights=weights, head_start="ridge")
    trainer([SaveAt(2, tmp_path / "a.ckpt")], max_epochs=2).fit(whole, sample())
    resumed = classifier("resnet8", 0.001, weights="none")
    trainer(max_epochs=2).fit(resumed, sample(), ckpt_path=tmp_path / "a.ckpt")
    assert not moved(state(whole), state(resumed))
    assert resumed.hparams["norm_stats"] == "weights"
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    del saved["hyper_parameters"]["norm_stats"]  # as version 0.2 wrote it
    torch.save(saved, tmp_path / "b.ckpt")
    older = classifier("resnet8", 0.001, weights="none")
    trainer(max_epochs=3).fit(older, sample(), ckpt_path=tmp_path / "b.ckpt")
    assert any(name.endswith("running_mean") for name in moved(state(whole), state(older)))


def test_other_values_of_norm_stats_are_refused() -> None:
    with pytest.raises(InputError, match="norm_stats is 'frozen': give auto, batch, weights"):
        classifier("resnet8", norm_stats="frozen")


@pytest.mark.parametrize(("backbone", "given", "expected"), [
    ("mlp", "weights", "norm_stats is 'weights', and backbone 'mlp' has no batch normalization: leave it out"),
    ("mlp", "batch", "norm_stats is 'batch', and backbone 'mlp' has no batch normalization"),
    ("resnet8", "weights", "norm_stats is 'weights', and the backbone starts from random weights"),
    ("mlp", "auto", ""), ("resnet8", "batch", ""),
])  # fmt: skip
def test_a_choice_of_statistics_without_effect_is_named(
    backbone: str, given: str, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    trainer(max_epochs=1, limit_train_batches=1).fit(classifier(backbone, 0.001, norm_stats=given), sample())
    lines = [record.message for record in caplog.records if "norm_stats" in record.message]
    assert len(lines) == bool(expected)
    assert all(expected in line for line in lines)


@pytest.mark.parametrize(("links", "stays"), [
    ([{"model": "SelfSupervisedModule"}], False), ([{"model": "AutoencoderModule", "weights": "default"}], False),
    ([{"model": "FineTuneClassifier", "weights": "none"}], False),
    ([{"model": "FineTuneClassifier", "weights": "default"}], True),
    ([{"model": "FineTuneClassifier", "weights": "a"}, {"model": "SemiSupervisedModule", "weights": "b"}], True),
])  # fmt: skip
def test_statistics_that_a_run_has_learned_go_on_learning(
    links: list[dict[str, str]], stays: bool, tmp_path: Path
) -> None:
    weights = _write_start(tmp_path / "encoder.safetensors")
    (tmp_path / "fit.yaml").write_text("{}")
    (tmp_path / "lineage.json").write_text(json.dumps([{"run": "x", **link} for link in links]))
    model = classifier("resnet8", 0.001, weights=weights, head_start="ridge")
    assert model.hparams["norm_stats"] == ("weights" if stays else "batch")
    assert {m.training for m in _find_norms(model.backbone)} == {not stays}

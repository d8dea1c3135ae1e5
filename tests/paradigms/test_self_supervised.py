import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning import FineTuneClassifier, ImageDataModule, PretrainView, SelfSupervisedModule
from sft_lightning.losses import pretraining
from sft_lightning.losses.pretraining.base import ObjectiveInputs, ObjectiveOutput, ViewObjective
from sft_lightning.losses.pretraining.projectors import build_projector
from sft_lightning.networks.build import rebuild_encoder
from sft_lightning.networks.weights import read_weights
from sft_lightning.paradigms.effective_rank import compute_effective_rank
from sft_lightning.utils.errors import InputError
from tests.losses.pretraining.references import REFERENCES, SMALL
from tests.paradigms.helpers import SHAPE, Recorder, cli, moved, sample, state, trainer

RATE = 0.05


def module(name: str = "SimCLR", backbone: str = "mlp", **settings: Any) -> SelfSupervisedModule:
    torch.manual_seed(0)
    objective = getattr(pretraining, name)(**SMALL[name])
    given = {"num_classes": 10, "optimizer": lambda p: torch.optim.SGD(p, RATE), **settings}
    return SelfSupervisedModule(objective, backbone, SHAPE, **given)


class Doubled(ImageDataModule):
    """The batches in double precision."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        views = super().on_after_batch_transfer(batch, dataloader_idx)
        return apply_to_collection(views, Tensor, lambda t: t.double() if t.is_floating_point() else t)


def data(kind: type[ImageDataModule] = ImageDataModule, **settings: Any) -> ImageDataModule:
    sizes = {"num_labels": 40, "batch_size": 16, "val_size": 60, "eval_batch_size": 60, "steps_per_epoch": 20}
    return kind("sample", **{**sizes, "pretrain_view": PretrainView(crop_scale=[0.3, 1.0]), **settings})


class Plain:
    """Encoder, projector, predictor and momentum network, and gradient descent by hand."""

    def __init__(self, of: SelfSupervisedModule, steps: int) -> None:
        self.objective: Any = of.objective
        networks: list[Any] = [of.encoder, self.objective.projector, self.objective.predictor]
        self.encoder, self.projector, self.predictor = copy.deepcopy(networks)
        self.decay, self.steps = self.objective.decay, steps
        self.momentum = copy.deepcopy([self.encoder, self.projector])

    def loss(self, crops: tuple[Tensor, Tensor], step: int) -> Tensor:
        z_a, z_b = (self.projector(self.encoder(x)) for x in crops)
        outputs = (self.predictor(z_a), self.predictor(z_b))
        targets = (z_a.detach(), z_b.detach())
        if self.objective.needs_momentum:
            with torch.no_grad():
                k_a, k_b = (self.momentum[1](self.momentum[0](x)) for x in crops)
            targets = (k_a, k_b)
        return REFERENCES[type(self.objective).__name__](self.objective, outputs, targets, step)

    def descend(self, loss: Tensor, step: int) -> None:
        networks: list[nn.Module] = [self.encoder, self.projector, self.predictor]
        parameters = [p for network in networks for p in network.parameters()]
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p.sub_(RATE * g)
            decay = 1 - (1 - self.decay) * (math.cos(math.pi * step / self.steps) + 1) / 2
            for of, network in zip(self.momentum, networks, strict=False):
                for m, p in zip(of.parameters(), network.parameters(), strict=True):
                    m.copy_(decay * m + (1 - decay) * p)


# Batch normalization in the encoder is the same for all that have no momentum network.
@pytest.mark.parametrize(
    ("name", "backbone"), [*((name, "mlp") for name in sorted(REFERENCES)), ("BYOL", "resnet8"), ("VICReg", "resnet8")]
)
def test_20_steps_equal_a_plain_loop(name: str, backbone: str) -> None:
    model, seen = module(name, backbone).double(), Recorder()
    plain = Plain(model, 20)
    fit = trainer([seen], max_epochs=1, limit_val_batches=0, precision="64-true")
    fit.fit(model, datamodule=data(Doubled))
    assert len(seen.losses) == 20
    for step, batch in enumerate(seen.batches):
        assert list(batch) == ["unlabeled"]
        loss = plain.loss(batch["unlabeled"].crops, step)
        assert seen.losses[step] == pytest.approx(loss.item(), rel=1e-6), step
        plain.descend(loss, step)
    pairs = [(model.encoder, plain.encoder), (plain.objective.projector, plain.projector)]
    for mine, theirs in [*pairs, (plain.objective.predictor, plain.predictor)]:
        for key, tensor in theirs.state_dict().items():
            torch.testing.assert_close(mine.state_dict()[key], tensor, rtol=1e-5, atol=1e-7)
    assert (model.momentum is not None) == model.objective.needs_momentum


def test_views_differ_and_repeat_with_the_seed() -> None:
    seen = [Recorder(), Recorder()]
    for each in seen:
        trainer([each], max_epochs=1, limit_val_batches=0, limit_train_batches=2).fit(module(), data())
    first, again = (each.batches[0]["unlabeled"] for each in seen)
    assert len(first.crops) == 2
    assert not torch.equal(*first.crops)
    assert all(map(torch.equal, first.crops, again.crops))
    assert not torch.equal(first.crops[0], seen[0].batches[1]["unlabeled"].crops[0])


def test_two_settings_make_the_views_asymmetric() -> None:
    plain = {"crop_scale": [1.0, 1.0], "flip": False, "jitter": 0.0, "gray": 0.0, "blur": 0.0}
    seen = Recorder()
    views: dict[str, Any] = {"pretrain_view": {**plain, "solarize": 1.0}, "pretrain_view_2": {**plain, "gray": 1.0}}
    trainer([seen], limit_val_batches=0, limit_train_batches=1).fit(module(), data(**views))
    solarized, unchanged = seen.batches[0]["unlabeled"].crops
    assert torch.equal(solarized, torch.where(unchanged < 0.5, unchanged, 1 - unchanged))


@pytest.mark.parametrize("name", ["BYOL", "LeJEPA"])
def test_a_resumed_training_is_that_of_a_whole_one(name: str, tmp_path: Path) -> None:
    class Save(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
            if trainer.global_step == 5:  # inside an epoch
                trainer.save_checkpoint(tmp_path / "5.ckpt")

    settings: dict[str, Any] = {"max_epochs": 4, "limit_val_batches": 0}
    whole, resumed = module(name), module(name)
    trainer([Save()], **settings).fit(whole, data(steps_per_epoch=3))
    run = trainer(**settings)
    run.fit(resumed, data(steps_per_epoch=3), ckpt_path=str(tmp_path / "5.ckpt"), weights_only=True)
    assert run.global_step == 12
    assert not moved(state(whole), state(resumed))
    assert moved(torch.load(tmp_path / "5.ckpt", weights_only=True)["state_dict"], state(whole))


def test_metrics_are_those_of_unaugmented_features() -> None:
    model, own = module(), data(steps_per_epoch=2)
    run = trainer(log_every_n_steps=1)
    run.fit(model, own)
    model.eval()
    with torch.no_grad():
        known = [(model(b.x), b.y) for b in own.labeled_batches(100, torch.device("cpu"))]
        queries = [(model(b.x), b.y) for b in own.batches_of("val", torch.device("cpu"))]
    features, labels = torch.cat([f for f, _ in queries]), torch.cat([y for _, y in queries])
    share = torch.linalg.svdvals(features.double())
    share = share / share.sum()
    rank = (-torch.xlogy(share, share).sum()).exp()
    assert float(run.callback_metrics["val/effective_rank"]) == pytest.approx(float(rank), rel=1e-3)
    bank, bank_labels = torch.cat([f for f, _ in known]), torch.cat([y for _, y in known])
    nearest = (F.normalize(features, dim=1) @ F.normalize(bank, dim=1).T).topk(20, 1)
    votes = torch.zeros(len(features), 10).scatter_add_(1, bank_labels[nearest.indices], (nearest.values / 0.07).exp())
    accuracy = (votes.argmax(1) == labels).float().mean()
    assert float(run.callback_metrics["val/knn_accuracy"]) == pytest.approx(float(accuracy))
    assert 1 <= float(run.callback_metrics["train/effective_rank"]) <= 16
    assert 0 < float(run.callback_metrics["train/projection_spread"]) < 1


@pytest.mark.parametrize("settings", [{"num_labels": 0}, {"num_labels": 0, "val_size": 0}])
def test_no_label_is_needed(settings: dict[str, Any]) -> None:
    run = trainer()
    run.fit(module(num_classes=0), data(**settings, steps_per_epoch=2))
    assert ("val/effective_rank" in run.callback_metrics) == ("val_size" not in settings)
    assert "val/knn_accuracy" not in run.callback_metrics


@pytest.mark.parametrize(
    ("features", "rank"),
    [
        (torch.ones(20, 5), 1.0),
        (torch.eye(6), 6.0),
        (torch.eye(6)[:, :3], 3.0),
        (torch.zeros(4, 3), 1.0),
        (torch.full((4, 3), torch.nan), 1.0),
    ],
)
def test_effective_rank_counts_independent_directions(features: Tensor, rank: float) -> None:
    assert float(compute_effective_rank(features)) == pytest.approx(rank, rel=1e-3)


class Attract(ViewObjective):
    """Draws the views of an example together, and keeps nothing apart."""

    def build(self, num_features: int) -> None:
        self.projector = build_projector([num_features, 16, 8])

    def loss(self, step: ObjectiveInputs) -> ObjectiveOutput:
        return ObjectiveOutput(F.mse_loss(step.outputs[0], step.outputs[1]))


def test_a_collapse_is_reported_in_one_sentence(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = SelfSupervisedModule(Attract(), "mlp", SHAPE, optimizer=lambda p: torch.optim.Adam(p, 0.01))
    with caplog.at_level("INFO"):
        run = trainer(max_epochs=1, limit_val_batches=0, log_every_n_steps=10)
        run.fit(model, data(steps_per_epoch=120))
    sentences = [r.getMessage() for r in caplog.records if "collapsed" in r.getMessage()]
    assert len(sentences) == 1
    assert sentences[0].startswith("Warning: the projections have collapsed at step ")
    assert float(run.callback_metrics["train/projection_spread"]) < 0.1


def test_no_collapse_is_reported_of_a_sound_training(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        trainer(max_epochs=1, limit_val_batches=0, log_every_n_steps=5).fit(module(), data(steps_per_epoch=60))
    assert "collapsed" not in caplog.text


def test_other_paradigms_start_from_the_saved_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--data.init_args.batch_size=32", "--trainer.max_epochs=1", "--run_name=ssl"]
    model = cli("fit", "self_supervised", *words).model
    run = tmp_path / "lightning_logs" / "ssl" / "version_0"
    x = torch.rand(5, *SHAPE)
    features = model.encoder.eval()(x)
    assert torch.equal(rebuild_encoder(run).eval()(x), features)
    for weights in (run, run / "checkpoints" / "last.ckpt"):
        classifier = FineTuneClassifier(model.encoder.name, 10, SHAPE, weights=str(weights))
        assert torch.equal(classifier.backbone.eval()(x), features)
    about = read_weights(run / "encoder.safetensors")[1]
    assert about["made_by"] == "SelfSupervisedModule"
    assert about["chain"][-1]["learns_labels"] is False


def test_a_momentum_network_beside_the_encoder_is_not_taken_for_it(tmp_path: Path) -> None:
    model = module("BYOL")
    run = trainer(limit_val_batches=0)
    run.fit(model, data(steps_per_epoch=2))
    run.save_checkpoint(tmp_path / "run.ckpt")
    classifier = FineTuneClassifier("mlp", 10, SHAPE, weights=str(tmp_path / "run.ckpt"))
    x = torch.rand(5, *SHAPE)
    assert torch.equal(classifier.backbone(x), model.eval()(x))


def test_predicting_is_refused() -> None:
    with pytest.raises(InputError, match="has no classifier to predict with: train one from this run"):
        trainer().predict(module(), data())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"neighbors": 0}, "neighbors is 0: give a number of at least 1"),
        ({"remembered": 0}, "remembered is 0: give a number of at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        module(**settings)


def test_an_objective_is_an_object() -> None:
    objective: Any = "SimCLR"
    with pytest.raises(InputError, match=r"objective is 'SimCLR': give an object such as SimCLR\(\)"):
        SelfSupervisedModule(objective, "mlp", SHAPE)


def test_views_that_change_nothing_are_refused() -> None:
    view = {"crop_scale": [1.0, 1.0], "flip": False, "jitter": 0.0, "gray": 0.0, "blur": 0.0}
    with pytest.raises(InputError, match="pretrain_view changes nothing, but an objective"):
        trainer().fit(module(), data(pretrain_view=view))


def test_a_batch_of_one_example_is_explained() -> None:
    with pytest.raises(InputError, match="a training batch has one example"):
        trainer(limit_val_batches=0).fit(module("VICReg"), sample(batch_size=1))

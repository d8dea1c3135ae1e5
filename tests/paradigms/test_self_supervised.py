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
from sft_lightning.data.batches import Unlabeled
from sft_lightning.losses import pretraining
from sft_lightning.losses.pretraining.base import ObjectiveInputs, ObjectiveOutput, ViewObjective
from sft_lightning.losses.pretraining.projectors import build_projector
from sft_lightning.networks.build import rebuild_encoder
from sft_lightning.networks.weights import read_weights
from sft_lightning.paradigms.effective_rank import compute_effective_rank
from sft_lightning.utils.errors import InputError
from tests.losses.pretraining.references import EPOCH, REFERENCES, SMALL
from tests.paradigms.helpers import SHAPE, Recorder, cli, moved, sample, state, trainer

RATE = 0.05


def module(
    name: str = "SimCLR", backbone: str = "mlp", objective: dict[str, Any] | None = None, **settings: Any
) -> SelfSupervisedModule:
    torch.manual_seed(0)
    built = getattr(pretraining, name)(**{**SMALL[name], **(objective or {})})
    given = {"num_classes": 10, "optimizer": lambda p: torch.optim.SGD(p, RATE), **settings}
    return SelfSupervisedModule(built, backbone, SHAPE, **given)


class Doubled(ImageDataModule):
    """The batches in double precision."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        views = super().on_after_batch_transfer(batch, dataloader_idx)
        return apply_to_collection(views, Tensor, lambda t: t.double() if t.is_floating_point() else t)


def data(kind: type[ImageDataModule] = ImageDataModule, **settings: Any) -> ImageDataModule:
    sizes = {"num_labels": 40, "batch_size": 16, "val_size": 60, "eval_batch_size": 60, "steps_per_epoch": 20}
    return kind("sample", **{**sizes, "pretrain_view": PretrainView(crop_scale=[0.3, 1.0]), **settings})


class Plain:
    """Encoder, objective and momentum network, and gradient descent by hand."""

    def __init__(self, of: SelfSupervisedModule, steps: int) -> None:
        networks: list[Any] = [of.encoder, of.objective]
        self.encoder, self.objective = copy.deepcopy(networks)
        self.averaged: list[nn.Module] = [self.encoder, self.objective.projector, self.objective.predictor]
        self.averaged = self.averaged[: 3 if type(of.objective) is pretraining.DINO else 2]
        self.momentum = copy.deepcopy(self.averaged)
        self.decay, self.steps = self.objective.decay, steps

    def loss(self, crops: tuple[Tensor, ...], step: int) -> Tensor:
        projections = [self.objective.projector(self.encoder(x)) for x in crops]
        outputs = tuple(self.objective.predictor(z) for z in projections)
        targets = projections[0].detach(), projections[1].detach()
        if self.objective.needs_momentum:
            with torch.no_grad():
                targets = crops[0], crops[1]
                for network in self.momentum:
                    targets = network(targets[0]), network(targets[1])
        return REFERENCES[type(self.objective).__name__](self.objective, outputs, targets, step)

    def descend(self, loss: Tensor, step: int) -> None:
        named = {**dict(self.encoder.named_parameters()), **dict(self.objective.named_parameters())}
        gradients = torch.autograd.grad(loss, [*named.values()])
        with torch.no_grad():
            for (name, p), g in zip(named.items(), gradients, strict=True):
                if name not in ("predictor.weight", "prototypes.weight") or step >= EPOCH:  # frozen in the first epoch
                    p.sub_(RATE * g)
            decay = 1 - (1 - self.decay) * (math.cos(math.pi * step / self.steps) + 1) / 2
            for of, network in zip(self.momentum, self.averaged, strict=True):
                for m, p in zip(of.parameters(), network.parameters(), strict=True):
                    m.copy_(decay * m + (1 - decay) * p)


# Batch normalization in the encoder is the same for all that have no momentum network.
@pytest.mark.parametrize(
    ("name", "backbone", "settings"),
    [
        *((name, "mlp", {}) for name in sorted(REFERENCES)),
        pytest.param("BYOL", "resnet8", {}, marks=pytest.mark.slow),  # 5 s
        pytest.param("VICReg", "resnet8", {}, marks=pytest.mark.slow),  # 3 s
        pytest.param("DINO", "conv", {"local_crops": 2}, marks=pytest.mark.slow),  # 7 s
    ],
)
def test_20_steps_equal_a_plain_loop(name: str, backbone: str, settings: dict[str, Any]) -> None:
    model, seen = module(name, backbone, objective=settings).double(), Recorder()
    plain = Plain(model, 2 * EPOCH)
    fit = trainer([seen], max_epochs=2, limit_val_batches=0, precision="64-true")
    fit.fit(model, datamodule=data(Doubled, steps_per_epoch=EPOCH))
    assert len(seen.losses) == 20
    for step, batch in enumerate(seen.batches):
        assert list(batch) == ["unlabeled"]
        loss = plain.loss(batch["unlabeled"].crops, step)
        assert seen.losses[step] == pytest.approx(loss.item(), rel=1e-6), step
        plain.descend(loss, step)
    kept = {"center": "kept_center", "queued": "kept_queues"}
    for mine, theirs in ((model.encoder, plain.encoder), (model.objective, plain.objective)):
        for key, tensor in theirs.state_dict().items():
            if key in kept:
                tensor = getattr(plain.objective, kept[key])
                tensor = tensor if isinstance(tensor, Tensor) else torch.stack(tensor)
            torch.testing.assert_close(mine.state_dict()[key], tensor, rtol=1e-5, atol=1e-7)
    assert (model.momentum is not None) == model.objective.needs_momentum


def test_local_crops_are_smaller_and_differ() -> None:
    seen = Recorder()
    model = module("DINO", "conv", objective={"local_crops": 3})
    trainer([seen], limit_val_batches=0, limit_train_batches=1).fit(model, data())
    crops = seen.batches[0]["unlabeled"].crops
    assert [x.shape[-1] for x in crops] == [28, 28, 12, 12, 12]
    assert not torch.equal(crops[2], crops[3])
    own = PretrainView(crop_scale=[1.0, 1.0], flip=False, jitter=0.0, gray=0.0, blur=0.0, solarize=1.0, side=14)
    trainer([seen], limit_val_batches=0, limit_train_batches=1).fit(
        module("DINO", "conv", objective={"local_crops": 1}), data(pretrain_view_local=own)
    )
    assert seen.batches[1]["unlabeled"].crops[2].shape == (16, 1, 14, 14)


@pytest.mark.parametrize("name", ["DINO", "SwAV"])
def test_prototypes_keep_their_directions_in_the_first_epochs(name: str) -> None:
    model = module(name, objective={"frozen_epochs": 1}, optimizer=lambda p: torch.optim.AdamW(p, 0.01))
    objective: Any = model.objective
    prototypes = objective.predictor if name == "DINO" else objective.prototypes
    before, seen = F.normalize(prototypes.weight.detach().clone()), Recorder()
    trainer([seen], max_epochs=2, limit_val_batches=0).fit(model, data(steps_per_epoch=3))
    key = "objective.predictor.weight" if name == "DINO" else "objective.prototypes.weight"
    first, second = (F.normalize(s[key]) for s in seen.states)
    torch.testing.assert_close(first, before)
    assert not torch.allclose(second, before, atol=1e-3)


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


@pytest.mark.parametrize("name", ["BYOL", "DINO", "DenseCL", "LeJEPA", "SwAV"])
def test_a_resumed_training_is_that_of_a_whole_one(name: str, tmp_path: Path) -> None:
    class Save(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
            if trainer.global_step == 5:  # inside an epoch
                trainer.save_checkpoint(tmp_path / "5.ckpt")

    settings: dict[str, Any] = {"max_epochs": 4, "limit_val_batches": 0}
    whole, resumed = (module(name, "resnet8" if name == "DenseCL" else "mlp") for _ in range(2))
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


def test_only_local_views_have_a_side_of_their_own() -> None:
    with pytest.raises(InputError, match="pretrain_view_2 has a side, 14: set image_size, or the side of pre"):
        data(pretrain_view_2=PretrainView(side=14))


def test_a_side_that_patches_do_not_divide_is_explained() -> None:
    torch.manual_seed(0)
    objective = pretraining.DINO(**{**SMALL["DINO"], "local_crops": 1})
    model = SelfSupervisedModule(objective, "timm/test_vit", (1, 64, 64))
    crops = torch.rand(2, 1, 64, 64), torch.rand(2, 1, 64, 64), torch.rand(2, 1, 27, 27)
    with pytest.raises(InputError, match=r"does not take the local crops .*: set the side of pretrain_view_local"):
        objective.compute(model.encoder, model.momentum, Unlabeled(crops[0], torch.arange(2), crops=crops), 0, 0)


@pytest.mark.parametrize("backbone", ["mlp", "resnet8:flatten"])
def test_local_crops_need_a_network_for_several_sizes(backbone: str) -> None:
    with pytest.raises(InputError, match=f"backbone '{backbone}' takes images of one size only, and local crops are"):
        module("DINO", backbone, objective={"local_crops": 2})


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

"""Test the projector, PR curves and hparams in TensorBoard, and the steps at which commands log their results."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf import text_format  # type: ignore[import-untyped]
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from tensorboard.util.tensor_util import make_ndarray
from torch import Tensor

from sft_lightning import AutoencoderModule, ImageDataModule
from sft_lightning.__main__ import main
from sft_lightning.tasks.classification_metrics import ClassifierMetrics, ScoreCounts
from sft_lightning.training.callbacks.figures import TensorBoardFigures
from sft_lightning.training.callbacks.pr_curves import compute_curves
from sft_lightning.training.callbacks.projector import collect_examples, shrink, write_examples
from tests.conftest import CONFIGS
from tests.forks import both_ranks
from tests.paradigms.helpers import classifier, cli, sample

RUN = Path("lightning_logs", "a", "version_0")
SHARED, FREEMATCH = (str(CONFIGS / "semi_supervised" / f"{name}.yaml") for name in ("shared", "freematch"))
FEW = ["--run_name=a", "--trainer.accelerator=cpu", "--trainer.max_epochs=2", "--data.init_args.steps_per_epoch=6"]
FEW += ["--data.init_args.num_labels=40", "--trainer.enable_progress_bar=false"]
SEMI = ["--config", SHARED, "--config", FREEMATCH, *FEW, "--data.init_args.unlabeled_ratio=1"]
SEMI += ["--model.init_args.backbone=mlp", "--trainer.log_every_n_steps=6"]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _events(folder: Path = RUN) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0, "images": 0, "scalars": 0})
    events.Reload()
    return events


def _rows() -> list[tuple[int, str, float]]:
    with (RUN / "metrics.csv").open(newline="") as file:
        return [(int(row["step"]), row["metric"], float(row["value"])) for row in csv.DictReader(file)]


def _curves(events: EventAccumulator) -> dict[str, Any]:
    return {tag: events.Tensors(tag) for tag in events.Tags()["tensors"] if "/pr/" in tag}


# --- precision and recall


def test_score_counts_equal_a_count_at_every_threshold() -> None:
    torch.manual_seed(0)
    metric = ScoreCounts(3)
    p, y = torch.randn(50, 3).mul(3).softmax(1), torch.randint(0, 3, (50,))
    p[0], y[0] = torch.tensor([1.0, 0.0, 0.0]), 0
    metric.update(p[:20], y[:20])
    metric.update(p[20:], y[20:])
    points = compute_curves(metric.compute())
    assert points.shape == (3, 6, 127)
    for k in range(3):
        for i in (0, 1, 63, 125, 126):
            taken, own = p[:, k] * 126 >= i, y == k
            tp, fp = int((taken & own).sum()), int((taken & ~own).sum())
            tn, fn = int((~taken & ~own).sum()), int((~taken & own).sum())
            expected = [tp, fp, tn, fn, tp / (tp + fp) if tp + fp else 1.0, tp / (tp + fn)]
            assert points[k, :, i].tolist() == pytest.approx(expected)


def test_counts_reset_and_are_skipped_for_many_classes() -> None:
    few, many = ClassifierMetrics(3), ClassifierMetrics(101)
    for _ in range(2):
        few.update(torch.eye(3), torch.arange(3))
        few.compute()
        assert few.counted is not None
        assert few.counted.sum() == 9
    many.update(torch.eye(101), torch.arange(101))
    many.compute()
    assert many.counted is None


@pytest.mark.parametrize("config", ["fine_tune", pytest.param("decoupled", marks=pytest.mark.slow)])
def test_pr_curves_are_logged_for_the_last_validation_and_the_test(config: str) -> None:
    run = cli("fit", config, "--run_name=a")
    curves = _curves(_events())
    assert set(curves) == {f"val/pr/{name}" for name in run.datamodule.class_names}
    for k, name in enumerate(run.datamodule.class_names):
        (event,) = curves[f"val/pr/{name}"]
        assert event.step == 11
        tp, _, _, fn, _, recall = make_ndarray(event.tensor_proto)
        assert tp[0] == int((run.datamodule.splits["val"].labels == k).sum())
        assert fn[0] == 0
        assert recall[0] == 1
    main(["test", "--ckpt_path", str(RUN)])
    curves = _curves(_events())
    assert len(curves) == 20
    (event,) = curves["test/pr/Bag"]
    assert event.step == 11
    assert make_ndarray(event.tensor_proto)[0, 0] == 200


def test_class_without_examples_has_no_pr_curve() -> None:
    class Writer:
        """Record the tags of curves."""

        tags: list[str]

        def add_pr_curve_raw(self, tag: str, *args: Any) -> None:
            self.tags.append(tag)

    from sft_lightning.training.callbacks.pr_curves import write_curves

    metric, writer = ScoreCounts(3), Writer()
    writer.tags = []
    metric.update(torch.eye(3)[:2], torch.tensor([0, 2]))
    write_curves(writer, "val/pr", metric.compute(), ["a", "b", "c"], 1)  # type: ignore[arg-type]
    assert writer.tags == ["val/pr/a", "val/pr/c"]


# --- the projector


def _projected(folder: Path = RUN) -> tuple[Tensor, list[str], Image.Image, Any]:
    config = text_format.Parse((folder / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (one,) = config.embeddings
    features = torch.tensor([[float(v) for v in row.split("\t")] for row in _lines(folder / one.tensor_path)])
    return features, _lines(folder / one.metadata_path), Image.open(folder / one.sprite.image_path), one


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


@pytest.mark.parametrize("kind", ["fine_tune", "autoencoder", "decoupled", "semi"])
def test_projector_has_features_classes_and_thumbnails_of_validation_examples(kind: str) -> None:
    if kind == "semi":
        from sft_lightning.cli.lightning_cli import run as run_cli

        run = run_cli(["fit", *SEMI])
    else:
        run = cli("fit", kind, "--run_name=a")
    features, classes, sprite, config = _projected()
    assert config.tensor_name == f"val at step {run.trainer.global_step - 1}"
    assert len(classes) == len(features) == 256
    counts = {name: classes.count(name) for name in run.datamodule.class_names}
    assert max(counts.values()) - min(counts.values()) <= 1
    assert (sprite.width, sprite.height) == (16 * 28, 16 * 28)
    assert [*config.sprite.single_image_dim] == [28, 28]
    module: Any = run.model
    module.eval()
    known = torch.cat([batch.x for batch in run.datamodule.batches_of("val", torch.device("cpu"))])
    y = run.datamodule.splits["val"].labels
    with torch.no_grad():
        network = module.average.get_submodule("backbone") if kind == "semi" else module.features
        own = network(known)
    nearest = torch.cdist(features, own, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    assert nearest.values.max() < 1e-4
    assert [run.datamodule.class_names[k] for k in y[nearest.indices].tolist()] == classes
    for k in (0, 17, 255):
        left, top = 28 * (k % 16), 28 * (k // 16)
        cell = np.asarray(sprite)[top : top + 28, left : left + 28, 0]
        assert np.abs(cell / 255 - known[nearest.indices[k], 0].numpy()).max() < 0.01


def test_collecting_examples_does_not_change_the_training() -> None:
    model, data = classifier("conv"), sample()
    trainer = Trainer(accelerator="cpu", logger=False, barebones=True, max_epochs=1)
    trainer.fit(model, data)
    model.train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    assert collect_examples(trainer, model) is not None
    assert model.training
    assert model.backbone.training
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


@pytest.mark.parametrize(
    ("shape", "expected"), [((3, 40, 20), (40, 20)), ((1, 96, 48), (48, 24)), ((3, 30, 300), (5, 48))]
)
def test_thumbnails_keep_their_aspect_ratio(shape: tuple[int, ...], expected: tuple[int, int]) -> None:
    made = shrink(torch.rand(2, *shape))
    assert made.shape == (2, shape[0], *expected)
    assert 0 <= made.min() <= made.max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_sprite_keeps_the_order_of_images_that_are_not_square(channels: int) -> None:
    images = torch.arange(5).view(5, 1, 1, 1).expand(5, channels, 6, 4) / 255
    RUN.mkdir(parents=True)
    write_examples(RUN, "val", torch.zeros(5, 2), images, ["a b", "tab\there", "c", "d", "e"])
    _, classes, sprite, config = _projected()
    assert classes[1] == "tab here"
    assert (sprite.width, sprite.height) == (3 * 4, 3 * 6)
    assert [*config.sprite.single_image_dim] == [4, 6]
    cells = np.asarray(sprite)[::6, ::4, 0]
    assert cells.flatten().tolist() == [0, 1, 2, 3, 4, 0, 0, 0, 0]
    assert not list(RUN.rglob("*.part"))


def test_projector_skips_unreadable_images_of_a_folder(write_folder: Any) -> None:
    write_folder(Path("images"), {"train": 3, "val": 3, "test": 2})
    broken = sorted(Path("images", "val").rglob("*.png"))[4]
    broken.write_bytes(broken.read_bytes()[:60])
    words = ["--data.init_args.source=images", "--data.init_args.image_size=64", "--data.init_args.num_workers=0"]
    words += ["--data.init_args.num_labels=null", "--data.init_args.on_bad_image=skip"]
    cli("fit", "fine_tune", "--run_name=a", *words)
    features, classes, sprite, config = _projected()
    assert len(features) == len(classes) == 8
    assert [*config.sprite.single_image_dim] == [48, 48]
    assert sprite.width == 3 * 48


def test_without_validation_no_projector_and_no_curves_are_written() -> None:
    cli("fit", "fine_tune", "--run_name=a", "--data.init_args.val_size=0")
    assert not (RUN / "projector").exists()
    assert _curves(_events()) == {}
    cli("fit", "fine_tune", "--run_name=a", "--trainer.limit_val_batches=0")
    other = RUN.with_name("version_1")
    assert not (other / "projector").exists()
    assert _curves(_events(other)) == {}


def test_without_tensorboard_nothing_is_computed_or_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sft_lightning.training.callbacks.figures.collect_examples", pytest.fail)
    trainer = Trainer(
        accelerator="cpu", logger=CSVLogger("elsewhere"), callbacks=[TensorBoardFigures()], max_epochs=1,
        enable_checkpointing=False, enable_progress_bar=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(classifier(), sample())
    trainer.test(classifier(), sample(), verbose=False)
    assert not list(Path("elsewhere").rglob("projector*"))


@pytest.mark.parametrize("module", [classifier, lambda: AutoencoderModule(optimizer=lambda p: torch.optim.SGD(p, 0.1))])
def test_callback_works_with_a_plain_trainer_and_its_sanity_check(module: Any) -> None:
    logger = TensorBoardLogger("logs", version=0)
    trainer = Trainer(
        accelerator="cpu", logger=logger, callbacks=[TensorBoardFigures()], max_epochs=1, num_sanity_val_steps=2,
        enable_checkpointing=False, enable_progress_bar=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module(), ImageDataModule("sample", num_labels=20, batch_size=10, val_size=30, steps_per_epoch=4))
    _, classes, _, config = _projected(Path(logger.log_dir))
    assert len(classes) == 30
    assert config.tensor_name == "val at step 3"


# --- the table of hyperparameters


def _plugin(events: EventAccumulator, tag: str) -> Any:
    content = events.SummaryMetadata(f"_hparams_/{tag}").plugin_data.content
    return HParamsPluginData.FromString(content)


@pytest.mark.parametrize("kind", ["autoencoder", "fine_tune", "decoupled", "semi"])
def test_every_run_has_the_same_first_hparams_columns(kind: str) -> None:
    if kind == "semi":
        assert main(["fit", *SEMI]) == 0
    else:
        cli("fit", kind, "--run_name=a")
    events = _events()
    columns = _plugin(events, "experiment").experiment
    assert [m.name.tag for m in columns.metric_infos][:4] == ["test/accuracy", "val/accuracy", "val/loss", "train/loss"]
    first = {info.name for info in columns.hparam_infos if info.differs}
    assert first == {"model", "model.backbone", "model.strategy", "model.optimizer.lr", "data.num_labels"}
    row = _plugin(events, "session_start_info").session_start_info.hparams
    assert row["model.optimizer.lr"].number_value > 0
    assert row["data.num_labels"].number_value == 40
    assert row["model.strategy"].string_value == ("FreeMatch" if kind == "semi" else "")
    assert {"data.seed", "trainer.max_epochs", "seed_everything"} <= set(row)
    assert _plugin(events, "session_end_info").session_end_info.status == 1  # success


def test_hparams_row_is_filled_by_the_test_of_a_run() -> None:
    cli("fit", "fine_tune", "--run_name=a")
    assert main(["test", "--ckpt_path", str(RUN)]) == 0
    assert [p.name for p in RUN.parent.iterdir()] == ["version_0"]
    starts = 0
    for path in sorted(RUN.glob("events.*")):
        one = EventAccumulator(str(path))
        one.Reload()
        starts += "_hparams_/session_start_info" in one.summary_metadata
    assert starts == 1
    assert {"val/accuracy", "val/loss", "train/loss", "test/accuracy"} <= set(_events().Tags()["scalars"])


@pytest.mark.parametrize("kind", ["autoencoder", "fine_tune", "decoupled", "semi"])
def test_scalars_have_the_same_names_in_all_paradigms(kind: str) -> None:
    if kind == "semi":
        assert main(["fit", *SEMI]) == 0
    else:
        cli("fit", kind, "--run_name=a")
    assert main(["test", "--ckpt_path", str(RUN)]) == 0
    tags = set(_events().Tags()["scalars"])
    shared = {"train/loss", "lr", "val/loss", "test/loss", "epoch"}
    measures = ("accuracy", "balanced_accuracy", "macro_f1", "calibration_error")
    judged = {f"{stage}/{name}" for stage in ("val", "test") for name in measures}
    assert shared <= tags
    assert (judged <= tags) if kind != "autoencoder" else not (judged & tags)
    groups = {"train", "val", "test", "lr", "epoch"} | ({"pseudo_labels"} if kind == "semi" else set())
    assert {tag.split("/")[0] for tag in tags} == groups


# --- the steps at which commands log


def test_validate_and_test_log_at_the_step_of_the_checkpoint() -> None:
    # The first epoch is the best one.
    optimizer = ["--model.init_args.optimizer=torch.optim.SGD", "--model.init_args.optimizer.init_args.lr=5"]
    cli("fit", "fine_tune", "--run_name=a", *optimizer, "--model.init_args.lr_scheduler=null", "--trainer.max_epochs=4")
    (best,) = (RUN / "checkpoints").glob("best-*.ckpt")
    step = int(torch.load(best, weights_only=True)["global_step"]) - 1
    assert step < 23
    before = _rows()
    assert main(["validate", "--ckpt_path", str(best)]) == 0
    assert main(["test", "--ckpt_path", str(best)]) == 0
    after = _rows()[len(before) :]
    at_best = {metric: value for s, metric, value in before if s == step}
    validated = {metric: value for s, metric, value in after if metric.startswith("validate/") and s == step}
    assert validated["validate/accuracy"] == pytest.approx(at_best["val/accuracy"])
    assert {s for s, metric, _ in after if metric.startswith("test/")} == {step}
    assert not [metric for _, metric, _ in after if metric.startswith("val/")]
    events = _events()
    assert [e.step for e in events.Scalars("val/accuracy")] == [5, 11, 17, 23]
    assert [e.step for e in events.Scalars("validate/accuracy")] == [step]
    assert [e.step for e in events.Images("val/confusion")] == [5, 11, 17, 23]
    assert [e.step for e in events.Images("validate/confusion")] == [step]
    assert [e.step for e in events.Scalars("test/accuracy")] == [step]
    assert {e.value for e in events.Scalars("epoch") if e.step == step} == {float(step // 6)}
    assert [e.step for e in events.Tensors("validate/pr/Bag")] == [step]
    assert _projected()[3].tensor_name == f"validate at step {step}"


def test_two_processes_write_one_result_for_all_examples(tmp_path_factory: pytest.TempPathFactory) -> None:
    words = ["--config", str(CONFIGS / "quickstart" / "fine_tune.yaml"), *FEW, "--data.init_args.val_size=61"]
    words += ["--trainer.strategy=ddp", "--trainer.devices=2"]
    done = both_ranks(main, ["fit", *words], folder=Path.cwd(), files=tmp_path_factory.mktemp("output"))
    assert [rank.code for rank in done] == [0, 0], done[0].stderr[-3000:]
    assert len(list(RUN.glob("events.*"))) == 1
    curves = _curves(_events())
    assert sum(make_ndarray(events[0].tensor_proto)[0, 0] for events in curves.values()) == 61
    features, classes, _, _ = _projected()
    assert len(features) == len(classes) == 61

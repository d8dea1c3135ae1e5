"""Runs of classifiers without gradient steps, over the real command line and the shipped sample."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from sft_lightning import FrozenFeatureClassifier
from sft_lightning.__main__ import main
from sft_lightning.classifiers import (
    Classifier,
    CoTrainedRegression,
    KNearestNeighbors,
    LabelSpreading,
    LogisticRegression,
    NearestClassMean,
    Ridge,
)
from sft_lightning.classifiers.whitening import WhitenedPCA
from sft_lightning.cli.lightning_cli import run
from sft_lightning.networks.weights import read_weights
from sft_lightning.runs.trained_network import load_trained_network
from sft_lightning.utils.errors import InputError
from tests.conftest import CONFIGS
from tests.paradigms.helpers import SHAPE, sample, trainer

CPU = torch.device("cpu")
SMALL = ["--data.init_args.num_labels=40", "--data.init_args.val_size=60", "--data.init_args.num_workers=0"]
FIT = ["fit", "--model=FrozenFeatureClassifier", "--data=ImageDataModule", "--data.init_args.source=sample", *SMALL]
CLASSIFIERS = (LogisticRegression, Ridge, NearestClassMean, KNearestNeighbors, LabelSpreading)


@pytest.mark.parametrize("kind", CLASSIFIERS, ids=lambda kind: kind.__name__)
def test_a_run_classifies_like_the_classifier_that_is_fitted_by_hand(workdir: Path, kind: type[Classifier]) -> None:
    argv = [*FIT, f"--model.init_args.classifier={kind.__name__}", "--model.init_args.max_examples=500"]
    assert main([*argv, "--trainer.limit_val_batches=1"]) == 0
    folder = workdir / "lightning_logs" / "run" / "version_0"
    names = {path.name for path in folder.iterdir()}
    assert {"fit.yaml", "run.json", "lineage.json", "metrics.csv", "split.csv", "hparams.yaml"} <= names
    (best,) = (folder / "checkpoints").glob("best-epoch=0-accuracy=*.ckpt")
    data = sample(num_labels=40, val_size=60, num_workers=0)
    data.setup("fit")
    y = data.splits["labeled"].labels
    x = torch.cat([batch.x.flatten(1) for batch in data.training_batches(500, CPU)])
    expected = kind().fit(x[:40], y, x[40:], 10)
    assert torch.equal(expected.class_counts, y.bincount(minlength=10))
    images = torch.cat([batch.x for batch in data.batches_of("val", CPU)])
    for checkpoint in (best, folder / "checkpoints" / "last.ckpt"):
        model = FrozenFeatureClassifier(kind(), num_classes=10, input_spec=SHAPE)
        model.load_state_dict(read_weights(checkpoint)[0])
        assert torch.allclose(model.eval()(images).softmax(1), expected.predict_proba(images.flatten(1)), atol=1e-4)


def test_a_second_view_takes_the_inputs_of_the_first() -> None:
    with pytest.raises(InputError, match="second_view of CoTrainedRegression: backbone 'tfidf' is unknown"):
        FrozenFeatureClassifier(CoTrainedRegression(), num_classes=10, input_spec=SHAPE)
    with pytest.raises(InputError, match="whiten is 8, and CoTrainedRegression takes the features themselves"):
        FrozenFeatureClassifier(CoTrainedRegression("pixels"), num_classes=10, input_spec=SHAPE, whiten=8)
    FrozenFeatureClassifier(CoTrainedRegression("pixels"), "conv", num_classes=10, input_spec=SHAPE)


def test_predictions_are_those_of_the_classifier(workdir: Path) -> None:
    assert main([*FIT, "--model.init_args.classifier=LabelSpreading", "--model.init_args.max_examples=500"]) == 0
    folder = workdir / "lightning_logs" / "run" / "version_0"
    assert main(["predict", str(folder)]) == 0
    cli = run(["test", "--ckpt_path", str(folder)])
    data, head = cli.datamodule, cli.model.head
    assert head.features.shape == (500, 784)
    predicted = head.predict(torch.cat([batch.x.flatten(1) for batch in data.batches_of("test", CPU)]))
    accuracy = float((predicted == data.splits["test"].labels).double().mean())
    assert float(cli.trainer.callback_metrics["test/accuracy"]) == pytest.approx(accuracy, abs=2e-3)
    rows = [*csv.DictReader((folder / "predictions.csv").open())]
    equal = [row["predicted"] == data.class_names[int(k)] for row, k in zip(rows, predicted, strict=True)]
    assert sum(equal) >= 1990  # other batches round differently where two classes are equally probable


def test_what_is_loaded_predicts_the_same_bit_for_bit(workdir: Path) -> None:
    data = sample()
    x = torch.rand(50, *SHAPE, generator=torch.Generator().manual_seed(0))
    for classifier, whiten in ((LabelSpreading(), 16), (KNearestNeighbors(), None), (Ridge(), 8)):
        fitted = FrozenFeatureClassifier(classifier, "conv", 10, SHAPE, whiten=whiten, max_examples=300)
        fitting = trainer()
        fitting.fit(fitted, data)
        fitting.save_checkpoint(workdir / "saved.ckpt", weights_only=True)
        loaded = FrozenFeatureClassifier(type(classifier)(), "conv", 10, SHAPE, whiten=whiten)
        state = torch.load(workdir / "saved.ckpt", weights_only=True)["state_dict"]
        loaded.load_state_dict(state)
        assert torch.equal(fitted.eval()(x), loaded.eval()(x))
        assert loaded.state_dict().keys() == state.keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())


def test_a_whitened_linear_classifier_is_a_linear_layer_of_the_features(workdir: Path) -> None:
    argv = [*FIT, "--model.init_args.classifier=Ridge", "--model.init_args.whiten=30"]
    assert main([*argv, "--model.init_args.max_examples=1000"]) == 0
    folder = workdir / "lightning_logs" / "run" / "version_0"
    trained = load_trained_network(folder / "checkpoints" / "last.ckpt")
    data = sample(num_labels=40, val_size=60, num_workers=0)
    data.setup("fit")
    x = torch.cat([batch.x.flatten(1) for batch in data.training_batches(1000, CPU)])
    components = WhitenedPCA(30).fit([x]).transform
    by_hand = Ridge().fit(components(x[:40]), data.splits["labeled"].labels, num_classes=10)
    logits = F.linear(x, trained.head["weight"], trained.head["bias"])
    assert torch.allclose(logits, by_hand(components(x)), atol=1e-3)
    assert main(["export", str(folder), "--format", "pt2", "--measure_on", "100"]) == 0
    card = (folder / "model_card.md").read_text()
    assert "Ridge was fitted to their features without gradient steps." in card
    assert "It takes at most 30 whitened principal components" in card
    assert json.loads((folder / "model.pt2.json").read_text())["parity"]["equal_classes"] == 1.0


def test_features_of_a_run_are_computed_once_and_its_lineage_is_kept(
    workdir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrained = ["fit", "--config", str(CONFIGS / "quickstart" / "autoencoder.yaml"), *SMALL[1:]]
    pretrained += ["--trainer.max_epochs=1", "--data.init_args.steps_per_epoch=2", "--run_name=start"]
    assert main(pretrained) == 0
    start = Path("lightning_logs/start/version_0")
    argv = [*FIT, "--model.init_args.backbone=mlp", f"--model.init_args.weights={start}"]
    argv += ["--model.init_args.classifier=LabelSpreading", "--model.init_args.max_examples=200"]
    assert main(argv) == 0
    folder = workdir / "lightning_logs" / "features"
    cached = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(cached) == 1  # of labeled, 160 of the unlabeled and validation examples
    assert main([*argv, "--model.init_args.classifier=LogisticRegression"]) == 0
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == cached
    second = workdir / "lightning_logs" / "run" / "version_1"
    chain = json.loads((second / "lineage.json").read_text())
    assert [link["model"] for link in chain] == ["AutoencoderModule", "FrozenFeatureClassifier"]
    assert main(["lineage", str(second)]) == 0
    backbone = {n: t for n, t in read_weights(second / "checkpoints" / "last.ckpt")[0].items() if "backbone.net" in n}
    encoder = read_weights(start / "encoder.safetensors")[0]
    assert backbone
    assert all(torch.equal(tensor, encoder[name.removeprefix("backbone.")]) for name, tensor in backbone.items())
    # It is a start like any other run.
    tuned = ["fit", "--config", str(CONFIGS / "quickstart" / "fine_tune.yaml"), *SMALL, "--trainer.max_epochs=1"]
    assert main([*tuned, "--data.init_args.steps_per_epoch=1", f"--model.init_args.weights={second}"]) == 0
    assert "The head of the weights was taken over, too." in caplog.text


def test_the_shipped_config_reports_resumes_and_repeats(
    workdir: Path, cli_error: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["fit", "--model", str(CONFIGS / "model" / "label_spreading.yaml"), *FIT[2:]]
    settings = ["--trainer.max_epochs=7", "--trainer.check_val_every_n_epoch=5", "--trainer.gradient_clip_val=1"]
    assert main([*argv, "--model.init_args.max_examples=400", "--trainer.log_every_n_steps=1", *settings]) == 0
    folder = workdir / "lightning_logs" / "run" / "version_0"
    last = folder / "checkpoints" / "last.ckpt"
    tensors, content = read_weights(last)
    assert content["global_step"] == 1
    assert tensors["head.classifier.features"].shape == (400, 40)  # one component for 10 examples
    assert tensors["head.classifier.probabilities"].shape == (400, 10)
    metrics = [*csv.DictReader((folder / "metrics.csv").open())]
    assert {row["metric"] for row in metrics} >= {"val/accuracy", "val/loss"}

    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert "Confusion matrix" in page
    assert "FrozenFeatureClassifier on pixels" in page
    assert (folder / "label_next.csv").is_file()
    assert "classifies by its examples" in cli_error("export", str(folder))
    assert main(["export", str(folder), "--part", "backbone"]) == 0

    before = last.read_bytes()
    assert main(["fit", "--ckpt_path", str(folder)]) == 0  # nothing is left to do
    assert read_weights(last)[0].keys() == tensors.keys()
    assert last.read_bytes() == before
    assert main(["validate", "--ckpt_path", str(folder)]) == 0
    capsys.readouterr()
    assert main(["repeat", str(folder)]) == 0
    assert "The same bit for bit" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["find-lr", "find-batch-size", "find-precision"])
def test_commands_that_measure_steps_say_that_there_are_none(
    workdir: Path, cli_error: Callable[..., str], command: str
) -> None:
    message = cli_error(command, *FIT[1:])
    assert message.startswith(f"{command} measures training steps, and FrozenFeatureClassifier takes none")


def test_what_cannot_be_fitted_is_one_sentence(workdir: Path, cli_error: Callable[..., str]) -> None:
    assert "gives no label" in cli_error(*FIT, "--data.init_args.num_labels=0")
    assert "LabelSpreading" in cli_error(*FIT, "--model.init_args.classifier=LabelSpredding")
    assert "backbone 'pixels' has none" in cli_error(*FIT, "--model.init_args.weights=run")
    assert "optimizer" in cli_error(*FIT, "--model.init_args.optimizer=Adam")
    assert "whiten is 0" in cli_error(*FIT, "--model.init_args.whiten=0")
    two = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp_fork"]
    assert "fitted in one process, and the Trainer has 2" in cli_error(*FIT, *two)
    model = FrozenFeatureClassifier(num_classes=10, input_spec=SHAPE)
    with pytest.raises(InputError, match="LogisticRegression is not fitted"):
        model(torch.rand(2, *SHAPE))
    with pytest.raises(InputError, match="classifier is 'ridge'"):
        FrozenFeatureClassifier("ridge", num_classes=10, input_spec=SHAPE)  # type: ignore[arg-type]


def test_features_that_do_not_fit_into_memory_are_refused(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sft_lightning.paradigms.frozen_features.MOST", 50_000)
    with pytest.raises(InputError, match="20 examples with 784 features each take 0 GB: lower max_examples"):
        trainer().fit(FrozenFeatureClassifier(num_classes=10, input_spec=SHAPE), sample())

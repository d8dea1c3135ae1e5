from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sft_lightning import FineTuneClassifier, SemiSupervisedModule
from sft_lightning.classifiers import LinearClassifier, LogisticRegression, NearestClassMean, Ridge
from sft_lightning.losses.unlabeled import FixMatch
from sft_lightning.paradigms.fitted_head import HeadStart
from sft_lightning.utils.errors import InputError
from tests.paradigms.helpers import sample, trainer

CLASSIFIERS: dict[HeadStart, type[LinearClassifier]] = {
    "logistic_regression": LogisticRegression,
    "ridge": Ridge,
    "nearest_class_mean": NearestClassMean,
}


def still(parameters: list[Tensor]) -> torch.optim.Optimizer:
    """An optimizer that changes nothing."""
    return torch.optim.SGD(parameters, lr=0.0)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_the_head_starts_as_the_classifier_of_the_labels_features(workdir: Path, kind: HeadStart) -> None:
    torch.manual_seed(0)
    model = FineTuneClassifier("conv", 10, (1, 28, 28), head_start=kind, tune="head", optimizer=still)  # type: ignore[arg-type]
    data = sample()
    trainer(max_epochs=1).fit(model, data)
    with torch.no_grad():
        pairs = [(model.backbone.eval()(b.x), b.y) for b in data.batches_of("labeled", torch.device("cpu"))]
    x, y = (torch.cat(tensors) for tensors in zip(*pairs, strict=True))
    expected = CLASSIFIERS[kind]().fit(x, y, num_classes=10)
    assert torch.allclose(model.classify(x).softmax(1), expected.predict_proba(x), atol=1e-4)


def test_the_average_starts_there_too(workdir: Path) -> None:
    model = SemiSupervisedModule(
        FixMatch(), backbone="mlp", num_classes=10, image_shape=(1, 28, 28), head_start="ridge", optimizer=still
    )
    before = model.head.weight.clone()
    trainer(max_epochs=1).fit(model, sample(steps_per_epoch=1))
    assert not torch.equal(model.head.weight, before)
    assert model.average is not None
    assert torch.equal(model.average.get_submodule("head").weight, model.head.weight)  # type: ignore[arg-type]


def test_a_resumed_run_keeps_its_head(workdir: Path) -> None:
    def fit(epochs: int, **resume: str) -> FineTuneClassifier:
        torch.manual_seed(0)
        model = FineTuneClassifier(
            "mlp", 10, (1, 28, 28), head_start="ridge", optimizer=lambda p: torch.optim.SGD(p, lr=0.1)
        )
        run = trainer(max_epochs=epochs)
        run.fit(model, sample(), **resume)  # type: ignore[arg-type]
        run.save_checkpoint(workdir / "last.ckpt")
        return model

    full = fit(2)
    fit(1)
    resumed = fit(2, ckpt_path=str(workdir / "last.ckpt"))
    assert torch.allclose(full.head.weight, resumed.head.weight, atol=1e-6)


def test_two_starts_of_one_head_are_refused(workdir: Path) -> None:
    model = FineTuneClassifier("mlp", 10, (1, 28, 28), head_start="ridge", optimizer=still)  # type: ignore[arg-type]
    model.hparams["head_weights"] = "run"
    with pytest.raises(InputError, match="head_start is 'ridge', but head_weights 'run' gives a head"):
        trainer(max_epochs=1).fit(model, sample())


@pytest.mark.parametrize(("tune", "warns"), [("all", True), ("head", False)])
def test_a_fitted_head_on_random_features_that_learn_gets_a_warning(
    workdir: Path, caplog: pytest.LogCaptureFixture, tune: Any, warns: bool
) -> None:
    model = FineTuneClassifier("mlp", 10, (1, 28, 28), head_start="ridge", tune=tune, optimizer=still)  # type: ignore[arg-type]
    trainer(max_epochs=1).fit(model, sample(steps_per_epoch=1))
    assert ("training from there mostly fails" in caplog.text) == warns

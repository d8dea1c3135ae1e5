"""Distillation: a small network learns from a trained one, which only training needs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn.functional import cross_entropy

from sft_lightning import DistillModule
from sft_lightning.cli.lightning_cli import run
from sft_lightning.losses.distillation import compare_answers, compare_features
from sft_lightning.losses.teacher import load_teacher
from sft_lightning.utils.errors import InputError
from tests.paradigms.helpers import Recorder, classifier, sample, state, teacher, trainer

FEW: dict[str, Any] = {"num_labels": 20, "batch_size": 10, "val_size": 30, "steps_per_epoch": 2, "unlabeled_ratio": 2}
DATA = ["--data=ImageDataModule", "--data.source=sample", "--data.num_labels=20", "--data.val_size=100"]
DATA += ["--data.num_workers=0", "--data.batch_size=10", "--trainer.accelerator=cpu", "--trainer.max_epochs=1"]
OPTIMIZER = ["--model.optimizer=torch.optim.Adam", "--model.optimizer.lr=0.002"]


def student(teacher: str, **settings: Any) -> DistillModule:
    torch.manual_seed(0)
    given: dict[str, Any] = {"backbone": "mlp", "num_classes": 10, "input_spec": (1, 28, 28)}
    return DistillModule(teacher, **given, optimizer=lambda p: torch.optim.SGD(p, 0.05), **settings)


class Start(Recorder):
    """Keeps the state before the first step, too."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.states.append(state(pl_module))


def test_the_loss_is_the_sum_of_labels_answers_and_features() -> None:
    """Answers of classes in another order are matched by name, and both see the same view of the same examples."""
    names = [*reversed(sample(**FEW).class_names)]
    data, seen = sample(**FEW, class_names=names), Start()
    weights: dict[str, Any] = {"label_weight": 0.5, "answer_weight": 2.0, "feature_weight": 3.0, "temperature": 4.0}
    model = student(str(teacher()), class_names=names, **weights)
    trainer([seen], max_steps=1, limit_val_batches=0).fit(model, data)
    batch, expert = seen.batches[0], classifier()
    expert.load_state_dict(torch.load(teacher(), weights_only=True)["state_dict"])
    x = torch.cat([batch["labeled"].x, batch["unlabeled"].weak])
    model.load_state_dict(seen.states[0])
    assert model.projector is not None
    with torch.no_grad():
        features = model.backbone(x)
        logits = model.head(features)
        known, answers = expert.eval().evaluated(x)
        labels = cross_entropy(logits[:10], batch["labeled"].y)
        expected = 0.5 * labels + 2 * compare_answers(logits, answers.flip(1), 4.0)
        expected += 3 * compare_features(model.projector(features), known)
    assert seen.losses[0] == pytest.approx(expected.item(), rel=1e-4)


def test_a_student_needs_its_teacher_for_training_alone(workdir: Path) -> None:
    spread = ["--model=FrozenFeatureClassifier", "--model.classifier=LabelSpreading", "--model.whiten=16"]
    run(["fit", *DATA, *spread, "--model.max_examples=1500", "--data.num_labels=100", "--run_name=teacher"])
    path = "lightning_logs/teacher/version_0"
    words = ["--model=DistillModule", f"--model.teacher={path}", "--model.backbone=mlp", *OPTIMIZER]
    words += ["--data.steps_per_epoch=60", "--data.unlabeled_ratio=4", "--model.feature_weight=0.1"]
    metrics = run(["fit", *DATA, *words, "--run_name=student"]).trainer.callback_metrics
    assert metrics["train/teacher_agreement"] > 0.5
    logs = Path("lightning_logs/student/version_0")
    link = json.loads((logs / "lineage.json").read_text())[-1]
    assert link["teacher"] == f"{path}/checkpoints/last.ckpt"
    shutil.rmtree("lightning_logs/teacher")
    tested = run(["test", "--ckpt_path", str(logs)]).trainer.callback_metrics["test/accuracy"]
    alone = ["--model=FineTuneClassifier", "--model.backbone=mlp", *OPTIMIZER, "--data.steps_per_epoch=60"]
    run(["fit", *DATA, *alone, "--run_name=alone"])
    baseline = run(["test", "--ckpt_path", "lightning_logs/alone/version_0"]).trainer.callback_metrics["test/accuracy"]
    assert tested > baseline + 0.03
    run(["predict", "--ckpt_path", str(logs)])
    assert (logs / "predictions.csv").is_file()


def test_training_resumes_exactly(tmp_path: Path) -> None:
    def fit(epochs: int, resume: Path | None = None) -> dict[str, Tensor]:
        model, learner = student(str(teacher()), feature_weight=1.0), trainer(max_epochs=epochs)
        learner.fit(model, sample(**FEW), ckpt_path=resume)
        learner.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return state(model)

    whole = fit(2)
    fit(1)
    resumed = fit(2, tmp_path / "1.ckpt")
    assert "projector.weight" in whole
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_teacher_without_classifier_teaches_features(workdir: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = ["--model=SelfSupervisedModule", "--model.objective=SimCLR", "--model.backbone=resnet8", *OPTIMIZER]
    run(["fit", *DATA, *words, "--data.num_labels=0", "--data.steps_per_epoch=1", "--run_name=features"])
    path, seen = "lightning_logs/features/version_0", Recorder()
    model = student(path)
    trainer([seen], limit_val_batches=0).fit(model, sample(**FEW))
    assert model.feature_weight == 1
    assert "teaches features alone, because it has no classifier" in caplog.text
    for settings, wrong in (
        ({"label_weight": 0.0}, "has no classifier and label_weight is 0"),
        ({"feature_weight": 0.0}, "has no classifier and feature_weight is 0"),
    ):
        with pytest.raises(InputError, match=wrong):
            trainer().fit(student(path, **settings), sample(**FEW))


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({"answer_loss": "mse"}, "answer_loss is 'mse': give kl or dist"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"feature_weight": -1.0}, "feature_weight is -1"),
        ({"label_weight": 0.0, "answer_weight": 0.0}, "label_weight and answer_weight are 0"),
        ({"target": "class_set"}, "is for one class of several"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], wrong: str) -> None:
    with pytest.raises(InputError, match=wrong):
        student("anything", **settings)


def test_teachers_that_cannot_teach_are_refused(workdir: Path, cli_error: Callable[..., str]) -> None:
    assert "teacher 'nowhere' is neither a run, a file, nor a backbone" in cli_error(
        "fit", "--model=DistillModule", "--model.teacher=nowhere", "--model.backbone=mlp", *OPTIMIZER, *DATA
    )
    (workdir / "empty").mkdir()
    with pytest.raises(InputError, match=r"teacher 'empty' is a folder without encoder.safetensors"):
        load_teacher("empty", sample().input_spec, sample().class_names)
    with pytest.raises(InputError, match=r"takes inputs of shape \(1, 28, 28\), and the data gives \(1, 32, 32\)"):
        load_teacher(str(teacher()), sample(image_size=32).input_spec, sample().class_names)
    content = torch.load(teacher(), weights_only=True)
    torch.save({**content, "ImageDataModule": {"value_ranges": {"integers": [-160.0, 240.0]}}}, "scans.ckpt")
    with pytest.raises(InputError, match=r"of integers by different ranges, -160 to 240 and 0 to 4095: set .*240.0\]"):
        trainer().fit(student("scans.ckpt"), sample(**FEW, value_range=(0, 4095)))
    with pytest.raises(InputError, match="does not know 'boat'"):
        load_teacher(str(teacher()), sample().input_spec, ["boat"])


def test_relations_are_learned(workdir: Path) -> None:
    model, seen = student(str(teacher()), answer_loss="dist", label_weight=0.0), Recorder()
    before = state(model)
    trainer([seen], limit_val_batches=0).fit(model, sample(**FEW))
    assert seen.losses[0] > 0
    assert not torch.equal(before["head.weight"], model.head.weight)

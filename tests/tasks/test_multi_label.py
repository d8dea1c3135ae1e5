"""Examples with several classes: losses, metrics, training, prediction, resuming and refusals."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor

from sft_lightning import FineTuneClassifier, SemiSupervisedModule, TextDataModule
from sft_lightning.__main__ import main
from sft_lightning.losses.unlabeled import ClassAwarePseudoLabels, FreeMatch
from sft_lightning.paradigms.fitted_head import fit_head
from sft_lightning.tasks.multi_label import MultiLabel
from sft_lightning.tasks.multi_label_metrics import LogitCounts, fit_thresholds
from sft_lightning.utils.errors import InputError
from tests.paradigms.helpers import Recorder, moved, trainer
from tests.tasks.helpers import CLASSES, write_texts

FIT = [
    "--data=TextDataModule",
    "--data.source=texts.csv",
    "--data.label_separator=;",
    "--data.tokenizer=words:2048",
    "--model.backbone=fasttext",
]
FIT += ["--data.batch_size=16", "--model.optimizer=Adam", "--model.optimizer.lr=0.05", "--trainer.accelerator=cpu"]
FIT += ["--trainer.enable_progress_bar=false", "--data.val_size=60"]
FINE = ["--model=FineTuneClassifier", *FIT]


def draw(count: int = 64) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(count, 5, generator=made)
    return logits, (torch.rand(count, 5, generator=made) < 0.3).long()


def test_losses_are_those_of_their_papers() -> None:
    logits, y = draw()
    p, weight = logits.double().sigmoid(), torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0])
    each = -(y * p.log() + (1 - y) * (1 - p).log())
    assert MultiLabel(5).loss(logits, y).item() == pytest.approx(each.mean().item(), rel=1e-5)
    weighted = (each * weight).sum() / (len(y) * weight.sum())
    assert MultiLabel(5).loss(logits, y, weight).item() == pytest.approx(weighted.item(), rel=1e-5)
    smooth = 0.8 * y + 0.1
    expected = -(smooth * p.log() + (1 - smooth) * (1 - p).log()).mean()
    assert MultiLabel(5, 0.2).loss(logits, y).item() == pytest.approx(expected.item(), rel=1e-5)
    shifted = (p - 0.05).clamp_min(0)  # Ridnik et al. 2021, eq. 4 and 5, with gamma+ 0 and gamma- 4
    asymmetric = -(y * p.log() + (1 - y) * shifted**4 * (1 - shifted).log()).mean()
    assert MultiLabel(5, loss="asymmetric").loss(logits, y).item() == pytest.approx(asymmetric.item(), rel=1e-5)
    with pytest.raises(InputError, match=r"label_smoothing is 0\.1, which the asymmetric loss replaces"):
        MultiLabel(5, 0.1, "asymmetric")


@pytest.mark.parametrize("shift", [0, -9])
def test_metrics_are_those_of_scikit_learn(shift: float) -> None:
    logits, y = draw(500)
    logits += shift  # such as those of rare classes, all of whose probabilities are small
    y[:, 4] = 0  # a class without an example
    metrics = MultiLabel(5).build_metrics()
    for rows in torch.arange(500).split(64):
        metrics.update(logits[rows], y[rows])
    found = {name: float(value) for name, value in metrics.compute().items()}
    predicted = (logits > 0).long()
    average = np.mean([average_precision_score(y[:, k], logits[:, k]) for k in range(4)])
    assert found["mean_average_precision"] == pytest.approx(average, abs=2e-3)
    assert found["micro_f1"] == pytest.approx(f1_score(y, predicted, average="micro"), abs=1e-6)
    assert found["macro_f1"] == pytest.approx(f1_score(y, predicted, average="macro", zero_division=0), abs=1e-6)
    assert found["exact_match"] == pytest.approx((predicted == y).all(1).double().mean().item(), abs=1e-6)
    metrics.update(logits[:8], y[:8])  # starts anew
    assert float(metrics.compute()["exact_match"]) == pytest.approx((predicted == y)[:8].all(1).double().mean().item())


def test_average_precision_is_that_of_rounded_logits_over_all_batches() -> None:
    """Steps of 0.03 from -15 to 15; a class without an example has none."""
    draw = torch.Generator().manual_seed(0)
    logits = 8 * torch.randn(200, 3, generator=draw)
    y = (torch.rand(200, 3, generator=draw) < torch.tensor([0.3, 0.02, 0.0])).long()
    counts = LogitCounts(3)
    for some, targets in zip(logits.split(33), y.split(33), strict=True):
        counts.update(some, targets)
    precision, having = counts.compute()
    rounded = ((logits.clamp(-15, 15) + 15) / 30 * 999).long()
    for k in (0, 1):
        assert float(precision[k]) == pytest.approx(average_precision_score(y[:, k], rounded[:, k]), abs=1e-12)
    assert bool(precision[2].isnan())
    assert having.tolist() == y.sum(0).tolist()


def test_thresholds_have_the_best_f1() -> None:
    logits, y = draw(80)
    y[:, 3] = 0
    y[:3, 3] = 1  # too few for a threshold of its own
    p = logits.sigmoid()
    thresholds = fit_thresholds(p, y)
    assert thresholds[3] == 0.5
    for k in (0, 1, 2, 4):
        best = max(f1_score(y[:, k], p[:, k] >= t) for t in p[:, k].tolist())
        assert f1_score(y[:, k], p[:, k] >= thresholds[k]) == pytest.approx(best, abs=1e-9)


def test_a_head_starts_as_a_classifier_of_each_class() -> None:
    made = torch.Generator().manual_seed(0)
    x = torch.randn(80, 6, generator=made)
    y = torch.stack([(x[:, 0] > 0), (x[:, 1] > 1), torch.ones(80)], 1).long()
    head = torch.nn.Linear(6, 3)
    fit_head(head, "logistic_regression", x, y)
    assert ((head(x) > 0) == (y > 0)).double().mean() > 0.95
    assert head.weight[2].abs().sum() == 0


def test_steps_equal_a_plain_loop(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts.csv", 200)
    data = TextDataModule(str(tmp_path / "texts.csv"), label_separator=";", batch_size=16, steps_per_epoch=10)
    torch.manual_seed(0)
    model = FineTuneClassifier(
        "fasttext", 3, data.input_spec, target=data.target, tune="head", cache_features=False,
        optimizer=lambda p: torch.optim.SGD(p, 0.5),
    )  # fmt: skip
    weight, bias = (p.detach().clone().requires_grad_() for p in model.head.parameters())
    seen = Recorder()
    trainer([seen], max_epochs=2).fit(model, data)
    losses = []
    for batch in seen.batches:
        labeled = batch["labeled"]
        assert {*labeled.y.unique().tolist()} <= {0, 1}
        logits = model.backbone(labeled.x) @ weight.T + bias
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labeled.y.float())
        losses.append(loss.item())
        for parameter, gradient in zip((weight, bias), torch.autograd.grad(loss, (weight, bias)), strict=True):
            parameter.data -= 0.5 * gradient
    assert len(losses) == 20
    assert seen.losses == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(model.head.weight, weight, rtol=1e-3, atol=1e-5)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_four_commands_know_several_classes(
    workdir: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    rows = write_texts(Path("texts.csv"), 400)
    assert main(["fit", *FINE, "--trainer.max_epochs=8", "--run_name=multi"]) == 0
    run = Path("lightning_logs/multi/version_0")
    (_best,) = (run / "checkpoints").glob("best-*mean_average_precision=*.ckpt")
    assert main(["test", str(run)]) == 0
    printed = [line for line in caplog.messages if line.startswith("  test/")]
    assert len({line.rindex(" ") for line in printed}) == 1  # one column, however long the names are
    metrics = {row["metric"]: float(row["value"]) for row in read_rows(run / "metrics.csv")}
    assert metrics["test/mean_average_precision"] > 0.9
    assert metrics["test/micro_f1"] > 0.8
    Path("new.csv").write_text("text\nsoup bread guitar choir\nthe street\ntrophy goal match\n")
    assert main(["predict", str(run), "new.csv"]) == 0
    found = read_rows(run / "predictions.csv")
    assert found[0]["predicted"] == "food;music"
    assert "sport" in found[2]["predicted"]
    assert [name for name in found[0] if name.startswith("p(")] == [f"p({c})" for c in CLASSES]
    assert main(["predict", str(run)]) == 0  # the test split
    truth = {f"line {i + 2}": label for i, (_, label) in enumerate(rows)}
    again = read_rows(run / "predictions.csv")
    right = [row["predicted"] == truth[row["path"]] for row in again]
    assert sum(right) > 0.6 * len(right)
    # A run resumed after half of its epochs ends where the whole one does.
    assert main(["fit", *FINE, "--trainer.max_epochs=2", "--run_name=half"]) == 0
    assert main(["fit", *FINE, "--trainer.max_epochs=4", "--run_name=half", "--ckpt_path=last"]) == 0
    assert main(["fit", *FINE, "--trainer.max_epochs=4", "--run_name=whole"]) == 0
    states = [
        torch.load(f"lightning_logs/{name}/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("half", "whole")
    ]
    assert not moved(*states)
    # What takes one class alone says so, before anything is computed.
    capsys.readouterr()
    frozen = ["--model=FrozenFeatureClassifier", "--model.classifier=KNearestNeighbors"]
    frozen += [word for word in FIT if "optimizer" not in word]
    assert main(["fit", *frozen]) == 2
    assert "KNearestNeighbors takes examples of one class each, and these have several" in capsys.readouterr().err
    assert main(["fit", "--model=DecoupledFeatureClassifier", "--model.feature_loss=SupCon", *FIT]) == 2
    assert "and these have several (label_separator): use FineTuneClassifier" in capsys.readouterr().err


def make_semi(strategy: Any, data: TextDataModule, **settings: Any) -> SemiSupervisedModule:
    torch.manual_seed(0)
    fixed: dict[str, Any] = {"backbone": "fasttext", "num_classes": 3, "input_spec": data.input_spec}
    fixed |= {"target": data.target, "optimizer": lambda p: torch.optim.Adam(p, 0.05), "ema_decay": 0.9}
    return SemiSupervisedModule(strategy, **{**fixed, **settings})


@pytest.mark.parametrize("strategy", ["ClassAwarePseudoLabels", "MeanTeacher"])
def test_unlabeled_examples_are_learned_from_and_a_resumed_run_ends_the_same(strategy: str, workdir: Path) -> None:
    write_texts(Path("texts.csv"), 300)
    words = ["--model=SemiSupervisedModule", f"--model.strategy={strategy}", "--model.ema_decay=0.9"]
    words += ["--model.warmup_steps=0", "--model.ramp_steps=0", "--model.control=true", "--roll_back=false", *FIT]
    words += ["--data.num_labels=30", "--data.steps_per_epoch=6", "--data.unlabeled_ratio=2"]
    assert main(["fit", *words, "--trainer.max_epochs=1", "--run_name=half"]) == 0
    assert main(["fit", *words, "--trainer.max_epochs=2", "--run_name=half", "--ckpt_path=last"]) == 0
    assert main(["fit", *words, "--trainer.max_epochs=2", "--run_name=whole"]) == 0
    folders = [Path(f"lightning_logs/{name}/version_0") for name in ("half", "whole")]
    states = [torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in folders]
    assert {name for name in moved(*states) if name != "strategy.recent"} == set()
    if strategy == "ClassAwarePseudoLabels":  # its memory is not full yet
        torch.testing.assert_close(*(s["strategy.recent"] for s in states), equal_nan=True, rtol=0, atol=0)
    assert main(["test", str(folders[1])]) == 0
    logged = {row["metric"] for row in read_rows(folders[1] / "metrics.csv")}
    assert {"val/exact_match", "val/control_exact_match"} <= logged


def test_pseudo_labels_have_the_shares_of_the_labels() -> None:
    strategy = ClassAwarePseudoLabels(positive=1.0, negative=1.0, memory=512)
    strategy.class_share, strategy.recent = torch.full((3,), -1.0), torch.full((512, 3), torch.nan)
    strategy.position = torch.tensor(0)
    made = torch.Generator().manual_seed(0)
    y = (torch.rand(400, 3, generator=made) < torch.tensor([0.5, 0.25, 0.1])).long()
    logits = torch.randn(400, 3, generator=made)
    target, weight = strategy.accept(logits, y)
    assert strategy.class_share.tolist() == pytest.approx(y.double().mean(0).tolist())
    torch.testing.assert_close(target.mean(0), y.float().mean(0), atol=0.006, rtol=0)
    assert weight.mean() > 0.99
    for k in range(3):
        assert logits[target[:, k] > 0, k].min() > logits[target[:, k] == 0, k].max()
    few = ClassAwarePseudoLabels(positive=0.5, negative=0.5, memory=512)
    few.class_share, few.recent, few.position = torch.full((3,), -1.0), torch.full((512, 3), torch.nan), torch.tensor(0)
    target, weight = few.accept(logits, y)
    assert weight.mean().item() == pytest.approx(0.5, abs=0.02)
    assert target.mean().item() == pytest.approx(y.double().mean().item() / 2, abs=0.01)


def test_strategies_of_one_class_are_refused(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts.csv", 60)
    data = TextDataModule(str(tmp_path / "texts.csv"), label_separator=";")
    with pytest.raises(InputError, match="FreeMatch learns from examples of one class each, and these have several"):
        make_semi(FreeMatch(), data)
    with pytest.raises(InputError, match="ClassAwarePseudoLabels supports multi_label, and each example has one class"):
        make_semi(ClassAwarePseudoLabels(), data, target="class")
    with pytest.raises(InputError, match=r"target is 'sets': give class, or class_set"):
        make_semi(ClassAwarePseudoLabels(), data, target="sets")
    with pytest.raises(InputError, match="multi_label_loss is 'asymmetric', and each example has one class"):
        FineTuneClassifier("fasttext", 3, data.input_spec, multi_label_loss="asymmetric")
    model = FineTuneClassifier("fasttext", 3, data.input_spec, optimizer=torch.optim.Adam)
    with pytest.raises(InputError, match=r"FineTuneClassifier is for classification, and the examples have several"):
        trainer().fit(model, data)

"""A modality that the package does not know, through the real command line without a change in any of its files."""

import csv
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml  # type: ignore[import-untyped]
from lightning.pytorch import Callback, LightningModule, Trainer

from sft_lightning.__main__ import main
from sft_lightning.networks.build import build_encoder
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import InputSpec

HERE = "tests.modality.vectors"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 600 vectors of three classes, with one number in twenty missing."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 3
    x = torch.randn(3, 8, generator=generator)[labels] * 1.5 + torch.randn(600, 8, generator=generator)
    x[torch.rand(x.shape, generator=generator) < 0.05] = float("nan")
    path = tmp_path_factory.mktemp("vectors") / "vectors.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["label", "split", *(f"x{k}" for k in range(8))])
        for i, (row, label) in enumerate(zip(x.tolist(), labels.tolist(), strict=True)):
            split = ("train", "train", "train", "val", "test")[(i // 3) % 5]
            rows.writerow(["abc"[label], split, *("" if n != n else f"{n:.4f}" for n in row)])
    return path


def arguments(table: Path, model: str, *others: str) -> list[str]:
    """Return the arguments of a short `fit`."""
    return [
        f"--model={model}", f"--model.{'network' if model == 'AutoencoderModule' else 'backbone'}={HERE}.VectorEncoder",
        "--model.optimizer=Adam", "--model.optimizer.lr=0.01", f"--data={HERE}.VectorDataModule",
        f"--data.source={table}", "--data.num_labels=30", "--data.batch_size=15", "--data.unlabeled_ratio=2",
        "--data.steps_per_epoch=20", "--trainer.max_epochs=2", "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false", *others,
    ]  # fmt: skip


def run(*words: str) -> None:
    """Run a command of the real command line, which must succeed."""
    assert main([*words]) in (0, None)


def write_yaml(name: str, content: object) -> None:
    """Write a config."""
    Path(name).write_text(yaml.safe_dump(content))


def read_rows(name: str) -> list[dict[str, str]]:
    """Read a CSV that a command wrote."""
    return list(csv.DictReader(Path(name).read_text().splitlines()))


FIXMATCH = ("--model.strategy=sft_lightning.losses.unlabeled.FixMatch", "--model.strategy.threshold=0.6")
PARADIGMS = {
    "autoencoder": ("AutoencoderModule", "--model.hidden=0.2"),
    "fine_tune": ("FineTuneClassifier",),
    "fixmatch": ("SemiSupervisedModule", *FIXMATCH),
    "mixmatch": ("SemiSupervisedModule", "--model.strategy=sft_lightning.losses.unlabeled.MixMatch"),
    "reconstruction": ("SemiSupervisedModule", "--model.strategy=sft_lightning.losses.unlabeled.Reconstruction"),
    "decoupled": ("DecoupledFeatureClassifier", "--model.feature_loss=sft_lightning.losses.features.SupCon"),
}


def check_neutral(text: str) -> None:
    """Check that a log, page or card about vectors does not take them for images."""
    shown = re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
    assert re.findall(r".*\b(?:image|picture|pixel)s?\b.*", shown, re.IGNORECASE) == []


@pytest.mark.slow
def test_all_paradigms_train_resume_test_predict_report_and_export(
    table: Path, workdir: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, (model, *others) in PARADIGMS.items():
        run("fit", f"--run_name={name}", *arguments(table, model, *others))
        folder = f"lightning_logs/{name}/version_0"
        run("test", "--ckpt_path", folder)
        run("predict", "--ckpt_path", folder)
        run("report", folder)
        page = Path(folder, "report.html").read_text()
        assert "row " in page  # examples of the modality stand on the page as text
        check_neutral(page)
        run("export", folder, f"--part={'backbone' if name == 'autoencoder' else 'model'}")
        card = Path(folder, "model_card.md").read_text()
        assert "examples like those of" in card
        check_neutral(card)
    assert len(read_rows("lightning_logs/fixmatch/version_0/predictions.csv")) == 120
    metrics = Path("lightning_logs/fixmatch/version_0/metrics.csv").read_text()
    assert ",test/accuracy," in metrics
    assert "predictions.csv: 120 examples" in caplog.text
    check_neutral(caplog.text + capsys.readouterr().out)


def test_objectives_compare_strong_views_and_leave_a_start(table: Path, workdir: Path) -> None:
    words = ["--model.objective=VICReg", "--model.objective.hidden=32", "--model.objective.projection=16"]
    run("fit", "--run_name=pretrained", *arguments(table, "SelfSupervisedModule", *words))
    folder = "lightning_logs/pretrained/version_0"
    metrics = Path(folder, "metrics.csv").read_text()
    assert ",val/effective_rank," in metrics
    assert ",val/knn_accuracy," in metrics
    run("report", folder)
    assert "Effective rank of the features" in Path(folder, "report.html").read_text()
    run("fit", "--run_name=tuned", *arguments(table, "FineTuneClassifier", f"--model.weights={folder}"))


class StopAfterAnEpoch(Callback):
    """Ends a training as a signal would, in the middle of what it was planned for."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = True


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(table: Path, workdir: Path) -> None:
    whole, part = "lightning_logs/whole/version_0/checkpoints", "lightning_logs/part/version_0/checkpoints"
    fixmatch = arguments(table, *PARADIGMS["fixmatch"])
    run("fit", "--run_name=whole", *fixmatch)
    run("fit", "--run_name=part", *fixmatch, f"--trainer.callbacks+={__name__}.StopAfterAnEpoch")
    run("fit", "--run_name=part", *fixmatch, "--ckpt_path=last")
    whole_state, part_state = (
        torch.load(f"{folder}/last.ckpt", weights_only=True)["state_dict"] for folder in (whole, part)
    )
    assert all(torch.equal(tensor, part_state[name]) for name, tensor in whole_state.items())


def test_rank_compares_runs_files_and_random_starts(
    table: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("fit", "--run_name=start", *arguments(table, "AutoencoderModule"))
    encoder = f"{HERE}.VectorEncoder"
    data = {"class_path": f"{HERE}.VectorDataModule", "init_args": {"source": str(table), "num_labels": 60}}
    candidates = [
        {"backbone": encoder, "weights": "none"},
        {"backbone": encoder, "weights": "lightning_logs/start/version_0"},
        "lightning_logs/start/version_0",
        {"backbone": "mlp", "weights": "none"},
    ]
    write_yaml("rank.yaml", {"data": data, "candidates": candidates})
    run("rank", "--config=rank.yaml")
    shown = capsys.readouterr().out
    rows = read_rows("lightning_logs/rank/rank.csv")
    scores = {row["start"]: row["linear"] for row in rows}
    assert len(rows) == 4
    assert sum(bool(row["linear"]) for row in rows) == 3, shown
    assert scores["mlp (random)"] == ""
    assert "backbone 'mlp' is not known for vector inputs" in shown


@pytest.mark.slow
def test_a_study_trains_again_only_where_the_table_changed(
    table: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = Path(shutil.copy(table, "vectors.csv"))
    adam = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}}
    settings = {"backbone": f"{HERE}.VectorEncoder", "optimizer": adam}
    write_yaml("labels.yaml", {"model": {"class_path": "FineTuneClassifier", "init_args": settings}})
    strategy = {"class_path": "sft_lightning.losses.unlabeled.FixMatch", "init_args": {"threshold": 0.6}}
    settings = {**settings, "strategy": strategy}
    write_yaml("fixmatch.yaml", {"model": {"class_path": "SemiSupervisedModule", "init_args": settings}})
    plan = {
        "name": "vectors", "budgets": [30], "seeds": [0], "baseline": "labels_only",
        "data": {
            "class_path": f"{HERE}.VectorDataModule",
            "init_args": {"source": str(table), "batch_size": 15, "steps_per_epoch": 20},
        },
        "options": {"trainer.max_epochs": 1, "trainer.accelerator": "cpu"},
        "methods": {"labels_only": [{"config": ["labels.yaml"]}], "fixmatch": [{"config": ["fixmatch.yaml"]}]},
    }  # fmt: skip
    write_yaml("study.yaml", plan)
    run("study", "--config=study.yaml")
    rows = read_rows("lightning_logs/study/vectors/results.csv")
    baselines = {"logistic regression on inputs", "label spreading on inputs"}
    assert {row["method"] for row in rows} == {"labels_only", "fixmatch", *baselines}
    capsys.readouterr()
    run("study", "--config=study.yaml")
    assert "0 to train" in capsys.readouterr().err
    table.write_text(table.read_text() + "a,train,1,1,1,1,1,1,1,1\n")
    run("study", "--config=study.yaml")
    assert "2 to train" in capsys.readouterr().err  # another table is another study


def test_a_hostile_file_cannot_name_a_class_to_import(workdir: Path) -> None:
    Path("evil.py").write_text("open('ran', 'w')\nclass Evil: pass\n")
    with pytest.raises(InputError, match="is named by a file and not imported"):
        build_encoder("evil.Evil", InputSpec("vector", (8,)), imports=False)
    assert not Path("ran").exists()

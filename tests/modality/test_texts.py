"""Texts through the real command line: all paradigms, exact resume, and what is refused."""

import csv
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml  # type: ignore[import-untyped]
from lightning.pytorch import Callback, LightningModule, Trainer

from sft_lightning import FineTuneClassifier, ImageDataModule
from sft_lightning.__main__ import main
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import InputSpec

WORDS = {
    "food": ["bread", "cheese", "soup", "apple", "dinner", "salt", "taste", "kitchen", "cook", "rice", "butter"],
    "sky": ["star", "moon", "planet", "orbit", "telescope", "galaxy", "light", "comet", "sun", "night", "cloud"],
    "sport": ["ball", "goal", "team", "run", "match", "score", "player", "coach", "league", "win", "race"],
}
COMMON = ["the", "a", "of", "and", "in", "to", "it", "was", "very", "with", "for", "on", "my", "his"]


def make_texts(count: int, share: float = 0.25) -> list[tuple[str, str]]:
    """Return texts of three classes, a share of whose words say which, and their labels."""
    rng, made = random.Random(0), []
    for i in range(count):
        label = [*WORDS][i % 3]
        words = [rng.choice(WORDS[label] if rng.random() < share else COMMON) for _ in range(rng.randint(5, 30))]
        made.append((" ".join(words), label))
    return made


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 600 texts with splits."""
    path = tmp_path_factory.mktemp("texts") / "texts.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label", "split"])
        for i, (text, label) in enumerate(make_texts(600)):
            rows.writerow([text, label, ("train", "train", "train", "val", "test")[(i // 3) % 5]])
    return path


def arguments(table: Path, model: str, *others: str) -> list[str]:
    return [
        f"--model={model}", "--model.backbone=fasttext", "--model.optimizer=Adam", "--model.optimizer.lr=0.01",
        "--data=TextDataModule", f"--data.source={table}", "--data.num_labels=30", "--data.batch_size=15",
        "--data.unlabeled_ratio=2", "--data.steps_per_epoch=15", "--trainer.max_epochs=2", "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false", *others,
    ]  # fmt: skip


def run(*words: str) -> None:
    assert main([*words]) in (0, None)


def read_rows(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


PARADIGMS = {
    "fine_tune": ("FineTuneClassifier",),
    "softmatch": ("SemiSupervisedModule", "--model.strategy=SoftMatch"),
    "mixmatch": ("SemiSupervisedModule", "--model.strategy=MixMatch"),
    "decoupled": ("DecoupledFeatureClassifier", "--model.feature_loss=SupCon"),
}


# The ordinary suite runs two of them.
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in ("softmatch", "decoupled") else [pytest.mark.slow]) for name in PARADIGMS],
)
def test_a_paradigm_trains_tests_predicts_and_reports(name: str, table: Path, workdir: Path) -> None:
    run("fit", f"--run_name={name}", *arguments(table, *PARADIGMS[name]))
    folder = f"lightning_logs/{name}/version_0"
    run("test", "--ckpt_path", folder)
    metrics = {row["metric"]: float(row["value"]) for row in read_rows(f"{folder}/metrics.csv")}
    assert metrics["test/accuracy"] > 0.6
    Path("new.csv").write_text('text\n"the soup, with bread and ""cheese"""\nthe moon and a star\n')
    run("predict", "--ckpt_path", folder, "--data.predict_source=new.csv")
    rows = read_rows(f"{folder}/predictions.csv")
    assert [(row["path"], row["predicted"]) for row in rows] == [("line 2", "food"), ("line 3", "sky")]
    run("report", folder)
    page = Path(folder, "report.html").read_text()
    assert any(word in page for word in WORDS["sport"])
    assert "image" not in page.split("</style>")[-1].replace("data:image", "").lower()


class StopAfterAnEpoch(Callback):
    """Ends a training as a signal would, in the middle of what it was planned for."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = True


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(table: Path, workdir: Path) -> None:
    words = arguments(table, *PARADIGMS["softmatch"], "--data.group_by_length=15")
    run("fit", "--run_name=whole", *words)
    run("fit", "--run_name=part", *words, f"--trainer.callbacks+={__name__}.StopAfterAnEpoch")
    run("fit", "--run_name=part", *words, "--ckpt_path=last")
    whole, part = (
        torch.load(f"lightning_logs/{name}/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "part")
    )
    assert all(torch.equal(tensor, part[name]) for name, tensor in whole.items())


class StopInTheMiddle(Callback):
    """Sends the signal of a cluster in the middle of an epoch."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if trainer.global_step == 3:
            signal.raise_signal(signal.SIGTERM)


def test_batches_of_a_budget_resume_in_the_middle_of_an_epoch(
    table: Path, workdir: Path, cli_error: Callable[..., str]
) -> None:
    words = arguments(table, *PARADIGMS["fine_tune"], "--data.max_length=24", "--data.max_tokens=96")
    words = [word for word in words if "steps_per_epoch" not in word and "num_labels" not in word]
    words.append("--data.num_labels=60")
    run("fit", "--run_name=whole", *words)
    main(["fit", "--run_name=part", *words, f"--trainer.callbacks+={__name__}.StopInTheMiddle"])
    stopped = torch.load("lightning_logs/part/version_0/checkpoints/last.ckpt", weights_only=True)
    assert (stopped["epoch"], stopped["global_step"]) == (0, 3)
    run("fit", "--run_name=part", *words, "--ckpt_path=last")
    whole, part = (
        torch.load(f"lightning_logs/{name}/version_0/checkpoints/last.ckpt", weights_only=True)
        for name in ("whole", "part")
    )
    assert whole["global_step"] == part["global_step"] > 20
    assert all(torch.equal(tensor, part["state_dict"][name]) for name, tensor in whole["state_dict"].items())
    both = arguments(table, *PARADIGMS["softmatch"], "--data.max_tokens=500")
    assert "max_tokens is 500, but batches are to hold labeled texts and unlabeled_ratio" in cli_error("fit", *both)
    assert "one text may have 128 (max_length)" in cli_error("fit", *both, "--data.max_tokens=100")
    assert "leave one of them out" in cli_error("fit", *both, "--data.group_by_length=10")
    assert "max_tokens limits the batches" in cli_error("find-batch-size", *words)


def test_pretraining_and_classifiers_without_training(table: Path, workdir: Path) -> None:
    objective = ["--model.objective=VICReg", "--model.objective.hidden=32", "--model.objective.projection=16"]
    run("fit", "--run_name=pretrained", *arguments(table, "SelfSupervisedModule", *objective))
    start = "--model.weights=lightning_logs/pretrained/version_0"
    # Dropout alone makes two views differ, as in SimCSE.
    same = [f"--data.strong_view.{name}=0" for name in ("delete", "hide", "swap", "span")]
    simcse = ["--model.objective=SimCLR", "--model.objective.temperature=0.05", "--model.backbone=small_transformer"]
    run("fit", "--run_name=simcse", *arguments(table, "SelfSupervisedModule", *simcse, *same), "--trainer.max_steps=1")
    frozen = [word for word in arguments(table, "FrozenFeatureClassifier") if "optimizer" not in word]
    run("fit", "--run_name=linear", *frozen, start)
    graph = ["--model.classifier=LabelSpreading", "--model.whiten=32"]
    run("fit", "--run_name=graph", *frozen, "--model.backbone=bag_of_words", *graph)
    run("fit", "--run_name=bayes", *frozen, "--model.backbone=tfidf", "--model.classifier=ComplementNaiveBayes")
    run("fit", "--run_name=taught", *frozen, start, "--model.classifier=CoTrainedRegression")
    for name in ("linear", "graph", "bayes", "taught"):
        metrics = {row["metric"]: row["value"] for row in read_rows(f"lightning_logs/{name}/version_0/metrics.csv")}
        assert float(metrics["val/accuracy"]) > 0.6


@pytest.mark.slow
def test_hidden_words_are_learned_before_labels(table: Path, workdir: Path) -> None:
    words = [
        "--config=pretraining/masked_language.yaml", "--model.network=small_transformer", "--model.weights=none",
        f"--data.source={table}", "--data.max_length=32", "--data.batch_size=32", "--data.steps_per_epoch=6",
        "--data.num_labels=30",
        "--trainer.max_epochs=2", "--model.optimizer.lr=0.003", "--model.lr_scheduler.warmup_steps=0",
        "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
    ]  # fmt: skip
    run("fit", "--run_name=whole", *words)
    run("fit", "--run_name=part", *words, f"--trainer.callbacks+={__name__}.StopAfterAnEpoch")
    run("fit", "--run_name=part", *words, "--ckpt_path=last")
    whole, part = (
        torch.load(f"lightning_logs/{name}/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "part")
    )
    assert all(torch.equal(tensor, part[name]) for name, tensor in whole.items())
    run("test", "--ckpt_path=lightning_logs/whole/version_0")
    metrics = {row["metric"]: float(row["value"]) for row in read_rows("lightning_logs/whole/version_0/metrics.csv")}
    assert metrics["test/loss"] < 7  # 9.7 at first
    assert metrics["val/masked_accuracy"] > 0.03
    spec = InputSpec("text", (32,), "int64", "words")
    classifier = FineTuneClassifier("small_transformer", 3, spec, weights="lightning_logs/whole/version_0")
    assert all(torch.equal(t, whole[f"encoder.{name}"]) for name, t in classifier.backbone.state_dict().items())


def test_what_texts_cannot_do_is_one_sentence(table: Path, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*words: str) -> str:
        assert main(["fit", *words]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    unchanged = [f"--data.strong_view.{name}=0" for name in ("delete", "hide", "swap", "span")]
    assert "strong_view changes nothing" in refuse(*arguments(table, *PARADIGMS["softmatch"], *unchanged))
    same = arguments(table, "SelfSupervisedModule", "--model.objective=SimCLR", *unchanged)
    assert "or a backbone with dropout" in refuse(*same)
    assert "is not known for texts" in refuse(*arguments(table, "FineTuneClassifier", "--model.backbone=conv"))
    assert "has no decoder" in refuse(
        *[word.replace("--model.backbone", "--model.network") for word in arguments(table, "AutoencoderModule")]
    )


def test_starts_are_ranked(table: Path, workdir: Path) -> None:
    data = {"class_path": "TextDataModule", "init_args": {"source": str(table), "num_labels": 60}}
    candidates = [{"backbone": name, "weights": "none"} for name in ("bag_of_words", "small_transformer")]
    Path("rank.yaml").write_text(yaml.safe_dump({"data": data, "candidates": candidates}))
    run("rank", "--config=rank.yaml")
    scores = {row["start"]: float(row["linear"]) for row in read_rows("lightning_logs/rank/rank.csv")}
    assert scores["bag_of_words (random)"] > max(0.6, scores["small_transformer (random)"])


def test_views_are_previewed(table: Path, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("preview", *arguments(table, *PARADIGMS["softmatch"]))
    shown = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in shown[:5]] == ["original", *["weak view"] * 2, *["strong view"] * 2]
    original, *weak = (line.partition(": ")[2].split() for line in shown[:3])
    assert set(original) <= {*COMMON, *(word for own in WORDS.values() for word in own)}
    assert all(set(view) <= set(original) for view in weak)
    assert "…" in "".join(shown)  # hidden words of strong views


def test_degrees_of_tuning_are_compared(table: Path, workdir: Path) -> None:
    words = arguments(table, *PARADIGMS["fine_tune"], "--data.steps_per_epoch=2", "--trainer.max_epochs=1")
    grid = ["--degree.depth=[head,all]", "--degree.backbone_lr_scale=[1.0]", "--degree.folds=2"]
    run("degree", "--run_name=mine", *words, *grid)
    rows = Path("lightning_logs/mine_degree/degree.csv").read_text().splitlines()
    assert len(rows) == 3


@pytest.mark.slow
def test_studies_compare_by_folds(workdir: Path) -> None:
    with Path("texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *make_texts(60, 0.6)])
    adam = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}}
    model = {"class_path": "FineTuneClassifier", "init_args": {"backbone": "fasttext", "optimizer": adam}}
    Path("labels.yaml").write_text(yaml.safe_dump({"model": model}))
    settings = {"source": "texts.csv", "batch_size": 12, "steps_per_epoch": 10}
    still = {"model.init_args.optimizer.init_args.lr": 1e-9}
    plan = {
        "name": "texts", "budgets": [48], "seeds": [0], "folds": 2, "baseline": "labels",
        "data": {"class_path": "TextDataModule", "init_args": settings},
        "options": {"trainer.max_epochs": 1, "trainer.accelerator": "cpu"},
        "methods": {
            "labels": [{"config": ["labels.yaml"]}], "still": [{"config": ["labels.yaml"], "options": still}],
        },
    }  # fmt: skip
    Path("study.yaml").write_text(yaml.safe_dump(plan))
    run("study", "--config=study.yaml")
    rows = [row for row in read_rows("lightning_logs/study/texts/results.csv") if row["run"]]
    assert len(rows) == 4
    held = [{row["id"] for row in csv.DictReader(Path(one["run"], "split.csv").read_text().splitlines()[1:])
             if row["split"] == "test"} for one in rows if one["method"] == "labels"]  # fmt: skip
    assert not held[0] & held[1]
    assert len(held[0] | held[1]) == 48


def test_commands_for_tables_of_files_name_the_one_for_texts(table: Path, workdir: Path) -> None:
    with pytest.raises(
        InputError, match=r"lacks the column 'path'.*: of texts, use TextDataModule; `solve` takes them"
    ):
        ImageDataModule(str(table))

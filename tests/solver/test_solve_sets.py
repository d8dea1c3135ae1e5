"""`solve` on texts that have several classes: the F1 of held-out examples, one threshold for all classes, and files."""

import csv
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from sft_lightning import solve
from sft_lightning.__main__ import main
from sft_lightning.networks.weights import read_weights
from sft_lightning.runs.temperature import read_temperature
from sft_lightning.solver.labels import LabeledSource, read_source
from sft_lightning.solver.recipes import make_trainings
from sft_lightning.solver.scoring import calibrate, score_held_out
from sft_lightning.solver.solution import Solution
from sft_lightning.solver.space import Space
from sft_lightning.tasks.multi_label import MultiLabel
from sft_lightning.tasks.multi_label_metrics import compute_example_f1, fit_shared_threshold
from sft_lightning.utils.errors import InputError
from tests.tasks.helpers import CLASSES, COMMON, WORDS, draw_sets

LABELED, POOL, TEST = 60, 80, 50


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_sets(cells: list[str]) -> torch.Tensor:
    return torch.tensor([[int(name in cell.split(";")) for name in CLASSES] for cell in cells])


def write_table(path: Path) -> dict[str, str]:
    """Write texts of sets of classes, some of them without a label and some held out, and return all labels."""
    chance, truth = random.Random(5), {}
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "text", "label", "split"])
        for i, names in enumerate(draw_sets(LABELED + POOL + TEST)):
            words = [chance.choice(WORDS[name]) for name in names] + [chance.choice(COMMON) for _ in range(4)]
            chance.shuffle(words)
            truth[f"t{i}"] = ";".join(names) or ";"
            split = "test" if i >= LABELED + POOL else "train"
            own = truth[f"t{i}"] if i < LABELED or split == "test" else ""
            rows.writerow([f"t{i}", " ".join([*words, f"n{i}"]), own, split])
    return truth


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str], Solution, str]:
    folder = tmp_path_factory.mktemp("sets")
    truth = write_table(folder / "texts.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        solution = solve("texts.csv", minutes=0.2, name="mine", label_separator=";")
        return folder, truth, solution, str(solution)


@pytest.fixture
def solved(
    place: tuple[Path, dict[str, str], Solution, str], monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, str], Solution, str]:
    monkeypatch.chdir(place[0])
    return place[1:]


@pytest.mark.slow
def test_the_verdict_is_about_the_f1_of_an_example(solved: tuple[dict[str, str], Solution, str]) -> None:
    _, solution, shown = solved
    summary = solution.summary
    kinds = ("logistic regression", "naive Bayes", "label spreading")
    assert {*summary["recipes"]} == {f"{kind} on words" for kind in kinds}
    mean, low, high = summary["example_f1"]
    assert low < mean < high
    assert "accuracy" not in summary
    assert f"has a mean F1 by example of {mean:.1%} (95% interval" in solution.verdict[0]
    assert low <= summary["test_example_f1"] <= high
    assert f"its mean F1 by example is {summary['test_example_f1']:.1%}" in " ".join(solution.verdict)
    assert summary["unlabeled"] in ("helped", "hurt", "no evidence yet")
    assert "F1 of an example on held-out labels" in shown
    assert "F1 of an example on held-out labels" in (solution.folder / "report.html").read_text()
    assert (
        "label SOURCE --ids lightning_logs/solve/mine/label_next.csv --label_separator ';', then solve with --labels"
        in shown
    )


@pytest.mark.slow
def test_the_test_figure_is_that_of_the_delivered_predictions(
    solved: tuple[dict[str, str], Solution, str],
) -> None:
    truth, solution, _ = solved
    tested = [row for row in read_rows(Path("texts.csv")) if row["split"] == "test"]
    answers = solution.predict([row["text"] for row in tested])
    decided, targets = (read_sets(cells) for cells in ([a["predicted"] for a in answers], [r["label"] for r in tested]))
    expected = float(compute_example_f1(decided, targets).double().mean())
    assert solution.summary["test_example_f1"] == pytest.approx(expected)
    assert expected > 0.75
    assert [truth[row["id"]] for row in tested] == [row["label"] for row in tested]


def test_predictions_of_the_pool_are_sets_from_one_threshold(solved: tuple[dict[str, str], Solution, str]) -> None:
    truth, solution, _ = solved
    rows = read_rows(solution.folder / "predictions.csv")
    assert [*rows[0]] == ["id", "predicted", "doubt", *(f"p({name})" for name in CLASSES)]
    assert len(rows) == POOL
    known = read_temperature(solution.run / "checkpoints" / "last.ckpt")
    assert known is not None
    (threshold,) = {*known.thresholds}
    assert len(known.thresholds) == 3
    for row in rows:
        p = np.array([float(row[f"p({name})"]) for name in CLASSES])
        near = np.abs(p - threshold) < 1e-4
        assert ((p >= threshold) == read_sets([row["predicted"]])[0].numpy())[~near].all()
    f1 = compute_example_f1(read_sets([r["predicted"] for r in rows]), read_sets([truth[r["id"]] for r in rows]))
    assert float(f1.mean()) > 0.75
    chosen = read_rows(solution.folder / "label_next.csv")
    assert len(chosen) == 20
    predicted = {row["id"]: row["predicted"] for row in rows}
    assert all(row["suggestion"] == predicted[row["id"]] for row in chosen)
    doubts = {row["id"]: float(row["doubt"]) for row in rows}
    assert np.mean([doubts[row["id"]] for row in chosen]) > np.mean([*doubts.values()])


def test_every_command_takes_the_solution(
    solved: tuple[dict[str, str], Solution, str], capsys: pytest.CaptureFixture[str]
) -> None:
    _, solution, _ = solved
    pool = [row for row in read_rows(Path("texts.csv")) if not row["label"]]
    with Path("new.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "text"), *((row["id"], row["text"]) for row in pool)])
    assert main(["predict", str(solution.folder), "new.csv"]) == 0
    known = {row["id"]: row for row in read_rows(solution.folder / "predictions.csv")}
    for row in read_rows(solution.run / "predictions.csv"):
        assert row["predicted"] == known[row["path"]]["predicted"]
        for name in CLASSES:
            assert float(row[f"p({name})"]) == pytest.approx(float(known[row["path"]][f"p({name})"]), abs=1e-3)
    assert main(["report", str(solution.folder)]) == 0
    page = (solution.run / "report.html").read_text()
    assert "have the best F1 of an example on labels that were held out in turn" in page
    with Path("train.csv").open("w", newline="") as file:
        rows = [row for row in read_rows(Path("texts.csv")) if row["split"] == "train"]
        csv.writer(file).writerows([("id", "text", "label"), *((r["id"], r["text"], r["label"]) for r in rows)])
    Path("ids.csv").write_text("id,suggestion\nt99,sport;jazz\n")
    assert main(["label", "train.csv", "--ids=ids.csv"]) == 2
    said = capsys.readouterr().err
    assert "where examples have several classes, set label_separator to ';'" in said


def test_exported_files_have_the_thresholds(solved: tuple[dict[str, str], Solution, str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    _, solution, _ = solved
    known = read_temperature(solution.run / "checkpoints" / "last.ckpt")
    assert known is not None
    about = json.loads((solution.folder / "model.onnx.json").read_text())
    assert about["thresholds"] == list(known.thresholds)
    assert about["temperature"] == {"value": known.value, "held_out_labels": LABELED}
    assert read_weights(solution.folder / "model.safetensors")[1]["thresholds"] == list(known.thresholds)
    assert "which has the best F1 of an example there" in (solution.folder / "model_card.md").read_text()
    assert onnxruntime.InferenceSession(str(solution.folder / "model.onnx")).get_outputs()[0].name == "logits"


def test_corrected_suggestions_are_further_labels(solved: tuple[dict[str, str], Solution, str]) -> None:
    truth, solution, _ = solved
    rows = read_rows(solution.folder / "label_next.csv")
    with Path("labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("order", "id", "label"), *((r["order"], r["id"], truth[r["id"]]) for r in rows)])
    source = read_source("texts.csv", Path("x"), None, None, 0, "data", "labels.csv", label_separator=";")
    assert len(source.labels) == LABELED + 20
    own = dict(zip(source.data.splits["labeled"].ids, source.targets, strict=True))
    assert all(torch.equal(own[r["id"]], read_sets([truth[r["id"]]])[0]) for r in rows)


def open_source(folder: Path, labels: list[str]) -> LabeledSource:
    with (folder / "few.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((f"text {i}", one) for i, one in enumerate(labels))])
    return read_source(str(folder / "few.csv"), folder, None, None, 0, "data", label_separator=";")


def test_a_class_of_one_example_is_not_judged_and_its_example_is(tmp_path: Path) -> None:
    source = open_source(tmp_path, ["a", "b", "a;b", "a;c", "b", "a", ";", "d"])
    assert source.unjudged == ["c", "d"]
    assert source.folds.tolist()[7] == -1  # it has no other class
    assert (source.folds[:7] >= 0).all()
    assert (source.divisions >= 0).all(0).tolist() == [*[True] * 7, False]
    p = torch.where(source.targets > 0, 0.9, 0.1)[None].repeat(len(source.divisions), 1, 1)
    p[:, 3, 2] = 0.0  # what nothing could know
    assert score_held_out(p, source).min() == 1
    with pytest.raises(InputError, match="0 labeled examples have a class that another one has: add labels"):
        open_source(tmp_path, ["a;b", "c", "d"])


def test_groups_of_an_example_that_cannot_be_judged_stay_out_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "few.csv"
    rows = [("a", "g1"), ("b", "g1"), ("a", "g2"), ("b", "g3"), ("c", "g1"), ("a;b", "g4")]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label", "group"), *((f"x{i}", *row) for i, row in enumerate(rows))])
    source = read_source(str(path), tmp_path, None, None, 0, "data", label_separator=";")
    assert (source.folds < 0).tolist() == [True, True, False, False, True, False]


def test_the_threshold_of_a_fold_is_that_of_the_others(tmp_path: Path) -> None:
    """Labels whose own fold alone would choose another threshold are scored by that of the other folds."""
    source = open_source(tmp_path, [*["a", "b", "c"] * 15, ";"])
    p = torch.where(source.targets > 0, 0.6, 0.4)
    held = torch.from_numpy(source.folds == 0)
    p[held] -= 0.3  # all of this fold are below the threshold of the others
    scores = score_held_out(p[None], source)[0]
    assert scores[source.folds == 0].max() == 0
    assert scores[source.folds > 0].min() == pytest.approx(1)
    known = calibrate(p[None], source)
    as_given = torch.sigmoid(torch.tensor(known.thresholds[0]).logit() * known.value)
    assert 0.4 < float(as_given) < 0.61  # probabilities are compared with it at the temperature
    assert known.labels == 46


def test_the_shared_threshold_has_the_best_mean_f1() -> None:
    made = torch.Generator().manual_seed(0)
    targets = (torch.rand(80, 6, generator=made) < torch.linspace(0.05, 0.5, 6)).long()
    p = (0.25 * targets + 0.3 * torch.rand(80, 6, generator=made)).clamp(0, 1)
    found = fit_shared_threshold(p, targets)
    assert found.unique().numel() == 1
    levels = p.flatten().unique()
    best = max(float(compute_example_f1((p >= limit).long(), targets).double().mean()) for limit in levels)
    own = float(compute_example_f1((p >= found).long(), targets).double().mean())
    assert own > best - 0.01
    none = torch.zeros_like(targets)
    assert float(compute_example_f1((p >= fit_shared_threshold(p, none)).long(), none).mean()) == 1
    task = MultiLabel(6)
    torch.testing.assert_close(task.probabilities(task.invert_probabilities(p)), p.clamp(1e-6, 1 - 1e-6))


def test_trainings_learn_unlabeled_examples_class_by_class(tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    write_table(path)
    source = read_source(str(path), tmp_path, None, None, 0, "data", label_separator=";")
    names = [recipe.name for recipe in make_trainings(Space("a start", (), 8), source, 60)]
    assert names == ["fine-tuning from a start (60 steps)", "class-aware pseudo-labels from a start (60 steps)"]


def test_labels_that_are_all_alike_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no class that only some of them have: label more of them"):
        open_source(tmp_path, ["a;b", "a;b", "b;a"])

"""`solve` on real sources: what it compares, what it says, what it writes, and what a second call computes again."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sft_lightning import solve
from sft_lightning.__main__ import main
from sft_lightning.classifiers import LabelSpreading, SmoothedLogisticRegression
from sft_lightning.classifiers.whitening import WhitenedPCA
from sft_lightning.networks.build import build_encoder
from sft_lightning.networks.weights import read_weights
from sft_lightning.solver import plan, recipes, trainings, trials
from sft_lightning.solver.deliver import EXPORTS, ONNX
from sft_lightning.solver.labels import read_source
from sft_lightning.solver.space import Space
from sft_lightning.utils.errors import InputError, StoppedBySignal

SHORT: dict[str, Any] = {"num_labels": 20, "minutes": 0.1}


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(autouse=True, scope="module")
def no_program() -> Iterator[None]:
    """Leave out what takes most of a short call, and what `test_deliver.py` tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(EXPORTS, ONNX)
        yield


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample with 20 labels, from the command line, in the folder that holds `lightning_logs`."""
    folder = tmp_path_factory.mktemp("solved")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = ["--num_labels", "20", "--minutes", "0.1", "--name", "mine", "--candidates", "none"]
        assert main(["solve", "sample", *words]) == 0
    return folder


def test_one_call_gives_model_verdict_predictions_and_next_labels(solved: Path) -> None:
    folder = solved / "lightning_logs" / "solve" / "mine"
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary["recipes"]) == {"logistic regression on pixels", "label spreading on pixels"}
    assert summary["recipe"] == max(summary["recipes"], key=summary["recipes"].get)
    mean, low, high = summary["accuracy"]
    assert 0 < low < mean < high < 1
    assert abs(summary["test_accuracy"] - mean) < 0.3
    page = (folder / "report.html").read_text()
    assert all(sentence.replace("'", "&#39;") in page for sentence in summary["verdict"])
    predictions = read_table(folder / "predictions.csv")
    split = {row["id"]: row for row in read_table_below_header(solved / summary["run"] / "split.csv")}
    pool = {name for name, row in split.items() if row["split"] == "unlabeled"}
    assert {row["id"] for row in predictions} == pool
    assert len(predictions) == 9980
    chosen = [row["id"] for row in read_table(folder / "label_next.csv")]
    assert len(set(chosen)) == 20
    assert set(chosen) <= pool


def read_table_below_header(path: Path) -> list[dict[str, str]]:
    lines = path.read_text().splitlines()
    return list(csv.DictReader(lines[1:] if lines[0].startswith("#") else lines))


def test_no_fold_learns_a_label_that_it_is_judged_by(tmp_path: Path) -> None:
    source = read_source("sample", tmp_path, 20, None, 0, "data")
    ids = source.data.splits["labeled"].ids
    held: list[str] = []
    for fold in range(source.num_folds):
        rows = read_table_below_header(source.write_split(fold))
        by_split = {name: {row["id"] for row in rows if row["split"] == name} for name in ("labeled", "test", "val")}
        assert by_split["labeled"] | by_split["test"] == set(ids)
        assert not by_split["labeled"] & by_split["test"]
        assert not by_split["val"]
        assert not by_split["test"] & {row["id"] for row in rows if row["split"] == "unlabeled"}
        assert {row["label"] for row in rows if row["split"] == "labeled"} == set(source.data.class_names)
        held += by_split["test"]
    assert sorted(held) == sorted(ids)


@pytest.mark.slow
def test_a_wrong_label_does_not_judge_itself(tmp_path: Path) -> None:
    """Each probability comes from the other folds: the label of the example itself has no say."""
    source = read_source("sample", tmp_path, 20, None, 0, "data")
    space = Space("pixels", ("--model.backbone=pixels",), 16)
    space.read(source)
    for recipe in recipes.make_classifiers(space, source):
        before = recipes.cross_fit(recipe, source, "x", print)
        assert not bool(before.isnan().any())
        assert len(before) == len(source.divisions) == 5
        fold = source.divisions[1] == source.divisions[1, 0]
        labels = source.data.splits["labeled"].part.labels
        positions = [source.data.splits["labeled"].indices[i] for i in np.flatnonzero(fold).tolist()]
        kept = labels[positions].clone()
        labels[positions] = (kept + 1) % 10
        after = recipes.cross_fit(recipe, replace(source), "x", print)  # which has not read the labels yet
        labels[positions] = kept
        assert torch.equal(before[1, fold], after[1, fold])
        assert not torch.equal(before[1, ~fold], after[1, ~fold])


@pytest.mark.slow
def test_label_spreading_is_judged_by_the_rule_for_new_images(tmp_path: Path) -> None:
    """A held-out label is predicted as the delivered model predicts an image that is not in its graph."""
    source = read_source("sample", tmp_path, 40, None, 0, "data")
    space = Space("pixels", ("--model.backbone=pixels",), 64)
    space.read(source)
    judged = recipes.cross_fit(recipes.make_classifiers(space, source)[1], source, "x", print)
    known, held = (torch.from_numpy(rows) for rows in (source.folds != 0, source.folds == 0))
    whitening = WhitenedPCA(64).fit(torch.cat([space.labeled, space.pool]).split(4096))
    labeled, new, pool = (whitening.transform(x) for x in (space.labeled[known], space.labeled[held], space.pool))
    spreading = LabelSpreading().fit(labeled, source.labels[known], pool, num_classes=10)
    # The graph of all folds also holds the held-out images, without labels, so that the two are close but not equal.
    assert (judged[0, held] - spreading.predict_proba(new)).abs().mean() < 0.01


def test_smoothing_is_judged_by_the_rule_for_new_images(tmp_path: Path) -> None:
    """A held-out example has no vote, and neighbors of the other folds vote with their labels."""
    source = read_source("sample", tmp_path, 40, None, 0, "data")
    backbone, _ = build_encoder("conv", source.data.input_spec)
    space = Space("conv", ("--model.backbone=conv",), 64, backbone)
    space.read(source)
    judged = recipes.cross_fit(recipes.make_classifiers(space, source)[2], source, "x", print)
    held = torch.from_numpy(source.folds == 0)
    others = torch.cat([space.labeled[held], space.pool])
    for i in held.nonzero()[:3, 0].tolist():
        alone = torch.cat([others[: int(held[:i].sum())], others[int(held[:i].sum()) + 1 :]])  # without the example
        smoothed = SmoothedLogisticRegression().fit(space.labeled[~held], source.labels[~held], alone, num_classes=10)
        assert torch.allclose(judged[0, i], smoothed.predict_proba(space.labeled[i : i + 1])[0], atol=1e-4)


def test_a_second_call_computes_only_what_changed(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, write_folder: Callable[..., Path]
) -> None:
    asked: list[str] = []
    own = recipes.cross_fit

    def counted(recipe: recipes.Recipe, *args: Any) -> torch.Tensor:
        asked.append(recipe.name)
        return own(recipe, *args)

    monkeypatch.setattr("sft_lightning.solver.judged.cross_fit", counted)
    source = str(write_folder(workdir / "images", {"train": 12}))
    short = {**SHORT, "name": "again", "image_size": 16}
    first = solve(source, **short)
    assert len(asked) == 2
    second = solve(source, **short)
    assert len(asked) == 2
    assert first.summary["recipes"] == second.summary["recipes"]
    unit = next((workdir / "lightning_logs" / "solve" / "again" / "units").iterdir())
    unit.write_bytes(b"damaged")
    solve(source, **short)
    assert len(asked) == 3
    solve(source, **{**short, "num_labels": 30})
    assert len(asked) == 5


@pytest.mark.slow
def test_networks_are_pretrained_and_trained_where_the_time_allows(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, write_folder: Callable[..., Path]
) -> None:
    monkeypatch.setattr(trials, "MIN_POOL", 10)
    monkeypatch.setattr(trials, "choose_steps", lambda *rest: 3)
    monkeypatch.setattr(trainings, "plan_halving", lambda *rest: (2, 6))
    monkeypatch.setattr(trainings, "PATIENCE", 100.0)  # on a busy machine, too
    folder = write_folder(workdir / "images", {"train": 4, "unlabeled": 30}, classes=2)
    solution = solve(str(folder), name="trained", image_size=16)
    learned, kinds = "features learned from your images", ("fine-tuning", "label propagation")
    short = {kind: solution.summary["recipes"][f"{kind} from {learned} (2 steps)"] for kind in kinds}
    better = max(kinds, key=lambda kind: short[kind])
    (worse,) = {*kinds} - {better}
    assert set(solution.summary["recipes"]) == {
        "logistic regression on pixels", "label spreading on pixels",
        f"logistic regression on {learned}", f"label spreading on {learned}",
        f"smoothed logistic regression on {learned}",
        f"fine-tuning from {learned} (2 steps)", f"label propagation from {learned} (2 steps)",
        f"{better} from {learned} (6 steps)",
    }  # fmt: skip
    left_out = solution.summary["left_out"]
    assert left_out == [
        f"{worse} from {learned} (6 steps): {better} from {learned} (2 steps) is ahead at a third of them"
    ]
    run = json.loads((workdir / "lightning_logs/solve/trained/pretraining.json").read_text())["run"]
    rows = read_table_below_header(Path(run) / "split.csv")
    assert not [row for row in rows if row["split"] == "labeled" and row["label"] == ""]
    lineages = [*(workdir / "lightning_logs/solve/trained/trainings").glob("*/fold_0/version_0/lineage.json")]
    assert len(lineages) == 3
    assert all(run in path.read_text() for path in lineages)


def test_results_are_used_in_python(workdir: Path, write_folder: Callable[..., Path]) -> None:
    folder = write_folder(workdir / "images", {"train": 6, "unlabeled": 8})
    solution = solve(str(folder), minutes=0.1, name="python", image_size=16)
    assert solution.verdict == solution.summary["verdict"]
    assert str(solution).count("label_next.csv") >= 1
    files = sorted((folder / "unlabeled").rglob("*.*"))[:3]
    answers = solution.predict(files)
    assert [answer["path"] for answer in answers] == [str(file) for file in files]
    assert {answer["predicted"] for answer in answers} <= {"class_0", "class_1", "class_2"}
    with torch.no_grad():
        assert solution.model(torch.rand(2, 3, 16, 16)).shape[0] == 2


def test_bad_input_is_one_sentence(workdir: Path, write_folder: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="minutes is -1"):
        solve("sample", minutes=-1)
    with pytest.raises(InputError, match="nowhere"):
        solve("nowhere/")
    folder = write_folder(workdir / "images", {"train": 4, "unlabeled": 2})
    for other in sorted((folder / "train").iterdir())[1:]:
        for file in other.iterdir():
            file.unlink()
        other.rmdir()
    with pytest.raises(InputError, match="label some examples of at least two"):
        solve(str(folder), minutes=0.1, image_size=16)


@pytest.mark.parametrize(
    "content", ["{", "[1]", '{"minutes": "x"}', '{"minutes": 9, "stages": [{"name": "a", "b": 1}]}']
)
def test_a_damaged_plan_is_one_sentence(tmp_path: Path, content: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content.replace('{"', '{"key": "data", "', 1))
    with pytest.raises(InputError, match=r"plan\.json' .*: remove it"):
        plan.Plan(path, "data", 1.0)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_a_damaged_start_is_refused_first(
    workdir: Path, name: str, capsys: pytest.CaptureFixture[str], write_folder: Callable[..., Path]
) -> None:
    source = str(write_folder(workdir / "images", {"train": 4}))
    (workdir / name).write_text("hello")
    with pytest.raises(InputError, match=f"weights '{name}' (cannot be read|is damaged)"):
        solve(source, minutes=0.1, image_size=16, candidates=name)
    assert "logistic regression" not in capsys.readouterr().err


def test_a_stop_says_how_to_go_on(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sft_lightning.solver.judged.cross_fit", stop)
    with pytest.raises(StoppedBySignal, match="SIGINT: start solve again to go on; what is done is kept"):
        solve("sample", name="stopped", **SHORT)


def test_a_source_without_unlabeled_images_is_solved_by_its_labels(
    workdir: Path, write_folder: Callable[..., Path]
) -> None:
    folder = write_folder(workdir / "images", {"train": 6})
    earlier = ("predictions.csv", "label_next.csv", "model.onnx", "model.onnx.json")  # of another source
    (workdir / "lightning_logs" / "solve" / "labels").mkdir(parents=True)
    for name in earlier:
        (workdir / "lightning_logs" / "solve" / "labels" / name).write_text("old")
    solution = solve(str(folder), minutes=0.1, name="labels", image_size=16)
    assert "label_next.csv" not in str(solution)
    assert "The only recipe is logistic regression on pixels." in solution.verdict[0]
    assert [*solution.summary["recipes"]] == ["logistic regression on pixels"]
    assert solution.summary["unlabeled"] is None
    assert not any((solution.folder / name).exists() for name in earlier)
    assert (solution.folder / "model.safetensors").is_file()
    tensors, _ = read_weights(solution.folder / "model.safetensors")
    assert any(name.startswith("head") for name in tensors)


def test_the_next_labels_are_learned(workdir: Path, write_folder: Callable[..., Path]) -> None:
    source = str(write_folder(workdir / "images", {"train": 6, "unlabeled": 10}))
    first = solve(source, minutes=0.1, name="loop", image_size=16)
    chosen = read_table(first.folder / "label_next.csv")[:5]
    lines = ["id,label", *(f"{row['id']},{row['suggestion']}" for row in chosen)]
    (workdir / "labels.csv").write_text("\n".join(lines) + "\n")
    second = solve(source, minutes=0.1, name="loop", image_size=16, labels="labels.csv")
    assert "of images like the 23 labeled ones" in second.verdict[0]
    split = {row["id"]: row for row in read_table_below_header(second.run / "split.csv")}
    assert [split[row["id"]]["label"] for row in chosen] == [row["suggestion"] for row in chosen]
    assert not {row["id"] for row in chosen} & {row["id"] for row in read_table(second.folder / "predictions.csv")}


def test_successive_halving_fits_into_the_time() -> None:
    cheap, dear = plan.Cost(1.0, 0.1), plan.Cost(1.0, 1.0)
    # One training: 5 folds and one on all labels, each 1 + 600 x 0.1 s.
    assert plan.predict_halving([cheap], 600, 5, 1) == pytest.approx(6 * 61)
    # Two: 5 folds of both for 200 steps, then of one for 600, of which the dearer is assumed.
    assert plan.predict_halving([cheap, dear], 600, 5, 1) == pytest.approx(5 * (21 + 201 + 601) + 601)
    assert plan.plan_halving(6 * 61, [cheap], 5, 1) == (1, 600)
    assert plan.plan_halving(6 * 61 - 1, [cheap], 5, 1) == (1, 400)
    assert plan.plan_halving(10, [cheap], 5, 1) == (0, 0)
    # The dearer one, which is less promising, is left out first.
    assert plan.plan_halving(300, [cheap, dear], 5, 1) == (1, 400)
    # More than two need more steps than the fewest.
    seconds = plan.predict_halving([cheap] * 4, 120, 5, 1)
    count, steps = plan.plan_halving(seconds, [cheap] * 4, 5, 1)
    assert count < 4
    assert steps >= 120


def test_a_plan_keeps_its_decisions_for_as_many_minutes(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    first = plan.Plan(path, "data", 4)
    made = first.decide("trainings", lambda: plan.Stage("trainings", "some", 3.0, {"steps": 90}))
    first.drop("other", "other: it takes longer")
    again = plan.Plan(path, "data", 3)
    assert again.decide("trainings", lambda: pytest.fail("decided again")) == made
    assert again.dropped == []  # what this call has not come to
    assert [stage["name"] for stage in json.loads(path.read_text())["stages"]] == ["trainings", "other"]
    for key, minutes in (("data", 5.0), ("other data", 4.0)):
        new = plan.Plan(path, key, minutes)
        assert new.decide("trainings", lambda: plan.Stage("trainings")) == plan.Stage("trainings")
        path.write_text(json.dumps({"key": "data", "minutes": 4, "stages": []}))


def test_patients_stay_together(workdir: Path, write_folder: Callable[..., Path]) -> None:
    folder = write_folder(workdir / "images", {"train": 8, "unlabeled": 4}, classes=2)
    lines = ["path,label,group"]
    for k in range(2):
        for i, file in enumerate(sorted((folder / "train" / f"class_{k}").iterdir())):
            lines.append(f"{file.relative_to(workdir)},{k},patient_{k}_{i // 2}")
    lines += [f"{file.relative_to(workdir)},," for file in sorted((folder / "unlabeled").iterdir())]
    (workdir / "scans.csv").write_text("\n".join(lines) + "\n")
    source = read_source("scans.csv", workdir / "out", None, 16, 0, "data")
    assert source.groups is not None
    pairs = {*zip(source.groups, source.folds.tolist(), strict=True)}
    assert len(pairs) == len(set(source.groups)) == 8
    solution = solve("scans.csv", minutes=0.1, name="scans", image_size=16)
    low, high = solution.summary["accuracy"][1:]
    assert high - low > 0.2  # 16 images of 8 patients settle little


def test_no_words_in_a_folder_of_images_suggest_the_command(
    workdir: Path,
    write_folder: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert main([]) == 0
    assert "sft-lightning solve ." not in capsys.readouterr().out
    monkeypatch.chdir(write_folder(workdir / "images", {"train": 1}))
    assert main([]) == 0
    assert capsys.readouterr().out.endswith("sft-lightning solve .\n")
    assert main(["--help"]) == 0
    assert "sft-lightning solve .\n" not in capsys.readouterr().out


def test_a_second_process_is_refused_while_one_works(workdir: Path) -> None:
    folder = workdir / "lightning_logs" / "solve" / "busy"
    hold = "import sys, time; from pathlib import Path; from sft_lightning.runs.lock import lock_folder\n"
    hold += "with lock_folder(Path(sys.argv[1]), 'x'):\n    print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", hold, str(folder)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="solution 'busy' is already running, started by process"):
            solve("sample", name="busy", **SHORT)
        holder.kill()

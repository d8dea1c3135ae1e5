"""`solve` on images with boxes: recipes judged by folds, the choice, the plan, the files, going on, and refusals."""

import csv
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sft_lightning import DetectionDataModule, FineTuneDetector, solve
from sft_lightning.__main__ import main
from sft_lightning.detection.held_out_precision import match_examples, measure_precision, rank_scores
from sft_lightning.runs.temperature import CrossFittedTemperature
from sft_lightning.solver import box_trials, deliver, judged, labels, map_trials, recipes, speed
from sft_lightning.solver.box_delivery import Pool, choose_next, judge_images, measure_doubt, write_pool
from sft_lightning.solver.box_recipes import DETECTORS, Speed, find_objects, make_detector, make_teacher
from sft_lightning.solver.box_trials import BoxResult, BoxTrials
from sft_lightning.solver.deliver import Delivery
from sft_lightning.solver.labels import LabeledSource, read_source
from sft_lightning.solver.map_starts import MapStart
from sft_lightning.solver.plan import DELIVERY_SECONDS, START_SECONDS, Plan, Stage
from sft_lightning.solver.solution import Solution
from sft_lightning.utils.errors import InputError, StoppedBySignal
from tests.boxes import CLASSES, write_boxes_folder

RANDOM = MapStart("random weights", "resnet8")
WORDS: dict[str, Any] = {"minutes": 500, "image_size": 64, "candidates": "none", "name": "mine"}


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object], split: str = "train") -> None:
    path = folder / f"annotations/instances_{split}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def open_source(name: str) -> LabeledSource:
    return read_source(name, Path("o"), None, 64, 0, "data")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("boxes")
    write_boxes_folder(folder / "d", {"train": 20}, unlabeled=12)
    return folder


@pytest.fixture
def source(place: Path, monkeypatch: pytest.MonkeyPatch) -> LabeledSource:
    monkeypatch.chdir(place)
    return open_source("d")


def make_trials(source: LabeledSource, minutes: float = 10.0) -> BoxTrials:
    Path("o/plan.json").unlink(missing_ok=True)
    return BoxTrials(source, Plan(Path("o/plan.json"), source.key, minutes), "mine", Path("o"), lambda text: None)


def get_objects(source: LabeledSource, name: str = "labeled") -> list[Tensor]:
    assert isinstance(source.data, DetectionDataModule)
    return source.data.objects_of(name)


def detect(source: LabeledSource, is_found: Sequence[bool], score: float = 0.9) -> Tensor:
    """Exact boxes of some images, and a wrong one of a low score in each."""
    found = torch.zeros(len(is_found), 100, 6)
    found[:, :, 0] = -1
    for own, y, hit in zip(found, get_objects(source), is_found, strict=True):
        own[0] = torch.tensor([0, 30, 30, 33, 33, 0.1])
        if hit:
            own[1 : 1 + len(y)] = torch.cat([y[:, :5], torch.full((len(y), 1), score)], 1)
    return found


def add(trials: BoxTrials, is_found: Sequence[bool], uses_unlabeled: bool = False) -> BoxResult:
    make = make_teacher if uses_unlabeled else make_detector
    recipe = make(RANDOM, "ssdlite", 90 + len(trials.results))
    found = detect(trials.source, is_found)
    result = trials.make_result(recipe, found[None])
    trials.results.append(result)
    return result


# --- what is judged, and the choice


def test_a_recipe_is_scored_by_the_average_precision_of_all_held_out_images(source: LabeledSource) -> None:
    trials = make_trials(source)
    every = add(trials, [True] * 20)
    assert every.estimate.mean == pytest.approx(1)
    assert 0.6 < every.estimate.low < 0.95  # twenty images that are right do not promise that all are
    half = add(trials, [i % 2 == 0 for i in range(20)])
    assert half.estimate.low < half.estimate.mean < half.estimate.high
    matched = match_examples(half.found, get_objects(source), 2)
    assert half.estimate.mean == pytest.approx(measure_precision(matched, np.ones((1, 20)), [0, 1])[0])
    assert trials.method.startswith("The intervals and the choice rest on 500 draws with replacement of the 20 annot")


def test_the_teacher_is_chosen_where_it_is_ahead_by_more_than_an_error(source: LabeledSource) -> None:
    plain, little, clear = ([i < count for i in range(20)] for count in (10, 11, 18))
    trials = make_trials(source)
    add(trials, plain)
    add(trials, little, uses_unlabeled=True)
    assert trials.results[1].estimate.mean > trials.results[0].estimate.mean
    lead = trials.results[1].scores - trials.results[0].scores
    assert lead[0] < lead[1:].std() * trials.draws.factor**0.5
    assert trials.choose() == 0
    add(trials, clear, uses_unlabeled=True)
    assert trials.choose() == 2
    assert trials.choose([0, 1]) == 0
    assert trials.choose([1]) == 1  # the only one
    comparison = trials.compare_choices([1, 2], [0])
    assert comparison.verdict == "helped"
    assert comparison.low < comparison.difference < comparison.high
    assert trials.compare_choices([1], [0]).verdict == "no evidence yet"


def test_of_labels_alone_the_best_is_chosen_and_of_equal_ones_the_first(source: LabeledSource) -> None:
    trials = make_trials(source)
    for count in (9, 10, 10):
        add(trials, [i < count for i in range(20)])
    assert trials.choose() == 1


def test_each_fold_is_scored_by_the_recipe_that_the_others_choose(source: LabeledSource) -> None:
    """The second recipe is right in all folds but 0, so that without fold 0 it is as good as the third, and first."""
    trials, first = make_trials(source), source.folds == 0
    add(trials, first.tolist())
    second, third = add(trials, (~first).tolist()), add(trials, [True] * 20)
    assert third.estimate.mean == pytest.approx(1)
    assert trials.choose() == 2
    assert trials.score_choice([0, 1]) == pytest.approx(second.scores)
    found = third.found.clone()
    found[first] = second.found[first]
    made = trials.make_result(second.recipe, found[None]).matched
    expected = measure_precision(rank_scores(made, source.folds), trials.draws.weights, trials.classes)
    assert trials.score_choice([0, 1, 2]) == pytest.approx(expected)
    assert trials.estimate_choice().mean == pytest.approx(expected[0])


def test_a_class_in_a_single_image_is_learned_and_not_judged(workdir: Path) -> None:
    write_boxes_folder(Path("d"), {"train": 8})

    def name_one(content: dict[str, Any]) -> None:
        content["categories"].append({"id": 9, "name": "ring"})
        content["categories"].append({"id": 10, "name": "star"})
        content["annotations"][0]["category_id"] = 9

    rewrite(Path("d"), name_one)
    source = open_source("d")
    assert source.unjudged == ["ring"]
    assert source.unlabeled_classes == ["star"]
    trials = make_trials(source)
    assert [source.data.class_names[k] for k in trials.classes] == CLASSES
    assert (source.folds >= 0).sum() >= 7
    assert add(trials, [True] * 8).estimate.mean == pytest.approx(1)


def test_images_that_show_nothing_are_judged(workdir: Path) -> None:
    write_boxes_folder(Path("d"), {"train": 8})
    rewrite(Path("d"), lambda c: c.update(annotations=[one for one in c["annotations"] if one["image_id"] != 3]))
    source = open_source("d")
    assert (source.folds >= 0).all()
    assert "8 annotated images with" in source.data.describe_labels()
    assert "1 of them show none" in source.data.describe_labels()
    trials, found = make_trials(source), detect(source, [True] * 8)
    found[3, :4] = torch.tensor([1, 2, 2, 20, 20, 0.95])  # above all others
    recipe = make_detector(RANDOM, "ssdlite", 90)
    ours, theirs = (trials.make_result(recipe, one[None]) for one in (found, detect(source, [True] * 8)))
    assert ours.estimate.mean < theirs.estimate.mean


def test_another_box_is_another_source(place: Path, workdir: Path) -> None:
    write_boxes_folder(Path("d"), {"train": 6})
    key = open_source("d").key
    assert open_source("d").key == key
    rewrite(Path("d"), lambda c: c["annotations"][0]["bbox"].__setitem__(0, c["annotations"][0]["bbox"][0] + 1))
    assert open_source("d").key != key


# --- the plan


def plan_at(source: LabeledSource, minutes: float, seconds: float = 0.01) -> tuple[BoxTrials, Stage]:
    trials = make_trials(source, minutes)
    trials.read_seconds = 0.0
    trials.speeds = {(RANDOM.name, detector): Speed(seconds, seconds) for detector in DETECTORS}
    return trials, trials.decide([(RANDOM, detector) for detector in DETECTORS])


def test_more_minutes_buy_the_teacher_then_detectors_then_steps(source: LabeledSource) -> None:
    found = [plan_at(source, minutes)[1].settings for minutes in (2, 4, 12, 30, 300)]
    assert [one["teacher"] for one in found] == [0, 1, 1, 1, 1]
    assert [one["count"] for one in found] == [1, 1, 2, 2, 2]
    steps = [one["steps"] for one in found]
    assert steps[0] in box_trials.STEPS
    assert steps[2] < steps[3] < steps[4] == box_trials.STEPS[-1]
    for minutes in range(2, 13):  # several are compared at a third of their steps, which must not be too few
        few = plan_at(source, minutes)[1].settings
        assert few["steps"] >= box_trials.STEPS[int(few["count"] > 1)]
    trials, _ = plan_at(source, 4)
    every = [(RANDOM, detector) for detector in DETECTORS]
    assert plan_at(source, trials._count_minutes(every) + 1)[1].settings["count"] == 2
    for minutes, stage in ((4, plan_at(source, 4)[1]), (30, plan_at(source, 30)[1])):
        assert stage.seconds <= 0.9 * (60 * minutes - DELIVERY_SECONDS)


def test_too_few_minutes_are_refused_with_how_many_it_takes(source: LabeledSource) -> None:
    with pytest.raises(InputError, match=r"minutes is 0\.5, .*\(ssdlite from random weights, 90 steps in 5 f") as error:
        plan_at(source, 0.5)
    assert "stages" not in (Path("o/plan.json").read_text() if Path("o/plan.json").exists() else "")
    minutes = int(str(error.value).rpartition(" ")[2])
    assert plan_at(source, minutes)[1].settings["count"] == 1
    with pytest.raises(InputError, match="minutes is"):
        plan_at(source, minutes - 1)


def test_a_busy_machine_starts_trainings_and_delivers_later(
    source: LabeledSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(map_trials, "measure_busyness", lambda: 4.0)
    monkeypatch.setattr(box_trials, "measure_detector", lambda *given: Speed(0.0, 0.0))
    trials = make_trials(source)
    trials.open([])
    assert trials.plan.reserved > 4 * DELIVERY_SECONDS
    assert trials.count_cost(0.0).of(100) == pytest.approx(4 * START_SECONDS)


def test_how_busy_the_machine_is_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert speed.measure_busyness() >= 1
    monotonic = time.monotonic
    monkeypatch.setattr(time, "thread_time", lambda: monotonic() / 3)
    assert speed.measure_busyness() == pytest.approx(3, rel=0.3)


# --- delivery


def make_delivery() -> Delivery:
    return Delivery(Path("run"), CrossFittedTemperature(1.0, 20, ()))


def test_the_threshold_and_images_to_check_follow_from_held_out_detections(source: LabeledSource) -> None:
    trials, delivery = make_trials(source), make_delivery()
    result = add(trials, [i not in (3, 7) for i in range(20)])
    threshold = judge_images(result, trials.judged, delivery)
    assert 0.1 < threshold <= 0.9  # without the wrong boxes
    assert delivery.doubtful == [3, 7]
    assert delivery.doubts == ["F1 0.00 when held out"] * 2
    assert [shown.count("<img") for shown in delivery.doubtful_shown] == [2, 2]
    assert "Check the boxes of 2 annotated image(s)" in delivery.advice[0]


def test_annotations_are_not_doubted_where_little_is_found(source: LabeledSource) -> None:
    trials, delivery = make_trials(source), make_delivery()
    judge_images(add(trials, [i < 5 for i in range(20)]), trials.judged, delivery)
    assert not delivery.doubtful
    assert not delivery.advice


def test_doubt_is_largest_at_the_score_that_decides() -> None:
    found = torch.full((5, 3, 6), -1.0)
    for own, scores in zip(found, ([0.4], [0.9], [0.4, 0.9], [0.1, 0.05], []), strict=True):
        for row, score in zip(own, scores, strict=False):
            row[0], row[5] = 0, score
    assert measure_doubt(found, 0.4).tolist() == pytest.approx([1, 1 / 6, 7 / 12, 0.25, 0])


def test_boxes_of_the_pool_are_in_pixels_of_their_files(workdir: Path) -> None:
    """Files of several sizes; in the last, nothing is found."""
    write_boxes_folder(Path("d"), {"train": 6}, unlabeled=4)
    sizes = {6: (128, 64), 7: (50, 100), 8: (64, 64)}
    for k, size in sizes.items():
        with Image.open(f"d/images/train/s{k:03}.png") as image:
            image.resize(size).save(image.filename)
    rewrite(Path("d"), _renumber)
    source = open_source("d")
    data = source.data
    assert isinstance(data, DetectionDataModule)
    found = torch.full((4, 100, 6), -1.0)
    for own in found[:3]:
        own[0], own[1] = torch.tensor([1, 16, 32, 48, 48, 0.8]), torch.tensor([0, 16, 32, 32, 48, 0.2])
    write_pool(Pool(found, torch.zeros(4), torch.zeros(4, 2)), data, 0.5, Path("out"))
    rows = read_rows(Path("out/predictions.csv"))
    corners = [[float(row[name] or 0) for name in ("x1", "y1", "x2", "y2")] for row in rows]
    assert [row["class"] for row in rows] == [CLASSES[1]] * 3 + [""]
    assert corners == [[32, 32, 96, 64], [0, 50, 50, 75], [16, 32, 48, 48], [0, 0, 0, 0]]
    for k, row in zip(range(6, 10), rows, strict=True):
        assert row["path"] == f"images/train/s{k:03}.png"
        with Image.open(f"out/predicted_boxes/images/train/s{k:03}.jpg") as drawn:
            assert drawn.size == sizes.get(k, (64, 64))
    results = json.loads(Path("out/predictions_coco.json").read_text())
    assert [one["image_id"] for one in results] == [0, 0, 1, 1, 2, 2]
    assert {one["category_id"] for one in results} == {41, 44}
    assert results[1]["score"] == pytest.approx(0.2)
    again = DetectionDataModule("out/predictions.csv", root="d", image_size=64, val_size=0, test_size=0)
    again.setup("fit")
    assert again.labeled_counts().tolist() == [3]


def _renumber(content: dict[str, Any]) -> None:
    for one in content["categories"]:
        one["id"] += 40
    for one in content["annotations"]:
        one["category_id"] += 40


def test_images_to_annotate_next_are_doubtful_ones_with_their_boxes(
    source: LabeledSource, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sft_lightning.solver.box_delivery.NEXT", 1)
    data, delivery = source.data, make_delivery()
    assert isinstance(data, DetectionDataModule)
    model = FineTuneDetector("resnet8", 2, (3, 64, 64), detector="ssdlite").eval()
    found = find_objects(model, data, "unlabeled")
    for batch in data.batches_of("unlabeled", torch.device("cpu")):
        with torch.no_grad():
            own = model(batch.x)
        for i, scores, boxes in zip(batch.indices.tolist(), own.scores, own.boxes, strict=True):
            assert torch.equal(found[i, : len(scores), 5], scores)
            assert torch.equal(found[i, : len(scores), 1:5], boxes)
    delivery.score_threshold = 0.5
    doubt, features = torch.linspace(0.1, 0.9, 12, dtype=torch.float64), torch.ones(12, 2)
    features[0, 0], features[7, 0] = -1, 0  # the one most unlike the annotated ones is hardly doubtful
    pool = Pool(found, doubt, features)
    monkeypatch.setattr("sft_lightning.solver.box_delivery._compute_features", lambda *given: torch.ones(2, 2))
    choose_next(pool, model, data, delivery, tmp_path)
    rows = read_rows(tmp_path / "label_next.csv")
    assert delivery.next_labels == [7]
    assert len(rows) == 1 == len(delivery.next_shown)
    assert [row["doubt"] for row in rows] == [f"{doubt[i]:.6f}" for i in delivery.next_labels]
    assert "Annotate the 1 images of label_next.csv first" in delivery.advice[0]


# --- refusals


@pytest.mark.parametrize(
    ("words", "change", "sentence"),
    [
        (
            [],
            lambda c: c.update(images=c["images"][:1], annotations=[a for a in c["annotations"] if a["image_id"] == 0]),
            "has 1 annotated image: annotate more, since one is held out",
        ),
        (
            [],
            lambda c: [one.update(iscrowd=1) for one in c["annotations"]],  # which evaluation ignores
            "has 6 annotated images that show no object: annotate more",
        ),
        (
            [],
            lambda c: c.update(annotations=c["annotations"][:1]),
            "has 6 annotated images of which no two show an object of the same class: annotate more",
        ),
        (["--labels=x.csv"], None, "labels is 'x.csv', and source 'd' holds images with boxes of objects: leave it"),
        (["--image_size=50"], None, "image_size is 50: give a multiple of 32"),
        (["--candidates=[{backbone: mlp, weights: none}]"], None, "candidate 'mlp (random)': backbone 'mlp' gives no"),
        (
            ["--candidates=[{backbone: resnet8, weights: none, image_size: 64}]"],
            None,
            "boxes are compared at one size: set image",
        ),
        (["--minutes=0.01"], None, "minutes is 0.01, and the quickest comparison (ssdlite from random weights, 90"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    words: list[str],
    change: Callable[[dict[str, Any]], object] | None,
    sentence: str,
    workdir: Path,
    cli_error: Callable[..., str],
) -> None:
    write_boxes_folder(Path("d"), {"train": 6})
    if change is not None:
        rewrite(Path("d"), change)
    assert sentence in cli_error("solve", "d", *words)


@pytest.mark.parametrize("command", ["label", "select"])
def test_commands_for_classes_name_the_one_for_boxes(
    command: str, workdir: Path, cli_error: Callable[..., str]
) -> None:
    write_boxes_folder(Path("d"), {"train": 4})
    assert "`sft-lightning solve d` learns them and says which to annotate next" in cli_error(command, "d")


# --- whole calls


def hasten(patch: pytest.MonkeyPatch) -> None:
    """Divide images into two folds, let trainings take 3 steps, and leave out the exported files."""
    patch.setattr(deliver, "EXPORTS", {})
    patch.setattr(labels, "MAX_FOLDS", 2)
    patch.setattr(box_trials, "STEPS", (3, 3))


@pytest.fixture(scope="module")
def solved_place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Solution]:
    folder = tmp_path_factory.mktemp("solved")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exports = deliver.EXPORTS
        hasten(patch)
        patch.setattr(deliver, "EXPORTS", exports)
        write_boxes_folder(Path("d"), {"train": 8}, unlabeled=5)
        return folder, solve("d", **WORDS)


@pytest.fixture
def solved(solved_place: tuple[Path, Solution], monkeypatch: pytest.MonkeyPatch) -> Solution:
    monkeypatch.chdir(solved_place[0])
    return solved_place[1]


@pytest.mark.slow
def test_a_call_gives_a_verdict_files_and_a_page(solved: Solution) -> None:
    summary, text = solved.summary, str(solved)
    names = [f"{kind} from random weights ({steps} steps)" for steps in (1, 3) for kind in DETECTORS]
    teachers = {f"Unbiased Teacher with {name}" for name in names[-len(DETECTORS) :]}
    found = {*summary["recipes"]}
    assert {*names[: len(DETECTORS)]} < found
    assert len(found & teachers) == 1
    assert (summary["metric"], summary["target"]) == ("mean average precision", "boxes")
    mean, low, high = summary["map"]
    assert 0 <= low <= mean < high <= 1
    assert f"has a mean average precision of {mean:.1%} (95% interval {low:.1%} to {high:.1%})" in solved.verdict[0]
    assert "on images like the 8 annotated ones" in solved.verdict[0]
    assert summary["unlabeled"] in ("helped", "hurt", "no evidence yet")
    assert any(sentence.startswith("The intervals and the choice rest on 500 draws") for sentence in solved.verdict)
    for name in ("predictions.csv", "predictions_coco.json", "label_next.csv", "model.safetensors", "model.onnx"):
        assert (solved.folder / name).is_file(), name
    assert summary["not_exported"] == {}
    assert len([*(solved.folder / "predicted_boxes").rglob("*.jpg")]) == 5
    assert {row["id"] for row in read_rows(solved.folder / "label_next.csv")} == {
        f"images/train/s{k:03}.png" for k in range(8, 13)
    }
    page = (solved.folder / "report.html").read_text()
    assert "writes their boxes" in page
    assert "mean average precision on held-out labels" in page
    assert "Draw:     boxes of the files in" in text
    assert f"NEW_DATA --model.score_threshold {summary['score_threshold']:.2f}" in text
    rows = solved.predict([Path("d/images/train/s009.png")])
    assert {row["path"] for row in rows} == {"d/images/train/s009.png"}


@pytest.mark.slow
def test_a_second_call_computes_no_recipe_again(solved: Solution, monkeypatch: pytest.MonkeyPatch) -> None:
    hasten(monkeypatch)
    monkeypatch.setattr(judged, "cross_fit", None)
    assert solve("d", **WORDS).summary["recipes"] == solved.summary["recipes"]


@pytest.mark.slow
def test_a_stopped_call_goes_on_at_its_fold(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hasten(monkeypatch)
    write_boxes_folder(Path("d"), {"train": 8})
    folds: list[int | None] = []
    original = recipes.cross_fit

    def stop(*given: Any, **how: Any) -> Any:
        keep = given[5]

        def keep_and_stop(found: Tensor) -> None:
            keep(found)
            raise KeyboardInterrupt

        given = (*given[:5], keep_and_stop, *given[6:])
        return original(*given, **how)

    with monkeypatch.context() as patch:
        patch.setattr(judged, "cross_fit", stop)
        with pytest.raises(StoppedBySignal, match="start solve again to go on"):
            solve("d", **WORDS)

    def count(recipe: Any, source: Any, fold: int | None, name: str) -> Any:
        folds.append(fold)
        raise InputError("enough")

    monkeypatch.setattr("sft_lightning.solver.recipes.train", count)
    with pytest.raises(InputError, match="enough"):
        solve("d", **WORDS)
    assert folds == [1]


@pytest.mark.slow
def test_a_test_split_judges_the_model_and_the_unlabeled(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hasten(monkeypatch)
    write_boxes_folder(Path("d"), {"train": 6, "val": 2, "test": 5}, unlabeled=3)
    solution = solve("d", **WORDS)
    assert main(["test", str(solution.run)]) == 0
    rows = read_rows(solution.run / "metrics.csv")
    (value,) = (float(row["value"]) for row in rows if row["metric"] == "test/map")
    assert solution.summary["test_map"] == pytest.approx(value, abs=1e-6)
    expected = f"On the 5 images that the source holds out, its mean average precision is {value:.1%}."
    assert expected in solution.verdict
    assert "like the 8 annotated ones" in solution.verdict[0]  # those of the validation split are among them
    assert [*Path("lightning_logs/solve/mine/compared").iterdir()]


@pytest.mark.slow
def test_without_unlabeled_images_and_with_nothing_found_it_says_so(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasten(monkeypatch)
    monkeypatch.setattr(box_trials, "DETECTORS", ("fcos",))  # which has learned next to nothing after 3 steps
    write_boxes_folder(Path("d"), {"train": 4})
    solution = solve("d", **WORDS)
    assert solution.summary["map"][0] < 0.01
    text = " ".join(solution.verdict)
    assert "There was nothing unlabeled to learn from." in text
    assert "Next to nothing was found in held-out images, so its boxes mean nothing yet: give more minutes" in text
    assert not (solution.folder / "predictions.csv").exists()

"""`solve` on images with masks: recipes judged by folds, the files of the solution, going on, and refusals."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from sft_lightning import SegmentationDataModule, solve
from sft_lightning.__main__ import main
from sft_lightning.classifiers import LogisticRegression
from sft_lightning.data.open_data import find_data_class, find_modality
from sft_lightning.networks.vision.backbones import build_backbone
from sft_lightning.networks.weights import read_weights
from sft_lightning.runs.temperature import CrossFittedTemperature
from sft_lightning.solver import judged, labels, mask_trials, recipes
from sft_lightning.solver.deliver import Delivery
from sft_lightning.solver.labels import read_source
from sft_lightning.solver.mask_delivery import doubt_masks
from sft_lightning.solver.page import render_solution
from sft_lightning.solver.solution import Solution
from sft_lightning.study.folds import score_examples
from sft_lightning.study.judge import estimate_accuracy
from sft_lightning.tasks.pixel_samples import sample_pixels
from sft_lightning.tasks.segmentation import Segmentation
from sft_lightning.utils.errors import InputError, StoppedBySignal
from tests.scenes import write_scenes

NAMES = ["logistic regression on pixels"]
NAMES += [f"{kind} from random weights ({steps} steps)" for steps in (1, 3) for kind in ("fine-tuning", "mean teacher")]
WORDS: dict[str, Any] = {"minutes": 50, "image_size": 32, "candidates": "none", "name": "mine"}


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def hasten(patch: pytest.MonkeyPatch, exports: bool = False) -> None:
    """Divide masks into two folds, let trainings take 3 steps, and leave out the exported files."""
    if not exports:
        patch.setattr("sft_lightning.solver.deliver.EXPORTS", {})
    patch.setattr(labels, "MAX_FOLDS", 2)
    patch.setattr(labels, "MAX_REPEATS", 2)
    patch.setattr(mask_trials, "plan_halving", lambda *given: (2, 3))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Solution]:
    folder = tmp_path_factory.mktemp("masks")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        hasten(patch, exports=True)
        write_scenes(Path("d"), 22, 12, size=40)
        Path("d/classes.txt").write_text("background\nsquare\ndisc\n")
        return folder, solve("d", **WORDS)


@pytest.fixture
def solved(place: tuple[Path, Solution], monkeypatch: pytest.MonkeyPatch) -> Solution:
    monkeypatch.chdir(place[0])
    return place[1]


def test_recipes_are_judged_by_the_mean_iou_of_an_image(solved: Solution) -> None:
    summary = solved.summary
    found = {*summary["recipes"]}
    assert {*NAMES[:3]} < found < {*NAMES}  # the better half goes on
    assert (summary["metric"], summary["target"]) == ("mean IoU of an image", "mask")
    mean, low, high = summary["image_iou"]
    assert 0 <= low < mean < high <= 1
    assert (
        f"has a mean IoU of an image of {mean:.1%} (95% interval {low:.1%} to {high:.1%}) on images"
        in (solved.verdict[0])
    )
    assert summary["unlabeled"] in ("helped", "hurt", "no evidence yet")
    assert "unlabeled images" in " ".join(solved.verdict)
    assert summary["recipe"] == max(summary["recipes"], key=lambda name: float(summary["recipes"][name]))
    assert "is ahead at a third of them" in " ".join(summary["left_out"])


def test_each_mask_is_scored_by_pixels_of_other_folds(solved: Solution, monkeypatch: pytest.MonkeyPatch) -> None:
    hasten(monkeypatch)
    source = read_source("d", Path("o"), None, 32, 0, "data")
    data = source.data
    assert isinstance(data, SegmentationDataModule)
    assert source.divisions.shape == (2, 12)
    network = build_backbone("pixels", (3, 32, 32), "none")[0]
    network.stack_maps()
    sample = sample_pixels(network, data.batches_of("labeled", torch.device("cpu")), 4000 // 12, 0)
    scores = np.zeros((2, 12))
    for r, division in enumerate(source.divisions):
        for i in range(12):
            others = torch.tensor([division[k] != division[i] for k in sample.examples.tolist()])
            fitted = LogisticRegression().fit(sample.x[others], sample.y[others], num_classes=3)
            x, y = data.read_pair("labeled", i)
            small = fitted(network(x[None])[0].flatten(1).T).T.view(1, 3, 8, 8)
            guess = F.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False)[0].argmax(0)
            ious = [
                ((guess == c) & (y == c)).sum() / ((guess == c) | (y == c)).sum()
                for c in range(3)
                if ((guess == c) | (y == c)).any()
            ]
            scores[r, i] = float(torch.stack(ious).mean())
    assert solved.summary["recipes"][NAMES[0]] == pytest.approx(scores.mean(), abs=1e-5)
    shown = next(row for row in solved.recipes if row[0] == NAMES[0])
    low = estimate_accuracy(scores, source.divisions).low
    assert f"{scores.mean():.1%} (95% interval {low:.1%}" in shown[2]


def test_masks_of_the_pool_have_the_size_of_their_images(solved: Solution) -> None:
    rows = read_rows(solved.folder / "predictions.csv")
    assert [row["id"] for row in rows] == [f"images/s{k:03}.png" for k in range(12, 22)]
    for row in rows:
        with Image.open(solved.folder / row["mask"]) as file:
            mask = np.asarray(file)
        assert (solved.folder / row["overlay"]).is_file()
        assert mask.shape == (40, 40)
        shares = [float(row[f"share({name})"]) for name in ("background", "square", "disc")]
        assert shares == pytest.approx((np.bincount(mask.ravel(), minlength=3) / mask.size).tolist(), abs=1e-6)
        assert 0 < float(row["doubt"]) < 1
    (answer,) = solved.predict([Path("d") / rows[0]["id"]])
    with Image.open(solved.folder / rows[0]["mask"]) as ours, Image.open(solved.run / answer["mask"]) as theirs:
        assert (np.asarray(ours) == np.asarray(theirs)).all()
    chosen = read_rows(solved.folder / "label_next.csv")
    assert {row["id"] for row in chosen} == {row["id"] for row in rows}  # fewer than 20
    assert {row["doubt"] for row in chosen} == {row["doubt"] for row in rows}


def test_the_model_is_handed_over_in_files(solved: Solution) -> None:
    assert json.loads((solved.folder / "model.onnx.json").read_text())["output"]["shape"] == ["batch", 3, 32, 32]
    assert read_weights(solved.folder / "model.safetensors")[1]["class_names"] == ["background", "square", "disc"]
    page = (solved.folder / "report.html").read_text()
    assert "writes their masks" in page
    assert page.count('alt="predicted mask"') == 10
    assert "mean IoU of an image on held-out labels" in page
    assert f"Draw:     masks of the files in {solved.folder}/label_next.csv, then solve again" in str(solved)
    assert "predicted_masks" in str(solved)
    assert "--labels" not in str(solved)


def test_masks_to_check_are_shown_under_their_colors(tmp_path: Path) -> None:
    data = SegmentationDataModule(str(write_scenes(tmp_path / "d", 4)), image_size=32, val_size=0, test_size=0)
    data.setup("fit")
    best: Any = SimpleNamespace(
        scores=np.array([[0.9, 0.1, 0.9, 0.9]]), source=SimpleNamespace(task=Segmentation(data.num_classes))
    )
    delivery = Delivery(tmp_path, CrossFittedTemperature(1.0, 4, ()), writes="masks")
    doubt_masks(data, best, np.ones(4, dtype=bool), delivery)
    assert delivery.doubtful == [1]
    page = render_solution("mine", ["Judged."], [], [], delivery, data, "IoU")
    assert "mask to check" in page
    assert "labeled mask" not in page


def test_a_second_call_computes_no_recipe_again(
    solved: Solution, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hasten(monkeypatch)
    monkeypatch.setattr(judged, "cross_fit", None)
    assert solve("d", **WORDS).summary["recipes"] == solved.summary["recipes"]
    assert "labels:   12 masks of 3 classes (background 7" in capsys.readouterr().err


def test_another_mask_is_another_source(solved: Solution, tmp_path: Path) -> None:
    write_scenes(tmp_path / "d", 22, 12, size=40)
    key = read_source(str(tmp_path / "d"), Path("o"), None, 32, 0, "data").key
    with Image.open(tmp_path / "d/masks/s003.png") as mask:
        Image.fromarray(np.asarray(mask).T.copy()).save(mask.filename)
    assert read_source(str(tmp_path / "d"), Path("o"), None, 32, 0, "data").key != key


def test_a_stopped_call_goes_on_at_its_fold(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hasten(monkeypatch)
    write_scenes(Path("d"), 8)
    folds: list[int | None] = []
    original = recipes.cross_fit

    def stop(*given: Any, **how: Any) -> Any:
        if given[0].steps:
            keep = given[5]

            def keep_and_stop(found: torch.Tensor) -> None:
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
    monkeypatch.setattr("sft_lightning.solver.deliver.train", count)
    with pytest.raises(InputError, match="enough"):
        solve("d", **WORDS)
    assert folds[0] == 1


def test_the_least_time_gives_an_answer_without_a_pool(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sft_lightning.solver.deliver.EXPORTS", {})
    write_scenes(Path("d/train"), 6)
    write_scenes(Path("d/test"), 4, start=50)
    solution = solve("d", minutes=0.01, candidates="none")
    assert [*solution.summary["recipes"]] == NAMES[:1]
    assert "fine-tuning from random weights: it takes --minutes" in " ".join(solution.summary["left_out"])
    assert "There was nothing unlabeled to learn from." in solution.verdict
    assert f"its mean IoU of an image is {solution.summary['test_image_iou']:.1%}." in " ".join(solution.verdict)
    assert not (solution.folder / "label_next.csv").exists()
    assert len(solution.predict("d/test/images")) == 4


def make_flat(folder: Path) -> None:
    for file in (folder / "masks").iterdir():
        Image.fromarray(np.zeros((32, 32), np.uint8)).save(file)


@pytest.mark.parametrize(
    ("words", "change", "sentence"),
    [
        ([], lambda folder: [file.unlink() for file in [*(folder / "masks").iterdir()][1:]], "has 1 mask(s): add some"),
        (
            ["--class_names=[a,b,c]"],
            make_flat,
            "has 8 masks of 1 class(es) (a): add masks with pixels of another class",
        ),
        (["--labels=x.csv"], None, "labels is 'x.csv', and source 'd' holds images with masks: leave it out"),
        (["--candidates=[{backbone: mlp, weights: none}]"], None, "backbone 'mlp' gives no maps"),
        (
            ["--candidates=[{backbone: resnet8, weights: none, image_size: 64}]"],
            None,
            "compared at one size: set image",
        ),
        (["--image_size=30"], None, "image_size is 30: give a multiple of 4"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    words: list[str],
    change: Callable[[Path], Any] | None,
    sentence: str,
    workdir: Path,
    cli_error: Callable[..., str],
) -> None:
    write_scenes(Path("d"), 10, 8)
    if change is not None:
        change(Path("d"))
    assert sentence in cli_error("solve", "d", *words)


@pytest.mark.parametrize("command", [["label", "--class_names=null"], ["select"]])
def test_commands_for_classes_name_the_one_for_masks(
    command: list[str], workdir: Path, cli_error: Callable[..., str]
) -> None:
    write_scenes(Path("d"), 4)
    assert "`sft-lightning solve d` says which masks to draw next" in cli_error(command[0], "d", *command[1:])


def test_sources_with_masks_are_known_by_what_they_hold(tmp_path: Path) -> None:
    def holds(name: str) -> bool:
        return find_data_class(str(tmp_path / name)) is SegmentationDataModule

    write_scenes(tmp_path / "folder", 2)
    write_scenes(tmp_path / "splits" / "train", 2)
    write_scenes(tmp_path / "classes" / "cat", 2)
    for name in ("yolo/images", "yolo/labels", "plain/images", "coco/annotations"):
        (tmp_path / name).mkdir(parents=True)
    for k in range(3):
        (tmp_path / f"yolo/labels/{k}.txt").write_text("0 0.1 0.1 0.5 0.5 0.1 0.5\n")
    (tmp_path / "coco/annotations/instances_train2017.json").write_text("{}")
    (tmp_path / "masks.csv").write_text("path;Mask\na.png;b.png\n")
    (tmp_path / "labels.csv").write_text("path,label\na.png,b\n")
    (tmp_path / "both.csv").write_text("path,label,mask\na.png,b,c.png\n")
    assert all(holds(name) for name in ("folder", "splits", "yolo", "coco", "masks.csv"))
    assert find_modality(str(tmp_path / "yolo")) == "image"
    assert not any(holds(name) for name in ("classes", "plain", "labels.csv", "both.csv", "missing"))


def test_colors_of_masks_and_a_start_are_named_on_the_command_line(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hasten(monkeypatch)
    write_scenes(Path("d"), 8)
    for file in Path("d/masks").iterdir():
        with Image.open(file) as mask:
            colors = np.array([[0, 0, 0], [200, 0, 0], [0, 200, 0]], np.uint8)[np.asarray(mask)]
        Image.fromarray(colors).save(file)
    words = ["--class_colors={rest: [0, 0, 0], square: [200, 0, 0], disc: [0, 200, 0]}", "--minutes=50"]
    monkeypatch.setattr(mask_trials, "plan_halving", lambda *given: (0, 0))
    start = "--candidates=[{backbone: resnet8, weights: none}]"
    assert main(["solve", "d", *words, start, "--image_size=32"]) == 0
    summary = json.loads(Path("lightning_logs/solve/d/summary.json").read_text())
    assert {*summary["recipes"]} == {NAMES[0], "logistic regression on resnet8 (random)"}
    assert "8 masks of 3 classes (rest " in capsys.readouterr().err


@pytest.mark.slow
def test_the_size_follows_from_the_time_and_the_files(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scenes(Path("d"), 6, size=120)
    monkeypatch.setattr("sft_lightning.solver.deliver.EXPORTS", {})
    monkeypatch.setattr(mask_trials, "plan_halving", lambda *given: (0, 0))
    monkeypatch.setattr(mask_trials, "measure_seconds", lambda network, learns: 0.001)

    def choose(name: str, minutes: float) -> str:
        plan = json.loads((solve("d", minutes=minutes, candidates="none", name=name).folder / "plan.json").read_text())
        (stage,) = [one for one in plan["stages"] if one["name"] == "size"]
        return str(stage["settings"]["image_size"])

    assert choose("long", 500) == "128"  # beyond it, files of 120 pixels would only be enlarged
    assert choose("short", 0.1) == "64"


@pytest.mark.slow
def test_a_network_of_other_masks_may_be_a_start(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, cli_error: Callable[..., str]
) -> None:
    write_scenes(Path("other"), 8, start=100)
    write_scenes(Path("d"), 6)
    words = ["--data=SegmentationDataModule", "--data.source=other", "--data.image_size=32", "--data.val_size=0"]
    words += ["--data.test_size=0", "--data.steps_per_epoch=1", "--trainer.max_epochs=1", "--model=FineTuneClassifier"]
    words += ["--model.backbone=resnet8", "--model.optimizer=AdamW", "--run_name=seg", "--trainer.accelerator=cpu"]
    assert main(["fit", *words]) == 0
    monkeypatch.setattr("sft_lightning.solver.deliver.EXPORTS", {})
    monkeypatch.setattr(mask_trials, "plan_halving", lambda *given: (0, 0))
    run = "lightning_logs/seg/version_0"
    start = ["--candidates", run, "--image_size=32", "--minutes=50"]
    assert main(["solve", "d", *start]) == 0
    summary = json.loads(Path("lightning_logs/solve/d/summary.json").read_text())
    assert f"logistic regression on {run}" in summary["recipes"]
    assert "has learned 8 of these labels" in cli_error("solve", "other", *start)


@pytest.mark.slow
def test_a_test_split_judges_the_model_and_the_unlabeled(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hasten(monkeypatch)
    for name, count, masks in (("train", 12, 8), ("test", 5, 5), ("val", 3, 3)):
        write_scenes(Path("d", name), count, masks, start=100 * count)
    solution = solve("d", **WORDS)
    data = SegmentationDataModule("d", image_size=32, num_workers=0)
    data.setup("test")
    score = float(score_examples(solution.model, data, Segmentation(3), "test").mean())
    assert solution.summary["test_image_iou"] == pytest.approx(score)
    assert f"On the 5 images that the source holds out, its mean IoU of an image is {score:.1%}." in solution.verdict
    assert "like the 11 labeled ones" in solution.verdict[0]  # masks of the validation split are among them
    compared = [path.name for path in Path("lightning_logs/solve/mine/compared").iterdir()]
    assert compared  # trained on all masks, too, to be compared on the test

"""Detectors through the command line: what they learn, and what fit, test, predict, report, export and others give."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from faster_coco_eval import COCO, COCOeval_faster
from PIL import Image
from torchvision.ops import box_iou

from sft_lightning import DetectionDataModule, FineTuneDetector
from sft_lightning.__main__ import main
from sft_lightning.cli.loaded_run import LoadedRun
from sft_lightning.networks.weights import read_weights
from tests.boxes import CLASSES, make_boxes_scene, write_boxes_folder

RUN = "lightning_logs/boxes/version_0"
DATA = ["--data=DetectionDataModule", "--data.source=d", "--data.image_size=64", "--data.batch_size=8"]
DATA += ["--data.num_workers=0", "--data.weak_view.flip=true"]
NETWORK = [
    "--model.backbone=resnet8",
    "--model.detector=ssdlite",
    "--model.optimizer=AdamW",
    "--model.optimizer.lr=0.002",
]
NETWORK += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
FIT = ["--model=FineTuneDetector", *DATA, *NETWORK]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a detector on 24 scenes, and return the folder."""
    folder = tmp_path_factory.mktemp("boxes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_boxes_folder(Path("d"), {"train": 24, "val": 6, "test": 8}, unlabeled=4)
        words = [*FIT, "--trainer.max_epochs=16", "--trainer.check_val_every_n_epoch=8", "--run_name=boxes"]
        assert main(["fit", *words, "--trainer.log_every_n_steps=5"]) == 0
        assert main(["test", RUN]) == 0
    return folder


@pytest.fixture
def run(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    return Path(RUN)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_metrics(run: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in read_rows(run / "metrics.csv"):
        found.setdefault(row["metric"], []).append(float(row["value"]))
    return found


@pytest.mark.slow
def test_squares_and_discs_are_learned(run: Path) -> None:
    metrics = read_metrics(run)
    assert metrics["train/loss"][-1] < 0.6 * metrics["train/loss"][0]
    parts = [f"train/{name}" for name in ("class_loss", "box_loss")]
    assert metrics["train/loss"][-1] == pytest.approx(sum(metrics[name][-1] for name in parts), rel=1e-4)
    assert metrics["test/map50"][-1] > 0.6
    assert metrics["test/map"][-1] == pytest.approx(
        np.mean([metrics[f"test/ap_{name}"][-1] for name in CLASSES]), abs=1e-6
    )
    assert any(path.name.startswith("best-") for path in (run / "checkpoints").iterdir())


def test_boxes_are_predicted_in_pixels_of_the_files(run: Path) -> None:
    Path("new/sub").mkdir(parents=True)
    scenes = {"a.png": (70, 1.0, 1.0), "sub/wide.png": (71, 3.0, 2.0), "tall.png": (72, 1.0, 1.5)}
    for name, (seed, across, down) in scenes.items():
        image = Image.fromarray(make_boxes_scene(seed)[0])
        image.resize((round(64 * across), round(64 * down)), Image.Resampling.NEAREST).save(Path("new") / name)
    Image.new("RGB", (64, 64), (90, 90, 90)).save("new/=nothing.png")
    words = ["--model.score_threshold=0.4", "--model.drawn_score=0.5"]
    assert main(["predict", str(run), "new", *words]) == 0
    rows = read_rows(run / "predictions.csv")
    assert {row["path"] for row in rows} == {*scenes, "'=nothing.png"}
    assert next(row for row in rows if "nothing" in row["path"])["class"] == ""  # not predicted, but listed
    found_all = 0
    for name, (seed, across, down) in scenes.items():
        own = [row for row in rows if row["path"] == name and row["class"]]
        corners = [[float(row[corner]) for corner in ("x1", "y1", "x2", "y2")] for row in own]
        found = torch.tensor(corners).reshape(-1, 4)
        true = [(k, [x1 * across, y1 * down, x2 * across, y2 * down]) for k, (x1, y1, x2, y2) in
                make_boxes_scene(seed)[1]]  # fmt: skip
        overlap = box_iou(torch.tensor([box for _, box in true]), found)
        found_all += sum(
            any(float(overlap[i, j]) > 0.5 and own[j]["class"] == CLASSES[k] for j in range(len(own)))
            for i, (k, _) in enumerate(true)
        )
        assert [float(row["score"]) for row in own] == sorted((float(row["score"]) for row in own), reverse=True)
        assert all(float(row["score"]) >= 0.4 for row in own)
        with Image.open((run / "predicted_boxes" / name).with_suffix(".jpg")) as drawn:
            assert drawn.size == (round(64 * across), round(64 * down))
    assert found_all >= 0.7 * sum(len(make_boxes_scene(seed)[1]) for seed, *_ in scenes.values())
    results = json.loads((run / "predictions_coco.json").read_text())
    assert len(results) == sum(bool(row["class"]) for row in rows)
    first = next(row for row in rows if row["class"])
    assert results[0]["bbox"][2] == pytest.approx(float(first["x2"]) - float(first["x1"]), abs=0.01)
    assert {one["category_id"]: one["category"] for one in results} == {1: "square", 2: "disc"}
    assert {one["file_name"] for one in results} <= {*scenes}
    # The table is one of annotations, to correct or to learn from.
    read = DetectionDataModule(str(run / "predictions.csv"), "new", val_size=1, test_size=1, num_workers=0)
    read.setup("fit")
    assert sum(len(read.splits[name]) for name in ("labeled", "val", "test")) == 4
    counted = sum(int(read.count_objects(name).sum()) for name in ("labeled", "val", "test"))
    assert counted == len(results)


def test_programs_of_coco_judge_the_predictions_of_a_test_split(run: Path) -> None:
    assert main(["predict", str(run)]) == 0
    results = json.loads((run / "predictions_coco.json").read_text())
    assert {one["category_id"]: one["category"] for one in results} == {1: "square", 4: "disc"}
    truth = COCO("d/annotations/instances_test.json")
    judge = COCOeval_faster(truth, truth.loadRes(results), "bbox", print_function=lambda *_: None)
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    expected = read_metrics(run)["test/map"][-1]
    assert judge.stats[0] == pytest.approx(expected, abs=5e-3)  # corners are rounded and clipped


def test_a_report_shows_the_worst_images_and_a_threshold(run: Path) -> None:
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    metrics = read_metrics(run)
    objects = sum(len(make_boxes_scene(seed)[1]) for seed in range(34, 42))
    said = f"Test mean average precision: {metrics['test/map'][-1]:.3f} over IoU 0.5 to 0.95 (95% interval "
    found: Any = re.search(re.escape(said) + r"(0\.\d{3}) to ([01]\.\d{3}), by drawing images again\)", page)
    low, high = map(float, found.groups())
    assert low < metrics["test/map"][-1] < high
    assert f"by drawing images again), {metrics['test/map50'][-1]:.3f} at 0.5" in page
    assert f"on {objects} objects of 8 images." in page
    table = page[page.index("<h2>Results by class") : page.index("<h2>Threshold")]
    for k, name in enumerate(CLASSES):
        learned, tested = (
            sum(one == k for seed in seeds for one, _ in make_boxes_scene(seed)[1])
            for seeds in (range(24), range(34, 42))
        )
        cells = "".join(f"<td>{cell}</td>" for cell in (learned, tested, f"{metrics[f'test/ap_{name}'][-1]:.3f}"))
        assert f"<td>{name}</td>{cells}" in table
    assert re.search(r"At a score of 0\.\d\d, the F1 of the validation split at an IoU of 0.5 is largest", page)
    worst = page[page.index("<h2>Worst images") : page.index("<h2>Training curves")]
    shown = [float(value) for value in re.findall(r"<div>F1 (\d\.\d+)</div>", worst)]
    assert len(shown) == 8
    assert shown == sorted(shown)
    assert worst.count("<img") == 16


def test_exports_find_the_same_boxes_and_start_other_runs(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["export", str(run), "--format=onnx"]) == 0
    metadata = json.loads((run / "model.onnx.json").read_text())
    assert metadata["parity"]["images"] == 8
    assert metadata["parity"]["largest_difference"] < 1e-3
    assert metadata["class_names"] == CLASSES
    opened = LoadedRun(str(run))
    model: Any = opened.cli.model
    model.load_state_dict(read_weights(opened.checkpoint)[0])
    x: Any = opened.data.inputs_of("test", [3])
    with torch.no_grad():
        found = model.eval()(x)
    session = onnxruntime.InferenceSession(str(run / "model.onnx"), providers=["CPUExecutionProvider"])
    boxes, scores, classes = session.run(None, {"images": (x * 255).round().to(torch.uint8).numpy()})
    np.testing.assert_allclose(boxes, found.boxes[0].numpy(), atol=0.05)
    np.testing.assert_allclose(scores, found.scores[0].numpy(), atol=1e-3)
    assert classes.tolist() == found.classes[0].tolist()
    card = (run / "model_card.md").read_text()
    values = read_metrics(run)
    assert f"| mean average precision, IoU 0.5 to 0.95 | {values['test/map'][-1]:.4f} |" in card
    assert f"| average precision of {CLASSES[1]} | {values[f'test/ap_{CLASSES[1]}'][-1]:.4f} |" in card
    assert "on the 8 images of the test split" in card
    assert "- splits: 24 labeled, 4 unlabeled, 6 val, 8 test (`split.csv`); unlabeled images were not looked at" in card
    assert "FineTuneDetector on `resnet8`, last iterate (step 48)." in card
    for title in ("Intended use", "Data", "Training", "Limits", "License"):
        assert f"## {title}\n" in card
    # The code of the card finds objects of a file.
    Image.fromarray(make_boxes_scene(50)[0]).save(run / "image.png")
    (code,) = re.findall(r"```python\n(.*?)```", (run / "model_card.md").read_text(), re.DOTALL)
    shown = subprocess.run([sys.executable, "-c", code], cwd=run, capture_output=True, text=True, check=True).stdout
    assert shown.split()[0] in CLASSES
    assert main(["export", str(run)]) == 0
    assert main(["export", str(run), "--part=backbone"]) == 0
    for part in ("model", "backbone"):
        words = [*FIT, f"--model.weights={run / part}.safetensors", f"--run_name={part}", "--trainer.max_epochs=1"]
        words += ["--trainer.limit_train_batches=1", "--model.optimizer.lr=0", "--data.class_names=[disc,cat,square]"]
        caplog.clear()
        assert main(["fit", *words, "--trainer.limit_val_batches=0"]) == 0
        assert ("The detector of the weights was taken over, too; rows of new classes start anew: 'cat'" in caplog.text
                ) == (part == "model")  # fmt: skip
        ours, theirs = (read_weights(Path(at) / "checkpoints/last.ckpt")[0]
                        for at in (run, Path(f"lightning_logs/{part}/version_0")))  # fmt: skip
        assert all(torch.equal(ours[n], theirs[n]) for n in ours if n.startswith("backbone.") and n.endswith("weight"))
        name = "head.detector.head.classification_head.module_list.0.1.bias"
        # Six default boxes with the background, and then the classes: disc, cat, square here, square, disc there.
        same = torch.equal(theirs[name].view(6, 4)[:, [0, 3, 1]], ours[name].view(6, 3))
        assert same == (part == "model")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--format=pt2"], "number of boxes cannot depend on the image: give --format onnx"),
        (["--part=head"], "of detectors the model is written"),
        (["--wise=0.5"], "wise is set, which is not written for detectors"),
    ],
)
def test_what_is_not_exported(words: list[str], expected: str, run: Path, cli_error: Callable[..., str]) -> None:
    assert expected in cli_error("export", str(run), *words)


def test_other_data_and_classes_are_refused(run: Path, cli_error: Callable[..., str]) -> None:
    images = ["--data=ImageDataModule", "--data.source=sample"]
    assert "learns boxes of objects, which ImageDataModule does not give" in cli_error(
        "fit", "--model=FineTuneDetector", *NETWORK, *images
    )
    classifier = ["--model=FineTuneClassifier", *DATA, *[w for w in NETWORK if "detector" not in w]]
    assert "DetectionDataModule" in cli_error("fit", *classifier) or "boxes" in cli_error("fit", *classifier)
    message = cli_error("test", str(run), "--data.class_names=[disc,square]")
    assert "another order" in message or "class_names" in message
    assert "drawn_score is 3.0" in cli_error("fit", *FIT, "--model.drawn_score=3")


def test_a_plain_trainer_learns_boxes(run: Path) -> None:
    data = DetectionDataModule("d", image_size=64, batch_size=4, num_workers=0)
    model = FineTuneDetector(
        "resnet8", 2, data.input_spec, detector="ssdlite", optimizer=lambda p: torch.optim.SGD(p, 0.01)
    )
    groups = {group.name: len(group.parameters) for group in model.groups()}
    assert set(groups) == {"head", "backbone"}
    tuned = FineTuneDetector("resnet8", 2, data.input_spec, detector="ssdlite", tune="last_k_blocks", layer_decay=0.5,
                             backbone_lr_scale=0.2, last_k_blocks=2)  # fmt: skip
    assert [group.scale for group in tuned.groups()] == pytest.approx([1, 0.1, 0.05])
    frozen = FineTuneDetector("resnet8", 2, data.input_spec, detector="ssdlite", tune="head")
    assert not any(p.requires_grad for p in frozen.backbone.parameters())


def test_commands_of_classes_refuse_detectors(run: Path, cli_error: Callable[..., str]) -> None:
    assert "degree takes classes of examples, and DetectionDataModule gives boxes" in cli_error("degree", *FIT)
    words = ["rank", "--data=ImageDataModule", "--data.source=sample", f"--candidates=[{{weights: {run}}}]"]
    assert "finds objects, and classes of examples are needed" in cli_error(*words)
    teacher = ["--model=DistillModule", f"--model.teacher={run}", "--data=ImageDataModule", "--data.source=sample"]
    assert "finds objects, and classes of examples are needed" in cli_error(
        "fit", *teacher, "--model.backbone=resnet8", "--model.optimizer=Adam", "--data.num_labels=20"
    )

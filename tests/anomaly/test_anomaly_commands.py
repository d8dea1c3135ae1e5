"""Anomaly detection by the four commands: layouts, masks, heat maps, threshold, resuming and refusals."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sft_lightning import AnomalyDataModule, AnomalyDetector, ImageDataModule
from sft_lightning.__main__ import main
from sft_lightning.anomaly import PaDiM
from sft_lightning.data.batches import Labeled
from sft_lightning.data.vision.images import Geometry
from sft_lightning.networks.vision.backbones import build_backbone
from sft_lightning.networks.weights import write_weights
from sft_lightning.training.callbacks.vision.heat_maps import lay_heat_over
from sft_lightning.utils.errors import InputError
from tests.conftest import CONFIGS
from tests.defects import make_texture, write_textures
from tests.paradigms.helpers import moved, trainer

MVTEC = {"train/good": 24, "test/good": 8, "test/spot": 6, "test/scratch": 5}
FIT = ["--model=AnomalyDetector", "--model.backbone=resnet8", "--model.strides=[4]", "--data=AnomalyDataModule"]
FIT += ["--data.source=d", "--data.image_size=32", "--data.batch_size=4", "--trainer.accelerator=cpu"]
FIT += ["--trainer.enable_progress_bar=false", "--trainer.logger=true"]


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_metrics(run: Path) -> dict[str, float]:
    return {row["metric"]: float(row["value"]) for row in read_rows(run / "metrics.csv")}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data as MVTec AD has it, and a run of PatchCore on it."""
    folder = tmp_path_factory.mktemp("anomaly")
    write_textures(folder / "d", MVTEC, masks=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", *FIT, "--data.val_size=8", "--model.false_alarm_rate=0.2", "--run_name=mine"]) == 0
    return folder


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    return Path("lightning_logs/mine/version_0")


def test_fit_and_test_measure_images_and_pixels(run: Path) -> None:
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    assert main(["test", str(run)]) == 0
    values = read_metrics(run)
    assert values["test/auroc"] > 0.9
    assert values["test/pixel_auroc"] > 0.8
    assert values["test/pro"] > 0.5
    assert {"test/average_precision", "test/auroc_spot", "test/detection_rate_scratch"} <= values.keys()
    assert values["test/expected_false_alarm_rate"] == pytest.approx(1 / 9)  # 8 held out: the second largest at most
    rows = read_rows_of_split(run)
    kinds = {split: {row["label"] for row in rows if row["split"] == split} for split in ("labeled", "val", "test")}
    assert kinds == {"labeled": {"good"}, "val": {"good"}, "test": {"good", "spot", "scratch"}}
    assert main(["validate", str(run)]) == 0
    again = read_metrics(run)
    assert again["val/threshold"] == values["test/threshold"]
    assert again["val/false_alarm_rate"] <= 0.2


def read_rows_of_split(run: Path) -> list[dict[str, str]]:
    with (run / "split.csv").open(newline="") as file:
        next(file)
        return list(csv.DictReader(file))


def test_predict_writes_scores_and_heat_maps_of_the_size_of_the_image(run: Path) -> None:
    new = Path("new/sub")
    new.mkdir(parents=True, exist_ok=True)
    for name, kind in (("a.png", "good"), ("b.png", "spot")):
        image, mask = make_texture(77, kind, 48)
        Image.fromarray(image[:, :40]).save(new / name)
    assert main(["predict", str(run), "new"]) == 0
    good, bad = read_rows(run / "predictions.csv")
    assert (good["path"], bad["path"]) == ("sub/a.png", "sub/b.png")
    assert [*good] == ["path", "score", "is_defect", "threshold", "heat_map"]
    assert float(bad["score"]) > float(good["score"])
    assert bad["is_defect"] == ("yes" if float(bad["score"]) > float(bad["threshold"]) else "no")
    with Image.open(run / bad["heat_map"]) as overlay, Image.open(new / "b.png") as original:
        assert overlay.size == original.size == (40, 48)
        change = np.abs(np.asarray(overlay, dtype=float) - np.asarray(original, dtype=float)).max(2)
    assert change[mask[:, :40] > 0].mean() > 1.5 * change[mask[:, :40] == 0].mean()
    # Another rate is another threshold of the same scores.
    assert main(["predict", str(run), "new", "--model.false_alarm_rate=0.6"]) == 0
    again = read_rows(run / "predictions.csv")
    assert [row["score"] for row in again] == [good["score"], bad["score"]]
    assert float(again[0]["threshold"]) < float(good["threshold"])
    assert main(["predict", str(run)]) == 0  # the test split: another source, and another folder
    rows = read_rows(run / "predictions.csv")
    assert len(rows) == 19
    assert all(row["heat_map"].startswith("heat_maps_1/") for row in rows)


def test_a_report_shows_scores_and_what_was_missed(run: Path) -> None:
    assert main(["test", str(run)]) == 0
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    tested = dict(reversed([*read_metrics(run).items()]))
    assert f"of 11 defective images are found, with an alarm for {tested['test/false_alarm_rate']:.1%} of 8" in page
    assert f"the AUROC is {tested['test/auroc']:.3f}" in page
    assert f"AUROC of places {tested['test/pixel_auroc']:.3f}, PRO up to 30% of false places" in page
    assert "false alarms are expected for 11.1% of normal examples" in page
    assert "Colors begin (yellow) at the highest place of a typical held-out normal example, and end (red)" in page
    for title in ("Results by kind", "Highest scores", "Missed defects", "False alarms", "Provenance"):
        assert f"<h2>{title}</h2>" in page
    found = round(tested["test/detection_rate"] * 11)
    assert page.count('<img class="example"' if '<img class="example"' in page else "data:image/png") >= min(6, found)


def test_predictions_need_no_training_data(run: Path, tmp_path: Path) -> None:
    write_textures(tmp_path, {"x": 2})
    Path("d").rename("elsewhere")
    try:
        assert main(["predict", str(run), str(tmp_path / "x")]) == 0
        assert len(read_rows(run / "predictions.csv")) == 2
    finally:
        Path("elsewhere").rename("d")


def test_a_resumed_run_ends_the_same_to_the_bit(run: Path) -> None:
    words = [*FIT, "--data.val_size=8", "--model.false_alarm_rate=0.2"]
    assert main(["fit", *words, "--run_name=again"]) == 0
    other = Path("lightning_logs/again/version_0")
    first, second = (load(one) for one in (run, other))
    assert not moved(first, second)
    assert main(["fit", *words, "--run_name=again", "--ckpt_path=last"]) == 0
    assert not moved(first, load(other))
    assert {"method.bank", "alarm.normal_scores", "alarm.normal_peaks"} <= first.keys()
    assert main(["fit", *words, "--run_name=again", "--data.seed=1"]) == 0
    assert moved({"bank": first["method.bank"]}, {"bank": load(Path("lightning_logs/again/version_1"))["method.bank"]})


def load(run: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return state


def test_padim_and_folders_without_splits(workdir: Path) -> None:
    write_textures(Path("d"), {"normal": 40, "spot": 6}, masks=True)
    words = [*FIT, "--model.method=PaDiM", "--model.method.dimensions=8", "--model.strides=null"]
    words[2:3] = []  # maps of all strides, of which resnet8 has one
    assert main(["fit", *words, "--model.strides=[4]", "--data.val_size=10", "--run_name=mine"]) == 0
    run = Path("lightning_logs/mine/version_0")
    assert main(["test", str(run)]) == 0
    values = read_metrics(run)
    assert values["test/auroc"] > 0.8
    assert values["test/pro"] > 0.3
    rows = read_rows_of_split(run)
    assert [sum(row["split"] == name for row in rows) for name in ("labeled", "val", "test")] == [22, 10, 14]


def module(source: Path, **settings: Any) -> AnomalyDataModule:
    data = AnomalyDataModule(str(source), **{"image_size": 32, "batch_size": 4, "num_workers": 0, **settings})
    data.setup("fit")
    return data


def count(data: AnomalyDataModule) -> dict[str, list[int]]:
    return {name: torch.bincount(split.labels + 1, minlength=2).tolist() for name, split in data.splits.items()}


def test_layouts(tmp_path: Path) -> None:
    plain = module(write_textures(tmp_path / "a", {"nominal": 20, "bent": 3, "cut": 4}))
    assert plain.class_names == ["nominal", "bent", "cut"]
    assert count(plain) == {"labeled": [0, 13], "unlabeled": [0, 0], "val": [0, 3], "test": [0, 4, 3, 4]}
    named = module(tmp_path / "a", normal_class="cut", val_size=1, test_size=1)
    assert named.class_names == ["cut", "bent", "nominal"]
    assert count(named)["labeled"] == [0, 2]
    assert count(named)["test"] == [0, 1, 3, 20]
    # Defects in a training split beside a test split are left out, and those of a validation split are kept.
    counts = {"train/good": 9, "train/bent": 2, "val/good": 4, "val/cut": 2, "test/good": 3, "test/bent": 3}
    own = module(write_textures(tmp_path / "b", {**counts, "unlabeled": 5}))
    assert count(own) == {"labeled": [0, 9], "unlabeled": [5, 0], "val": [0, 4, 0, 2], "test": [0, 3, 3]}
    assert any("2 defective training examples are left out" in str(one) for one in own.request.findings)
    assert own.normal_splits == ("labeled",)
    assert module(tmp_path / "b", unlabeled_as_normal=True).normal_splits == ("labeled", "unlabeled")
    few = module(tmp_path / "b", num_labels=4)
    assert count(few)["labeled"] == [0, 4]
    # Classification of the same folder reads no masks.
    classes = ImageDataModule(str(write_textures(tmp_path / "e", {"good": 4, "spot": 4}, masks=True)), image_size=32)
    classes.setup("fit")
    assert classes.class_names == ["good", "spot"]
    assert any("are not read: AnomalyDataModule does" in str(one) for one in classes.request.findings)
    # A table, whose defects need no training line.
    write_textures(tmp_path / "c", {"x/good": 10, "x/spot": 3}, masks=True)
    lines = [f"x/good/{k:03}.png,ok,,{'train' if k < 7 else 'test'}" for k in range(10)]
    lines += [f"x/spot/{k:03}.png,spot,{f'ground_truth/spot/{k:03}_mask.png' if k else ''},test" for k in range(3)]
    (tmp_path / "c" / "t.csv").write_text("\n".join(["path,label,mask,split", *lines]))
    table = module(tmp_path / "c" / "t.csv", val_size=2)
    assert count(table) == {"labeled": [0, 5], "unlabeled": [0, 0], "val": [0, 2], "test": [0, 3, 3]}
    (batch, *_) = [table.on_after_batch_transfer(raw, 0) for raw in table.test_dataloader()][-1:]
    assert batch.y.tolist() == [1, 1]
    assert all(bool((mask == 1).any()) and bool((mask == 0).any()) for mask in batch.mask)


def test_masks_follow_their_images(tmp_path: Path) -> None:
    write_textures(tmp_path / "d", {"train/good": 4, "test/good": 2, "test/spot": 2}, masks=True, size=40)
    for path in (tmp_path / "d" / "test" / "good").iterdir():
        with Image.open(path) as image:
            wide = image.resize((40, 20))
        wide.save(path)
    (tmp_path / "d/ground_truth/spot/000_mask.png").unlink()
    data = module(tmp_path / "d", resize="pad", val_size=1)
    batches = [data.on_after_batch_transfer(raw, 0) for raw in data.test_dataloader()]
    masks = {name: mask for b in batches for name, mask in zip(b.indices.tolist(), b.mask, strict=True)}
    ids = data.splits["test"].ids
    by_name = {ids[i]: mask for i, mask in masks.items()}
    assert by_name["test/good/000.png"].unique().tolist() == [-1, 0]  # beside the image, nothing is known
    assert (by_name["test/good/000.png"][8:24] == 0).all()
    assert (by_name["test/spot/000.png"] == -1).all()
    assert any("1 images have no mask beside others" in str(one) for one in data.request.findings)
    with Image.open(tmp_path / "d/ground_truth/spot/001_mask.png") as file:
        expected = np.asarray(file.resize((32, 32), Image.Resampling.NEAREST)) > 0
    assert (by_name["test/spot/001.png"].numpy() == 1).mean() == pytest.approx(expected.mean(), abs=0.01)
    assert ((by_name["test/spot/001.png"].numpy() == 1) == expected).mean() > 0.98


def test_unlabeled_examples_are_learned_only_when_asked(tmp_path: Path) -> None:
    folder = write_textures(tmp_path / "d", {"train/good": 8, "unlabeled": 5, "test/good": 3, "test/spot": 3})
    sizes = {}
    for asked in (False, True):
        data = AnomalyDataModule(str(folder), image_size=32, num_workers=0, val_size=2, unlabeled_as_normal=asked)
        model = AnomalyDetector(backbone="resnet8", input_spec=data.input_spec, strides=[4])
        trainer().fit(model, data)
        sizes[asked] = len(model.method.state_dict()["bank"])
    assert sizes == {False: round(0.1 * 6 * 64), True: round(0.1 * 11 * 64)}


def test_the_threshold_comes_from_the_held_out_images(run: Path) -> None:
    model = AnomalyDetector(backbone="resnet8", input_spec=(3, 32, 32), strides=[4])
    model.load_state_dict(load(run))
    names = [row["id"] for row in read_rows_of_split(run) if row["split"] == "val"]
    pixels = [torch.from_numpy(np.asarray(Image.open(Path("d") / name))).permute(2, 0, 1) / 255 for name in names]
    with torch.no_grad():
        scores = model.eval()(torch.stack(pixels)).example.double().sort().values
    torch.testing.assert_close(model.alarm.normal_scores, scores, rtol=1e-4, atol=1e-6)


def test_scores_that_are_not_numbers_are_refused(run: Path) -> None:
    model = AnomalyDetector(backbone="resnet8", input_spec=(3, 32, 32), strides=[4])
    model.load_state_dict(load(run))
    batch = Labeled(torch.rand(3, 3, 32, 32), torch.zeros(3, dtype=torch.int64), torch.arange(3))
    assert model.eval().predict_step(batch, 0)["score"].shape == (3,)
    batch.x[1] = torch.nan
    with pytest.raises(InputError, match="1 examples of a batch have scores that are NaN or infinite"):
        model.predict_step(batch, 0)


def test_heat_lies_where_scores_are_high() -> None:
    image = Image.new("RGB", (30, 20), (100, 100, 100))
    scores = torch.full((16, 16), 0.95)  # below the highest place of a typical normal image
    scores[:, 8:] = 2.0
    made = np.asarray(lay_heat_over(image, scores, Geometry(16, resize="squash").box(30, 20, None)), dtype=float)
    assert made.shape == (20, 30, 3)
    assert (made[:, :13] == 100).all()
    assert made[:, 18:, 0].min() > 150
    assert made[:, 18:, 1].max() < 40


def test_refusals(workdir: Path, cli_error: Callable[..., str]) -> None:
    write_textures(Path("d"), {"normal": 12, "spot": 2}, masks=True)
    assert "source 'd' has the classes" in cli_error("fit", *FIT, "--data.normal_class=good")
    write_textures(Path("e"), {"a": 2, "b": 2})
    assert "none is named normal or good: set normal_class" in cli_error("fit", *FIT, "--data.source=e")
    assert "none of 16: choose among these" in cli_error("fit", *FIT, "--model.strides=[16]")
    assert "limit_val_batches is 0" in cli_error("fit", *FIT, "--trainer.limit_val_batches=0")
    assert "validation has no normal example" in cli_error("fit", *FIT, "--data.val_size=0")
    assert "false_alarm_rate is 0.0: give a share" in cli_error("fit", *FIT, "--model.false_alarm_rate=0")
    assert "resize" in cli_error("fit", *FIT, "--data.resize=crop")
    other = [word.replace("AnomalyDataModule", "ImageDataModule") for word in FIT]
    sentence = cli_error("fit", *other)
    assert "ImageDataModule does not tell from others: set data to AnomalyDataModule" in sentence
    classify = ["--model=FineTuneClassifier", "--model.backbone=resnet8", "--model.optimizer=SGD", *FIT[3:]]
    assert "labels of normal examples alone" in cli_error("fit", *classify)
    frozen = ["--model=FrozenFeatureClassifier", "--model.backbone=resnet8", *FIT[3:]]
    assert "labels of normal examples alone" in cli_error("fit", *frozen)
    Image.new("L", (32, 32)).save("d/ground_truth/spot/lost_mask.png")
    assert "mask 'd/ground_truth/spot/lost_mask.png' belongs to no image" in cli_error("fit", *FIT)
    Path("d/ground_truth/spot/lost_mask.png").unlink()
    Image.new("L", (30, 32)).save("d/ground_truth/spot/000_mask.png")
    assert "30 x 32 pixels, and the image 32 x 32" in cli_error("fit", *FIT)
    with pytest.raises(InputError, match="method is 'PatchCore': give an object"):
        AnomalyDetector("PatchCore")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="PaDiM is not fitted"):
        AnomalyDetector(PaDiM(), "resnet8", (3, 32, 32), strides=[4])(torch.zeros(1, 3, 32, 32))


def test_other_commands_say_what_they_need(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["export", str(run)], ["export", str(run), "--part=backbone"], ["audit", *FIT], ["degree", *FIT]):
        capsys.readouterr()
        assert main(words) == 2, words
        error = capsys.readouterr().err
        assert "Traceback" not in error
        assert "normal images alone" in error or "AnomalyDetector" in error, error
        assert ("finds defects by what it knows of normal examples" in error) == (words[0] == "export")


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(path, marks=[] if "patchcore" in path.stem else pytest.mark.slow)
        for path in sorted((CONFIGS / "anomaly").glob("*.yaml"))
    ],
    ids=lambda path: path.stem,
)
def test_shipped_configs_run_the_four_commands(config: Path, workdir: Path) -> None:
    write_textures(Path("my_parts"), {"normal": 10, "spot": 2}, size=64)
    words = ["--config", str(config), "--model.init_args.weights=none", "--data.init_args.image_size=64"]
    if config.stem == "defects_student_teacher":
        backbone, _ = build_backbone("resnet18", (3, 64, 64))
        write_weights(Path("teacher.safetensors"), backbone.state_dict(), backbone.describe())
        words[2] = "--model.init_args.weights=teacher.safetensors"
        words += ["--trainer.max_epochs=1"]  # before the first validation
    words += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    assert main(["fit", *words]) == 0
    run = Path("lightning_logs/anomaly") / config.stem.removeprefix("defects_") / "version_0"
    for command in ("validate", "test", "predict"):
        assert main([command, str(run)]) == 0
    assert len(read_rows(run / "predictions.csv")) == 4
    assert {"fit.yaml", "test.yaml", "predict.yaml"} <= {path.name for path in run.glob("*.yaml")}
    assert all(f"{word}:" in config.read_text() for word in ("Hardware", "Expect", "Time"))

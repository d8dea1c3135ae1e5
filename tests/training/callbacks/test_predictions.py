import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from safetensors import safe_open
from scipy.optimize import minimize
from torch.nn import functional as F

from sft_lightning.__main__ import main
from sft_lightning.cli.lightning_cli import run as run_command
from sft_lightning.data.batches import Labeled
from sft_lightning.runs.lineage import hash_file
from sft_lightning.training.callbacks.predictions import PredictionWriter
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import InputSpec
from tests.conftest import CONFIGS
from tests.doubles import FakeData
from tests.forks import both_ranks
from tests.paradigms.helpers import SHAPE, batches, classifier, cli, trainer

FINE_TUNE = str(CONFIGS / "quickstart" / "fine_tune.yaml")
CALIBRATION = "calibration.safetensors"
SMALL = ["--data.init_args.image_size=28", "--data.init_args.channels=1", "--data.init_args.num_workers=0"]
NAMES = ["class_0", "class_1", "class_2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, write_folder: Callable[..., Path]) -> Path:
    """Return a folder with `images/`, `new/` and the run of a classifier of three classes (60 validation images)."""
    place = tmp_path_factory.mktemp("trained")
    write_folder(place / "images", {"train": 30, "val": 20, "test": 3, "new": 4})
    (place / "images" / "new").rename(place / "new")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        words = ["--data.init_args.source=images", "--data.init_args.num_labels=null", "--trainer.max_epochs=8"]
        words += ["--data.init_args.steps_per_epoch=null", "--data.init_args.batch_size=30", "--run_name=a", *SMALL]
        assert main(["fit", "--config", FINE_TUNE, *words]) == 0
    return place


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


RUN = "lightning_logs/a/version_0"


def read_predictions(run: str | Path = RUN) -> list[dict[str, str]]:
    with (Path(run) / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def get_probabilities(rows: list[dict[str, str]]) -> torch.Tensor:
    return torch.tensor([[float(v) for name, v in row.items() if name.startswith("p(")] for row in rows])


def test_predictions_have_the_documented_columns_and_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = cli("fit", "fine_tune", "--run_name=a")
    folder = Path("lightning_logs", "a", "version_0")
    data = cli("predict", "fine_tune", "--run_name=a", f"--ckpt_path={folder}").datamodule
    rows = list(csv.reader((folder / "predictions.csv").open()))
    names = run.model.class_names
    assert rows[0] == ["path", "predicted", *[f"p({n})" for n in names], "distance_percentile", "unlike_training"]
    assert [row[0] for row in rows[1:]] == data.splits["test"].ids
    for row in rows[1:]:
        p = [float(v) for v in row[2:12]]
        assert sum(p) == pytest.approx(1, abs=1e-5)
        assert row[1] == names[p.index(max(p))]
        assert (row[13] == "yes") is (float(row[12]) > 0.99)
    assert not list(folder.glob("*.rank*"))


def test_plain_loaders_produce_positions_instead_of_paths(tmp_path: Path) -> None:
    given = [Labeled(torch.rand(2, *SHAPE), torch.tensor([-1, -1]), torch.tensor([k, k + 1])) for k in (0, 2)]
    trainer([PredictionWriter(tmp_path / "new")]).predict(classifier(), batches(*given), return_predictions=False)
    rows = list(csv.reader((tmp_path / "new" / "predictions.csv").open()))
    assert [row[0] for row in rows] == ["path", "0", "1", "2", "3"]


# --- what is predicted


def test_short_and_long_form_of_predict_write_the_same_file(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["predict", "--ckpt_path", RUN, "--data.init_args.predict_source", "new"]) == 0
    long = (place / RUN / "predictions.csv").read_bytes()
    assert (
        main(["predict", RUN, "new", "--trainer.limit_predict_batches=9", "--data.init_args.eval_batch_size", "5"]) == 0
    )
    short = [row["path"] for row in read_predictions()]
    assert short == [
        f"class_{c}/{name}" for c in range(3) for name in sorted(p.name for p in Path("new", f"class_{c}").iterdir())
    ]
    assert main(["predict", f"{RUN}/checkpoints/last.ckpt", "new"]) == 0
    assert (place / RUN / "predictions.csv").read_bytes() == long
    assert "predictions.csv: 12 images" in caplog.text
    assert main(["predict", RUN]) == 0
    assert [row["path"].split("/")[0] for row in read_predictions()] == ["test"] * 9


def test_predictions_of_other_sources_and_checkpoints_are_kept(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = Path(RUN)

    def read_provenance(name: str = "predictions") -> tuple[str, str]:
        metadata = json.loads((folder / f"{name}.json").read_text())
        return metadata["source"], metadata["checkpoint_sha256"]

    last = hash_file(folder / "checkpoints" / "last.ckpt")
    new, own = str(place / "new"), f"test split of {place / 'images'}"
    assert main(["predict", RUN, "new"]) == 0
    first = (folder / "predictions.csv").read_bytes()
    (folder / "predictions.csv").write_bytes(first + b"more")
    assert main(["predict", RUN, new]) == 0  # of the same source by the same checkpoint
    assert (folder / "predictions.csv").read_bytes() == first
    assert read_provenance() == (new, last)
    assert "are kept" not in caplog.text
    for _ in range(2):  # there and back, without an ever higher number
        assert main(["predict", RUN]) == 0
        assert read_provenance() == (own, last)
        assert read_provenance("predictions_1") == (new, last)
        assert (folder / "predictions_1.csv").read_bytes() == first
        assert f"those of {new!r} are kept as {folder / 'predictions_1.csv'}." in caplog.text
        assert main(["predict", RUN, "new"]) == 0
        assert read_provenance("predictions_2") == (own, last)
    os.utime("new")
    other = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    other["state_dict"]["head.bias"] += 1
    torch.save(other, folder / "checkpoints" / "last.ckpt")
    assert main(["predict", RUN, "new"]) == 0
    assert read_provenance()[1] == hash_file(folder / "checkpoints" / "last.ckpt") != last
    assert (folder / "predictions_1.csv").read_bytes() == first
    (folder / "predictions.json").unlink()  # as an earlier version left it
    before = (folder / "predictions.csv").read_bytes()
    assert main(["predict", RUN]) == 0
    assert (folder / "predictions_3.csv").read_bytes() == before
    assert "those that were there are kept" in caplog.text


def test_csv_cells_cannot_run_as_spreadsheet_formulas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_folder: Callable[..., Path]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(Path("images"), {"train": 30, "val": 20, "test": 3})
    for split in ("train", "val", "test"):
        Path("images", split, "class_0").rename(Path("images", split, "=cmd()"))
    Path("new").mkdir()
    shutil.copy(next(Path("images/test/class_1").iterdir()), "new/+1.png")
    words = ["--data.init_args.source=images", "--data.init_args.num_labels=null", "--trainer.max_epochs=1"]
    words += ["--data.init_args.steps_per_epoch=1", "--data.init_args.batch_size=30", "--run_name=a", *SMALL]
    assert main(["fit", "--config", FINE_TUNE, *words]) == 0
    assert main(["predict", RUN, "new"]) == 0
    (row,) = read_predictions()
    assert list(row)[:5] == ["path", "predicted", "p(=cmd())", "p(class_1)", "p(class_2)"]
    assert row["path"] == "'+1.png"
    shutil.copy(f"{RUN}/predictions.csv", "new/again.csv")  # is read back
    assert main(["predict", RUN, "new/again.csv"]) == 0
    (again,) = read_predictions()
    assert again == row


def test_single_files_csv_and_parquet_tables_are_predicted(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["predict", RUN, "new"]) == 0
    whole = {row["path"]: row for row in read_predictions()}
    few = [list(whole)[k] for k in (7, 2)]
    Path("few.csv").write_text("label,path\n" + "".join(f"?,new/{name}\n" for name in few))
    parquet.write_table(pa.table({"path": [f"new/{name}" for name in few]}), "few.parquet")
    for source in ("few.csv", "few.parquet"):
        assert main(["predict", RUN, source]) == 0
        rows = read_predictions()
        assert [row["path"] for row in rows] == [f"new/{name}" for name in few]
        torch.testing.assert_close(
            get_probabilities(rows), get_probabilities([whole[name] for name in few]), atol=2e-6, rtol=0
        )
    assert main(["predict", RUN, f"new/{few[0]}", "--trainer.precision", "bf16-mixed"]) == 0
    (row,) = read_predictions()
    assert row["path"] == Path(few[0]).name
    assert "predictions.csv: 1 image" in caplog.text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([RUN, "empty"], "predict_source 'empty' holds no image"),
        ([RUN, "nowhere"], "predict_source 'nowhere' is neither a folder"),
        ([RUN, "notes.txt"], "predict_source 'notes.txt' cannot be read as an image (it is not an image"),
        ([RUN, "bad.csv"], "manifest 'bad.csv' lacks the column 'path'"),
        ([RUN, "gone.csv"], "manifest 'gone.csv', line 3: file 'gone.png' does not exist"),
        (
            [RUN, "new", "more", "--seed_everything=1"],
            "'more' is one word too many: give sft-lightning predict",
        ),
        ([RUN, "new", "--ckpt_path=b"], f"predict is given both '{RUN}' and --ckpt_path: give one of them"),
        ([RUN, "new", "--data.init_args.predict_source", "x"], "given both 'new' and --data.init_args.predict_source"),
        (["nowhere", "new"], "ckpt_path 'nowhere' is neither a checkpoint nor a run"),
        (["new", "new"], "ckpt_path 'new' is neither a checkpoint nor a run"),
        (["alone.ckpt", "new"], "ckpt_path 'alone.ckpt' has no fit.yaml beside its checkpoints: add --config"),
    ],
)
def test_invalid_sources_are_reported_in_one_sentence(
    words: list[str], expected: str, place: Path, cli_error: Callable[..., str]
) -> None:
    Path("empty").mkdir()
    Path("notes.txt").write_text("words")
    Path("bad.csv").write_text("file\na.png\n")
    some = next(Path("new").rglob("*.png"))
    Path("alone.ckpt").touch()
    Path("gone.csv").write_text(f"path\n{some}\ngone.png\n")
    assert expected in cli_error("predict", *words)


def test_unreadable_image_is_refused_or_skipped(place: Path, cli_error: Callable[..., str]) -> None:
    bad = sorted(Path("new").rglob("*.png"))[5]
    bad.write_bytes(b"not an image")
    few = "--data.init_args.eval_batch_size=2"
    assert f"file '{bad}' cannot be read" in cli_error("predict", RUN, "new", few)
    assert main(["predict", RUN, "new", few, "--data.init_args.on_bad_image=skip"]) == 0
    assert len(read_predictions()) == 11
    assert bad.relative_to("new").as_posix() not in {row["path"] for row in read_predictions()}
    skipped = Path(RUN, "skipped_images.txt").read_text()
    assert [line.split("\t")[0] for line in skipped.splitlines()] == [str(bad)]
    # Earlier predictions stay if a later command fails.
    before = Path(RUN, "predictions.csv").read_bytes()
    assert main(["predict", RUN, "new", few]) == 2
    assert Path(RUN, "predictions.csv").read_bytes() == before
    assert [p.name for p in Path(RUN).glob("predictions*.csv*")] == ["predictions.csv"]


def test_table_is_empty_if_every_image_is_unreadable(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    for path in Path("new").rglob("*.png"):
        path.write_bytes(b"not an image")
    assert main(["predict", RUN, "new", "--data.init_args.on_bad_image=skip"]) == 0
    assert Path(RUN, "predictions.csv").read_text() == "path\n"
    assert "predictions.csv: 0 images" in caplog.text


def test_full_disk_is_reported(place: Path, cli_error: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self, *_: object) -> None:
            """Takes the file."""

        def writerow(self, row: object) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(csv, "writer", Full)
    assert "predictions.csv' cannot be written (No space left on device): free space" in cli_error(
        "predict", RUN, "new"
    )


def test_undecodable_names_are_escaped_and_others_kept(place: Path) -> None:
    some = next(Path("new").rglob("*.png"))
    odd = b'new/caf\xe9, "x"\n.png'
    shutil.copy(some, odd.decode("utf-8", "surrogateescape"))
    assert main(["predict", RUN, "new"]) == 0
    with Path(RUN, "predictions.csv").open(newline="", encoding="utf-8") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    assert 'caf\\xe9, "x"\n.png' in paths


# --- calibration


def compute_logits(run: str, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and labels of a split from the run's last checkpoint."""
    words = ["--config", f"{RUN}/fit.yaml", f"--ckpt_path={run}", "--trainer.enable_progress_bar=false"]
    done = run_command(["validate", *words])
    seen = list(done.datamodule.batches_of(split, torch.device("cpu")))
    with torch.no_grad():
        return torch.cat([done.model.eval()(b.x) for b in seen]), torch.cat([b.y for b in seen])


def test_probabilities_are_calibrated_on_the_validation_split(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    x, y = compute_logits(RUN, "val")
    best = minimize(lambda t: float(F.cross_entropy(x / float(np.exp(t[0])), y)), [0.0], method="Nelder-Mead")
    t = float(np.exp(best.x[0]))
    assert not 0.9 < t < 1.1
    caplog.clear()
    assert main(["predict", RUN]) == 0
    assert f"Calibrated on 60 validation examples: temperature {t:.2f}." in caplog.text
    test, _ = compute_logits(RUN, "test")
    torch.testing.assert_close(get_probabilities(read_predictions()), (test / t).softmax(1), atol=1e-3, rtol=0)
    assert [row["predicted"] for row in read_predictions()] == [NAMES[k] for k in test.argmax(1).tolist()]


def test_calibration_is_stored_for_its_checkpoint_only(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["predict", RUN, "new"]) == 0
    rows, kept = read_predictions(), Path(RUN, CALIBRATION).read_bytes()
    with safe_open(Path(RUN, CALIBRATION), framework="pt") as file:
        assert hash_file(Path(RUN, "checkpoints", "last.ckpt")) in file.metadata()["sft_lightning"]
        assert file.get_tensor("bank").shape == (90, 32)
    Path("images").rename("elsewhere")  # what is kept needs no data
    caplog.clear()
    assert main(["predict", RUN, "new"]) == 0
    assert "Calibrated on 60 validation examples" in caplog.text
    assert "Data:" not in caplog.text
    assert read_predictions() == rows
    assert Path(RUN, CALIBRATION).read_bytes() == kept
    # Another checkpoint, or a changed one, does not use it.
    (best,) = Path(RUN, "checkpoints").glob("best-*.ckpt")
    content = torch.load(best, weights_only=True)
    torch.save({**content, "note": 1}, best)
    for name, words in (
        (best, ()),
        (RUN, ("--trainer.precision=bf16-mixed",)),
        (RUN, ("--data.init_args.center_crop=0.9",)),
    ):
        caplog.clear()
        assert main(["predict", str(name), "new", *words]) == 0
        assert "Not calibrated: the data of the run cannot be read (source 'images' is neither a folder" in caplog.text
        assert list(read_predictions()[0]) == ["path", "predicted", *[f"p({name})" for name in NAMES]]
    assert Path(RUN, CALIBRATION).read_bytes() == kept
    Path("elsewhere").rename("images")
    assert main(["predict", str(best), "new"]) == 0
    assert Path(RUN, CALIBRATION).read_bytes() != kept
    Path(RUN, CALIBRATION).write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=f"The saved calibration is not used and is fitted again: .*{CALIBRATION}"):
        assert main(["predict", RUN, "new"]) == 0
    assert Path(RUN, CALIBRATION).read_bytes() == kept


def test_calibration_finds_moved_data_and_reports_changes(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    Path("images").rename("elsewhere")
    assert main(["predict", RUN, "new"]) == 0
    assert caplog.text.count("Not calibrated: ") == 1
    plain = get_probabilities(read_predictions())
    caplog.clear()
    assert main(["predict", RUN, "new", "--data.init_args.source=elsewhere"]) == 0
    assert "Calibrated on 60" in caplog.text
    assert not torch.allclose(get_probabilities(read_predictions()), plain, atol=1e-3)
    assert (get_probabilities(read_predictions()).argmax(1) == plain.argmax(1)).all()
    Path(RUN, CALIBRATION).unlink()
    added = next(Path("elsewhere", "train", "class_0").iterdir())
    shutil.copy(added, added.with_name("new.png"))
    caplog.clear()
    assert main(["predict", RUN, "new", "--data.init_args.source=elsewhere"]) == 0
    assert "1 example is not in the run's split and left out: train/class_0/new.png" in caplog.text
    assert "Calibrated on 60" in caplog.text
    Path(RUN, CALIBRATION).unlink()
    Path("elsewhere", "train", "class_3").mkdir()
    shutil.copy(added, "elsewhere/train/class_3/new.png")
    caplog.clear()
    assert main(["predict", RUN, "new", "--data.init_args.source=elsewhere"]) == 0
    assert "(source 'elsewhere' has the class 'class_3', which the run or class_names does not know" in caplog.text


def test_calibration_uses_the_run_s_split_despite_other_settings(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["predict", RUN, "new", "--data.init_args.seed=5", "--data.init_args.num_labels=6"]) == 0
    assert "Data: images: 90 labeled, 0 unlabeled, 60 val, 9 test." in caplog.text
    assert "Calibrated on 60" in caplog.text


def test_checkpoint_outside_of_its_run_is_not_calibrated(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copy(Path(RUN, "checkpoints", "last.ckpt"), "alone.ckpt")
    assert main(["predict", "alone.ckpt", "new", "--config", f"{RUN}/fit.yaml", "--run_name=b"]) == 0
    assert "Not calibrated: checkpoint 'alone.ckpt' does not lie in the folder of its run." in caplog.text
    assert len(read_predictions("lightning_logs/b/version_0")) == 12


def test_run_without_a_validation_split_is_not_calibrated(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree("images/val")
    words = ["--data.init_args.source=images", "--data.init_args.num_labels=null", "--data.init_args.val_size=0"]
    words += ["--data.init_args.steps_per_epoch=2", "--trainer.max_epochs=1", "--run_name=b", *SMALL]
    assert main(["fit", "--config", FINE_TUNE, *words]) == 0
    caplog.clear()
    assert main(["predict", "lightning_logs/b/version_0", "new"]) == 0
    assert "Not calibrated: the run has no validation example. Marked: farther from 90 training examples" in caplog.text
    assert {row["unlike_training"] for row in read_predictions("lightning_logs/b/version_0")} <= {"yes", "no"}


def test_digits_are_marked_as_unlike_clothes(workdir: Path, caplog: pytest.LogCaptureFixture) -> None:
    few = ["--trainer.max_epochs=5", "--data.init_args.num_labels=200", "--data.init_args.steps_per_epoch=30"]
    assert main(["fit", "--config", FINE_TUNE, *few, "--run_name=a"]) == 0
    marked, far = {}, {}
    for source in ("sample", "sample-digits"):
        assert main(["predict", RUN, source]) == 0
        rows = read_predictions()
        assert len(rows) == (2000 if source == "sample" else 10_000)
        marked[source] = sum(row["unlike_training"] == "yes" for row in rows) / len(rows)
        far[source] = float(np.median([float(row["distance_percentile"]) for row in rows]))
        assert f"({marked[source]:.1%}) unlike the training data" in caplog.text
    assert marked["sample"] < 0.03
    assert marked["sample-digits"] > 0.3
    assert 0.4 < far["sample"] < 0.6
    assert far["sample-digits"] > 0.95


@pytest.mark.parametrize("kind", ["average", "class means"])
def test_every_kind_of_classifier_predicts(kind: str, workdir: Path, caplog: pytest.LogCaptureFixture) -> None:
    small = [
        "--data.init_args.steps_per_epoch=3",
        "--trainer.max_epochs=1",
        "--run_name=a",
        "--model.init_args.backbone=mlp",
    ]
    configs = [
        "--config",
        str(CONFIGS / "semi_supervised" / "shared.yaml"),
        "--config",
        str(CONFIGS / "semi_supervised" / "pseudo_label.yaml"),
    ]
    if kind == "class means":
        configs = ["--config", str(CONFIGS / "quickstart" / "decoupled.yaml")]
        small += ["--model.init_args.coupling=joint", "--model.init_args.head=nearest_class_mean"]
    assert main(["fit", *configs, *small]) == 0
    test, _ = compute_logits(RUN, "test")
    assert main(["predict", RUN, "sample"]) == 0
    rows = read_predictions()
    with safe_open(Path(RUN, CALIBRATION), framework="pt") as file:
        metadata = file.metadata()["sft_lightning"]
    t = float(metadata.partition('"temperature": ')[2].partition(",")[0])
    assert f"temperature {t:.2f}" in caplog.text
    torch.testing.assert_close(get_probabilities(rows), (test / t).softmax(1), atol=1e-5, rtol=0)
    assert {"distance_percentile", "unlike_training"} <= set(rows[0])


def test_autoencoder_predicts_reconstruction_errors(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = ["--data.init_args.source=images", "--data.init_args.num_labels=0", "--run_name=ae", *SMALL]
    words += ["--data.init_args.steps_per_epoch=2", "--trainer.max_epochs=1"]
    assert main(["fit", "--config", str(CONFIGS / "quickstart" / "autoencoder.yaml"), *words]) == 0
    Path("images").rename("elsewhere")
    assert main(["predict", "lightning_logs/ae/version_0", "new"]) == 0
    rows = read_predictions("lightning_logs/ae/version_0")
    assert len(rows) == 12
    assert list(rows[0]) == ["path", "reconstruction_error"]
    assert "alibrated" not in caplog.text


# --- several processes


def test_two_processes_write_every_file_once(place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    paths = sorted(Path("new").rglob("*.png"))
    paths[4].write_bytes(b"not an image")
    paths[11].unlink()
    words = ["predict", RUN, "new", "--data.init_args.on_bad_image=skip"]
    two = [
        "--trainer.accelerator=cpu",
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
        "--data.init_args.eval_batch_size=3",
    ]
    done = both_ranks(main, [*words, *two], folder=Path.cwd(), files=tmp_path_factory.mktemp("output"))
    assert [rank.code for rank in done] == [0, 0], done[0].stderr[-3000:]
    output = done[0].stderr + done[1].stderr
    both = read_predictions()
    assert "predictions.csv: 10 images" in output
    assert output.count("Calibrated on 60") == 1
    assert main(words) == 0
    alone = read_predictions()
    assert {row["path"]: row["predicted"] for row in both} == {row["path"]: row["predicted"] for row in alone}
    assert len(both) == len(alone) == 10
    by_path = {row["path"]: row for row in alone}
    torch.testing.assert_close(
        get_probabilities(both), get_probabilities([by_path[row["path"]] for row in both]), atol=2e-6, rtol=0
    )
    assert [p.name for p in Path(RUN).glob("predictions*.csv*")] == ["predictions.csv"]


@pytest.mark.parametrize(("theirs", "differ"), [((3, 5), False), ((0, 0), False), ((4, 5), True), ((3, 6), True)])
def test_processes_that_list_different_files_write_nothing(
    theirs: tuple[int, int], differ: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_gather_object(outputs: list[object], value: object) -> None:
        outputs[1] = (1, 1, True, theirs)

    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)
    data = FakeData(predict_listed=(3, 5), predict_name=None, input_spec=InputSpec("image", (3, 8, 8)))
    two: Any = SimpleNamespace(global_rank=0, world_size=2, is_global_zero=True, datamodule=data, ckpt_path=None)
    two.strategy = SimpleNamespace(broadcast=lambda said: said)
    model: Any = SimpleNamespace(class_names=["a", "b"])
    (tmp_path / "predictions.csv.rank1").write_text("path,predicted,p(a),p(b),unlike_training\n2.png,a,1,0,yes\n")
    writer = PredictionWriter(tmp_path)
    writer.on_predict_start(two, model)
    said = {
        "indices": torch.tensor([0, 2]),
        "probabilities": torch.eye(2),
        "unlike_training": torch.tensor([False, True]),
    }
    batch = SimpleNamespace(names=["1.png", "3.png"])
    writer.write_on_batch_end(two, model, said, None, batch, 0, 0)
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}")))
    if differ:
        with pytest.raises(InputError, match="predict_source changed while it was read"):
            writer.on_predict_end(two, model)
        assert not (tmp_path / "predictions.csv").exists()
        return
    writer.on_predict_end(two, model)
    assert [(row["path"], row["unlike_training"]) for row in read_predictions(tmp_path)] == [
        ("1.png", "no"), ("2.png", "yes"), ("3.png", "yes")
    ]  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["predictions.csv"]
    assert synced == [str(tmp_path / "predictions.csv.part"), str(tmp_path)]

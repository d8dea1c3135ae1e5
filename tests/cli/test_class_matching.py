"""The same images as folder, table and shards, in other orders and under other names, through every command."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

from sft_lightning import FineTuneClassifier, ImageDataModule
from sft_lightning.__main__ import main
from sft_lightning.cli.lightning_cli import run as command
from sft_lightning.data.class_order import RenumberedSource
from sft_lightning.data.vision.sources import open_source
from sft_lightning.data.vision.write_shards import write_shards
from sft_lightning.export.export import export
from sft_lightning.networks.weights import read_weights, write_weights
from sft_lightning.utils.errors import InputError
from tests.conftest import CONFIGS
from tests.paradigms.helpers import trainer

NAMES = ("1", "2", "10")
OLD = '["1", "10", "2"]'  # the order of folders in earlier versions
RUN = "lightning_logs/r/version_0"
SMALL = ["--data.init_args.num_labels=null", "--data.init_args.image_size=8", "--data.init_args.num_workers=0"]
SMALL += ["--trainer.enable_progress_bar=false"]
LR = "--model.init_args.optimizer.init_args.lr=0.01"
FIT = ["fit", "--config", str(CONFIGS / "quickstart" / "fine_tune.yaml"), *SMALL]


def paint(file: Path, color: int, seed: int) -> None:
    """An image whose class is its brightest channel."""
    pixels = np.random.default_rng(seed).integers(0, 60, (8, 8, 3), dtype=np.uint8)
    pixels[..., color] += 190
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose classes have the old order, and its images as every kind of source."""
    place = tmp_path_factory.mktemp("classes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        rows = [(f"d/{name}/{i}.png", name) for name in NAMES for i in range(12)]
        for k, (file, name) in enumerate(rows):
            paint(Path(file), NAMES.index(name), k)
        for table, kept in (("t.csv", NAMES), ("subset.csv", ("2", "10"))):
            with Path(table).open("w", newline="") as opened:
                csv.writer(opened).writerows([("path", "label"), *(row for row in reversed(rows) if row[1] in kept)])
        with Path("fresh.csv").open("w", newline="") as opened:  # images that the run has not learned from
            fresh = [(file.replace("d/", "fresh/"), name) for file, name in rows]
            csv.writer(opened).writerows([("path", "label"), *fresh])
        for k, (file, name) in enumerate(fresh):
            paint(Path(file), NAMES.index(name), 1000 + k)
        parquet.write_table(pa.table({"path": [r[0] for r in rows], "label": [r[1] for r in rows]}), "t.parquet")
        write_shards(RenumberedSource(open_source("d"), ["2", "1", "10"]), Path("shards"))
        write_shards(open_source("t.csv"), Path("new_shards"))
        shutil.copytree("d", "renamed")
        Path("renamed/2").rename("renamed/two")
        words = ["--run_name=r", "--data.init_args.source=d", f"--data.init_args.class_names={OLD}"]
        words += ["--trainer.max_epochs=2", "--data.init_args.steps_per_epoch=15", LR]
        assert main([*FIT, *words]) == 0
        lines = Path(RUN, "fit.yaml").read_text().splitlines(keepends=True)
        keeps = [i for i, line in enumerate(lines) if line.strip() == "class_names:"]
        for i in reversed(keeps):  # an earlier version wrote none
            del lines[i + 1 : i + 4]
            lines[i] = lines[i].replace("class_names:", "class_names: null")
        Path(RUN, "fit.yaml").write_text("".join(lines))
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def source(name: str) -> str:
    return f"--data.init_args.source={name}"


def metrics(words: list[str]) -> dict[str, float]:
    return {name: float(value) for name, value in command(words).trainer.callback_metrics.items()}


SOURCES = ["d", "t.csv", "t.parquet", "shards", "subset.csv"]


def test_every_kind_of_source_has_one_order(place: Path) -> None:
    for name in ("d", "t.csv", "t.parquet", "new_shards"):
        assert open_source(name).class_names == NAMES
    assert open_source("shards").class_names == ("2", "1", "10")  # as it was written


@pytest.mark.parametrize("name", SOURCES)
def test_labels_are_numbered_as_in_the_run(place: Path, name: str) -> None:
    own = ["1", "10", "2"]
    data = ImageDataModule(name, image_size=8, class_names=own, val_size=0, num_workers=0)
    data.setup("test")
    assert data.class_names == own
    for split in (data.splits["test"], data.splits["labeled"]):
        assert len(split)
        assert [own.index(file.split("/")[-2]) for file in split.ids] == split.labels.tolist()


@pytest.mark.parametrize("stage", ["test", "validate"])
@pytest.mark.parametrize("name", SOURCES)
def test_measured_on_another_source(place: Path, name: str, stage: str, caplog: pytest.LogCaptureFixture) -> None:
    found = metrics([stage, f"--ckpt_path={RUN}", source(name)])
    assert found[f"{stage.replace('validate', 'val')}/accuracy"] == 1
    assert ("has no example of the class '1'" in caplog.text) == (name == "subset.csv")


@pytest.mark.parametrize("words", [["test"], ["validate"], ["fit", "--trainer.max_epochs=3"]])
def test_renamed_classes_are_refused(place: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, f"--ckpt_path={RUN}", source("renamed")]) == 2
    said = capsys.readouterr().err
    assert "source 'renamed' has the class 'two'" in said
    assert "lacks '2'" in said


@pytest.mark.parametrize("name", ["t.csv", "shards", "renamed"])
def test_predictions_have_the_names_of_the_run(place: Path, name: str) -> None:
    assert main(["predict", f"--ckpt_path={RUN}", source(name)]) == 0
    with Path(RUN, "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    for row in rows:
        assert row["predicted"] == row["path"].split("/")[-2].replace("two", "2")
        assert float(row[f"p({row['predicted']})"]) > 0.5


def test_a_resumed_run_keeps_the_numbers_of_its_classes(place: Path) -> None:
    found = metrics(["fit", f"--ckpt_path={RUN}", "--trainer.max_epochs=3"])
    assert found["val/accuracy"] == 1
    assert found["train/loss"] < 0.1  # labels of another order begin at a loss of many


def test_a_start_takes_the_rows_by_name(place: Path) -> None:
    still = ["--model.init_args.optimizer.init_args.lr=0", "--trainer.max_epochs=1", source("fresh.csv")]
    for weights in ([f"weights={RUN}"], [f"weights={RUN}", f"head_weights={export(RUN, 'head', measure_on=0)}"]):
        words = [*FIT, "--run_name=s", *still, *(f"--model.init_args.{word}" for word in weights)]
        assert metrics(words)["val/accuracy"] == 1


def test_weights_between_start_and_run_match_by_name(place: Path) -> None:
    still = ["--model.init_args.optimizer.init_args.lr=0", "--trainer.max_epochs=1", source("fresh.csv")]
    assert main([*FIT, "--run_name=s", *still, f"--model.init_args.weights={RUN}"]) == 0
    tensors, told = read_weights(export("lightning_logs/s/version_0", wise=0.5, measure_on=0))
    expected = read_weights(Path(RUN, "checkpoints", "last.ckpt"))[0]
    assert told["class_names"] == [*NAMES]
    torch.testing.assert_close(tensors["head.weight"], expected["head.weight"][[0, 2, 1]])
    torch.testing.assert_close(tensors["head.bias"], expected["head.bias"][[0, 2, 1]])


def test_a_run_is_repeated_with_its_numbers(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["repeat", RUN]) == 0
    assert "The same bit for bit" in capsys.readouterr().out


def test_the_trainer_refuses_another_order_in_python(place: Path) -> None:
    file = Path(RUN, "checkpoints", "last.ckpt")
    model = FineTuneClassifier.load_from_checkpoint(file, weights_only=True)
    assert model.class_names == ["1", "10", "2"]
    data = ImageDataModule("t.csv", image_size=8, num_workers=0)
    with pytest.raises(InputError, match="class 1 is '10' in the model and '2' in the data"):
        trainer().test(model, data, verbose=False)
    data = ImageDataModule("t.csv", image_size=8, num_workers=0, class_names=model.class_names)
    (found,) = trainer().test(model, data, verbose=False)
    assert found["test/accuracy"] == 1
    # A model that was made for other data takes the names of its checkpoint.
    other = FineTuneClassifier("mlp", 3, (3, 8, 8), [*NAMES])
    data = ImageDataModule("t.csv", image_size=8, num_workers=0)
    with pytest.raises(InputError, match="another order"):
        trainer().test(other, data, ckpt_path=str(file), verbose=False, weights_only=True)


def test_a_model_without_names_takes_those_of_its_data(place: Path) -> None:
    model = FineTuneClassifier("mlp", 3, (3, 8, 8), optimizer=lambda p: torch.optim.SGD(p, 0.1))
    assert model.class_names == ["0", "1", "2"]
    made = trainer(max_steps=1)
    made.fit(model, ImageDataModule("t.csv", image_size=8, num_workers=0))
    made.save_checkpoint("own.ckpt")
    assert read_weights(Path("own.ckpt"))[1]["hyper_parameters"]["class_names"] == [*NAMES]


def test_an_old_checkpoint_without_names(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = Path(RUN, "checkpoints", "last.ckpt")
    content: dict[str, Any] = torch.load(file, weights_only=True)
    content["hyper_parameters"]["class_names"] = None
    torch.save(content, file)
    assert metrics(["test", f"--ckpt_path={RUN}", source("t.csv")])["test/accuracy"] == 1  # split.csv has the names
    (Path(RUN) / "split.csv").write_text("# {}\nid,split,label\n")
    caplog.clear()
    metrics(["test", f"--ckpt_path={RUN}", source("t.csv")])
    assert "does not name its classes: they are taken by position, in the order '1', '2', '10'." in caplog.text


WEIGHT = torch.arange(6.0).view(3, 2) + 1


@pytest.mark.parametrize("setting", ["weights", "head_weights"])
@pytest.mark.parametrize(
    ("names", "own", "rows", "sentence"),
    [
        (["a", "b", "c"], ["c", "a", "b"], [2, 0, 1], ""),
        (["a", "b", "c"], ["b", "x"], [1, None], "start anew: 'x'; rows of other classes are not used: 'a', 'c'"),
        (["a", "b", "c"], ["x", "y", "z"], None, "'a', 'b', 'c', those of the data 'x', 'y', 'z'"),
        (None, ["x", "y", "z"], None, "does not name its classes"),
        (["a", "b", "c"], None, [0, 1, 2], ""),
    ],
)
def test_rows_of_a_head(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, setting: str, names: list[str] | None,
    own: list[str] | None, rows: list[int | None] | None, sentence: str,
) -> None:  # fmt: skip
    whole = FineTuneClassifier("mlp", 3, (1, 8, 8))
    width = whole.backbone.num_features
    weight, bias = WEIGHT[:, :1].repeat(1, width), torch.arange(3.0) + 7
    tensors = {**whole.state_dict(), "head.weight": weight, "head.bias": bias}
    file = tmp_path / "a.safetensors"
    write_weights(file, tensors, {} if names is None else {"class_names": names})

    def build() -> FineTuneClassifier:
        start: dict[str, Any] = {setting: str(file)}
        with caplog.at_level("INFO"):
            return FineTuneClassifier("mlp", 3 if own is None else len(own), (1, 8, 8), own, **start)

    if rows is None and setting == "head_weights":
        with pytest.raises(InputError, match=sentence):
            build()
        return
    model = build()
    assert sentence in caplog.text
    assert model.class_names == (own or names)
    for i, row in enumerate(rows or [None] * 3):
        taken = [k for k in range(3) if torch.equal(model.head.weight[i], weight[k])]
        assert taken == ([] if row is None else [row])
        assert row is None or model.head.bias[i] == bias[row]


def test_class_weights_by_name(caplog: pytest.LogCaptureFixture) -> None:
    build: Callable[[Any], FineTuneClassifier] = lambda weights: FineTuneClassifier(  # noqa: E731
        "mlp", 3, (1, 8, 8), ["a", "b", "c"], class_weights=weights
    )
    assert build({"c": 3, "a": 1, "b": 2}).class_weight.tolist() == [1, 2, 3]
    numbered = FineTuneClassifier("mlp", 2, (1, 8, 8), ["1", "2"], class_weights={2: 5, 1: 4})  # type: ignore[dict-item]
    assert numbered.class_weight.tolist() == [4, 5]  # as YAML reads such names
    with caplog.at_level("INFO"):
        assert build([4, 5, 6]).class_weight.tolist() == [4, 5, 6]
    assert "Class weights by position: 'a' 4, 'b' 5, 'c' 6." in caplog.text
    with pytest.raises(InputError, match="class_weights names the classes 'a', 'd', the data has 'a', 'b', 'c'"):
        build({"a": 1, "d": 2})

"""How far to fine-tune: folds, the rule, and what a run may see and repeat, over the real command line."""

import csv
import json
import math
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from PIL import Image

from sft_lightning import ImageDataModule
from sft_lightning.__main__ import main
from sft_lightning.cli.lightning_cli import run
from sft_lightning.tuning import degree as module
from sft_lightning.tuning.degree import make_folds
from sft_lightning.tuning.degree_grid import DegreeGrid, DegreeSetting, choose_setting
from tests.conftest import CONFIGS
from tests.scenes import write_scenes

FINE_TUNE, SHARED = CONFIGS / "quickstart" / "fine_tune.yaml", CONFIGS / "semi_supervised" / "shared.yaml"
SHORT = ["--trainer.accelerator=cpu", "--trainer.max_epochs=2", "--data.init_args.steps_per_epoch=3", "--run_name=d"]
SMALL = ["--degree.folds=2", "--degree.backbone_lr_scale=[0.5]", "--degree.depth=[head,all]"]
FOLDER = Path("lightning_logs/d_degree")


def degree(*words: str, config: Path = FINE_TUNE, labels: int = 40) -> int:
    """Two settings on two folds unless the words say otherwise."""
    given = ["--config", str(config), *SHORT, f"--data.init_args.num_labels={labels or 'null'}", *SMALL, *words]
    return main(["degree", *given])


def table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file, without a comment above them."""
    lines = path.read_text().splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def of_split(path: Path, name: str) -> dict[str, str]:
    return {row["id"]: row["label"] for row in table(path) if row["split"] == name}


def accuracies(folder: Path) -> list[float]:
    """What a run logged of its validations."""
    return [float(row["value"]) for row in table(folder / "metrics.csv") if row["metric"] == "val/accuracy"]


def results() -> list[dict[str, Any]]:
    return list(json.loads((FOLDER / "degree.json").read_text()).values())


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The configs that would be trained; their accuracies are made up."""
    trained: list[str] = []

    def made_up(config: str) -> float:
        trained.append(Path(config).read_text())
        return 0.5 + sum(trained[-1].encode()) % 100 / 1000

    monkeypatch.setattr(module, "_measure", made_up)
    return trained


# --- folds


def test_folds_hold_each_label_out_once_and_nothing_of_the_other_splits(workdir: Path) -> None:
    assert degree("--degree.folds=4", "--degree.depth=[1]") == 0
    data = ImageDataModule("sample", num_labels=40)
    data.setup("fit")
    held: Counter[str] = Counter()
    for k in range(4):
        file = FOLDER / f"fold_{k}.csv"
        learned, out = of_split(file, "labeled"), of_split(file, "val")
        assert not {*learned} & {*out}
        assert {*learned} | {*out} == {*data.splits["labeled"].ids}
        assert not of_split(file, "test") | of_split(file, "unlabeled")
        assert set(Counter(out.values()).values()) == {1}  # of 4 labels of each class
        assert len(set(out.values())) == 10
        held.update(list(out))
        run_folder = FOLDER / "depth_1-backbone_lr_scale_0.5" / f"fold_{k}" / "version_0"
        assert table(run_folder / "split.csv") == table(file)
    assert set(held.values()) == {1}
    assert len(held) == 40


def manifest(folder: Path, write_folder: Callable[..., Path], per_class: int = 8) -> Path:
    """Real images of two classes in groups of two, one of each class, beside unlabeled ones of the same groups."""
    write_folder(folder, {"train": per_class, "unlabeled": per_class // 2}, classes=2)
    lines = ["path,label,split,group"]
    for label in ("class_0", "class_1"):
        for k, path in enumerate(sorted((folder / "train" / label).iterdir())):
            lines.append(f"{path.relative_to(folder)},{label},train,g{k}")
    for k, path in enumerate(sorted((folder / "unlabeled").iterdir())):
        lines.append(f"{path.relative_to(folder)},,train,g{k}")
    (folder / "images.csv").write_text("\n".join(lines) + "\n")
    return folder / "images.csv"


@pytest.mark.slow
def test_a_group_is_held_out_as_a_whole_also_from_the_unlabeled(
    workdir: Path, write_folder: Callable[..., Path]
) -> None:
    file = manifest(Path("images"), write_folder)
    groups = {row["path"]: row["group"] for row in table(file)}
    own = [f"--data.init_args.source={file}", "--data.init_args.image_size=28", "--data.init_args.num_workers=0"]
    own += ["--data.init_args.test_size=0", "--data.init_args.val_size=0", "--data.init_args.unlabeled_ratio=1"]
    semi = ["--config", str(CONFIGS / "semi_supervised" / "pseudo_label.yaml"), "--data.init_args.batch_size=4"]
    assert degree(*semi, *own, "--run_name=d", "--model.init_args.backbone=mlp", config=SHARED, labels=0) == 0
    for k in range(2):
        seen = {name: {groups[i] for i in of_split(FOLDER / f"fold_{k}.csv", name)} for name in ("labeled", "val")}
        others = {groups[i] for i in of_split(FOLDER / f"fold_{k}.csv", "unlabeled")}
        assert len(seen["val"]) == 4
        assert not seen["val"] & seen["labeled"]
        assert others
        assert not seen["val"] & others
    assert len(results()) == 4


def test_groups_survive_joined_examples(workdir: Path, write_folder: Callable[..., Path]) -> None:
    file = manifest(Path("images"), write_folder)
    lines = file.read_text().splitlines()
    lines = [line.replace(",,train,", ",,unlabeled,") for line in lines]  # another part of the source
    file.write_text("\n".join(lines) + "\n")
    data = ImageDataModule(str(file), num_labels=10, test_size=0, val_size=0, image_size=28)
    data.setup("fit")
    groups = {row["path"]: row["group"] for row in table(file)}
    for fold in make_folds(data, 2, use_unlabeled=True):
        away = {groups[i] for i in fold["val"].ids}
        assert fold["unlabeled"].ids
        assert not away & {groups[i] for name in ("labeled", "unlabeled") for i in fold[name].ids}


# --- what a run may see


@pytest.mark.slow
def test_the_test_and_validation_splits_change_nothing(workdir: Path, write_folder: Callable[..., Path]) -> None:
    write_folder(Path("images"), {"train": 6, "val": 4, "test": 4})
    own = ["--data.init_args.source=images", "--data.init_args.image_size=28", "--data.init_args.num_workers=0"]
    assert degree(*own, labels=0) == 0
    before = (FOLDER / "degree.json").read_bytes()
    shutil.rmtree("lightning_logs")
    for split in ("test", "val"):  # other images, and these under other labels
        shutil.rmtree(Path("images", split))
        for c in range(3):
            Path("images", split).mkdir(exist_ok=True)
            shutil.copytree(Path("images", "train", f"class_{c}"), Path("images", split, f"class_{(c + 1) % 3}"))
            for file in Path("images", split, f"class_{(c + 1) % 3}").iterdir():
                file.write_bytes(file.read_bytes() + bytes(1))  # no copy of a training image, which would be dropped
    assert degree(*own, labels=0) == 0
    assert (FOLDER / "degree.json").read_bytes() == before


def test_the_last_iterate_is_judged_by_its_fold_alone(workdir: Path) -> None:
    wild = ["--model.init_args.optimizer=SGD", "--model.init_args.optimizer.init_args.lr=1.0"]
    wild += ["--model.init_args.lr_scheduler=null", "--trainer.max_epochs=6"]
    assert degree(*wild, "--degree.depth=[all]", "--degree.backbone_lr_scale=[1.0]") == 0
    last = run(["fit", "--config", str(FOLDER / "run.yaml")])
    x, y = next((b.x, b.y) for b in last.datamodule.batches_of("val", torch.device("cpu")))
    with torch.no_grad():
        accuracy = (last.model.eval()(x).argmax(1) == y).float().mean()
    assert results()[-1]["accuracy"] == pytest.approx(float(accuracy))
    again = run(["fit", "--config", str(FOLDER / "run.yaml"), "--trainer.limit_val_batches=1.0"])
    by_epoch = accuracies(Path(str(again.trainer.log_dir)))
    assert max(by_epoch) > float(accuracy)  # or the test would prove nothing
    assert len(accuracies(FOLDER / "depth_all-backbone_lr_scale_1.0" / "fold_1" / "version_0")) == 1


# --- what is repeated


@pytest.mark.slow
def test_an_interrupted_command_repeats_no_run(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert degree() == 0
    whole = {name: (FOLDER / name).read_bytes() for name in ("degree.json", "degree.csv", "fit.yaml")}
    shutil.rmtree("lightning_logs")
    real, started = module._measure, 0

    def stops(config: str) -> float:
        nonlocal started
        started += 1
        if started == 4:
            raise KeyboardInterrupt
        return real(config)

    monkeypatch.setattr(module, "_measure", stops)
    assert degree() == 128 + signal.SIGINT
    assert len(results()) == 3
    assert degree() == 0
    assert started == 5
    assert {name: (FOLDER / name).read_bytes() for name in whole} == whole
    assert degree() == 0
    assert started == 5


@pytest.mark.slow
def test_results_are_taken_over_only_where_nothing_changed(
    workdir: Path, fits: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    def new(*words: str) -> int:
        before = len(fits)
        assert degree("--degree.depth=[head]", *words) == 0
        return len(fits) - before

    fit = ["fit", "--config", str(FINE_TUNE), *SHORT, "--run_name=start", "--data.init_args.num_labels=40"]
    main(fit)
    start = ["--model.init_args.weights=lightning_logs/start/version_0"]
    with caplog.at_level("INFO"):
        assert new(*start) == 2
    assert "last.ckpt has learned from 40 of these labels: accuracies will be too good." in caplog.text
    assert new(*start) == 0
    assert new(*start, "--model.init_args.label_smoothing=0.1") == 2
    assert new(*start, "--data.init_args.seed=1") == 2
    assert new(*start, "--degree.folds=3") == 3
    shutil.rmtree("lightning_logs/start")
    main([*fit, "--seed_everything=2"])
    assert new(*start) == 2  # other weights under the same name
    assert new(*start, "--degree.depth=[head,1]") == 2  # a larger grid


def test_a_changed_image_makes_new_runs(workdir: Path, write_folder: Callable[..., Path], fits: list[str]) -> None:
    write_folder(Path("images"), {"train": 4, "val": 2, "test": 2})
    own = ["--data.init_args.source=images", "--data.init_args.image_size=28", "--data.init_args.num_workers=0"]
    own.append("--degree.depth=[head]")
    assert degree(*own, labels=0) == 0
    one, two = sorted(Path("images", "train", "class_0").iterdir())[:2]
    shutil.copy(two, one)
    assert degree(*own, labels=0) == 0
    assert len(fits) == 4


@pytest.mark.slow
def test_copies_among_the_labels_are_dropped_from_training_where_one_is_held_out(
    workdir: Path, write_folder: Callable[..., Path]
) -> None:
    write_folder(Path("images"), {"train": 4, "val": 2, "test": 2})
    for folder in Path("images", "train").iterdir():
        first, *others = sorted(folder.iterdir())
        for other in others:
            shutil.copy(first, other)
    own = ["--data.init_args.source=images", "--data.init_args.image_size=28", "--data.init_args.num_workers=0"]
    own += ["--data.init_args.on_leak=raise", "--degree.depth=[head]"]
    assert degree(*own, labels=0) == 2  # nothing is left to learn from
    shutil.rmtree("images")
    write_folder(Path("images"), {"train": 4, "val": 2, "test": 2})
    first, second, *_ = sorted(Path("images", "train", "class_0").iterdir())
    shutil.copy(first, second)
    assert degree(*own, labels=0) == 0


# --- the grid and the rule


def test_the_least_change_within_one_standard_error_is_chosen() -> None:
    head, one, two, all_ = (
        DegreeSetting("head"),
        DegreeSetting(1, 0.1),
        DegreeSetting(2, 0.1),
        DegreeSetting("all", 0.1),
    )
    best = [0.7, 0.8, 0.9]  # mean 0.8, standard error 0.1 / sqrt(3) = 0.0577
    assert choose_setting({head: [0.7, 0.7, 0.7], one: [0.75, 0.75, 0.75], all_: best}) == (all_, one)
    assert choose_setting({head: [0.75] * 3, one: [0.79] * 3, all_: best}) == (all_, head)
    assert choose_setting({head: [0.7] * 3, one: [0.7423] * 3, all_: best})[1] == one  # just within
    assert choose_setting({head: [0.7] * 3, one: [0.7422] * 3, all_: best})[1] == all_  # just not
    assert choose_setting({all_: [0.8] * 3, two: [0.8] * 3, one: [0.8] * 3}) == (one, one)
    slow, fast = DegreeSetting("all", 0.1, 0.5), DegreeSetting("all", 1.0, 5.0)
    assert choose_setting({fast: [0.8] * 3, slow: [0.8] * 3})[1] == slow
    strong = DegreeSetting("all", 0.1, 5.0)
    assert choose_setting({slow: best, strong: [0.75] * 3})[1] == strong
    assert choose_setting({head: [0.9, 0.9, None], all_: best, one: [0.1] * 3}) == (all_, all_)  # a failed fold


def test_combinations_that_differ_in_nothing_are_one() -> None:
    asked = DegreeGrid(["all", "head", 2, 1, 1], [1.0, 0.1], [0.1, 1.0])
    found = asked.list_settings(head_is_regularized=False)
    assert len(found) == 1 + 3 * 2 * 2
    assert [s.depth for s in found[:2]] == ["head", 1]
    assert found[1:5] == [
        DegreeSetting(1, 0.1, 1.0),
        DegreeSetting(1, 0.1, 0.1),
        DegreeSetting(1, 1.0, 1.0),
        DegreeSetting(1, 1.0, 0.1),
    ]
    assert len(asked.list_settings(head_is_regularized=True)) == 2 + 3 * 2 * 2


def test_the_regularizer_gets_its_weights(workdir: Path, fits: list[str]) -> None:
    grid = ["--model.init_args.regularizer=L2SP", "--degree.regularizer_weight=[0.1,10]"]
    assert degree(*grid) == 0
    assert len(fits) == 2 * (1 + 2)
    weights = [line.split()[1] for text in fits for line in text.splitlines() if line.strip().startswith("weight: ")]
    assert weights == ["0.1", "0.1", "10.0", "10.0", "0.1", "0.1"]  # of the head as configured
    tunes = [line.split()[1] for text in fits for line in text.splitlines() if line.strip().startswith("tune: ")]
    assert tunes == ["head"] * 2 + ["all"] * 4


def test_the_config_that_is_written_is_one_of_fit(
    workdir: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        assert degree("--degree.depth=[1]", "--degree.backbone_lr_scale=[0.25]", "--data.init_args.val_size=50") == 0
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("lightning")]
    assert [line.split()[0] for line in lines] == ["Data:", "Degree:", "Run", "Run"]  # what a fit says is left out
    assert "; 1 left, about " in lines[2]
    assert f"sft-lightning fit --config {FOLDER / 'fit.yaml'}" in capsys.readouterr().out
    assert (FOLDER / "fit.yaml").read_text().startswith("# Chosen by sft-lightning degree: depth 1, ")
    assert main(["fit", "--config", str(FOLDER / "fit.yaml")]) == 0
    made = Path("lightning_logs/d/version_0")
    told = (made / "fit.yaml").read_text()
    for line in ("tune: last_k_blocks", "last_k_blocks: 1", "backbone_lr_scale: 0.25", "split_file: null"):
        assert line in told
    assert "enable_checkpointing: null" in told
    assert (made / "checkpoints" / "last.ckpt").is_file()
    assert len(of_split(made / "split.csv", "labeled")) == 40
    assert len(of_split(made / "split.csv", "val")) == 50


def test_the_table_and_the_config_name_the_choice(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up = {"head": [0.7, 0.75, 0.8], "all": [0.6, 0.8, 0.9]}  # the second is better by less than its error
    left = [*made_up["head"], *made_up["all"]]
    monkeypatch.setattr(module, "_measure", lambda config: left.pop(0))
    assert degree("--degree.folds=3") == 0
    head, everything = table(FOLDER / "degree.csv")
    assert [(row["depth"], row["backbone_lr_scale"]) for row in (head, everything)] == [("head", "-"), ("all", "0.5")]
    assert (head["mark"], everything["mark"]) == ("chosen", "best")
    for row in (head, everything):
        found = made_up[row["depth"]]
        mean = fmean(found)
        error = math.sqrt(sum((a - mean) ** 2 for a in found) / 2 / 3)
        assert (row["accuracy"], row["std_error"]) == (f"{mean:.4f}", f"{error:.4f}")
        assert [row[f"fold_{k}"] for k in range(3)] == [f"{a:.4f}" for a in found]
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert shown[1] == list(head.values())
    assert "tune: head" in (FOLDER / "fit.yaml").read_text()


# --- paradigms, and runs that fail


@pytest.mark.slow
def test_semi_supervised_models_are_compared(workdir: Path, fits: list[str]) -> None:
    """What each fold may learn from; a training is part of the test of groups."""
    semi = ["--config", str(CONFIGS / "semi_supervised" / "fixmatch.yaml"), "--data.init_args.batch_size=8"]
    semi += ["--run_name=d", "--model.init_args.backbone=mlp", "--data.init_args.unlabeled_ratio=1"]
    assert degree(*semi, "--degree.depth=[all]", config=SHARED) == 0
    data = ImageDataModule("sample", num_labels=40)
    data.setup("fit")
    for k in range(2):
        assert {*of_split(FOLDER / f"fold_{k}.csv", "unlabeled")} == {*data.splits["unlabeled"].ids}
    assert len(fits) == len(results()) == 2


@pytest.mark.slow
def test_decoupled_models_are_compared(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--model.class_path=DecoupledFeatureClassifier", "--model.init_args.feature_loss=SupCon"]
    own += ["--model.init_args.backbone=mlp", "--model.init_args.head=nearest_class_mean"]
    assert degree(*own, "--degree.depth=[1]") == 0
    assert degree(*own) == 2
    assert "degree compares depth head, which cannot be: tune is 'head', but L_f alone" in capsys.readouterr().err


def test_a_run_that_fails_stops_no_other(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(config: str) -> float:
        text = Path(config).read_text()
        if "tune: head" in text and "/fold_1" in text:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return 1.0 if "tune: head" in text else 0.5

    monkeypatch.setattr(module, "_measure", fails)
    with caplog.at_level("INFO"):
        assert degree() == 0
    assert "Run 2 of 4: depth head, fold 1: failed: CUDA out of memory.; 2 left" in caplog.text
    head, everything = table(FOLDER / "degree.csv")
    assert (head["accuracy"], head["fold_0"], head["fold_1"], head["mark"]) == ("failed", "1.0000", "failed", "")
    assert everything["mark"] == "best, chosen"
    assert len(results()) == 3  # it is tried again
    assert degree("--degree.depth=[head]") == 2
    assert "no setting of degree finished all its folds" in capsys.readouterr().err

    def wrong(config: str) -> float:
        raise TypeError("a mistake in the program")

    monkeypatch.setattr(module, "_measure", wrong)
    with pytest.raises(TypeError):
        degree()


# --- bad input


def refused(capsys: pytest.CaptureFixture[str], *words: str, **given: Any) -> str:
    assert degree(*words, **given) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sft-lightning: ")]
    assert len(lines) == 1
    assert not list(Path().glob("lightning_logs/**/version_0"))
    return lines[0]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--degree.folds=5"], "class 'T-shirt/top' has 4 labeled example(s), fewer than the 5 folds: set folds to 4"),
        (["--data.init_args.num_labels=11"], "has 1 labeled example(s), and no cross-validation works"),
        (["--data.init_args.num_labels=0"], "there is no labeled example"),
        (["--degree.folds=1"], "degree.folds is 1: give a number of at least 2"),
        (["--degree.depth=[haed]"], "degree.depth has 'haed' (did you mean 'head'?): give head, all or"),
        (["--degree.depth=[head,9]"], "degree compares depth 9, backbone_lr_scale 0.5, which cannot be: last_k_blocks"),
        (["--degree.depth=[]"], "degree.depth is an empty list"),
        (["--degree.backbone_lr_scale=[-1]"], "backbone_lr_scale is -1.0: give a number of at least 0"),
        (["--degree.backbone_lr_scale=[fast]"], "degree.backbone_lr_scale is 'fast': give a number"),
        (["--degree.regularizer_weight=[0.1]"], "the model has no regularizer"),
        (["--trainer.devices=2"], "trainer.devices gives 2 processes"),
        (["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val/loss"], "EarlyStopping looks at"),
        (["--data.init_args.source=nowhere"], "source 'nowhere' is neither a folder"),
        (["--degree.nothing=1"], "--degree.nothing"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str], expected: str, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refused(capsys, *words)


def test_too_few_groups_are_refused(
    workdir: Path, write_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file = manifest(Path("images"), write_folder)
    own = [f"--data.init_args.source={file}", "--data.init_args.test_size=0", "--data.init_args.val_size=0"]
    said = refused(capsys, *own, "--degree.folds=9", labels=0)
    assert "class 'class_0' has 8 group(s) of labeled examples, fewer than the 9 folds" in said


def test_models_without_a_depth_are_refused(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, config=CONFIGS / "quickstart" / "autoencoder.yaml")
    assert "model AutoencoderModule has no setting tune" in said


def test_resuming_from_a_checkpoint_is_refused(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", str(FINE_TUNE), *SHORT]) == 0
    assert degree("--ckpt_path=lightning_logs/d/version_0") == 2
    assert "ckpt_path is set, but degree starts new runs" in capsys.readouterr().err


def test_damaged_results_are_refused(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FOLDER.mkdir(parents=True)
    for text in ("{", '{"a": {"accuracy": "much"}}'):
        (FOLDER / "degree.json").write_text(text)
        assert "degree.json' cannot be read" in refused(capsys)


def test_checkpoint_callbacks_are_left_out(workdir: Path) -> None:
    given = ["--trainer.callbacks=ModelCheckpoint", "--trainer.callbacks.monitor=val/loss"]
    assert degree(*given, "--degree.depth=[head]") == 0
    assert "ModelCheckpoint" in (FOLDER / "fit.yaml").read_text()
    assert not list(FOLDER.glob("**/*.ckpt"))


def test_help_names_the_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["degree", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: sft-lightning degree ")
    assert "--degree.backbone_lr_scale" in shown


@pytest.mark.slow
def test_the_shipped_config_runs(workdir: Path, fits: list[str]) -> None:
    shipped = ["--config", str(CONFIGS / "reuse" / "degree.yaml")]
    assert main(["degree", "--config", str(FINE_TUNE), *shipped, *SHORT, "--degree.folds=2"]) == 0
    assert len(fits) == 2 * 5


@pytest.mark.slow
def test_masks_are_divided_like_sets_of_classes(workdir: Path) -> None:
    write_scenes(Path("d"), 10)
    data = ["--data=SegmentationDataModule", "--data.source=d", "--data.image_size=32", "--data.val_size=0"]
    data += ["--data.test_size=0", "--data.batch_size=2", "--data.steps_per_epoch=1", "--trainer.max_epochs=1"]
    model = ["--model=FineTuneClassifier", "--model.backbone=resnet8", "--model.optimizer=AdamW"]
    words = [*model, "--model.optimizer.lr=0.01", *data, "--trainer.accelerator=cpu", "--run_name=d", *SMALL]
    assert main(["degree", *words]) == 0
    found = results()
    assert len(found) == 4
    assert all(0 < row["mean_iou"] < 1 for row in found)
    held = [of_split(FOLDER / f"fold_{k}.csv", "val") for k in (0, 1)]
    assert not held[0].keys() & held[1].keys()
    assert len(held[0]) + len(held[1]) == 10
    with Image.open("d/masks/s003.png") as mask:
        mask.rotate(90).save(mask.filename)
    assert main(["degree", *words]) == 0
    assert len(results()) == 8  # another mask is another fold

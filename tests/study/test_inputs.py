"""Keys of runs depend on their inputs, and changed inputs are named."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from jsonargparse.typing import Path_fr
from PIL import Image

from sft_lightning import ImageDataModule
from sft_lightning.study import inputs, runner
from sft_lightning.study.plan import Stage, StudyRun, plan
from sft_lightning.study.stale import explain_stale
from sft_lightning.study.user_code import digest_code
from sft_lightning.utils.errors import InputError

DATA = {"class_path": "ImageDataModule", "init_args": {"source": "t.csv", "image_size": 8, "num_workers": 0}}


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)  # of one size, since they are bmp


def write_table(folder: Path, shift: int = 0, count: int = 10, group: int = 0, order: int = 1) -> None:
    rows = [f"d/{i}.bmp,{'cat' if (i + shift) % 2 else 'dog'},{(i + group) // 2}" for i in range(count)][::order]
    (folder / "t.csv").write_text("\n".join(["path,label,group", *rows]) + "\n")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study's files: images, a table, unlabeled images, a nested config, weights, and code of the user's."""
    home = tmp_path / "home"
    for i in range(12):
        draw(home / "d" / f"{i}.bmp", i)
        draw(home / "u" / f"{i}.bmp", 100 + i)
    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend("")
    write_table(home)
    Path("config").mkdir()
    Path("config", "fit.yaml").write_text("model: inner/model.yaml\ntrainer: {max_epochs: 1}\n")
    Path("config", "inner").mkdir()
    Path("config", "inner", "model.yaml").write_text(
        "class_path: FineTuneClassifier\ninit_args: {backbone: mlp, optimizer: optimizer.yaml}\n"
    )
    Path("config", "inner", "optimizer.yaml").write_text("class_path: torch.optim.SGD\ninit_args: {lr: 0.1}\n")
    torch.save({"a": torch.zeros(2)}, "weights.pt")
    Path("start", "checkpoints").mkdir(parents=True)
    for name in ("encoder.safetensors", "checkpoints/last.ckpt"):
        Path("start", name).write_text("1")
    Path("split.csv").write_text("# {}\nid,split,label\n")
    Path("labels.csv").write_text("id,label,status\nd/0.bmp,cat,\nd/1.bmp,dog,skip\n")
    Path("user_part.py").write_text("RATE = 1\n")
    Path("user_model.py").write_text(
        "from sft_lightning import FineTuneClassifier\n\n\nclass Own(FineTuneClassifier):\n"
        "    def later(self) -> int:\n        import user_part\n        return user_part.RATE\n"
    )
    return home


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "unlabeled": {"data.init_args.unlabeled_source": "u"},
    "split": {"data.init_args.split_file": "split.csv"},
    "labels": {"data.init_args.labels": "labels.csv"},
    "weights": {"model.init_args.weights": "weights.pt"},
    "head": {"model.init_args.head_weights": "weights.pt"},
    "run": {"model.init_args.weights": "start"},
    "head of a run": {"model.init_args.head_weights": "start"},
    "own": {"model": "user_model.Own"},
}


def planned(kind: str = "plain", data: dict[str, Any] = DATA, **options: Any) -> list[StudyRun]:
    config = [Path_fr(str(Path("config", "fit.yaml")))]
    return plan({"x": [Stage(config)]}, [4], [0], data, {**OPTIONS[kind], **options})


def reasons(before: list[StudyRun], after: list[StudyRun]) -> list[str]:
    results = {
        run.key: json.loads(
            json.dumps(
                {"folder": f"l/{run.label}/version_0", "title": run.title, "start": run.start, "inputs": run.inputs}
            )
        )
        for run in before
    }
    kept = json.loads(json.dumps(results))
    return explain_stale(after, [run for run in after if run.key not in kept], kept)


def exchange(path: str, other: str) -> None:
    """Give a file the content of another one of its size, with the times that it had."""
    at = Path(path).stat()
    Path(path).write_bytes(Path(other).read_bytes())
    os.utime(path, ns=(at.st_atime_ns, at.st_mtime_ns))


def replace_text(path: str, old: str, new: str) -> None:
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new))


def exchange_groups(path: str) -> None:
    head, *rows = Path(path).read_text().splitlines()
    groups = [row.rpartition(",")[2] for row in rows]
    parted = [row.rpartition(",")[0] for row in rows]
    rows = [f"{row},{group}" for row, group in zip(parted, [groups[-1], *groups[1:-1], groups[0]], strict=True)]
    Path(path).write_text("\n".join([head, *rows]) + "\n")


class Change(NamedTuple):
    kind: str
    make: Callable[[], None]
    reason: str


CHANGES = {
    "labels": Change("plain", lambda: write_table(Path(), 1), "The labels of t.csv changed"),
    "groups": Change("plain", lambda: write_table(Path(), group=1), "The groups of t.csv changed"),
    "order": Change("plain", lambda: write_table(Path(), order=-1), "The order of t.csv changed"),
    "an image": Change("plain", lambda: exchange("d/0.bmp", "d/1.bmp"), "The examples of t.csv changed"),
    "more images": Change("plain", lambda: write_table(Path(), 0, 12), "t.csv has 12 examples, 10 before"),
    "unlabeled": Change("unlabeled", lambda: exchange("u/0.bmp", "u/1.bmp"), "The examples of u changed"),
    "more unlabeled": Change("unlabeled", lambda: draw(Path("u/x.bmp"), 5), "u has 13 examples, 12 before"),
    "labels beside": Change(
        "labels", lambda: replace_text("labels.csv", "cat", "dog"), "labels.csv changed"
    ),
    "labels under labels": Change("labels", lambda: write_table(Path(), 1), "The labels of t.csv changed"),
    "split": Change("split", lambda: replace_text("split.csv", "{}", '{"a": 1}'), "split.csv changed"),
    "weights": Change("weights", lambda: torch.save({"a": torch.ones(2)}, "weights.pt"), "weights.pt changed"),
    "head": Change("head", lambda: torch.save({"a": torch.ones(2)}, "weights.pt"), "weights.pt changed"),
    "run": Change("run", lambda: replace_text("start/encoder.safetensors", "1", "2"), "start changed"),
    "head of a run": Change(
        "head of a run", lambda: replace_text("start/checkpoints/last.ckpt", "1", "2"), "start changed"
    ),
    "exchanged groups": Change("plain", lambda: exchange_groups("t.csv"), "The groups of t.csv changed"),
    "nested": Change(
        "plain", lambda: replace_text("config/inner/model.yaml", "mlp", "conv"), "Settings changed (model)"
    ),
    "nested twice": Change(
        "plain", lambda: replace_text("config/inner/optimizer.yaml", "0.1", "0.2"), "Settings changed (model)"
    ),
    "class": Change(
        "own", lambda: replace_text("user_model.py", "RATE", "RATE + 1"), "The code of user_model changed"
    ),
    "its import": Change(
        "own", lambda: replace_text("user_part.py", "1", "2"), "The code of user_part changed"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_input_changes_the_key_and_is_named(project: Path, name: str) -> None:
    change = CHANGES[name]
    before = planned(change.kind)
    change.make()
    after = planned(change.kind)
    assert not {run.key for run in after} & {run.key for run in before}
    assert reasons(before, after) == [f"{change.reason}: 1 run is trained again."]


def test_keys_ignore_what_changes_no_result(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = [kind for kind in OPTIONS if kind != "own"]
    keys = {kind: [run.key for run in planned(kind)] for kind in OPTIONS}
    moved = shutil.copytree(project, project.with_name("moved"))
    shutil.rmtree(project)
    for path in moved.rglob("*.*"):
        path.touch()
    monkeypatch.chdir(moved)
    assert {kind: [run.key for run in planned(kind)] for kind in OPTIONS} == keys
    other: dict[str, Any] = {
        "data.init_args.num_workers": 2,
        "trainer.enable_progress_bar": False,
        "trainer.max_epochs": 1,
    }
    assert {kind: [run.key for run in planned(kind, **other)] for kind in kinds} == {k: keys[k] for k in kinds}
    Path("elsewhere").mkdir()
    shutil.move("weights.pt", "elsewhere/w.pt")
    shutil.move("labels.csv", "elsewhere/l.csv")
    replace_text("elsewhere/l.csv", "d/1.bmp,dog", "d/2.bmp,cat")  # a skipped image
    beside: dict[str, Any] = {"data.init_args.labels": "elsewhere/l.csv"}
    assert [run.key for run in planned("labels", **beside)] == keys["labels"]
    weights: dict[str, Any] = {"model.init_args.weights": "elsewhere/w.pt"}
    assert [run.key for run in planned("weights", **weights)] == keys["weights"]


def test_a_changed_earlier_stage_is_named(project: Path) -> None:
    def stages(rate: float) -> list[StudyRun]:
        config = [Path_fr("config/fit.yaml")]
        first = Stage(config, {"model.init_args.optimizer.init_args.lr": rate}, name="a")
        return plan({"x": [first, Stage(config, weights="a")]}, [4], [0], DATA, {})

    before, after = stages(0.1), stages(0.2)
    assert after[1].key != before[1].key
    assert reasons(before, after) == ["Settings changed (model): 2 runs are trained again."]
    assert reasons(before, before) == []


def test_a_stage_is_taught_by_an_earlier_one(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, called = [Path_fr("config/fit.yaml")], list[list[str]]()

    def fit(argv: list[str]) -> None:
        called.append(argv)
        raise InputError("seen")

    monkeypatch.setattr(runner, "command", fit)
    first, keys = Stage(config, name="a"), set()
    for kind, stage in {"weights": Stage(config, weights="a"), "teacher": Stage(config, teacher="a")}.items():
        before, run = plan({"x": [first, stage]}, [4], [0], DATA, {})
        assert run.start == before.key
        keys.add(run.key)
        assert runner.try_perform(run, "earlier", "study/x")["failed"] == "seen"
        assert called[-1][-1] == f"--model.init_args.{kind}=earlier"
    assert len(keys) == 2


def test_runs_of_earlier_versions_are_trained_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = planned()
    old = [run._replace(key=f"{k}" * 64, inputs=None) for k, run in enumerate(before)]
    assert reasons(old, before) == ["An earlier version did not record the inputs of its runs: 1 run is trained again."]
    monkeypatch.setattr("sft_lightning.study.plan.__version__", "another")
    (said,) = reasons(before, planned())
    assert said.startswith("sft-lightning another trained them") or "trained them (this is another)" in said
    damaged = {
        before[0].key: {
            "folder": f"l/{before[0].label}/version_0",
            "title": before[0].title,
            "inputs": {"data": 1, "config": [2]},
        }
    }
    assert explain_stale(planned(), planned(), damaged)


def test_results_without_a_title_are_identified_by_their_folder(project: Path) -> None:
    """Version 0.1 wrote the title and the key into the name of the folder."""
    before = planned()
    folder = f"lightning_logs/study/small/x_tune_4_labels_seed_0_{before[0].key[:8]}/version_0"
    results = {before[0].key: {"folder": folder, "start": None, "inputs": before[0].inputs}}
    write_table(project, 1)
    after = planned()
    assert explain_stale(after, after, results) == ["The labels of t.csv changed: 1 run is trained again."]


def test_missing_data_is_named_before_the_first_run(project: Path) -> None:
    Path("t.csv").unlink()
    with pytest.raises(InputError, match=r"t\.csv"):
        planned()


def test_keys_contain_files_of_custom_data_modules(project: Path) -> None:
    Path("user_data.py").write_text(
        "from lightning.pytorch import LightningDataModule\n\n\nclass Data(LightningDataModule):\n"
        "    def __init__(self, source: str, num_labels: int = 1, seed: int = 0) -> None:\n"
        "        super().__init__()\n"
    )
    data = {"class_path": "user_data.Data", "init_args": {"source": "d"}}
    before = planned(data=data)
    assert before[0].inputs
    assert "user_data" in before[0].inputs["code"]
    exchange("d/0.bmp", "d/1.bmp")
    assert reasons(before, planned(data=data)) == ["d changed: 1 run is trained again."]


def test_each_source_is_read_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    describe = inputs._describe_data

    def describe_data(data: ImageDataModule) -> dict[str, Any]:
        read.append(data._named)
        return describe(data)

    monkeypatch.setattr(inputs, "_describe_data", describe_data)
    config = [Path_fr("config/fit.yaml")]
    methods = {"x": [Stage(config)], "y": [Stage(config, {"trainer.max_epochs": 2})]}
    assert len({run.key for run in plan(methods, [4, 6], [0, 1], DATA, {})}) == 8
    assert read == ["t.csv"]


def test_keys_contain_settings_of_the_data(project: Path) -> None:
    larger: dict[str, Any] = {"data.init_args.image_size": 12}
    before, after = planned(), planned(**larger)
    assert reasons(before, after) == ["Settings changed (data): 1 run is trained again."]


def test_keys_of_invalid_settings_depend_on_the_settings_and_their_files(project: Path) -> None:
    options: list[dict[str, Any]] = [{"model.init_args.nonsense": value} for value in (1, 2)]
    keys = [planned(**given)[0].key for given in options]
    replace_text("config/inner/optimizer.yaml", "0.1", "0.2")
    keys.append(planned(**options[0])[0].key)
    assert len(set(keys)) == 3


def test_sources_under_different_roots_are_read_separately(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roots: list[Any] = []
    describe = inputs._describe_data

    def describe_data(data: ImageDataModule) -> dict[str, Any]:
        roots.append(data.root)
        return describe(data)

    monkeypatch.setattr(inputs, "_describe_data", describe_data)
    config = [Path_fr("config/fit.yaml")]
    methods = {name: [Stage(config, {"data.init_args.root": name})] for name in ("here", "there")}
    plan(methods, [4], [0], DATA, {})
    assert roots == ["here", "there"]


def test_code_digests_follow_imports_within_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "user_package"
    (package / "inner").mkdir(parents=True)
    for name, text in {
        "__init__.py": "",
        "model.py": "from . import near\nfrom .inner import deep\nimport user_package.full\nimport json, torch\n",
        "near.py": "from .. import nothing\n",
        "full.py": "import user_package.model\n",
        "unused.py": "",
        "inner/__init__.py": "from .beside import x\n",
        "inner/beside.py": "x = 1\n",
        "inner/deep.py": "from ..far import x\n",
        "far.py": "x = 1\n",
    }.items():
        (package / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "user_package", ModuleType("user_package"))
    names = ("model", "near", "full", "inner", "inner.beside", "inner.deep", "far")
    found = digest_code(["user_package.model.Own", "torch.optim.SGD", "plain words", "1.5"])
    assert sorted(found) == sorted(["user_package", *(f"user_package.{name}" for name in names)])
    assert found["user_package.far"] == hashlib.sha256(b"x = 1\n").hexdigest()

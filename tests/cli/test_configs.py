"""Every shipped config runs over the real command line; those that download or name the user's data get local data."""

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from sft_lightning.__main__ import main
from sft_lightning.cli.reproduce import compare_runs, read_outcome
from sft_lightning.losses import unlabeled as strategies
from sft_lightning.networks.weights import read_weights
from tests.boxes import write_boxes_folder
from tests.conftest import CONFIGS
from tests.data.audio.recordings import write_folder as write_recordings
from tests.data.vision.dicom_helpers import ramp, write_slice
from tests.paradigms.helpers import teacher
from tests.scenes import write_scenes
from tests.tasks.helpers import write_texts as write_topics

SHARED = CONFIGS / "semi_supervised" / "shared.yaml"
STRATEGIES = sorted({*(CONFIGS / "semi_supervised").glob("*.yaml")} - {SHARED})
PRETRAINING = sorted((CONFIGS / "pretraining").glob("*.yaml"))
TEXTS = sorted((CONFIGS / "text").glob("*.yaml"))
RECORDINGS = sorted((CONFIGS / "audio").glob("*.yaml"))
MULTI_LABEL = sorted((CONFIGS / "multi_label").glob("*.yaml"))
DETECTION = sorted((CONFIGS / "detection").glob("*.yaml"))
SEGMENTATION = sorted((CONFIGS / "segmentation").glob("*.yaml"))
DISTILLATION = sorted((CONFIGS / "distillation").glob("*.yaml"))
SHIPPED = sorted(
    [
        *(CONFIGS / "reference").glob("*.yaml"), *(CONFIGS / "quickstart").glob("*.yaml"), *STRATEGIES, *PRETRAINING,
        *TEXTS, *RECORDINGS, *MULTI_LABEL, *SEGMENTATION, *DETECTION,
        *DISTILLATION,
    ]
)  # fmt: skip
DATA = sorted((CONFIGS / "data").glob("*semi_supervised.yaml"))
HEADER = ("Hardware:", "Expect:", "Time:")


def local(config: Path, root: Path, folder: Path) -> list[str]:
    """What stands in for data and weights that only a network could bring."""
    text = config.read_text()
    if "source: sample-texts" in text:
        return []
    if config in RECORDINGS:
        source = write_recordings(folder / "sounds", 30, seconds=0.3)
        weights = ["--model.init_args.weights=none"] if "weights: lightning_logs" in text else []
        return [f"--data.init_args.source={source}", "--data.init_args.labels_per_class=5", *weights]
    if config in MULTI_LABEL:
        write_topics(folder / "topics.csv", 120)
        return [f"--data.init_args.source={folder / 'topics.csv'}"]
    if config in DETECTION:
        source = write_boxes_folder(folder / "scenes", {"train": 8, "val": 2, "test": 2}, unlabeled=4)
        small = ["--data.init_args.image_size=64", "--data.init_args.batch_size=2", "--model.init_args.width=32"]
        return [f"--data.init_args.source={source}", "--model.init_args.weights=none", *small]
    if config in SEGMENTATION:
        source = write_scenes(folder / "scenes", 30, 20, size=64)
        small = ["--data.init_args.image_size=64", "--data.init_args.batch_size=2", "--data.init_args.val_size=4"]
        return [f"--data.init_args.source={source}", "--model.init_args.weights=none", *small]
    given = ["--data.init_args.root", str(root), "--data.init_args.num_workers", "0"]
    if "source: CIFAR10" in text:
        given = ["--data.init_args.source", str(folder), "--data.init_args.image_size", "32", *given[2:]]
        given += ["--data.init_args.batch_size", "4"]
    if "source: FashionMNIST" in text and "num_labels: 1000" in text:
        given += ["--data.init_args.num_labels", "20", "--data.init_args.val_size", "40"]
    elif "num_labels: 1000" in text:
        given += ["--data.init_args.num_labels", "6", "--data.init_args.val_size", "3"]
    if "source: my_images" in text:
        given = ["--data.init_args.source", str(folder), "--data.init_args.image_size", "64", *given[2:]]
    if "source: my_scans" in text:
        for k in range(24):
            name = ("healthy", "lesion", "unlabeled")[k % 3]
            write_slice(folder / "scans" / name / f"{k}.dcm", ramp(k), patient=f"patient {k}")
        small = [f"--data.init_args.{name}" for name in ("image_size=64", "val_size=3", "test_size=3")]
        given = ["--data.init_args.source", str(folder / "scans"), *small, *given[2:]]
    if "weights: default" in text or "weights: my_weights.safetensors" in text:
        given += ["--model.init_args.weights", "none"]
    if "source: my_texts.csv" in text:
        rows = [f"words of text {i},{i % 2},{('train', 'unlabeled', 'val', 'test')[i // 2 % 4]}" for i in range(40)]
        (folder / "texts.csv").write_text("text,label,split\n" + "\n".join(rows))
        given = ["--data.init_args.source", str(folder / "texts.csv"), "--model.init_args.network", "small_transformer"]
        given += ["--model.init_args.weights", "none"]
    elif "class_path: DistillModule" in text:
        data = ["--data=ImageDataModule", f"--data.source={folder}", "--data.image_size=64", "--data.num_workers=0"]
        assert main(["fit", *data, "--model=FrozenFeatureClassifier", "--run_name=teacher"]) == 0
        given += ["--model.init_args.teacher", "lightning_logs/teacher/version_0"]
    elif "class_path: SelfDistillation" in text:
        given += ["--model.init_args.strategy.init_args.weights", str(teacher())]
    return given


# A config for each way of training; the others are repeated in a slow test.
ONE_OF_EACH = [CONFIGS / "quickstart" / f"{name}.yaml" for name in ("autoencoder", "decoupled", "self_supervised")]
ONE_OF_EACH.append(CONFIGS / "semi_supervised" / "freematch.yaml")
LONG = {*STRATEGIES} - {CONFIGS / "semi_supervised" / f"{name}.yaml" for name in ("fixmatch", "freematch")}
LONG |= {*DETECTION, CONFIGS / "reference" / "scans_fine_tune.yaml"}
LONG |= {*SEGMENTATION} - {CONFIGS / "segmentation" / "segmentation_fixmatch.yaml"}
LONG |= {*PRETRAINING, *(set(RECORDINGS) - {CONFIGS / "audio" / "audio_softmatch.yaml"})}
LONG |= {*(CONFIGS / "reference").glob("*resnet50*.yaml"), *(CONFIGS / "reference").glob("*fashion_mnist.yaml")}
SHORT = ["--trainer.max_epochs=2", "--data.init_args.steps_per_epoch=2", "--trainer.log_every_n_steps=1"]
SHORT += ["--data.init_args.batch_size=8", "--data.init_args.val_size=40"]


class Kernels(Callback):
    """Keeps whether steps were confined to deterministic kernels."""

    seen: ClassVar[set[bool]] = set()

    def on_train_batch_start(self, *args: Any) -> None:
        self.seen.add(torch.are_deterministic_algorithms_enabled())


def drop_foreign(config: Path, words: list[str]) -> list[str]:
    """Leave out settings that the data module of a config does not have."""
    return [word for word in words if "TextDataModule" not in config.read_text() or "num_workers" not in word]


def given_to_fit(config: Path) -> list[str]:
    return [*(["--config", str(SHARED)] if config in STRATEGIES else []), "--config", str(config)]


@pytest.mark.parametrize(
    "config",
    [pytest.param(c, marks=pytest.mark.slow) if c in LONG else c for c in SHIPPED],
    ids=lambda p: p.stem,
)
def test_config_runs_one_batch_of_every_command(
    config: Path,
    workdir: Path,
    idx_root: Path,
    write_folder: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = write_folder(workdir / "images", {"train": 4, "val": 1, "test": 2, "unlabeled": 2})
    few = ["--trainer.max_epochs", "1", "--data.init_args.steps_per_epoch", "1", "--run_name", "shipped"]
    few += ["--trainer.limit_val_batches=1"]
    few += ["--data.init_args.eval_batch_size", "50"]
    assert main(["fit", *given_to_fit(config), *drop_foreign(config, few), *local(config, idx_root, folder)]) == 0
    run = workdir / "lightning_logs" / "shipped" / "version_0"
    assert (run / "checkpoints" / "last.ckpt").is_file()
    if config in STRATEGIES and config.stem != "fixmatch":  # they differ in training alone
        return
    predicts = "SelfSupervisedModule" not in config.read_text()
    for command, kind in (("validate", "val"), ("test", "test"), ("predict", "predict"))[: 3 if predicts else 2]:
        assert main([command, "--ckpt_path", str(run), f"--trainer.limit_{kind}_batches=1"]) == 0
    if not predicts:
        assert re.search(r"test/effective_rank +\d+\.\d+", caplog.text)
        return
    assert re.search(rf"test/{'map' if config in DETECTION else 'loss'} +\d+\.\d+", caplog.text)
    assert len((run / "predictions.csv").read_text().splitlines()) > 1
    assert {p.name for p in run.glob("*.yaml")} >= {"fit.yaml", "test.yaml", "predict.yaml"}


@pytest.mark.parametrize(
    "config",
    [c if c in ONE_OF_EACH else pytest.param(c, marks=pytest.mark.slow) for c in SHIPPED],
    ids=lambda p: p.stem,
)
def test_config_gives_the_same_metrics_twice(
    config: Path, workdir: Path, idx_root: Path, write_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeded once, before all else; `deterministic: true` confines every step to deterministic kernels."""
    folder = write_folder(workdir / "images", {"train": 9, "val": 2, "test": 2, "unlabeled": 9})
    words = ["fit", *given_to_fit(config), *drop_foreign(config, SHORT), *local(config, idx_root, folder)]
    words += ["--run_name=twice"]
    seeds: list[int] = []
    own = torch.manual_seed

    def manual_seed(seed: int) -> torch.Generator:
        seeds.append(seed)
        return own(seed)

    monkeypatch.setattr(torch, "manual_seed", manual_seed)
    words += ["--trainer.accelerator=cpu", f"--trainer.callbacks={__name__}.Kernels"]
    for number, deterministic in enumerate((True, False, False)):
        seeds.clear()
        Kernels.seen.clear()
        assert main([*words, f"--trainer.deterministic={str(deterministic).lower()}"]) == 0
        assert (seeds, Kernels.seen) == ([0], {deterministic})
        assert (workdir / "lightning_logs" / "twice" / f"version_{number}" / "metrics.csv").is_file()
        torch.rand(3), random.random(), np.random.rand()  # what was drawn before a run is nothing to it
    first, second = (read_outcome(workdir / "lightning_logs" / "twice" / f"version_{number}") for number in (1, 2))
    assert {step for step, _ in first.metrics} == {0, 1, 2, 3}
    assert any(metric.startswith("train/") for _, metric in first.metrics)
    same, told = compare_runs(first, second)
    assert same, told
    assert f"tensors of the last iterate, of step {first.step}, are the same" in told


def test_workers_bar_and_logging_change_no_result(workdir: Path, write_folder: Callable[..., Path]) -> None:
    folder = write_folder(workdir / "images", {"train": 9, "val": 2, "test": 2, "unlabeled": 9})
    words = ["fit", *given_to_fit(ONE_OF_EACH[-1]), *SHORT, "--run_name=ways", "--trainer.accelerator=cpu"]
    words += ["--data.init_args.source", str(folder), "--data.init_args.image_size=28", "--data.init_args.num_labels=9"]
    words += [
        "--data.init_args.batch_size=4",
        "--data.init_args.val_size=0.1",
        "--data.init_args.weak_view.crop_scale=[0.5, 1]",
    ]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.logger=false", "--trainer.limit_val_batches=0"]
    ends = []
    for way in ([], ["--data.init_args.num_workers=2", "--trainer.log_every_n_steps=50"], quiet):
        assert main([*words, *way]) == 0
        ends.append(read_weights(max(workdir.rglob("last.ckpt"), key=lambda path: path.stat().st_mtime_ns))[0])
    assert ends[0].keys() == ends[1].keys() == ends[2].keys()
    assert [
        n for n in ends[0] if not torch.equal(ends[0][n], ends[1][n]) or not torch.equal(ends[0][n], ends[2][n])
    ] == []


@pytest.mark.parametrize("schedule", ["joint", "alternating"])
@pytest.mark.parametrize("config", DATA, ids=lambda p: p.stem)
def test_data_config_takes_the_place_of_another(
    config: Path, schedule: str, workdir: Path, idx_root: Path, write_folder: Callable[..., Path]
) -> None:
    folder = write_folder(workdir / "images", {"train": 9, "val": 1, "test": 2})
    small = ["--data.init_args.num_labels=20", "--data.init_args.val_size=20", "--data.init_args.num_workers=0"]
    words = ["fit", "--config", str(SHARED), "--config", str(CONFIGS / "semi_supervised" / "freematch.yaml")]
    words += ["--data", str(config), *local(config, idx_root, folder), *small, "--trainer.max_epochs=1"]
    words += ["--data.init_args.steps_per_epoch=2", f"--model.init_args.schedule={schedule}"]
    assert main(words) == 0
    written = (workdir / "lightning_logs" / "semi_supervised" / "freematch" / "version_0" / "fit.yaml").read_text()
    assert "FreeMatch" in written
    assert "num_labels: 20" in written


@pytest.mark.parametrize("name", strategies.__all__)
def test_every_strategy_has_a_config(name: str) -> None:
    configs = (*STRATEGIES, *MULTI_LABEL, *SEGMENTATION)
    assert any(f"class_path: {name}" in config.read_text() for config in configs)


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*/*.yaml")), ids=lambda p: p.stem)
def test_config_opens_with_its_header(config: Path) -> None:
    comment = "".join(line for line in config.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert all(word in comment for word in HEADER)
    title = comment.partition("\n")[0]  # which `sft-lightning configs` lists
    assert re.fullmatch(r"# [A-Z].{20,76}[.?]", title)
    assert f"configs/{config.parent.name}/{config.name}" in comment

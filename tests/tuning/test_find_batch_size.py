"""`find-batch-size` over the real command line: real steps, a table, an option for `fit`, and no files."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sft_lightning import FineTuneClassifier
from sft_lightning.__main__ import main
from sft_lightning.cli.lightning_cli import SFTCLI, run
from sft_lightning.training.oom import read_available_memory
from sft_lightning.tuning import find_batch_size as module, throughput
from tests.conftest import CONFIGS
from tests.forks import started
from tests.paradigms.helpers import state

ME = "tests.tuning.test_find_batch_size"
FINE_TUNE = ["--config", str(CONFIGS / "quickstart" / "fine_tune.yaml")]
FIXMATCH = [f"--config={CONFIGS / 'semi_supervised' / name}.yaml" for name in ("shared", "fixmatch")]
SMALL = [
    "--trainer.accelerator=cpu", "--data.init_args.num_labels=1000", "--model.init_args.backbone=mlp",
    "--seconds=0.001", "--run_name=a",
]  # fmt: skip
OPTION = "--data.init_args.batch_size"


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def rows(shown: str) -> dict[int, tuple[int, int]]:
    """Size to examples a step and examples a second."""
    lines = shown.split("ended      ")[0].replace(",", "").splitlines()[1:]
    return {int(size): (int(images), int(rate)) for size, images, rate in map(str.split, lines)}


class Clock:
    """Says that an image takes a second in small batches, and in larger ones what `takes` says."""

    def __init__(self) -> None:
        self.now, self.takes = 0.0, dict[int, float]()

    def perf_counter(self) -> float:
        return self.now


CLOCK = Clock()


class Timed(FineTuneClassifier):
    """A step takes what the clock says it does."""

    def features(self, x: Tensor) -> Tensor:
        CLOCK.now += CLOCK.takes.get(len(x), 1.0) * len(x)
        return super().features(x)


class Large(FineTuneClassifier):
    """Takes 16 MiB an image, and four petabytes from some size on."""

    most = 8

    def features(self, x: Tensor) -> Tensor:
        torch.ones(len(x), 2**22)
        if len(x) > self.most:
            torch.empty(10**15)
        return super().features(x)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(throughput, "time", CLOCK)
    CLOCK.takes = {}
    return CLOCK


def test_both_loaders_grow_by_the_ratio_nothing_is_learned_and_fit_takes_the_option(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before: dict[str, Tensor] = {}
    made: list[SFTCLI] = []

    def kept(*args: Any) -> SFTCLI:
        made.append(run(*args))
        before.update(state(made[0].model))
        return made[0]

    monkeypatch.setattr(module, "run", kept)
    monkeypatch.setattr(module, "MIN_GAIN", 1e-9)  # each is better than the one before
    words = [*FIXMATCH, *SMALL, "--data.init_args.unlabeled_ratio=3", "--model.init_args.head_only_epochs=1"]
    assert main(["find-batch-size", *words, "--max=20"]) == 0
    shown = capsys.readouterr().out
    assert {size: images for size, (images, _) in rows(shown).items()} == {2: 8, 4: 16, 8: 32, 16: 64}
    assert all(rate > 0 for _, rate in rows(shown).values())
    assert "ended      --max is 20\nsuggested  16: " in shown
    assert files(workdir) == []
    model = made[0].model
    assert model.depth.released  # the backbone would be only in the second epoch
    assert model.trainer.global_step >= 5
    assert model.trainer.optimizers[0].state  # it has stepped
    # The control, which takes time and memory like that of `fit`, is a copy of the start.
    start = {name: before[name.removeprefix("control.")] for name, _ in model.named_parameters()}
    assert any(name.startswith("control.backbone.") and p.requires_grad for name, p in model.named_parameters())
    assert all(torch.equal(start[name], p) for name, p in model.named_parameters())
    option = shown.split("for fit    ")[1].splitlines()[0].split()
    assert option == [OPTION, "16"]
    words = [word for word in words if "seconds" not in word]
    assert main(["fit", *words, *option, "--trainer.max_epochs=1", "--data.init_args.steps_per_epoch=1"]) == 0
    assert "batch_size: 16" in (workdir / "lightning_logs" / "a" / "version_0" / "fit.yaml").read_text()


def test_it_ends_where_two_doublings_gain_less_than_5_percent(
    workdir: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    clock.takes = {2: 0.02, 4: 0.01, 8: 0.0099, 16: 0.0095, 32: 0.00945, 64: 0.00944, 128: 0.001}
    assert main(["find-batch-size", *FINE_TUNE, *SMALL, f"--model.class_path={ME}.Timed"]) == 0
    assert capsys.readouterr().out == (
        "batch_size  examples a step  examples/s\n"
        "         2                2          50\n"
        "         4                4         100\n"
        "         8                8         101\n"
        "        16               16         105\n"
        "        32               32         106\n"
        "        64               64         106\n"
        "ended      2 doublings gained less than 5%\n"
        "suggested  16: no larger one that was tried is 5% faster\n"
        "for fit    --data.init_args.batch_size 16\n"
        "Another batch size may need another learning rate: sft-lightning find-lr.\n"
    )


def test_it_ends_where_memory_runs_out(workdir: Path, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["find-batch-size", *FINE_TUNE, *SMALL, f"--model.class_path={ME}.Large", "--seconds=1e-12"]
    clock.perf_counter = lambda: setattr(clock, "now", clock.now + 1) or clock.now  # type: ignore[method-assign, func-returns-value]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert rows(shown) == {2: (2, 2), 4: (4, 4), 8: (8, 8)}
    assert "ended      memory ran out at 16\nsuggested  8: " in shown
    assert files(workdir) == []


def test_where_not_even_the_first_size_fits(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Large, "most", 1)
    assert main(["find-batch-size", *FINE_TUNE, *SMALL, f"--model.class_path={ME}.Large"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(
        "sft-lightning: Memory ran out in training at step 0, for 3,725,290.30 GiB more (batch_size 2,"
    )
    assert files(workdir) == []


def with_half_a_gib() -> int:
    """`find-batch-size` where that is left, and nothing else ends it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Large, "most", 10**6)
        patch.setattr(module, "MIN_GAIN", 1e-9)
        patch.setattr(module, "read_available_memory", lambda: 2**29 - 2**26)
        return main(["find-batch-size", *FINE_TUNE, *SMALL, f"--model.class_path={ME}.Large"])


@pytest.mark.slow
def test_on_a_cpu_it_ends_before_linux_would_kill_it(workdir: Path) -> None:
    process = started(with_half_a_gib, folder=workdir, files=workdir / "told")  # in this one others have freed memory
    process.join(240)
    assert process.exitcode == 0
    shown = Path("told.stdout").read_text()
    # From 16 to 32 images it took a quarter of a GiB more, and the next doubling would take half a one. Where malloc
    # could not extend the block that it kept of the size before, it took as much from 8 to 16.
    tried = [*rows(shown)]
    assert tried in ([2, 4, 8, 16], [2, 4, 8, 16, 32])
    assert f"ended      {2 * tried[-1]} would take more than the 0.4 GiB of memory that are left\n" in shown


def test_available_memory_comes_from_the_machine() -> None:
    total = int(re.findall(r"MemTotal: +(\d+)", Path("/proc/meminfo").read_text())[0]) * 1024
    left = read_available_memory()
    assert left is not None
    assert 2**20 < left < total


def test_it_ends_where_the_data_has_no_more(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "MIN_GAIN", 1e-9)
    words = [*FINE_TUNE, *SMALL, "--data.init_args.num_labels=20", "--model.init_args.tune=head"]
    words += ["--model.init_args.head_only_epochs=1", "--data.init_args.weak_view={flip: false, crop_padding: 0}"]
    assert main(["find-batch-size", *words]) == 0
    shown = capsys.readouterr().out
    assert rows(shown)[32][0] == 20
    assert "ended      the data has no more examples for a batch\n" in shown
    assert files(workdir) == []  # nor the features of the frozen backbone


def test_a_turn_of_both_kinds_and_accumulated_batches_are_timed_together(
    workdir: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*FIXMATCH, *SMALL, "--data.init_args.unlabeled_ratio=5", "--model.init_args.schedule=alternating"]
    words += ["--model.init_args.warmup_steps=50", "--model.init_args.supervised_steps=2"]
    monkeypatch.setattr(throughput.ThroughputMeter, "__init__", counted := Counted(throughput.ThroughputMeter.__init__))
    clock.perf_counter = lambda: setattr(clock, "now", clock.now + 1) or clock.now  # type: ignore[method-assign, func-returns-value]
    words += ["--trainer.accumulate_grad_batches=2", "--max=2"]
    assert main(["find-batch-size", *words]) == 0
    assert counted.turns == [6]
    images = (2 * 2 + 10) / 3
    assert rows(capsys.readouterr().out) == {2: (round(images), round(6 * images))}


class Counted:
    """Keeps the turns that are asked for."""

    def __init__(self, real: Any) -> None:
        self.real, self.turns = real, list[int]()

    def __get__(self, one: Any, kind: Any) -> Any:
        def init(turn: int, seconds: float) -> None:
            self.turns.append(turn)
            self.real(one, turn, seconds)

        return init


OWN_DATA = """
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader
from sft_lightning.data.batches import Labeled


class Few(LightningDataModule):
    num_classes, class_names, image_shape = 3, ["a", "b", "c"], (1, 28, 28)

    def train_dataloader(self):
        n = self.batch_size
        batch = Labeled(torch.rand(n, 1, 28, 28), torch.arange(n) % 3, torch.arange(n))
        return DataLoader([{"labeled": batch}] * 2, batch_size=None)


class Sized(Few):
    batch_size = 5
"""
CONFIG = """
model:
  class_path: FineTuneClassifier
  init_args: {backbone: mlp, optimizer: {class_path: torch.optim.SGD, init_args: {lr: 1}}}
trainer: {max_epochs: 1, accelerator: cpu}
"""


@pytest.mark.slow
def test_another_data_module_with_a_batch_size(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workdir / "data_of_mine.py").write_text(OWN_DATA)
    (workdir / "own.yaml").write_text(CONFIG)
    words = ["find-batch-size", "--config=own.yaml", "--max=8", "--seconds=0.001"]
    assert main([*words, "--data=data_of_mine.Sized"]) == 0
    assert {size: images for size, (images, _) in rows(capsys.readouterr().out).items()} == {2: 2, 4: 4, 8: 8}
    assert main([*words, "--data=data_of_mine.Few"]) == 2
    assert "data Few has no whole number batch_size, which" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--max=1"], "max is 1: give a number of at least 2"),
        (["--seconds=0"], "seconds is 0.0: give a number above 0"),
        (["--ckpt_path=x.ckpt"], "ckpt_path is 'x.ckpt': find-batch-size looks at the start of a training, so leave"),
        (["--trainer.devices=2"], "trainer.devices is 2: batch_size is that of each process, so find it with"),
        (["--data.init_args.source=nowhere"], "source 'nowhere' is neither a folder"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str], sentence: str, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workdir / "x.ckpt").touch()
    assert main(["find-batch-size", *FINE_TUNE, *SMALL, *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert files(workdir) == [workdir / "x.ckpt"]

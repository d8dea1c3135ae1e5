"""`repeat`: what a run records of its circumstances, and what a repetition is told to differ in."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sft_lightning.__main__ import main
from sft_lightning.cli.reproduce import compare_runs, read_outcome
from sft_lightning.paradigms.base import Paradigm
from sft_lightning.runs.provenance import LARGEST, describe_code, describe_differences, format_command, hash_package
from sft_lightning.utils.environment import describe_machine
from tests.conftest import CONFIGS, ROOT

FIT = ["fit", "--config", str(CONFIGS / "quickstart" / "fine_tune.yaml"), "--run_name=a", "--trainer.max_epochs=2"]
FIT += ["--data.init_args.steps_per_epoch=4", "--data.init_args.num_labels=40", "--trainer.log_every_n_steps=2"]
FIT += ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
RUN = Path("lightning_logs", "a", "version_0")
VALUES, TENSORS = 18, 11  # 5 metrics of 2 validations, train/loss and lr 4 times; of the mlp and its normalization


def git(folder: Path, *words: str) -> str:
    own = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    return subprocess.run(["git", *own, *words], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder under Git, with a change that is not committed, in which a run was trained by two threads."""
    place = tmp_path_factory.mktemp("mine")
    (place / "mine.py").write_text("a = 1\n")
    (place / ".gitignore").write_text("lightning_logs\n")
    git(place, "init", "-q")
    git(place, "add", ".")
    git(place, "commit", "-qm", "a")
    (place / "mine.py").write_text("a = 2\n")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        torch.set_num_threads(2)
        try:
            assert main(FIT) == 0
        finally:
            torch.set_num_threads(threads)
    return place


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it, to go on in, with one thread."""
    place = tmp_path / "mine"
    shutil.copytree(trained, place)
    record = json.loads((place / RUN / "run.json").read_text())
    (place / RUN / "run.json").write_text(json.dumps({**record, "folder": str(place)}))
    monkeypatch.chdir(place)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield place
    assert torch.get_num_threads() == 1
    torch.set_num_threads(threads)


def recorded(run: Path = RUN) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())
    return found


def test_the_folder_holds_all_that_repeating_needs(trained: Path) -> None:
    run = trained / RUN
    record = recorded(run)
    assert record["command"] == FIT
    assert format_command(["fit", "--run_name=a b"]) == "sft-lightning fit '--run_name=a b'"
    assert record["folder"] == str(trained)
    assert record["seed"] == 0
    head = json.loads((run / "split.csv").read_text().splitlines()[0].removeprefix("# "))
    assert record["data_sha256"] == head["sha256"]
    assert record["split_sha256"] == hashlib.sha256((run / "split.csv").read_bytes()).hexdigest()
    patch = (run / "uncommitted.patch").read_bytes()
    assert record["code"] == {
        "commit": git(trained, "rev-parse", "HEAD").strip(),
        "dirty": True,
        "patch_sha256": hashlib.sha256(patch).hexdigest(),
    }
    assert b"\n-a = 1\n+a = 2\n" in patch
    assert record["package_sha256"] == hash_package()
    assert record["versions"].keys() == {"sft-lightning", "torchvision", "timm", "numpy", "torchmetrics"}
    assert record["machine"] == describe_machine()
    assert (record["device"], record["processes"], record["threads"]) == ("cpu", 1, 2)


def test_a_run_comes_to_the_same(
    here: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["test", str(RUN)]) == main(["validate", str(RUN)]) == 0  # these log into its metrics.csv, too
    assert main(["repeat", str(RUN)]) == 0
    again = RUN.with_name("version_1")
    assert capsys.readouterr().out == (
        f"The same bit for bit: {VALUES} values of 7 metrics are the same; {TENSORS} tensors of the last iterate, "
        f"of step 8, are the same.\n  the run    {RUN}\n  once more  {again}\n"
    )
    assert "changed since the run" not in caplog.text
    assert {**recorded(again), "command": FIT} == recorded()
    assert recorded(again)["threads"] == 2
    assert sorted(path.name for path in RUN.parent.iterdir()) == ["version_0", "version_1"]


def test_what_differs_first_is_told_with_the_circumstances(
    here: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    config, old = (RUN / "fit.yaml").read_text(), recorded()
    (RUN / "fit.yaml").write_text(config.replace("seed_everything: 0", "seed_everything: 1"))
    versions = {**old["versions"], "numpy": "0.1"}
    (RUN / "run.json").write_text(json.dumps({**old, "versions": versions, "threads": 1, "data_sha256": "0" * 64}))
    git(here, "commit", "-qam", "b")
    assert main(["repeat", str(RUN / "checkpoints" / "last.ckpt")]) == 1
    again = RUN.with_name("version_1")
    shown = capsys.readouterr().out
    then, now = (values(run)[1, "train/loss"] for run in (RUN, again))
    assert shown.startswith(f"Not the same: train/loss at step 1 is {then} then, {now} now (14 of {VALUES} ")
    assert f"of {TENSORS} tensors of the last iterate differ, first " in shown
    patch = old["code"]["patch_sha256"]
    told = (
        f"changed since the run: seed (0 then, 1 now); data ({'0' * 12} then, {old['data_sha256'][:12]} now); "
        f"code (commit {old['code']['commit'][:12]} with changes {patch[:12]} then, "
        f"commit {git(here, 'rev-parse', 'HEAD')[:12]} now); numpy (0.1 then, {old['versions']['numpy']} now)."
    )
    assert told in shown
    assert f"Warning: {told}" in caplog.text
    assert caplog.text.index("Warning: changed since the run") < caplog.text.index("Finished at step 8")
    assert not (again / "uncommitted.patch").exists()
    assert recorded(again)["code"]["dirty"] is False


def values(run: Path) -> dict[tuple[int, str], str]:
    return read_outcome(run).metrics


def _edit(run: Path, old: str, new: str) -> None:
    text = (run / "metrics.csv").read_text()
    assert old in text
    (run / "metrics.csv").write_text(text.replace(old, new, 1))


def test_one_value_or_one_bit_is_enough(here: Path) -> None:
    other = RUN.with_name("other")
    shutil.copytree(RUN, other)
    first = read_outcome(RUN)
    assert compare_runs(first, read_outcome(other))[0]
    value = values(RUN)[7, "val/accuracy"]
    _edit(other, f"7,val/accuracy,{value}", "7,val/accuracy,0.25")
    assert compare_runs(first, read_outcome(other)) == (
        False,
        f"val/accuracy at step 7 is {value} then, 0.25 now (1 of {VALUES} values differ); {TENSORS} tensors of the "
        "last iterate, of step 8, are the same",
    )
    _edit(other, "7,val/accuracy,0.25\n", "")
    assert f"val/accuracy at step 7 is {value} then, missing now" in compare_runs(first, read_outcome(other))[1]
    shutil.copy(RUN / "metrics.csv", other)
    assert first.weights is not None
    name, tensor = next((n, t) for n, t in first.weights.items() if t.is_floating_point())
    for changed in (torch.nextafter(tensor, tensor + 1), torch.cat([tensor, tensor]), tensor.double()):
        told = compare_runs(first, first._replace(weights={**first.weights, name: changed}))
        assert told[0] is False
        assert f"1 of {TENSORS} tensors of the last iterate differ, first {name}" in told[1]
    zero, nan = (first._replace(weights={"a": torch.tensor(value)}) for value in (0.0, float("nan")))
    assert not compare_runs(zero, first._replace(weights={"a": torch.tensor(-0.0)}))[0]
    assert compare_runs(nan, nan)[0]
    (other / "checkpoints" / "last.ckpt").unlink()
    assert compare_runs(first, read_outcome(other))[1].endswith("last.ckpt does not exist and was not compared")


def test_a_run_that_was_stopped(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Halfway it ends earlier than its repetition; when it has gone on it is the same, but for torn averages."""
    steps, own = iter(range(100)), Paradigm.training_step

    def training_step(self: Paradigm, batch: Any, batch_idx: int) -> Tensor:
        if next(steps) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return own(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Paradigm, "training_step", training_step)
        assert main([*FIT, "--run_name=b"]) == 128 + signal.SIGTERM
    run = Path("lightning_logs", "b", "version_0")
    assert main(["repeat", str(run)]) == 1
    shown = capsys.readouterr().out
    assert "9 values of 7 metrics are the same; weights are not compared; the run ended at step 5, " in shown
    assert "the repetition at step 8; the recorded circumstances are the same." in shown
    assert main([*FIT, "--run_name=b", f"--ckpt_path={run}"]) == 0
    assert recorded(run)["command"] == [*FIT, "--run_name=b"]
    assert main(["repeat", str(run)]) == 0
    assert "14 values of 6 metrics are the same; 11 tensors" in (told := capsys.readouterr().out)
    assert "averages over steps (train/, pseudo_labels/) are left out" in told
    assert "it is repeated in one piece" in caplog.text


def test_a_seed_that_was_drawn_is_kept(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main([*FIT, "--run_name=c", "--seed_everything=true"]) == 0
    run = Path("lightning_logs", "c", "version_0")
    seed = recorded(run)["seed"]
    assert type(seed) is int
    assert f"seed_everything: {seed}\n" in (run / "fit.yaml").read_text()
    assert main(["repeat", str(run)]) == 0
    assert main([*FIT, "--run_name=d", "--seed_everything=false"]) == 0
    assert main(["repeat", "lightning_logs/d/version_0"]) == 1
    assert "the run had no seed (seed_everything: false), so the result will differ" in caplog.text


def test_without_git_or_a_record(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert describe_code(tmp_path) == (None, b"")
    (here / "mine.py").write_text("a" * 2 * LARGEST)
    assert len(describe_code(here)[1]) > LARGEST  # which is not kept
    (RUN / "run.json").unlink()
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")
        torch.set_num_threads(2)  # which the record would have said
        assert main(["repeat", str(RUN)]) == 0
        torch.set_num_threads(1)
    assert recorded(again := RUN.with_name("version_1"))["code"] is None
    assert describe_differences({}, recorded(again)) == ["unknown, as the run has no run.json"]
    assert main(["repeat", str(again)]) == 0
    assert recorded(RUN.with_name("version_2"))["code"]["dirty"]
    assert not RUN.with_name("version_2").joinpath("uncommitted.patch").exists()


@pytest.mark.slow
def test_two_processes_are_repeated_by_two(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ddp = ["--trainer.strategy=ddp", "--trainer.devices=2"]
    for words in ([*FIT, *ddp], ["repeat", str(RUN)]):
        command = [sys.executable, "-m", "sft_lightning", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("The same bit for bit: ") == 1
    assert recorded(tmp_path / RUN.with_name("version_1"))["processes"] == 2
    assert sorted(path.name for path in (tmp_path / RUN.parent).iterdir()) == ["version_0", "version_1"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("fit.yaml", None, f"run '{RUN}' is not the folder of a run (it has no fit.yaml)"),
        ("run.json", "{", "run.json' cannot be read ("),
        ("run.json", "[]", "run.json' is not the record of a run: remove it"),
        (
            "metrics.csv",
            "step,metric\n1,a\n",
            "metrics.csv' is damaged, and cannot be compared: remove it",
        ),
        ("metrics.csv", "garbage\n1\n", "metrics.csv' is damaged"),
        ("checkpoints/last.ckpt", "garbage", "last.ckpt' is damaged"),
    ],
)
def test_a_damaged_run_is_told_before_anything_is_trained(
    here: Path, name: str, content: str | None, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (RUN / name).unlink() if content is None else (RUN / name).write_text(content)
    assert main(["repeat", str(RUN)]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert len(list(RUN.parent.iterdir())) == 1

import fcntl
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LambdaCallback

from sft_lightning.__main__ import main
from sft_lightning.cli.lightning_cli import SFTCLI, run as command
from sft_lightning.runs.lock import LOCK, RunLock, is_training
from sft_lightning.training.callbacks.predictions import LOCK as PREDICTIONS_LOCK
from sft_lightning.utils.errors import InputError
from tests.conftest import CONFIGS, ROOT

FIT = ["fit", "--config", str(CONFIGS / "quickstart" / "fine_tune.yaml"), "--run_name=run"]
FIT += ["--trainer.max_epochs=1", "--data.init_args.steps_per_epoch=1"]
HOLDER = """
import sys
from pathlib import Path
from sft_lightning.runs.lock import FileLock, RunLock
lock = FileLock(Path(sys.argv[1])) if sys.argv[2:] == ["file"] else RunLock()
if isinstance(lock, FileLock): lock.take()
elif len(sys.argv) == 2: lock.lock(Path(sys.argv[1]))
else: print(lock.claim_version(Path(sys.argv[1])), flush=True)
print("held", flush=True)
sys.stdin.read()
"""


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_processes_that_start_at_once_get_a_version_each(workdir: Path) -> None:
    held = [start("more", "claim") for _ in range(4)]
    names = [holder.stdout.readline().strip() for holder in held if holder.stdout]
    for holder in held:
        holder.communicate("")
    assert sorted(names) == [f"more/version_{k}" for k in range(4)]


def test_a_version_that_another_process_has_just_made_is_not_shared(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "glob", lambda *_: [])  # as all see it that start at once
    names = [RunLock().claim_version(Path("runs")).name for _ in range(3)]
    assert names == ["version_0", "version_1", "version_2"]


def test_a_new_version_is_newer_than_all_others_where_some_were_removed(workdir: Path) -> None:
    for name in ("version_3", "version_x", "other"):
        Path("runs", name).mkdir(parents=True)
    assert RunLock().claim_version(Path("runs")) == Path("runs/version_4")


def test_a_run_that_is_still_trained_is_not_taken_over(
    workdir: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert main(FIT) == 0
    run = Path("lightning_logs/run/version_0")
    assert not (run / LOCK).exists()
    assert not is_training(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    holder = start(str(run))
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert is_training(run)
    for words in (["--ckpt_path=last", "--run_name=run"], ["--ckpt_path", str(run), "--trainer.logger=false"]):
        assert main(["fit", *words, "--trainer.max_epochs=2"]) == 2
        assert f"is being trained by process {holder.pid} on" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before
    for name in ("test", "validate", "predict"):  # read a whole checkpoint
        assert "still being trained" not in caplog.text
        assert main([name, str(run)]) == 0
        assert f"Run {run} is still being trained: {name} takes last.ckpt of step 1, which is not" in caplog.text
        caplog.clear()
    assert main(["repeat", str(run)]) == 2
    assert "is still being trained and has no result to compare with" in capsys.readouterr().err
    assert main(FIT) == 0  # another version
    holder.kill()
    holder.communicate()
    assert (run / LOCK).exists()
    assert not is_training(run)
    assert main(["test", str(run)]) == 0
    assert "still being trained" not in caplog.text
    assert main(["fit", "--ckpt_path", str(run), "--trainer.max_epochs=2"]) == 0
    assert not (run / LOCK).exists()


def test_to_look_at_a_lock_of_this_process_does_not_give_it_up(workdir: Path) -> None:
    lock = RunLock()
    run = lock.claim_version(Path("runs"))
    assert not is_training(run)  # by another process
    holder = start(str(run))
    assert holder.communicate("")[0] == ""  # refused
    assert holder.returncode == 1
    lock.release()


def test_two_predictions_into_one_folder_are_not_mixed(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FIT, "--trainer.limit_val_batches=1"]) == 0
    run = Path("lightning_logs/run/version_0")
    predict = ["predict", str(run), "--trainer.limit_predict_batches=1"]
    holder = start(str(run / PREDICTIONS_LOCK), "file")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    piece = run / "predictions.csv.rank0"
    piece.write_text("of the other")
    assert main(predict) == 2
    said = capsys.readouterr().err
    assert f"predictions are being written to {str(run)!r} by process {holder.pid} on" in said
    assert piece.read_text() == "of the other"
    assert not (run / "predictions.csv").exists()
    holder.kill()
    holder.communicate()
    assert main(predict) == 0
    assert (run / "predictions.csv").is_file()
    assert not (run / PREDICTIONS_LOCK).exists()
    with pytest.raises(RuntimeError, match="on the way"):
        command(predict, Failing)
    assert not (run / PREDICTIONS_LOCK).exists()


class Failing(SFTCLI):
    """`predict` that fails on the way."""

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        def fail(*_: Any) -> None:
            raise RuntimeError("on the way")

        return super()._instantiate_trainer(config, [*callbacks, LambdaCallback(on_predict_batch_end=fail)])


def test_a_run_without_a_checkpoint_that_is_still_trained_is_not_called_stopped(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    holder = start("lightning_logs/run", "claim")
    assert holder.stdout is not None
    holder.stdout.readline()
    holder.stdout.readline()
    assert main([*FIT, "--ckpt_path=last"]) == 2
    assert "is being trained and has no checkpoint yet" in capsys.readouterr().err
    holder.communicate("")


def test_bad_input_leaves_no_folder(workdir: Path) -> None:
    assert main([*FIT, "--trainer.strategy=nonsense"]) == 2
    assert not list(Path("lightning_logs/run").iterdir())


def test_a_folder_that_cannot_be_written_to_is_named(workdir: Path) -> None:
    Path("runs").write_text("")
    with pytest.raises(InputError, match="'runs' cannot be written"):
        RunLock().claim_version(Path("runs"))


def test_a_training_that_never_began_leaves_no_folder(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cat", "dog"):
        (workdir / "photos" / name).mkdir(parents=True)
        (workdir / "photos" / name / "1.png").write_bytes(b"words")
    for words in (["--data.init_args.source=photos"], ["--data.init_args.num_labels=100000"]):
        assert main([*FIT, *words]) == 2
        assert "sft-lightning: " in capsys.readouterr().err
        assert not list(workdir.rglob("version_*"))


def test_what_a_dead_process_left_in_a_lock_is_replaced(workdir: Path) -> None:
    (workdir / LOCK).write_text("process 1 on another machine")
    lock = RunLock()
    lock.lock(workdir)
    assert (workdir / LOCK).read_text() == f"process {os.getpid()} on {platform.node()}"
    lock.release()


def test_a_lock_that_its_former_holder_has_just_removed_is_made_anew(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    lockf = fcntl.lockf

    def remove_first(*args: Any) -> None:
        if not calls:
            (workdir / LOCK).unlink()
        calls.append(args)
        lockf(*args)

    monkeypatch.setattr(fcntl, "lockf", remove_first)
    lock = RunLock()
    lock.lock(workdir)
    assert len(calls) == 2
    assert (workdir / LOCK).is_file()
    lock.release()


@pytest.mark.parametrize("names", [["events.out.tfevents.1"], ["events.out.tfevents.1", "fit.yaml"]])
def test_only_a_folder_without_results_is_removed(names: list[str], workdir: Path) -> None:
    lock = RunLock()
    folder = lock.claim_version(workdir)
    for name in names:
        (folder / name).touch()
    lock.release()
    assert sorted(path.name for path in workdir.rglob("*.*")) == (names if len(names) > 1 else [])

from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sft_lightning.cli.lightning_cli import SFTCLI
from tests.paradigms.helpers import cli


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


RUN = Path("lightning_logs", "a", "version_0")


def _fit(*words: str) -> SFTCLI:
    return cli("fit", "fine_tune", "--run_name=a", *words)


def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(RUN / "checkpoints" / name, weights_only=True)
    return content


def test_last_checkpoint_is_the_last_iterate_and_best_the_best_by_validation() -> None:
    # The rate is so high that later epochs are worse than the first.
    optimizer = ["--model.init_args.optimizer=torch.optim.SGD", "--model.init_args.optimizer.init_args.lr=5"]
    run = _fit(*optimizer, "--model.init_args.lr_scheduler=null", "--trainer.max_epochs=5")
    last = _read("last.ckpt")
    assert last["global_step"] == 30
    assert all(torch.equal(last["state_dict"][n], t) for n, t in run.model.state_dict().items())
    best = [p.name for p in (RUN / "checkpoints").glob("best-*.ckpt")]
    assert len(best) == 1
    scores = _scores()
    assert _read(best[0])["global_step"] == max(scores, key=lambda step: scores[step]) < 30
    assert best[0].endswith(f"accuracy={max(scores.values()):.4f}.ckpt")


def _scores() -> dict[int, float]:
    events = EventAccumulator(str(RUN))
    events.Reload()
    return {event.step + 1: event.value for event in events.Scalars("val/accuracy")}


def test_each_command_keeps_its_own_config() -> None:
    _fit()
    fit = (RUN / "fit.yaml").read_text()
    cli("test", "fine_tune", f"--ckpt_path={RUN}", "--run_name=a", "--data.init_args.eval_batch_size=250")
    assert (RUN / "fit.yaml").read_text() == fit
    assert "eval_batch_size: 250" in (RUN / "test.yaml").read_text()
    assert sorted(p.name for p in RUN.parent.iterdir()) == ["version_0"]


def test_resumed_fit_continues_in_the_same_folder() -> None:
    _fit()
    assert _read("last.ckpt")["global_step"] == 12
    _fit(f"--ckpt_path={RUN}", "--trainer.max_epochs=4")
    assert _read("last.ckpt")["global_step"] == 24
    assert "max_epochs: 4" in (RUN / "fit-resumed.yaml").read_text()
    assert "max_epochs: 2" in (RUN / "fit.yaml").read_text()
    assert sorted(p.name for p in RUN.parent.iterdir()) == ["version_0"]
    assert len(list((RUN / "checkpoints").glob("best-*.ckpt"))) == 1


def test_without_validation_only_the_last_checkpoint_is_written() -> None:
    _fit("--data.init_args.val_size=0")
    assert [p.name for p in (RUN / "checkpoints").iterdir()] == ["last.ckpt"]


def test_run_logs_its_size_folder_and_results(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        _fit()
    assert "FineTuneClassifier, 111,146 parameters, all trained; 1 x cpu." in caplog.text
    assert f"Run: {RUN}" in caplog.text
    assert "Finished at step 12: " in caplog.text
    assert "val/accuracy" in caplog.text

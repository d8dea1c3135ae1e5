"""A signal ends a training at the next batch, saved, on all processes; it goes on as if nothing had happened."""

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer

from sft_lightning.training.callbacks.preemption import SIGNALS
from sft_lightning.utils.errors import StoppedBySignal
from tests.paradigms.helpers import cli
from tests.promises.conftest import Whole
from tests.promises.killed import trained
from tests.promises.test_exact_resume import RUNS, everything, same, seen, short


@pytest.mark.parametrize(
    ("name", "step", "ranks"),
    [
        pytest.param("SIGTERM", 7, 1, marks=pytest.mark.slow),
        ("SIGUSR1", 5, 1),
        pytest.param("SIGINT", 8, 1, marks=pytest.mark.slow),
        ("SIGTERM", 7, 2),
    ],
)
def test_a_signal_saves_and_ends(name: str, step: int, ranks: int, tmp_path: Path, whole: Whole) -> None:
    """With two processes only the second gets it. Step 5 is the last of an epoch."""
    words = short(RUNS["joint"])
    code = 128 + signal.Signals[name]
    assert trained(words, tmp_path / "parts", name, step, ranks) == [code] * ranks
    steps = [max(seen(tmp_path / "parts", rank)) + 1 for rank in range(ranks)]
    assert steps == [step + (ranks > 1)] * ranks  # of several, all are asked in one step and stop in the next
    assert everything(tmp_path / "parts")["global_step"] == steps[0]
    assert trained([*words, "--ckpt_path=last"], tmp_path / "parts", ranks=ranks) == [0] * ranks
    unbroken = whole(words, ranks)
    expected, parts = everything(unbroken), everything(tmp_path / "parts")
    assert [key for key in expected if not same(expected[key], parts[key])] == []
    for rank in range(ranks):
        assert seen(unbroken, rank) == seen(tmp_path / "parts", rank)


class Asked(Callback):
    """Asks its own process to end, in the fourth step."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(("saves", "told"), [
    ("true", "saved; go on with the same command and --ckpt_path "),
    ("false", "nothing is saved where trainer.enable_checkpointing is false"),
])  # fmt: skip
def test_it_says_what_is_saved_and_listens_no_more(
    saves: str, told: str, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    words = (f"--trainer.enable_checkpointing={saves}", "--trainer.callbacks=tests.promises.test_preemption.Asked")
    with pytest.raises(StoppedBySignal, match=re.escape(f"SIGINT at step 4: {told}")):
        cli("fit", "fine_tune", *words)
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    with pytest.raises(StoppedBySignal):  # more signals follow there, while the last things are written
        cli("fit", "fine_tune", *words)
    assert all(signal.getsignal(number) != handler for number, handler in before.items())
    for number, handler in before.items():
        signal.signal(number, handler)
    assert bool(list(workdir.rglob("*.ckpt"))) == (saves == "true")


def test_where_nothing_is_saved_all_processes_end(tmp_path: Path) -> None:
    words = [*short(RUNS["joint"]), "--trainer.enable_checkpointing=false"]
    assert trained(words, tmp_path, "SIGTERM", 7, ranks=2) == [128 + signal.SIGTERM] * 2
    assert [max(seen(tmp_path, rank)) + 1 for rank in range(2)] == [8, 8]

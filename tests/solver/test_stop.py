"""A signal stops `solve` with one sentence, wherever it arrives."""

import os
import signal
from pathlib import Path

import pytest

from sft_lightning import solve
from sft_lightning.solver.solvers import Solver
from sft_lightning.utils.errors import StoppedBySignal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_outside_a_training_is_one_sentence(
    number: signal.Signals, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heeds = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell lets background processes ignore
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Solver, "run", lambda *args: os.kill(os.getpid(), number))
    try:
        with pytest.raises(StoppedBySignal, match=f"{number.name}: start solve again to go on") as stopped:
            solve("sample", num_labels=20)
    finally:
        signal.signal(signal.SIGINT, heeds)
    assert stopped.value.signal == number
    assert signal.getsignal(signal.SIGTERM) is before

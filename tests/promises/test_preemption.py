"""A signal ends a training at the next batch, saved, on all processes; it goes on as if nothing had happened."""

import signal
from pathlib import Path

import pytest

from tests.promises.killed import trained
from tests.promises.test_exact_resume import RUNS, SHORT, everything, same, seen


@pytest.mark.parametrize(
    ("name", "step", "ranks"),
    [
        pytest.param("SIGTERM", 7, 1, marks=pytest.mark.slow),
        ("SIGUSR1", 5, 1),
        ("SIGINT", 8, 1),
        ("SIGTERM", 7, 2),
    ],
)
def test_a_signal_saves_and_ends(name: str, step: int, ranks: int, tmp_path: Path) -> None:
    """With two processes only the second gets it. Step 5 is the last of an epoch."""
    words = ["fit", *RUNS["joint"][:2], *SHORT, *RUNS["joint"][2:]]
    code = 128 + signal.Signals[name]
    assert trained(words, tmp_path / "parts", name, step, ranks) == [code] * ranks
    steps = [max(seen(tmp_path / "parts", rank)) + 1 for rank in range(ranks)]
    assert steps == [step + (ranks > 1)] * ranks  # of several, all are asked in one step and stop in the next
    assert everything(tmp_path / "parts")["global_step"] == steps[0]
    for folder, more in (("parts", ["--ckpt_path=last"]), ("whole", [])):
        assert trained([*words, *more], tmp_path / folder, ranks=ranks) == [0] * ranks
    whole, parts = everything(tmp_path / "whole"), everything(tmp_path / "parts")
    assert [key for key in whole if not same(whole[key], parts[key])] == []
    for rank in range(ranks):
        assert seen(tmp_path / "whole", rank) == seen(tmp_path / "parts", rank)

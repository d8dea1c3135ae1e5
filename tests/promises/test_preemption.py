"""A signal ends a training at the next batch, saved, on all processes; it goes on as if nothing had happened."""

import signal
from pathlib import Path

import pytest

from tests.promises.conftest import Whole
from tests.promises.killed import trained
from tests.promises.test_exact_resume import RUNS, everything, same, seen, short


@pytest.mark.parametrize(
    ("name", "step", "ranks"),
    [
        pytest.param("SIGTERM", 7, 1, marks=pytest.mark.slow),
        ("SIGUSR1", 5, 1),
        ("SIGINT", 8, 1),
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

"""`find-precision` over the real command line: both precisions are trained in, and what is faster is suggested."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sft_lightning import FineTuneClassifier
from sft_lightning.__main__ import main
from sft_lightning.tuning import throughput
from sft_lightning.tuning.find_precision import format_precisions
from tests.conftest import CONFIGS
from tests.paradigms.helpers import state

ME = "tests.tuning.test_find_precision"
WORDS = ["find-precision", "--config", str(CONFIGS / "quickstart" / "fine_tune.yaml"), "--trainer.accelerator=cpu"]
WORDS += ["--model.init_args.backbone=mlp", "--data.init_args.batch_size=10", "--rounds=2", "--seconds=0.001"]
SEEN: list[tuple[FineTuneClassifier, dict[str, Tensor]]] = []


class Clock:
    """Stands still but where a step moves it."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


CLOCK = Clock()


class Timed(FineTuneClassifier):
    """A step takes a second, and in half precision half of one."""

    def features(self, x: Tensor) -> Tensor:
        made = super().features(x)
        CLOCK.now += 0.5 if made.dtype == torch.bfloat16 else 1.0
        return made

    def on_fit_start(self) -> None:
        super().on_fit_start()
        SEEN.append((self, state(self)))


def test_half_the_time_is_suggested_and_nothing_is_learned(
    workdir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(throughput, "time", CLOCK)
    assert main([*WORDS, f"--model.class_path={ME}.Timed"]) == 0
    assert capsys.readouterr().out == (
        "precision   examples/s  against 32-true\n"
        "32-true             10\n"
        "bf16-mixed          20  2.00 (2.00 to 2.00)\n"
        "suggested  bf16-mixed: at least 5% faster than 32-true in every round\n"
        "for fit    --trainer.precision bf16-mixed\n"
        "Whether the accuracy stays, a study of both says: sft-lightning study.\n"
    )
    order = [line.split(": ")[1] for line in caplog.messages if line.startswith("round ")]
    assert order == ["32-true ...", "bf16-mixed ..."] * 2
    assert len(SEEN) == 4
    model, start = SEEN[0]
    assert all(torch.equal(p, start[name]) for name, p in model.named_parameters())
    assert not [path for path in workdir.rglob("*") if path.is_file()]


def test_what_is_faster_in_one_round_alone_is_not_suggested() -> None:
    lines = format_precisions(
        {"32-true": [100.0, 100.0, 100.0], "bf16-mixed": [130.0, 104.0, 140.0], "16-mixed": [90.0] * 3}
    )
    assert lines.splitlines()[1:] == [
        "32-true            100",
        "bf16-mixed         130  1.30 (1.04 to 1.40)",
        "16-mixed            90  0.90 (0.90 to 0.90)",
        "suggested  32-true: no other is at least 5% faster than 32-true in every round",
        "for fit    --trainer.precision 32-true",
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--rounds=0"], "rounds is 0: give a number of at least 1"),
        (["--seconds=0"], "seconds is 0.0: give a number above 0"),
    ],
)
def test_bad_input_is_refused(
    words: list[str], sentence: str, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*WORDS, *words]) == 2
    assert sentence in capsys.readouterr().err

import json
from pathlib import Path

import pytest

from sft_lightning.study import quickstart
from sft_lightning.study.quickstart import Row, verdict


def row(accuracy: float) -> Row:
    return Row("x", 100, accuracy, 1.0)


@pytest.mark.parametrize(
    ("scratch", "pretrained", "words"),
    [(0.70, 0.71, "within what 2,000 test pictures can tell"), (0.6, 0.7, "raised the test accuracy by 10.0 points"),
     (0.7, 0.6, "lowered the test accuracy by 10.0 points")],
)  # fmt: skip
def test_verdict_says_what_changed_and_that_one_seed_proves_nothing(
    scratch: float, pretrained: float, words: str
) -> None:
    said = verdict(row(scratch), row(pretrained), row(0.72), 2000)
    assert words in said
    assert "One seed proves nothing" in said
    assert "does not beat logistic regression" in said


def test_quickstart_twice_keeps_the_first(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert quickstart.main(["--trainer.max_epochs", "4"]) == 0
    summary = json.loads((workdir / "lightning_logs" / "quickstart" / "summary.json").read_text())
    assert [r["labels"] for r in summary["rows"]] == [100, 100, 100]
    assert all(0.6 < r["test_accuracy"] < 0.85 for r in summary["rows"])
    shown = capsys.readouterr().out
    assert summary["verdict"] in shown
    assert "same network from scratch         100" in shown
    for name in ("autoencoder", "fine_tune", "from_scratch"):
        versions = {p.name for p in (workdir / "lightning_logs" / "quickstart" / name).iterdir()}
        assert versions == {"version_0", "version_1"}

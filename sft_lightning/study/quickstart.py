"""The main job on the shipped sample: pre-train without labels, fine-tune on 100, compare with doing neither.

`scripts/quickstart` runs it. Each stage is an ordinary `fit` with a config under `configs/quickstart/`, kept in
`lightning_logs/quickstart/`; a second start makes new versions beside the old ones.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import sft_lightning
from sft_lightning.cli import SFTCLI, run
from sft_lightning.runs import LOGS
from sft_lightning.study.baselines import logistic_regression

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "quickstart"


@dataclass
class Row:
    """One line of the table.

    Attributes:
        method: In words.
        labels: Number of training labels.
        test_accuracy: Of the last iterate, 0 to 1.
        seconds: Of training and testing.
        run: The folder of the run, or None.
    """

    method: str
    labels: int
    test_accuracy: float
    seconds: float
    run: str | None = None


def _say(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _fit(config: str, *extra: str) -> tuple[Path, SFTCLI]:
    cli = run(["fit", "--config", str(CONFIGS / config), *extra])
    return Path(str(cli.trainer.log_dir)), cli


def _classifier(method: str, name: str, *extra: str) -> tuple[Row, SFTCLI]:
    """Fine-tunes and tests; the time is that of both."""
    start = time.monotonic()
    folder, cli = _fit("fine_tune.yaml", "--run_name", f"quickstart/{name}", *extra)
    tested = run(["test", "--ckpt_path", str(folder)])
    accuracy = float(tested.trainer.callback_metrics["test/accuracy"])
    labels = len(cli.datamodule.splits["labeled"])
    return Row(method, labels, accuracy, time.monotonic() - start, str(folder)), cli


def verdict(scratch: Row, pretrained: Row, logistic: Row, tested: int) -> str:
    """What the numbers say, and what they cannot say.

    Args:
        scratch: Trained from scratch.
        pretrained: Fine-tuned after the autoencoder.
        logistic: Logistic regression.
        tested: Number of test pictures.
    """
    points = 100 * (pretrained.test_accuracy - scratch.test_accuracy)
    # Standard error of the difference of two accuracies on the same pictures, as if they were independent: an upper
    # bound of the error that the choice of test pictures alone makes.
    error = 100 * sum(r.test_accuracy * (1 - r.test_accuracy) / tested for r in (scratch, pretrained)) ** 0.5
    if abs(points) < 2 * error:
        change = (
            f"changed the test accuracy by {points:+.1f} points, which is within what {tested:,} test pictures can tell"
        )
    else:
        change = f"{'raised' if points > 0 else 'lowered'} the test accuracy by {abs(points):.1f} points"
    best = max(scratch.test_accuracy, pretrained.test_accuracy)
    beside = "beats" if best > logistic.test_accuracy else "does not beat"
    return (
        f"Pre-training on the unlabeled pictures {change}. The better of the two networks {beside} logistic regression "
        "on the raw pixels. One seed proves nothing: another split or start moves each figure by several points."
    )


def table(rows: list[Row]) -> str:
    """The rows as text.

    Args:
        rows: To show.
    """
    width = max(len(row.method) for row in rows)
    lines = [f"{'method':<{width}}  labels  test accuracy  seconds"]
    lines += [f"{r.method:<{width}}  {r.labels:>6}  {r.test_accuracy:>13.3f}  {r.seconds:>7.1f}" for r in rows]
    return "\n".join(lines)


def main(extra: Sequence[str] = ()) -> int:
    """Runs the three rows and writes `lightning_logs/quickstart/summary.json`.

    Args:
        extra: Options for each `fit`, such as `--trainer.max_epochs 2`.
    """
    _say("1/3  Autoencoder on the unlabeled pictures")
    start = time.monotonic()
    encoder, _ = _fit("autoencoder.yaml", *extra)
    pretraining = time.monotonic() - start
    _say("\n2/3  Fine-tuning of its encoder on the labels")
    pretrained, cli = _classifier(
        "autoencoder, then fine-tuning", "fine_tune", "--model.init_args.weights", str(encoder), *extra
    )
    pretrained.seconds += pretraining
    _say("\n3/3  The same network on the same labels from scratch")
    scratch, _ = _classifier("same network from scratch", "from_scratch", *extra)
    start = time.monotonic()
    logistic = Row("logistic regression on pixels", scratch.labels, logistic_regression(cli.datamodule), 0.0)
    logistic.seconds = time.monotonic() - start
    rows = [logistic, scratch, pretrained]
    splits: Any = cli.datamodule.splits
    said = verdict(scratch, pretrained, logistic, len(splits["test"]))
    _say(f"\n{table(rows)}\n\n{said}")
    summary = {
        "rows": [asdict(row) for row in rows],
        "verdict": said,
        "autoencoder": str(encoder),
        "pictures": {name: len(split) for name, split in splits.items()},
        "seed": cli.datamodule.request.seed,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "sft_lightning": sft_lightning.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
    }
    for path in (Path(LOGS) / "quickstart" / "summary.json", Path(str(pretrained.run)) / "summary.json"):
        staged = path.with_suffix(".part")
        staged.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        staged.replace(path)
    _say(f"\nSummary: {LOGS}/quickstart/summary.json")
    _say("The command: source .venv/bin/activate, then sft-lightning --help")
    _say(f"Curves and pictures: .venv/bin/tensorboard --logdir {LOGS}/quickstart")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

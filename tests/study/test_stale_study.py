"""Studies called again: runs whose data changed are trained again, and a second call at the same time is refused."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sft_lightning.__main__ import main
from sft_lightning.study import study
from sft_lightning.study.study import COLUMNS, compare_methods
from tests.forks import started
from tests.study.test_study import METHODS, by_hand, results, written

ALONE = {"labels_only": METHODS["labels_only"]}
CLASSES = ("red", "green", "blue")
SETTINGS: dict[str, Any] = {
    "budgets": [20],
    "seeds": [0],
    "methods": ALONE,
    "data": {
        "class_path": "ImageDataModule",
        "init_args": {"source": "t.csv", "image_size": 16, "steps_per_epoch": 20, "num_workers": 0},
    },
}


def write_labels(right: bool) -> None:
    shift = 0 if right else 1
    rows = [f"d/{c}/{i}.png,{CLASSES[(k + i * shift) % 3]}" for k, c in enumerate(CLASSES) for i in range(20)]
    Path("t.csv").write_text("\n".join(["path,label", *rows]) + "\n")


@pytest.fixture
def colors(workdir: Path) -> Path:
    for k, name in enumerate(CLASSES):
        (workdir / "d" / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.random.default_rng(100 * k + i).integers(0, 60, (16, 16, 3), dtype=np.uint8)
            pixels[..., k] += 190
            Image.fromarray(pixels).save(workdir / "d" / name / f"{i}.png")
    write_labels(right=False)
    return workdir


def test_runs_are_trained_again_after_labels_are_corrected(colors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["study", written(colors, **SETTINGS)]
    assert main(words) == 0
    wrong = results(colors)
    assert max(float(row["test_last"]) for row in wrong) < 0.8
    capsys.readouterr()
    write_labels(right=True)
    assert main(words) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[:2] == [
        "Study small: 1 run, 1 to train.",
        "The labels of t.csv changed: 1 run is trained again.",
    ]
    right = results(colors)
    # Also of the baselines, which are measured on the same labels.
    baselines = ["logistic regression on pixels", "label spreading on pixels"]
    assert [row["method"] for row in right] == ["labels_only", *baselines]
    assert all(float(row["test_last"]) > 0.95 for row in right)
    assert {row["run"] for row in right} & {row["run"] for row in wrong} == {""}
    assert all((colors / row["run"]).is_dir() for row in wrong if row["run"])
    assert main(words) == 0
    assert capsys.readouterr().err.splitlines() == ["Study small: 1 run, 0 to train."]


def test_a_running_study_is_not_started_twice(colors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"trainer.max_epochs": 4000, "trainer.accelerator": "cpu"}
    process = started(
        main, ["study", written(colors, **SETTINGS, options=options)], folder=colors, files=colors / "output"
    )
    lock = colors / "lightning_logs" / "study" / "small" / ".lock"
    until = time.monotonic() + 120
    while not lock.is_file() or not lock.read_text():
        time.sleep(0.05)
        assert time.monotonic() < until
    short = ["study", written(colors, **SETTINGS)]
    assert main(short) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"sft-lightning: study 'small' is already running, started by process {process.pid} on ")
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert lock.is_file()
    assert main(short) == 0  # what a crash leaves locks nothing
    assert not lock.is_file()


def test_runs_tested_on_other_examples_are_not_compared() -> None:
    def row(method: str, seed: int, tested: int, digest: str) -> dict[str, Any]:
        about = {"method": method, "budget": 4, "seed": seed, "tested": tested, "test_set": digest, "run": "r"}
        return {**dict.fromkeys(COLUMNS, ""), **about}

    rows = [row("alone", seed, 24, "a") for seed in range(4)]
    rows += [row("ours", 4, 24, "a")]  # without a partner
    rows += [row("alone", 5, 24, "e"), row("ours", 5, 24, "e")]  # each seed has a split of its own
    rows += [row("ours", 0, 24, "a"), row("ours", 1, 60, "b"), row("ours", 2, 24, "c"), row("ours", 3, 24, "")]
    apart = study._find_unpaired(rows, "alone", {"alone": "alone", "ours": "ours"})
    assert list(apart.values()) == [
        "ours, 4 labels, seed 1: tested on 60 examples, alone on 24; this pair is not in the comparison.",
        "ours, 4 labels, seed 2: tested on 24 examples, alone on other examples; this pair is not in the comparison.",
    ]
    accuracies = {"alone": {4: dict.fromkeys(range(4), 0.5)}, "ours": {4: {0: 0.6, 1: 1.0, 2: 1.0, 3: 0.6}}}
    (found,) = compare_methods(accuracies, "alone", apart)
    assert (found.seeds, round(found.mean_difference, 6)) == (2, 0.1)


def test_pairs_that_were_tested_on_other_examples_are_left_out_of_the_verdict(tmp_path: Path) -> None:
    runs, ledger = by_hand(tmp_path)
    ledger.results["ours 1"]["tested"] = 60
    for seed in range(3):
        ledger.results[f"labels_only {seed}"]["test_set"] = "a"
        ledger.results[f"longer {seed}"]["test_set"] = "b" if seed == 2 else "a"
    said = study.write_results(
        tmp_path, study.collect_rows([run for run in runs if run.is_final], ledger), "labels_only", "last"
    )
    left_out = "this pair is not in the comparison."
    assert f"ours, 10 labels, seed 1: tested on 60 examples, labels only on 100; {left_out}" in said
    assert f"longer, 10 labels, seed 2: tested on 100 examples, labels only on other examples; {left_out}" in said
    compared = json.loads((tmp_path / "summary.json").read_text())["comparisons"]
    assert {one["method"]: one["seeds"] for one in compared} == {"ours": 2, "longer": 2, "wider": 3}
    (ours,) = (one["mean_difference"] for one in compared if one["method"] == "ours")
    assert ours == pytest.approx((0.0327 + 0.0673) / 2)

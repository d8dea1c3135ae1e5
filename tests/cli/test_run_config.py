import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from markupsafe import escape

from sft_lightning.__main__ import main
from sft_lightning.data.split_files import read_labeled_ids, read_rows
from sft_lightning.report.report import report
from tests.conftest import CONFIGS

FINE_TUNE = str(CONFIGS / "quickstart" / "fine_tune.yaml")
AUTOENCODER = str(CONFIGS / "quickstart" / "autoencoder.yaml")
DATA = ["--data.init_args.source=set", "--data.init_args.image_size=16", "--data.init_args.num_labels=null"]
DATA += ["--data.init_args.steps_per_epoch=1", "--data.init_args.num_workers=0"]
FIT = ["fit", "--config", FINE_TUNE, *DATA, "--trainer.max_epochs=1", "--run_name=run"]
RUN = Path("lightning_logs/run/version_0")


def of_split(run: Path, name: str) -> list[str]:
    return [row.id for row in read_rows(run / "split.csv") if row.split == name]


def test_the_split_of_a_run_rules_when_it_is_tested_and_goes_on(
    workdir: Path, write_folder: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(workdir / "set", {"": 12})
    assert main(FIT) == 0
    split, test = (RUN / "split.csv").read_bytes(), of_split(RUN, "test")
    for name in test[:3]:
        os.remove(f"set/{name}")
    assert main(["test", str(RUN)]) == 0
    assert f"3 examples are gone or unreadable (3 test): {test[0]}" in caplog.text
    assert f"{len(test) - 3} test." in caplog.text
    caplog.clear()
    assert main(["fit", "--ckpt_path", str(RUN), "--trainer.max_epochs=2", "--data.init_args.seed=5"]) == 0
    assert "seed 5 (0 in the run) would choose another split and does not" in caplog.text
    assert (RUN / "split.csv").read_bytes() == split
    assert main(["predict", str(RUN)]) == 0
    assert len((RUN / "predictions.csv").read_text().splitlines()) == 1 + len(test) - 3
    assert "chosen anew" not in caplog.text
    (RUN / "split.csv").unlink()
    assert main(["test", str(RUN)]) == 0
    assert "has no split.csv of its run: the split is chosen anew" in caplog.text


def test_labels_that_a_chain_of_starts_has_learned_are_not_tested_on(
    workdir: Path,
    write_folder: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_folder(workdir / "set", {"": 12})

    def fit(name: str, seed: int, start: str, *words: str) -> int:
        return main([*FIT, f"--run_name={name}", f"--data.init_args.seed={seed}", start, *words])

    pretrain = ["fit", "--config", AUTOENCODER, *DATA, "--data.init_args.num_labels=20"]
    assert main([*pretrain, "--trainer.max_epochs=1", "--run_name=images"]) == 0
    first, second, third = (Path(f"lightning_logs/{name}/version_0") for name in ("first", "second", "third"))
    assert fit("first", 0, "--model.init_args.weights=lightning_logs/images/version_0") == 0
    assert "labeled training examples of" not in caplog.text  # an autoencoder learns from no label
    assert fit("second", 1, f"--model.init_args.weights={first}") == 0
    leak = "test examples are labeled training examples of lightning_logs/first/version_0 ('class_"
    assert leak in caplog.text
    assert main(["lineage", str(second)]) == 0
    *_, line = (line for line in capsys.readouterr().out.splitlines() if leak in line)
    assert re.fullmatch(r" +\d+ of \d+ test examples .*\) and are left out; give .*", line)
    monkeypatch.setattr("sft_lightning.report.report.is_training", lambda run: run == second)
    page = report(str(second), label_next=0).read_text()
    assert page.count(str(escape(leak))) == 2  # in the verdict and in the lineage
    assert "The run is still training: these are not its final results." in page
    assert "leaks" not in json.loads((first / "lineage.json").read_text())[-1]
    (recorded, *_) = json.loads((second / "lineage.json").read_text())[-1]["leaks"]
    assert recorded["kind"] == "leak"
    assert f"Data: {recorded['message']}." in caplog.text
    assert set(recorded["examples"]) <= read_labeled_ids(first / "split.csv")
    assert not read_labeled_ids(first / "split.csv") & {*of_split(second, "test"), *of_split(second, "val")}
    assert main(["export", str(second), "--part", "backbone"]) == 0
    # The exported part knows its chain, and is used in another place.
    shutil.move("lightning_logs", "moved")
    for start in ("second/version_0/backbone.safetensors", "second/version_0"):
        caplog.clear()
        assert fit("third", 2, f"--model.init_args.weights=moved/{start}") == 0
        learned = {*read_labeled_ids("moved" / first.relative_to("lightning_logs") / "split.csv")}
        learned |= read_labeled_ids("moved" / second.relative_to("lightning_logs") / "split.csv")
        assert not learned & {*of_split(third, "test"), *of_split(third, "val")}
        shutil.rmtree("lightning_logs")
    caplog.clear()
    shutil.rmtree("moved/first")
    assert fit("third", 2, "--model.init_args.weights=moved/second/version_0", "--data.init_args.on_leak=raise") == 2
    assert "has learned labels in lightning_logs/first/version_0, which has no split.csv any more" in caplog.text
    shutil.copy("moved/second/version_0/checkpoints/last.ckpt", "alone.ckpt")
    assert fit("fourth", 2, "--model.init_args.weights=alone.ckpt") == 0
    unknown = "weights 'alone.ckpt' is a checkpoint outside of its run: whether it has learned"
    assert f"Data: {unknown}" in caplog.text
    assert main(["lineage", "lightning_logs/fourth/version_0"]) == 0
    assert unknown in capsys.readouterr().out

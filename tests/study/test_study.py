"""Studies over the real command line, on the shipped sample with small networks."""

import csv
import html
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml  # type: ignore[import-untyped]
from jsonargparse.typing import Path_fr
from PIL import Image

from sft_lightning import ImageDataModule
from sft_lightning.__main__ import main
from sft_lightning.networks.vision.backbones import build_backbone
from sft_lightning.study import runner, study
from sft_lightning.study.baselines import fit_label_spreading, fit_logistic_regression, fit_smoothed_regression
from sft_lightning.study.plan import Stage, StudyRun, plan
from sft_lightning.study.runner import Ledger, list_pending, perform
from tests.conftest import CONFIGS, ROOT
from tests.forks import started

QUICK = CONFIGS / "quickstart"
DATA: dict[str, Any] = {
    "source": "sample",
    "batch_size": 20,
    "eval_batch_size": 500,
    "steps_per_epoch": 5,
    "val_size": 8000,  # few are left for the graphs of label spreading
}
Methods = dict[str, list[dict[str, Any]]]
PRETRAINED: list[dict[str, Any]] = [
    {
        "name": "pretrain",
        "config": [str(QUICK / "autoencoder.yaml")],
        "options": {"data.init_args.num_labels": 0, "data.init_args.batch_size": 64},
    },
    {"config": [str(QUICK / "fine_tune.yaml")], "weights": "pretrain"},
]
METHODS: Methods = {"labels_only": [{"config": [str(QUICK / "fine_tune.yaml")]}], "autoencoder": PRETRAINED}


def written(folder: Path, **changed: Any) -> str:
    """Write the file of a study and return its --config."""
    study: dict[str, Any] = {
        "name": "small",
        "budgets": [20, 40],
        "seeds": [0, 1],
        "data": {"class_path": "ImageDataModule", "init_args": DATA},
        "options": {"trainer.max_epochs": 2, "trainer.accelerator": "cpu", "trainer.limit_val_batches": 1},
        "methods": METHODS,
        **changed,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in study.items() if v is not None}, sort_keys=False))
    return f"--config={path}"


def results(folder: Path, name: str = "small") -> list[dict[str, str]]:
    with (folder / "lightning_logs" / "study" / name / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


class Recorder:
    """Records the runs and performs them; stops after some, and fails for a title."""

    def __init__(self, stop_after: int = 10**9, breaks: str = "") -> None:
        self.runs: list[StudyRun] = []
        self.stop_after, self.breaks = stop_after, breaks

    def __call__(self, one: StudyRun, start: str | None, folder: str) -> dict[str, Any]:
        if len(self.runs) == self.stop_after:
            raise KeyboardInterrupt
        self.runs.append(one)
        if self.breaks and self.breaks in one.title:
            raise RuntimeError("out of memory")
        return perform(one, start, folder)


class Call(NamedTuple):
    """One call of a study."""

    runs: list[StudyRun]
    rows: list[dict[str, str]]
    out: str
    err: str


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Call, Call]:
    """Return a study with a failed run, and the same study called again."""
    folder, calls = tmp_path_factory.mktemp("study"), []
    for breaks in ("pretrain, seed 1", ""):
        recorder = Recorder(breaks=breaks)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setattr(runner, "perform", recorder)
            with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
                assert main(["study", written(folder)]) == 0
        calls.append(Call(recorder.runs, results(folder), out.getvalue(), err.getvalue()))
    return folder, calls[0], calls[1]


@pytest.mark.slow
def test_a_failed_run_is_reported_and_trained_again(studied: tuple[Path, Call, Call]) -> None:
    _, first, second = studied
    # Two budgets and seeds of two methods; the autoencoder once for each seed, since it learns from no label.
    assert len(first.runs) == 2 * 2 + 2 + 2
    assert "failed: out of memory" in first.err
    for budget in (20, 40):
        sentence = f"failed: autoencoder, {budget} labels, seed 1: the stage that it starts from failed"
        assert sentence in first.out
    assert [r["failed"] != "" for r in first.rows if r["method"] == "autoencoder"] == [False, True] * 2
    assert all(r["test_last"] for r in first.rows if r["method"] == "labels_only")
    assert [run.title for run in second.runs] == [
        "autoencoder, pretrain, seed 1",
        "autoencoder, tune, 20 labels, seed 1",
        "autoencoder, tune, 40 labels, seed 1",
    ]
    assert not any(row["failed"] for row in second.rows)


def test_a_study_trains_tests_and_compares_its_methods(
    studied: tuple[Path, Call, Call], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    workdir, _, shown = studied
    monkeypatch.chdir(workdir)
    rows = shown.rows
    by_method: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_method.setdefault(row["method"], []).append(row)
    assert {method: len(own) for method, own in by_method.items()} == {
        "labels_only": 4,
        "autoencoder": 4,
        "logistic regression on pixels": 4,
        "logistic regression on the start of autoencoder": 4,
        "label spreading on pixels": 4,
        "label spreading on the start of autoencoder": 4,
        "smoothed logistic regression on the start of autoencoder": 4,
    }
    assert {(row["budget"], row["seed"]) for row in by_method["autoencoder"]} == {
        (budget, seed) for budget in ("20", "40") for seed in ("0", "1")
    }
    for row in by_method["labels_only"] + by_method["autoencoder"]:
        run = workdir / row["run"]
        lines = (run / "split.csv").read_text().splitlines()
        assert sum(",labeled," in line for line in lines) == int(row["budget"])
        assert json.loads(lines[0].removeprefix("# "))["seed"] == int(row["seed"])
        (best,) = (run / "checkpoints").glob("best-*.ckpt")
        assert row["val_best"] == str(float(best.stem.rpartition("=")[2]))
        assert yaml.safe_load((run / "fit.yaml").read_text())["seed_everything"] == int(row["seed"])
        assert (row["network"], row["steps"], row["tested"]) == ("mlp", "10", "2000")
    assert len({Path(row["run"]) for row in rows if row["run"]}) == 8
    # A run can be tested by itself, and has what the table says.
    for row in (by_method["labels_only"][0], by_method["autoencoder"][-1]):
        caplog.clear()
        assert main(["test", "--ckpt_path", row["run"]]) == 0
        accuracy = float(caplog.text.split("test/accuracy")[1].split()[0])
        assert accuracy == pytest.approx(float(row["test_last"]), abs=1e-4)
    # The same split for both methods, and the second starts from the first's encoder.
    pairs = zip(by_method["labels_only"], by_method["autoencoder"], strict=True)
    for alone, tuned in pairs:
        splits = [(workdir / row["run"] / "split.csv").read_text() for row in (alone, tuned)]
        assert splits[0] == splits[1]
        chain = json.loads((workdir / tuned["run"] / "lineage.json").read_text())
        assert [link["model"] for link in chain] == ["AutoencoderModule", "FineTuneClassifier"]
        assert f"0_labels/autoencoder_pretrain/seed_{tuned['seed']}/" in chain[0]["run"]

    # The baselines on what the last of them starts from.
    data = ImageDataModule(**DATA, num_labels=40, seed=1)
    data.setup("fit")
    backbone, _ = build_backbone("mlp", data.image_shape, str(workdir / chain[0]["run"]))
    expected = {
        "logistic regression": fit_logistic_regression(data, backbone=backbone),
        "label spreading": fit_label_spreading(data, backbone),
        "smoothed logistic regression": fit_smoothed_regression(data, backbone),
    }
    for name, accuracy in expected.items():
        (row,) = (
            r for r in by_method[f"{name} on the start of autoencoder"] if (r["budget"], r["seed"]) == ("40", "1")
        )
        assert float(row["test_last"]) == pytest.approx(accuracy, abs=1e-3)
    assert (
        "label spreading on the initial features of autoencoder"
        in (workdir / "lightning_logs" / "study" / "small" / "report.html").read_text()
    )

    folder = workdir / "lightning_logs" / "study" / "small"
    summary = json.loads((folder / "summary.json").read_text())
    assert [(c["method"], c["budget"], c["seeds"]) for c in summary["comparisons"]] == [
        ("autoencoder", 20, 2),
        ("autoencoder", 40, 2),
    ]
    for comparison in summary["comparisons"]:
        own = {
            method: {
                r["seed"]: float(r["test_last"]) for r in by_method[method] if r["budget"] == str(comparison["budget"])
            }
            for method in ("labels_only", "autoencoder")
        }
        difference = sum(own["autoencoder"][s] - own["labels_only"][s] for s in ("0", "1")) / 2
        assert comparison["mean_difference"] == pytest.approx(difference)
    assert summary["verdict"][0] in shown.out
    assert shown.out.index(summary["verdict"][0]) < shown.out.index("against the labels")
    assert summary["notes"] == summary["failed"] == []
    page = (folder / "report.html").read_text()
    assert html.unescape(page).index(summary["verdict"][0]) < page.index("<svg")
    assert "labels only" in page
    assert "<td>labels_only</td>" not in page
    assert all(
        f"{row['budget']}_labels/autoencoder/seed_{row['seed']}/version_0" in page for row in by_method["autoencoder"]
    )
    with Image.open(folder / "label_efficiency.png") as image:
        assert min(image.size) > 200


@pytest.mark.slow
def test_an_interrupted_study_resumes_and_trains_nothing_twice(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = written(workdir, seeds=[0], budgets=[20])
    first = Recorder(stop_after=2)
    monkeypatch.setattr(runner, "perform", first)
    assert main(["study", config]) == 128 + signal.SIGINT
    assert "sft-lightning: SIGINT: start the study again to continue" in capsys.readouterr().err
    second = Recorder()
    monkeypatch.setattr(runner, "perform", second)
    assert main(["study", config]) == 0
    assert "Study small: 3 runs, 1 to train." in capsys.readouterr().err
    third = Recorder()
    monkeypatch.setattr(runner, "perform", third)
    assert main(["study", config]) == 0
    assert (len(first.runs), len(second.runs), len(third.runs)) == (2, 1, 0)
    interrupted = results(workdir)
    # A larger study takes over what it shares; other options are other runs.
    more = Recorder()
    monkeypatch.setattr(runner, "perform", more)
    assert main(["study", written(workdir, seeds=[0], budgets=[20, 40])]) == 0
    assert [run.budget for run in more.runs] == [40, 40]
    other = Recorder()
    monkeypatch.setattr(runner, "perform", other)
    options = {"trainer.max_epochs": 1, "trainer.accelerator": "cpu"}
    assert main(["study", written(workdir, seeds=[0], budgets=[20], options=options)]) == 0
    assert len(other.runs) == 3
    assert main(["study", written(workdir, seeds=[0], budgets=[20], name="again")]) == 0
    timeless = [[(k, v) for k, v in row.items() if k not in ("seconds", "run")] for row in interrupted]
    again = [[(k, v) for k, v in row.items() if k not in ("seconds", "run")] for row in results(workdir, "again")]
    assert timeless == again


@pytest.mark.slow
def test_a_killed_run_resumes_from_its_checkpoint(workdir: Path) -> None:
    alone = METHODS["labels_only"]
    options = {"trainer.max_epochs": 400, "trainer.accelerator": "cpu", "trainer.limit_val_batches": 0}
    config = written(workdir, seeds=[0], budgets=[20], methods={"labels_only": alone}, options=options)
    process = started(main, ["study", config], folder=workdir, files=workdir / "output")
    saved: list[Path] = []
    until = time.monotonic() + 120
    while not saved and time.monotonic() < until:
        time.sleep(0.05)
        saved = list(workdir.glob("lightning_logs/study/small/*/*/*/version_0/checkpoints/last.ckpt"))
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert saved
    # A method with another name resumes the run in its folder.
    config = written(workdir, seeds=[0], budgets=[20], methods={"a": alone}, baseline="a", options=options)
    assert main(["study", config]) == 0
    (row,) = (row for row in results(workdir) if row["run"])
    run = workdir / row["run"]
    assert run.name == "version_0"
    assert (run / "fit-resumed.yaml").is_file()
    assert row["steps"] == "2000"


@pytest.mark.slow
def test_two_processes_give_the_results_of_one_even_if_a_third_is_killed(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", written(workdir, budgets=[20], seeds=[0])]) == 0
    (workdir / "killer.py").write_text(
        "import os, signal\nfrom sft_lightning import ImageDataModule\n\n\nclass Data(ImageDataModule):\n"
        "    def setup(self, stage: str) -> None:\n        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = [{**METHODS["labels_only"][0], "options": {"model.init_args.backbone": "mlp", "data": "killer.Data"}}]
    methods = {"killed": killed, **METHODS}
    assert main(["study", written(workdir, budgets=[20], seeds=[0], name="parallel", methods=methods), "--jobs=2"]) == 0
    one, two = ([(r["method"], r["seed"], r["test_last"]) for r in results(workdir, n)] for n in ("small", "parallel"))
    assert one == [row for row in two if row[0] != "killed"]
    assert (
        "failed: killed, 20 labels, seed 0: its process was killed, perhaps because memory ran out"
        in capsys.readouterr().out
    )
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_processes_end_when_their_study_is_killed(workdir: Path) -> None:
    options = {"trainer.max_epochs": 4000, "trainer.accelerator": "cpu"}
    config = written(workdir, budgets=[20], methods={"labels_only": METHODS["labels_only"]}, options=options)
    words = [sys.executable, "-m", "sft_lightning", "study", config, "--jobs=2"]
    process = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True)

    def alive() -> list[str]:
        said = subprocess.run(["ps", "-o", "pid=,stat=", "--sid", str(process.pid)], capture_output=True, text=True)
        return [line for line in said.stdout.splitlines() if not line.split()[1].startswith("Z")]

    until = time.monotonic() + 240
    while len(list(workdir.glob("lightning_logs/study/small/*/*/*/*/checkpoints/last.ckpt"))) < 2:
        time.sleep(0.1)
        assert time.monotonic() < until
    assert len(alive()) >= 3
    process.kill()
    process.wait()
    until = time.monotonic() + 30
    while alive():
        time.sleep(0.1)
        assert time.monotonic() < until


@pytest.mark.slow
def test_loader_processes_end_with_their_run(workdir: Path, write_folder: Callable[..., Path]) -> None:
    write_folder(workdir / "images", {"train": 20, "test": 4})
    given = {"source": "images", "image_size": 28, "channels": 1, "val_size": 6, "steps_per_epoch": 2, "num_workers": 1}
    runs = plan(
        {"labels_only": [Stage([Path_fr(str(QUICK / "fine_tune.yaml"))])]}, [6], [0, 1],
        {"class_path": "ImageDataModule", "init_args": given}, {"trainer.max_epochs": 1, "trainer.accelerator": "cpu"},
    )  # fmt: skip
    assert all("test_last" in perform(one, None, "study/small") for one in runs)
    assert len(multiprocessing.active_children()) <= 1  # of the last loader; without an end to them there were 8


def by_hand(tmp_path: Path) -> tuple[list[StudyRun], Ledger]:
    """Three seeds of four methods, of which one has two stages; what is not said is the same for all."""
    ledger, runs = Ledger(tmp_path / "study.json"), []
    accuracies = {  # of the last iterate, of the chosen one, network, steps
        "labels_only": ([0.5, 0.6, 0.4], [0.5, 0.6, 0.4], "mlp", 10),
        "ours": ([0.5327, 0.65, 0.4673], [0.4, 0.49, 0.31], "mlp", 10),
        "longer": ([0.4, 0.7, 0.4], [0.4, 0.7, 0.4], "mlp", 20),
        "wider": ([0.45, 0.6, 0.35], [0.45, 0.6, 0.35], "conv", 10),
    }
    for method, (last, best, network, steps) in accuracies.items():
        for seed in range(3):
            start = f"start {seed}" if method == "ours" else None
            if start is not None:
                runs.append(StudyRun(method, Stage([], name="start"), 10, seed, start, (), None, False))
                ledger.results[start] = {"folder": "f", "seconds": 5.0, "start": None}
            runs.append(StudyRun(method, Stage([]), 10, seed, f"{method} {seed}", (), start, True))
            ledger.results[runs[-1].key] = {
                "folder": "runs/a/version_0", "seconds": 2.0, "start": start, "test_last": last[seed],
                "test_best": best[seed], "network": network, "steps": steps, "tested": 100, "logistic": {"pixels": 0.7},
                "graph": {"pixels": 0.3},
            }  # fmt: skip
    return runs, ledger


def test_table_and_verdict_match_a_study_by_hand(tmp_path: Path) -> None:
    runs, ledger = by_hand(tmp_path)
    rows = study.collect_rows([run for run in runs if run.is_final], ledger)
    assert sum(row["method"] == "logistic regression on pixels" for row in rows) == 3
    said = study.write_results(tmp_path, rows, "labels_only", "last").splitlines()
    # By itself `ours` would have helped with p = 0.038; as one of three it has not.
    assert said[:2] == [
        "With 10 labels and 3 seeds: no evidence yet for ours (+5.0), longer (+0.0) and wider (-3.3).",
        "With 10 labels, logistic regression on pixels beats every method: 0.700 on average.",
    ]
    assert [re.split("  +", line) for line in said if "±" in line] == [
        ["10", "logistic regression on pixels", "3", "0.700 ± 0.000", "0.700 ± 0.000"],
        ["10", "ours", "3", "0.550 ± 0.093", "0.400 ± 0.090", "+5.0 points: no evidence yet", "7"],
        ["10", "labels only", "3", "0.500 ± 0.100", "0.500 ± 0.100", "2"],
        ["10", "longer", "3", "0.500 ± 0.173", "0.500 ± 0.173", "+0.0 points: no evidence yet", "2"],
        ["10", "wider", "3", "0.467 ± 0.126", "0.467 ± 0.126", "-3.3 points: no evidence yet", "2"],
        ["10", "label spreading on pixels", "3", "0.300 ± 0.000", "0.300 ± 0.000"],
    ]
    assert [line.partition(":")[0] for line in said if "from the method alone" in line] == [
        "longer is mlp for 20 steps, labels only is mlp for 10",
        "wider is conv for 10 steps, labels only is mlp for 10",
    ]
    said = study.write_results(tmp_path, rows, "labels_only", "best").splitlines()
    assert (
        said[0] == "With 10 labels and 3 seeds: ours (-10.0) hurt; no evidence yet for longer (+0.0) and wider (-3.3)."
    )
    assert [line.split()[1] for line in said if "±" in line] == [
        "logistic",
        "labels",
        "longer",
        "wider",
        "ours",
        "label",
    ]


def test_runs_without_a_result_are_pending(tmp_path: Path) -> None:
    runs, ledger = by_hand(tmp_path)
    assert list_pending(runs, ledger) == []
    del ledger.results["wider 1"]["folder"]
    assert [run.key for run in list_pending(runs, ledger)] == ["wider 1"]
    # A stage of one method that is all of another is trained once, and tested; also where it has finished untested.
    also = StudyRun("also", Stage([]), 10, 2, "start 2", (), None, True)
    assert list_pending([*runs, also], ledger)[0] == also
    del ledger.results["start 2"]
    assert [run.method for run in list_pending([*runs, also], ledger) if run.key == "start 2"] == ["also"]


@pytest.mark.slow
def test_other_networks_and_steps_are_reported(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = {**METHODS["labels_only"][0], "options": {"model.init_args.backbone": "conv", "trainer.max_epochs": 1}}
    methods = {**METHODS, "another": [stage]}
    assert main(["study", written(workdir, seeds=[0], budgets=[20], methods=methods)]) == 0
    assert "another is conv for 5 steps, labels only is mlp for 10" in capsys.readouterr().out


def test_a_baseline_that_beats_all_methods_is_reported(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = {"labels_only": METHODS["labels_only"]}
    data = {"class_path": "ImageDataModule", "init_args": {**DATA, "val_size": 100}}  # many for the graph
    assert main(["study", written(workdir, seeds=[0], budgets=[40], methods=methods, data=data)]) == 0
    said = capsys.readouterr().out.splitlines()[0]
    assert said.startswith("With 40 labels, label spreading on pixels beats every method: 0.")


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"budgets": []}, "budgets is empty"),
        ({"seeds": [1, 1]}, "seeds names one twice: 1, 1"),
        ({"budgets": [0]}, "budgets has 0"),
        ({"baseline": "label_only"}, "baseline 'label_only' is not among the methods (did you mean 'labels_only'?)"),
        ({"methods": {"labels_only": []}}, "method 'labels_only' has no stage"),
        (
            {"methods": {**METHODS, "x": [{"config": [str(QUICK / "fine_tune.yaml")], "weights": "pretrian"}]}},
            "method 'x' starts stage 'tune' from 'pretrian': no stage comes before it",
        ),
        (
            {"methods": {**METHODS, "x": [PRETRAINED[0], {**PRETRAINED[1], "weights": "pretrian"}]}},
            "from 'pretrian' (did you mean 'pretrain'?): earlier stages: pretrain",
        ),
        (
            {"methods": {**METHODS, "x": [PRETRAINED[0], {**PRETRAINED[1], "teacher": "pretrain"}]}},
            "method 'x': stage 'tune' has weights and teacher, and a study passes one: leave one out",
        ),
        ({"methods": {"labels_only": METHODS["labels_only"] * 2}}, "has two stages named 'tune'"),
        ({"methods": {"labels_only": [{"config": ["gone.yaml"]}]}}, "gone.yaml"),
        ({"methods": None}, "methods"),
        ({"jobs": 0}, "jobs is 0"),
        ({"judge": "bset"}, "judge is 'bset' (did you mean 'best'?): give last or best"),
        ({"data": {"class_path": "ImageDataModule", "init_args": {"sorce": "sample"}}}, "no run of the study finished"),
    ],
    ids=str,
)
def test_invalid_studies_give_one_sentence(
    workdir: Path, changed: dict[str, Any], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", written(workdir, **{"seeds": [0], "budgets": [20], **changed})]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("sft-lightning: ")
    assert sentence in last


def test_a_damaged_ledger_is_reported_with_its_path(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = workdir / "lightning_logs" / "study" / "small" / "study.json"
    ledger.parent.mkdir(parents=True)
    ledger.write_text("{")
    assert main(["study", written(workdir)]) == 2
    assert "study.json' cannot be read" in capsys.readouterr().err


def test_keys_depend_on_everything_that_results_depend_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "a.yaml"
    config.write_text("model: {}")

    def keys(first: dict[str, Any] | None = None, data: Any = None, **options: Any) -> list[str]:
        of = [Path_fr(str(config))]
        stages = [Stage(of, first or {}, name="a"), Stage(of, options, "a", "b")]
        return [run.key for run in plan({"x": stages}, [10], [0], data, {})]

    before = keys()
    assert keys() == before
    assert keys(y=1)[0] == before[0]
    assert keys(y=1)[1] != before[1]
    assert not {*keys({"y": 1})} & {*before}  # the second by what it starts from
    assert not {*keys(data={"class_path": "A"})} & {*before}
    with monkeypatch.context() as patch:
        patch.setattr("sft_lightning.study.plan.__version__", "another")
        assert not {*keys()} & {*before}
    config.write_text("model: {a: 1}")
    assert not {*keys()} & {*before}

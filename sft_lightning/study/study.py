"""`sft-lightning study`: methods, label budgets and seeds in; an honest answer out.

Each training is an ordinary run. Methods are compared with the labels alone on the same splits and seeds, by their test
accuracy: of the last iterate, and beside it of the one that the validation split chose, never the best on the test.
"""

import itertools
import statistics
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from sft_lightning._version import __version__
from sft_lightning.report.figures import embed_png
from sft_lightning.runs.lock import RunLock
from sft_lightning.runs.paths import LOGS, check_run_name
from sft_lightning.study.figures import save_label_efficiency
from sft_lightning.study.plan import Stage, StudyRun, check_methods, plan
from sft_lightning.study.runner import Ledger, RunResult, list_pending, train
from sft_lightning.study.slurm import find_queued_jobs, train_on_slurm
from sft_lightning.study.stale import explain_stale
from sft_lightning.study.statistics import Comparison, apply_holm, compare, format_comparison, format_headline
from sft_lightning.utils.atomic import write_json, write_text
from sft_lightning.utils.environment import describe_machine
from sft_lightning.utils.errors import InputError, check_min, did_you_mean
from sft_lightning.utils.html import Section, render_page, render_paragraphs, render_table as html_table
from sft_lightning.utils.spreadsheet import format_csv
from sft_lightning.utils.tables import align_columns

COLUMNS = (
    "method", "budget", "seed", "test_last", "test_best", "val_best", "network", "steps", "tested", "seconds", "run",
    "failed",
)  # fmt: skip
LOGISTIC = "logistic regression"
Judge = Literal["last", "best"]
Row = dict[str, Any]


def study(
    name: str,
    budgets: list[int],
    seeds: list[int],
    methods: dict[str, list[Stage]],
    baseline: str = "labels_only",
    data: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    judge: Judge = "last",
    jobs: int | None = None,
    launcher: Literal["local", "slurm"] = "local",
    slurm: dict[str, Any] | None = None,
) -> str:
    """Trains what is missing of a study, and tells what the unlabeled pictures gave.

    Args:
        name: The study's folder is `lightning_logs/study/NAME`.
        budgets: Numbers of labels.
        seeds: Each is a split, an initialization and an order of batches; all methods share them.
        methods: A list of stages by the name of the method.
        baseline: The method that learns from the labels alone, with which the others are compared.
        data: Class path and options of the data module, for all stages; null for that of each stage's config.
        options: Settings of `fit` for all stages by their full names; a stage's own come after.
        judge: By which test accuracy methods are compared: of the `last` iterate, or of the `best` on validation.
        jobs: Trainings at the same time, each in a process of its own if more than 1. Left out, it is one here, and all
            that are ready with `slurm`.
        launcher: Where they run: here (`local`), or as array jobs of a cluster (`slurm`, with the extra `slurm`).
        slurm: Settings of sbatch for each training, as submitit names them: partition, time (minutes), cpus_per_task,
            gpus_per_node, mem, account, ...

    Returns:
        The verdict and a table.

    Raises:
        InputError: The study is not complete, or no run of it finished.
        Stopped: By a signal.
    """
    if jobs is not None:
        check_min(1, jobs=jobs)
    check_run_name("name", name)
    if baseline not in methods:
        raise InputError(
            f"baseline {baseline!r} is none of the methods{did_you_mean(baseline, [*methods])}: add a method "
            "that learns from "
            f"the labels alone, or name it ({', '.join(methods)})"
        )
    if slurm and launcher == "local":
        raise InputError(f"slurm is {slurm}, but launcher is local: set launcher: slurm, or leave slurm out")
    check_methods(methods, budgets, seeds)
    folder = Path(LOGS) / "study" / name
    with _lock_study(name, folder):
        runs = plan(methods, budgets, seeds, data, options or {})
        ledger = Ledger(folder / "study.json")
        waiting = list_pending(runs, ledger)
        _print(f"Study {name}: {len({run.key for run in runs})} trainings, {len(waiting)} to do.")
        for reason in explain_stale(runs, waiting, ledger.results):
            _print(reason)
        _train(name, folder, runs, ledger, jobs, launcher, slurm)
        rows = collect_rows([run for run in runs if run.final], ledger)
        return write_results(folder, rows, baseline, judge)


@contextmanager
def _lock_study(name: str, folder: Path) -> Iterator[None]:
    """One process at a time works on a study: two would train the same run in the same folder."""
    lock = RunLock()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.lock(folder)
    except OSError as error:
        raise InputError(f"{str(folder)!r} cannot be written ({error.strerror}): mend its permissions") from error
    except InputError as error:
        raise InputError(
            f"study {name!r} is at work already, by {lock.holder}: wait until it has ended, stop it, or give this one "
            "another name"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _train(
    name: str,
    folder: Path,
    runs: list[StudyRun],
    ledger: Ledger,
    jobs: int | None,
    launcher: Literal["local", "slurm"],
    slurm: dict[str, Any] | None,
) -> None:
    launch = partial(train_on_slurm, settings=slurm or {}, say=_print) if launcher == "slurm" else None
    there = find_queued_jobs(folder / "slurm") if launch is None else {}
    # A job whose result is known may take a while to leave the queue.
    there = {key: job for key, job in there.items() if not ledger.done(key)}
    if there:
        raise InputError(
            f"jobs of Slurm still train for study {name!r}: add --launcher slurm to wait for them, or end them first "
            f"(scancel {' '.join(sorted(there.values()))})"
        )
    train(runs, ledger, f"study/{name}", jobs, _print, launch)


def _print(text: str) -> None:
    sys.stderr.write(text + "\n")


def collect_rows(finals: list[StudyRun], ledger: Ledger) -> list[Row]:
    """The results of a study, a row for each method, budget and seed.

    Args:
        finals: The last training of each.
        ledger: With the results.
    """
    rows: list[Row] = []
    for run in finals:
        result: RunResult = ledger.results.get(run.key, {})
        row: Row = dict.fromkeys(COLUMNS, "")
        row.update({"method": run.method, "budget": run.budget, "seed": run.seed, "run": result.get("folder", "")})
        row.update({name: result[name] for name in COLUMNS if name in result})
        row["test_set"] = result.get("test_set", "")
        row["seconds"] = sum(r.get("seconds", 0.0) for r in _list_results(run, ledger))
        rows.append(row)
        for what, accuracy in result.get("logistic", {}).items():
            method = f"{LOGISTIC} on {'pixels' if what == 'pixels' else f'the start of {run.method}'}"
            new = {"method": method, "budget": run.budget, "seed": run.seed, "tested": row["tested"]}
            if not any(all(old[k] == v for k, v in new.items()) for old in rows):
                row_of = {**dict.fromkeys(COLUMNS, ""), **new, "test_set": row["test_set"]}
                rows.append({**row_of, "test_last": accuracy, "test_best": accuracy})
    return rows


def _list_results(run: StudyRun, ledger: Ledger) -> list[RunResult]:
    """The results of a run and of those before it."""
    found = [ledger.results.get(run.key, {})]
    start = run.start
    while start is not None:
        found.append(ledger.results.get(start, {}))
        start = found[-1].get("start")
    return found


def write_results(folder: Path, rows: list[Row], baseline: str, judge: Judge) -> str:
    """Writes `results.csv`, `summary.json`, `label_efficiency.png` and `report.html`.

    Args:
        folder: Of the study.
        rows: From `collect_rows`.
        baseline: With which the others are compared.
        judge: Which test accuracy counts.

    Returns:
        The verdict and a table as text.

    Raises:
        InputError: No run finished.
    """
    write_text(folder / "results.csv", format_csv([COLUMNS, *([row[name] for name in COLUMNS] for row in rows)]))
    column = f"test_{judge}"
    accuracies: dict[str, dict[int, dict[int, float]]] = {}
    for row in rows:
        if row[column] != "":
            accuracies.setdefault(row["method"], {}).setdefault(row["budget"], {})[row["seed"]] = float(row[column])
    failed = [f"{r['method']}, {r['budget']} labels, seed {r['seed']}: {r['failed']}" for r in rows if r["failed"]]
    if not accuracies:
        raise InputError(f"no run of the study finished; the first failed: {failed[0] if failed else 'none was run'}")
    apart = _find_unpaired(rows, baseline)
    comparisons = compare_methods(accuracies, baseline, apart)
    by_budget = [list(own) for _, own in itertools.groupby(comparisons, key=lambda c: c.budget)]
    verdict = [format_headline(own) for own in by_budget] + _note_winning_baselines(accuracies)
    details = [format_comparison(comparison) for comparison in comparisons]
    different = _note_differences(rows, baseline) + list(apart.values())
    save_label_efficiency(
        folder / "label_efficiency.png",
        {method: {b: list(of.values()) for b, of in by_budget.items()} for method, by_budget in accuracies.items()},
        baseline,
    )
    summary = {
        "verdict": verdict,
        "details": details,
        "notes": different,
        "failed": failed,
        "judge": judge,
        "baseline": baseline,
        "comparisons": [asdict(comparison) for comparison in comparisons],
        "rows": rows,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "machine": describe_machine(),
    }
    write_json(folder / "summary.json", summary)
    lines = make_table(rows, comparisons, column)
    text = "\n".join(align_columns(lines))
    write_text(folder / "report.html", _render_page(folder, verdict, details, [*different, *failed], lines, rows))
    parts = ["\n".join(verdict), text, "\n".join(details)]
    parts += ["\n".join(different)] if different else []
    parts += ["\n".join(f"failed: {line}" for line in failed)] if failed else []
    parts.append(f"Study: {folder} (results.csv, summary.json, label_efficiency.png, report.html)")
    return "\n\n".join(parts)


def _render_page(
    folder: Path, verdict: list[str], details: list[str], notes: list[str], lines: list[list[str]], rows: list[Row]
) -> str:
    """`report.html`: the verdict first."""
    picture = embed_png((folder / "label_efficiency.png").read_bytes(), "Test accuracy against the number of labels")
    columns = ("method", "budget", "seed", "test_last", "test_best", "val_best", "run")
    listed = [
        [Path(row[name]).parent.name if name == "run" else row[name] for name in columns] for row in rows if row["run"]
    ]
    methods = [[method, labels, *cells] for labels, method, *cells in lines]
    under = f"Folders are in {folder}; sft-lightning report RUN shows each by itself."
    sections = [
        Section("Accuracy and labels", f'<div class="scroll chart">{picture}</div>'),
        Section("Methods", html_table(methods[0], methods[1:]) + render_paragraphs(details)),
        Section("To be known", render_paragraphs(notes)),
        Section("Runs", html_table(columns, listed) + render_paragraphs([under])),
    ]
    seeds = len({row["seed"] for row in rows})
    return render_page(f"Study {folder.name}", f"{seeds} seeds; {folder}", verdict, sections)


def _find_unpaired(rows: list[Row], baseline: str) -> dict[tuple[str, int, int], str]:
    """Return the sentence about each run that was tested on other examples than the labels alone with its seed."""
    tests = {(r["method"], r["budget"], r["seed"]): (r["tested"], r.get("test_set", "")) for r in rows if r["run"]}
    found: dict[tuple[str, int, int], str] = {}
    for (method, budget, seed), (count, digest) in tests.items():
        alone, own = tests.get((baseline, budget, seed), ("", ""))
        if alone == "" or count == "" or (alone == count and (not own or not digest or own == digest)):
            continue
        others = "other examples" if alone == count else f"{alone}"
        found[method, budget, seed] = (
            f"{method}, {budget} labels, seed {seed}: tested on {count} examples, {baseline} on {others}; this pair is "
            "left out of the comparison."
        )
    return found


def compare_methods(
    accuracies: dict[str, dict[int, dict[int, float]]],
    baseline: str,
    apart: Collection[tuple[str, int, int]] = (),
) -> list[Comparison]:
    """Compare each method with the labels alone on the seeds that both have, corrected for their number, by budget.

    Args:
        accuracies: By method, budget and seed.
        baseline: The labels alone.
        apart: Method, budget and seed of runs that were tested on other examples.
    """
    others = [method for method in accuracies if method != baseline and not method.startswith(LOGISTIC)]
    budgets = sorted({budget for by_budget in accuracies.values() for budget in by_budget})
    found = []
    for budget, method in itertools.product(budgets, others):
        ours, alone = (accuracies.get(name, {}).get(budget, {}) for name in (method, baseline))
        ours = {seed: own for seed, own in ours.items() if (method, budget, seed) not in apart}
        if ours.keys() & alone.keys():
            found.append(compare(method, budget, ours, alone))
    return apply_holm(found)


def _note_winning_baselines(accuracies: dict[str, dict[int, dict[int, float]]]) -> list[str]:
    """Where logistic regression is better than all networks, which the user must know."""
    said = []
    for budget in sorted({budget for by_budget in accuracies.values() for budget in by_budget}):
        means = {m: statistics.mean(of[budget].values()) for m, of in accuracies.items() if budget in of}
        best = max(means, key=lambda method: means[method])
        if best.startswith(LOGISTIC):
            said.append(f"With {budget} labels, {best} is better than every method: {means[best]:.3f} on average.")
    return said


def _note_differences(rows: list[Row], baseline: str) -> list[str]:
    """Methods whose last stage has another network or another number of steps than the labels alone."""
    own = {(r["network"], r["steps"]) for r in rows if r["method"] == baseline and not r["failed"]}
    said = {}
    for row in rows:
        if row["network"] and (row["network"], row["steps"]) not in own and own:
            network, steps = next(iter(own))
            said[row["method"]] = (
                f"{row['method']} is {row['network']} for {row['steps']} steps, {baseline} is {network} for {steps}: "
                "the difference is not that of the method alone."
            )
    return list(said.values())


def make_table(rows: list[Row], comparisons: list[Comparison], column: str) -> list[list[str]]:
    """Mean and deviation over the seeds, best first within each budget; the titles first.

    Args:
        rows: From `collect_rows`.
        comparisons: From `compare_methods`.
        column: Which test accuracy the order is by.
    """
    lines = [["labels", "method", "seeds", "last iterate", "chosen by validation", "against the labels", "seconds"]]
    against = {(c.method, c.budget): c for c in comparisons}
    for budget in sorted({row["budget"] for row in rows}):
        groups: dict[str, list[Row]] = {}
        for row in rows:
            if row["budget"] == budget and not row["failed"] and row[column] != "":
                groups.setdefault(row["method"], []).append(row)
        for method, own in sorted(groups.items(), key=lambda item: -statistics.mean(r[column] for r in item[1])):
            found = against.get((method, budget))
            change = "" if found is None else f"{100 * found.mean_difference:+.1f} points: {found.verdict}"
            seconds = [float(row["seconds"]) for row in own if row["seconds"] != ""]
            time = f"{statistics.mean(seconds):.0f}" if seconds else ""
            cells = [_format_cell([row[name] for row in own if row[name] != ""]) for name in ("test_last", "test_best")]
            lines.append([str(budget), method, str(len(own)), *cells, change, time])
    return lines


def _format_cell(values: list[float]) -> str:
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"

"""`sft-lightning study`: compare methods over label budgets and seeds.

Each run is an ordinary `fit`. Methods are compared with the labels alone on the same splits and seeds, by the test
accuracy of the last iterate and that of the checkpoint that the validation split chose, never by the best on the test.
"""

import itertools
import statistics
import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from sft_lightning._version import __version__
from sft_lightning.runs.lock import lock_folder
from sft_lightning.runs.paths import LOGS, check_run_name
from sft_lightning.study.baselines import STARTS
from sft_lightning.study.figures import Results, save_label_efficiency
from sft_lightning.study.fold_results import FoldResults, collect_folds, pool_folds
from sft_lightning.study.judge import Estimate
from sft_lightning.study.method_names import BASELINES, is_baseline, name_baseline, name_methods
from sft_lightning.study.page import render_study
from sft_lightning.study.plan import Stage, StudyRun, check_methods, plan, plan_folds
from sft_lightning.study.runner import Ledger, RunResult, list_pending, train
from sft_lightning.study.slurm import find_queued_jobs, train_on_slurm
from sft_lightning.study.stale import explain_stale
from sft_lightning.study.statistics import Comparison, apply_holm, compare, format_comparison, format_headline
from sft_lightning.utils.atomic import write_json, write_text
from sft_lightning.utils.environment import describe_machine
from sft_lightning.utils.errors import InputError, check_min, did_you_mean
from sft_lightning.utils.spreadsheet import format_csv
from sft_lightning.utils.tables import align_columns

COLUMNS = (
    "method", "budget", "seed", "fold", "test_last", "test_best", "val_best", "network", "steps", "tested", "seconds",
    "run", "failed",
)  # fmt: skip
Judge = Literal["last", "best"]
Row = dict[str, Any]
Accuracies = dict[str, dict[int, dict[int, float]]]  # test accuracies by method, budget and seed


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
    folds: int | None = None,
) -> str:
    """Train the missing runs of a study, and report whether the unlabeled examples helped.

    Args:
        name: Name of the study, whose folder is `lightning_logs/study/NAME`.
        budgets: Numbers of labels.
        seeds: Seeds that all methods share; each sets the split, the initialization and the order of the batches.
        methods: Stages of each method by its name.
        baseline: Name of the method that learns from the labels alone, with which the others are compared.
        data: Class path and options of the data module for all stages; null to use that of each stage's config.
        options: Settings of `fit` for all stages by their full names; those of a stage override them.
        judge: Test accuracy that methods are compared by: of the `last` iterate, or of the `best` on validation.
        jobs: Number of runs at the same time, each in its own process if more than 1. By default one, and with `slurm`
            all that are ready.
        launcher: Launcher of the runs: `local` for this machine, or `slurm` for array jobs (with the extra `slurm`).
        slurm: Settings of sbatch for each run, as submitit names them: partition, time (minutes), cpus_per_task,
            gpus_per_node, mem, account, ...
        folds: Number of folds for a source with few labels and no test split: each method is trained once for each seed
            and fold, and tested on the labels of the fold; null to test on the test split.

    Returns:
        Verdict and table as text.

    Raises:
        InputError: A setting is wrong, or no run of the study finished.
        StoppedBySignal: A signal stopped the study.
    """
    if jobs is not None:
        check_min(1, jobs=jobs)
    check_run_name("name", name)
    if baseline not in methods:
        raise InputError(
            f"baseline {baseline!r} is not among the methods{did_you_mean(baseline, [*methods])}: add a method that "
            f"learns from the labels alone, or name it ({', '.join(methods)})"
        )
    if slurm and launcher == "local":
        raise InputError(f"slurm is {slurm}, but launcher is local: set launcher: slurm, or leave slurm out")
    check_methods(methods, budgets, seeds)
    check_min(2, folds=folds)
    if folds is not None and judge == "best":
        raise InputError("judge is 'best', which a validation split chooses, and folds leave none: set judge: last")
    folder = Path(LOGS) / "study" / name
    with lock_folder(folder, f"study {name!r}"):
        settings: dict[str, Any] = {"budgets": budgets, "seeds": seeds, "data": data, "options": options or {}}
        draws = None
        if folds is not None:
            draws = plan_folds(methods[baseline][-1], **settings, folds=folds, folder=folder / "splits")
        runs = plan(methods, **settings, draws=draws)
        ledger = Ledger(folder / "study.json")
        waiting = list_pending(runs, ledger)
        _print(f"Study {name}: {_count_runs(len({run.key for run in runs}))}, {len(waiting)} to train.")
        for reason in explain_stale(runs, waiting, ledger.results):
            _print(reason)
        _train(name, folder, runs, ledger, jobs, launcher, slurm)
        finals = [run for run in runs if run.is_final]
        held_out = None if draws is None else collect_folds(finals, ledger.results, draws)
        return write_results(folder, collect_rows(finals, ledger), baseline, judge, held_out)


def _train(
    name: str,
    folder: Path,
    runs: list[StudyRun],
    ledger: Ledger,
    jobs: int | None,
    launcher: Literal["local", "slurm"],
    slurm: dict[str, Any] | None,
) -> None:
    launch = partial(train_on_slurm, settings=slurm or {}, report_progress=_print) if launcher == "slurm" else None
    queued = find_queued_jobs(folder / "slurm") if launch is None else {}
    # A job may stay in the queue for a while after it wrote its result.
    queued = {key: job for key, job in queued.items() if not ledger.is_done(key)}
    if queued:
        raise InputError(
            f"Slurm jobs still train study {name!r}: add --launcher slurm to wait for them, or end them first "
            f"(scancel {' '.join(sorted(queued.values()))})"
        )
    train(runs, ledger, f"study/{name}", jobs, _print, launch)


def _count_runs(number: int) -> str:
    return f"{number} run{'s' * (number != 1)}"


def _print(text: str) -> None:
    sys.stderr.write(text + "\n")


def collect_rows(finals: list[StudyRun], ledger: Ledger) -> list[Row]:
    """Return the results of a study, with a row for each method, budget and seed.

    Args:
        finals: Last run of each method, budget and seed.
        ledger: Results of the study.
    """
    rows: list[Row] = []
    for run in finals:
        result: RunResult = ledger.results.get(run.key, {})
        row: Row = dict.fromkeys(COLUMNS, "")
        group = {"budget": run.budget, "seed": run.seed, "fold": "" if run.fold is None else run.fold}
        row.update({"method": run.method, **group, "run": result.get("folder", "")})
        row.update({name: result[name] for name in COLUMNS if name in result})
        row["test_set"] = result.get("test_set", "")
        row["metric"], row["target"] = result.get("metric_title", "accuracy"), result.get("target", "class_set")
        row["seconds"] = sum(r.get("seconds", 0.0) for r in _list_results(run, ledger))
        rows.append(row)
        measured = [(kind, *item) for kind in BASELINES for item in result.get(kind, {}).items()]
        for kind, features, accuracy in measured:
            method = name_baseline(run.method if features == STARTS else None, features, kind)
            new = {"method": method, **group, "tested": row["tested"]}
            if not any(all(old[k] == v for k, v in new.items()) for old in rows):
                baseline = {**dict.fromkeys(COLUMNS, ""), **new, "test_set": row["test_set"], "metric": row["metric"]}
                rows.append({**baseline, "test_last": accuracy, "test_best": accuracy})
    return rows


def _list_results(run: StudyRun, ledger: Ledger) -> list[RunResult]:
    """Return the results of a run and of the runs that it starts from."""
    results = [ledger.results.get(run.key, {})]
    start = run.start
    while start is not None:
        results.append(ledger.results.get(start, {}))
        start = results[-1].get("start")
    return results


def write_results(
    folder: Path, rows: list[Row], baseline: str, judge: Judge, held_out: FoldResults | None = None
) -> str:
    """Write `results.csv`, `summary.json`, `label_efficiency.png` and `report.html`.

    Args:
        folder: Folder of the study.
        rows: Rows from `collect_rows`.
        baseline: Name of the method with which the others are compared.
        judge: Test accuracy that counts.
        held_out: Predictions of the held-out labels of folds; None where methods are compared on a test split.

    Returns:
        Verdict and table as text.

    Raises:
        InputError: No run finished.
    """
    write_text(folder / "results.csv", format_csv([COLUMNS, *([row[name] for name in COLUMNS] for row in rows)]))
    column, runs = f"test_{judge}", rows
    rows = rows if held_out is None else pool_folds(rows)
    accuracies: Accuracies = {}
    for row in rows:
        if row[column] != "":
            accuracies.setdefault(row["method"], {}).setdefault(row["budget"], {})[row["seed"]] = float(row[column])
    names = name_methods(dict.fromkeys([baseline, *(row["method"] for row in rows)]))
    failed = [f"{_name_run(r, names)}: {r['failed']}" for r in runs if r["failed"]]
    if not accuracies:
        raise InputError(f"no run of the study finished; the first failed: {failed[0] if failed else 'none was run'}")
    unpaired = _find_unpaired(rows, baseline, names)
    if held_out is None:
        comparisons = compare_methods(accuracies, baseline, unpaired)
    else:
        comparisons = held_out.compare_with(baseline)
    estimates = {} if held_out is None else held_out.estimate_all()
    named = [replace(comparison, method=names[comparison.method]) for comparison in comparisons]
    headlines = [format_headline([*group]) for _, group in itertools.groupby(named, key=lambda c: c.budget)]
    verdict = headlines + _note_winning_baselines(accuracies, names)
    details = [format_comparison(comparison) for comparison in named]
    notes = _note_differences(rows, baseline, names) + list(unpaired.values())
    notes += [] if held_out is None else held_out.describe_limits()
    metric = next((row["metric"] for row in rows if row["test_last"] != "" and "metric" in row), "accuracy")
    if metric != "accuracy":
        target = next((row["target"] for row in rows if row["test_last"] != "" and "target" in row), "class_set")
        notes.append(_note_metric(metric, target, held_out is not None))
    results: Results = {
        names[method]: {
            budget: estimates.get((method, budget)) or list(by_seed.values()) for budget, by_seed in by_budget.items()
        }
        for method, by_budget in accuracies.items()
    }
    save_label_efficiency(folder / "label_efficiency.png", results, names[baseline], metric)
    summary = {
        "verdict": verdict,
        "details": details,
        "notes": notes,
        "failed": failed,
        "judge": judge,
        **({} if metric == "accuracy" else {"metric": metric}),
        "baseline": baseline,
        "comparisons": [asdict(comparison) for comparison in comparisons],
        "estimates": [{"method": m, "budget": budget, **asdict(e)} for (m, budget), e in estimates.items()],
        "rows": runs,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "machine": describe_machine(),
    }
    write_json(folder / "summary.json", summary)
    table = make_table(rows, comparisons, column, names, estimates)
    page = render_study(folder, verdict, details, [*notes, *failed], table, runs, results, names, baseline, metric)
    write_text(folder / "report.html", page)
    parts = ["\n".join(verdict), "\n".join(align_columns(table)), "\n".join(details)]
    parts += ["\n".join(notes)] if notes else []
    parts += ["\n".join(f"failed: {line}" for line in failed)] if failed else []
    parts.append(f"Study: {folder} (results.csv, summary.json, label_efficiency.png, report.html)")
    return "\n\n".join(parts)


def _note_metric(metric: str, target: str, has_folds: bool) -> str:
    """Return a sentence on what stands in place of the accuracy where examples have several classes, masks or boxes."""
    if target in ("mask", "boxes"):
        kind, left = "masks", "Label spreading, smoothed regression and naive Bayes"
        if target == "boxes":
            kind, left = "boxes", "Baselines"
        why = "since they classify whole examples"
        return f"Examples have {kind}: all figures are the {metric}. {left} are left out, {why}."
    at = ", with the classes of a probability of at least 0.5" if has_folds else ""
    return (
        f"Examples have several classes: all figures are the {metric}{at}. Label spreading, smoothed regression and "
        "naive Bayes are left out, since they take examples of one class each."
    )


def _name_run(row: Row, names: Mapping[str, str]) -> str:
    fold = "" if row.get("fold", "") == "" else f", fold {row['fold']}"
    return f"{names[row['method']]}, {row['budget']} labels, seed {row['seed']}{fold}"


def _find_unpaired(rows: list[Row], baseline: str, names: Mapping[str, str]) -> dict[tuple[str, int, int], str]:
    """Return a sentence for each run that was tested on other examples than the baseline with its seed."""
    tests = {(r["method"], r["budget"], r["seed"]): (r["tested"], r.get("test_set", "")) for r in rows if r["run"]}
    unpaired: dict[tuple[str, int, int], str] = {}
    for (method, budget, seed), (count, digest) in tests.items():
        expected, expected_digest = tests.get((baseline, budget, seed), ("", ""))
        has_other_digest = bool(digest and expected_digest) and digest != expected_digest
        if expected == "" or count == "" or (expected == count and not has_other_digest):
            continue
        others = "other examples" if expected == count else f"{expected}"
        run = _name_run({"method": method, "budget": budget, "seed": seed, "fold": ""}, names)
        unpaired[method, budget, seed] = (
            f"{run}: tested on {count} examples, {names[baseline]} on {others}; this pair is not in the comparison."
        )
    return unpaired


def compare_methods(
    accuracies: Accuracies, baseline: str, unpaired: Collection[tuple[str, int, int]] = ()
) -> list[Comparison]:
    """Compare each method with the baseline on the seeds that both have, corrected for the number of methods.

    Args:
        accuracies: Test accuracies by method, budget and seed.
        baseline: Name of the method that learns from the labels alone.
        unpaired: Method, budget and seed of runs that were tested on other examples.
    """
    others = [method for method in accuracies if method != baseline and not is_baseline(method)]
    budgets = sorted({budget for by_budget in accuracies.values() for budget in by_budget})
    comparisons = []
    for budget, method in itertools.product(budgets, others):
        ours, theirs = (accuracies.get(name, {}).get(budget, {}) for name in (method, baseline))
        ours = {seed: accuracy for seed, accuracy in ours.items() if (method, budget, seed) not in unpaired}
        if ours.keys() & theirs.keys():
            comparisons.append(compare(method, budget, ours, theirs))
    return apply_holm(comparisons)


def _note_winning_baselines(accuracies: Accuracies, names: Mapping[str, str]) -> list[str]:
    """Return a sentence for each budget at which a baseline beats all networks."""
    notes = []
    for budget in sorted({budget for by_budget in accuracies.values() for budget in by_budget}):
        means = {m: statistics.mean(of[budget].values()) for m, of in accuracies.items() if budget in of}
        best = max(means, key=lambda method: means[method])
        if is_baseline(best):
            notes.append(f"With {budget} labels, {names[best]} beats every method: {means[best]:.3f} on average.")
    return notes


def _note_differences(rows: list[Row], baseline: str, names: Mapping[str, str]) -> list[str]:
    """Return a sentence for each method whose last stage has another network or number of steps than the baseline."""
    expected = {(r["network"], r["steps"]) for r in rows if r["method"] == baseline and not r["failed"]}
    notes = {}
    for row in rows:
        if row["network"] and (row["network"], row["steps"]) not in expected and expected:
            network, steps = next(iter(expected))
            notes[row["method"]] = (
                f"{names[row['method']]} is {row['network']} for {row['steps']} steps, {names[baseline]} is {network} "
                f"for {steps}: the difference does not come from the method alone."
            )
    return list(notes.values())


def make_table(
    rows: list[Row],
    comparisons: list[Comparison],
    column: str,
    names: Mapping[str, str],
    estimates: Mapping[tuple[str, int], Estimate],
) -> list[list[str]]:
    """Return the means and deviations over the seeds, the best first within each budget, below the titles.

    Args:
        rows: Rows from `collect_rows`.
        comparisons: Comparisons from `compare_methods`.
        column: Test accuracy that sets the order.
        names: Names of the methods for readers.
        estimates: Accuracies over folds by method and budget; none where there is a test split.
    """
    lines = [["labels", "method", "seeds", "last iterate", "chosen by validation", "against the labels", "seconds"]]
    by_method = {(c.method, c.budget): c for c in comparisons}
    for budget in sorted({row["budget"] for row in rows}):
        groups: dict[str, list[Row]] = {}
        for row in rows:
            if row["budget"] == budget and not row["failed"] and row[column] != "":
                groups.setdefault(row["method"], []).append(row)
        for method, group in sorted(groups.items(), key=lambda item: -statistics.mean(r[column] for r in item[1])):
            comparison = by_method.get((method, budget))
            change = (
                "" if comparison is None else f"{100 * comparison.mean_difference:+.1f} points: {comparison.verdict}"
            )
            seconds = [float(row["seconds"]) for row in group if row["seconds"] != ""]
            duration = f"{statistics.mean(seconds):.0f}" if seconds else ""
            cells = [_format_cell([row[k] for row in group if row[k] != ""]) for k in ("test_last", "test_best")]
            if estimate := estimates.get((method, budget)):
                cells[0] = f"{estimate.mean:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"
            lines.append([str(budget), names[method], str(len(group)), *cells, change, duration])
    return lines


def _format_cell(values: list[float]) -> str:
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"

"""Run the benchmarks of all budgets one after another and print a Markdown table.

    scripts/bench/run_all --out scripts/bench/results/budgets.json                    # 90 minutes, 2 idle cores
    scripts/bench/run_all --only training_speed step_overhead --compare scripts/bench/results/budgets.json
    scripts/bench/run_all --only growth --onto OLD.json --out OLD.json                # repeat one benchmark
    scripts/bench/run_all --quick                                                     # check that all of them run
    scripts/bench/run_all --stored                                                    # print the stored table

Each benchmark runs in a process of its own. The JSON has the results of every benchmark and, for each budget
(`budgets.py`), the numbers of its pairs with median, lowest and highest. A budget is met if the median meets the
target. The exit code is 1 if a benchmark failed, but not if a target is missed.

`--compare OLD.json` also exits with 1 if something became slower beyond noise, which requires all of these:
- both results have at least 3 pairs,
- their ranges from lowest to highest do not overlap. If nothing has changed, all k new numbers are worse than all k old
  ones by chance in 1 of 20 comparisons for k = 3, 1 of 70 for k = 4 and 1 of 252 for k = 5,
- the median changed by more than 5 % of the old one. With many pairs, even the ranges of a negligible difference stop
  overlapping, and the median changes by 2 or 3 % from one start of the machine to the next.
Budgets that only one result has, or that have too few pairs, are listed and not compared. A quick result is compared
only with another quick one. A different machine is reported: ratios are comparable between machines, seconds are not.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from budgets import BUDGETS, FULL, QUICK
from provenance import collect_provenance

HERE = Path(__file__).resolve().parent
STORED_RESULT = HERE / "results" / "budgets.json"
MIN_PAIRS, MIN_CHANGE = 3, 0.05


class BudgetComparison(NamedTuple):
    """The comparison of two results.

    Attributes:
        slower: One line for each budget that became slower beyond noise.
        notes: One line for each thing that could not be compared, with the reason.
    """

    slower: list[str]
    notes: list[str]


def run_benchmark(name: str, quick: bool) -> dict[str, Any]:
    """Run one benchmark and return its results and its seconds, or `failed` with the reason and its errors.

    Args:
        name: Name of the script, without `.py`.
        quick: Whether to run it at a small size.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        options = QUICK.get(name, ["--quick"]) if quick else FULL.get(name, [])
        command = [sys.executable, str(HERE / f"{name}.py"), *options, f"--out={out}"]
        process = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
        )
        if process.returncode or not out.is_file():
            error = (process.stderr.strip().splitlines() or ["it wrote no result"])[-1]
            return {"failed": f"exit code {process.returncode}: {error}", "stderr": process.stderr[-4000:]}
        result: dict[str, Any] = json.loads(out.read_text())
    provenance = collect_provenance()
    result = {key: value for key, value in result.items() if key not in provenance}
    return {**result, "took_seconds": round(time.perf_counter() - start)}


def evaluate_budgets(results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Evaluate every budget whose numbers are available, and return the rows of the table.

    Args:
        results: Results by benchmark.
    """
    rows = []
    for budget in BUDGETS:
        if "failed" in results.get(budget.bench, {"failed": ""}):
            continue
        try:
            numbers = budget.read_numbers(results[budget.bench])
        except (KeyError, ValueError, TypeError):  # for example of a network that a quick run skips
            continue
        rows.append(budget.evaluate(numbers))
    return rows


def format_table(lines: list[dict[str, Any]]) -> str:
    """Format budgets as a Markdown table of measured values, ranges and targets.

    Args:
        lines: Rows from `evaluate_budgets`.
    """
    rows = ["| what | against | measured (lowest to highest) | target | met |", "|---|---|---|---|---|"]
    for line in lines:
        unit = line["unit"]
        measured = f"{line['median']:,.3g} {unit} ({line['lowest']:,.3g} to {line['highest']:,.3g})"
        sign = "at least" if line["better"] == "more" else "at most"
        target = f"{sign} {line['target']:,g} {unit}"
        rows.append(
            f"| {line['what']} | {line['against']} | {measured} | {target} | {'yes' if line['met'] else 'no'} |"
        )
    return "\n".join(rows)


def compare(new: Mapping[str, Any], old: Mapping[str, Any]) -> BudgetComparison:
    """List the budgets that became slower beyond noise.

    Args:
        new: New result of this script.
        old: Earlier result of this script.
    """
    slower, notes = [], []
    if bool(new["how"]["quick"]) != bool(old["how"]["quick"]):
        return BudgetComparison([], ["nothing is compared, because only one of the results is from a quick run"])
    for key in ("cores", "processor"):
        if new.get(key) != old.get(key):
            notes.append(f"{key} differ: {new.get(key)} now, {old.get(key)} then; seconds cannot be compared")
    old_rows = {row["name"]: row for row in old["budgets"]}
    for row in new["budgets"]:
        name, now, then = row["name"], row["numbers"], old_rows.pop(row["name"], {"numbers": []})["numbers"]
        if min(len(now), len(then)) < MIN_PAIRS:
            notes.append(f"{name}: {len(now)} pairs now, {len(then)} then; a comparison needs {MIN_PAIRS} of each")
            continue
        sign = -1 if row["better"] == "more" else 1
        new_median, old_median = statistics.median(now), statistics.median(then)
        is_separate = min(sign * n for n in now) > max(sign * n for n in then)
        if is_separate and sign * (new_median - old_median) > MIN_CHANGE * abs(old_median):
            ranges = [f"{statistics.median(n):.4g} ({min(n):.4g} to {max(n):.4g})" for n in (now, then)]
            slower.append(f"{name}: {ranges[0]} now, {ranges[1]} then; {row['better']} is better")
    notes += [f"{name}: not measured now" for name in old_rows]
    return BudgetComparison(slower, notes)


def read_result(option: str, path: Path) -> dict[str, Any]:
    """Read an earlier result and check that it has what this script needs.

    Args:
        option: Option that names the file, for the message.
        path: Path of a file that `--out` wrote.

    Raises:
        ValueError: The file is not a result of this script.
    """
    try:
        result: dict[str, Any] = json.loads(path.read_text())
        result["how"]["quick"], result["benches"].items(), [row["numbers"] for row in result["budgets"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"{option} {str(path)!r} is not a result of run_all ({error!r}): give a file that its --out wrote"
        raise ValueError(message) from error
    return result


def reuse_results(old: dict[str, Any], quick: bool, repeated: list[str]) -> dict[str, dict[str, Any]]:
    """Return an earlier result's benchmarks that are not repeated, each with its date and commit.

    Args:
        old: Earlier result.
        quick: Whether the benchmarks run at a small size now.
        repeated: Names of the benchmarks that run now.

    Raises:
        ValueError: The earlier result is from another machine, or of another size.
    """
    now = {**collect_provenance(), "quick": quick}
    then = {**old, "quick": old["how"]["quick"]}
    for name in ("processor", "cores", "quick"):
        if then.get(name) != now[name]:
            raise ValueError(
                f"--onto: {name} is {then.get(name)} there and {now[name]} now: omit --onto, and use --compare instead"
            )
    dated = {name: old.get(name) for name in ("date", "commit")}
    return {name: {**dated, **result} for name, result in old["benches"].items() if name not in repeated}


def main() -> None:
    """Run the benchmarks, print the table and compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(dict.fromkeys(budget.bench for budget in BUDGETS))
    parser.add_argument("--quick", action="store_true", help="run at a small size, to check that all run")
    parser.add_argument(
        "--stored",
        nargs="?",
        type=Path,
        const=STORED_RESULT,
        metavar="RESULT.json",
        help="run nothing, and print the table of a result",
    )
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument(
        "--onto",
        type=Path,
        metavar="OLD.json",
        help="take the benchmarks that are not run now from this result, with date and commit",
    )
    parser.add_argument("--compare", type=Path, metavar="OLD.json")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.onto is not None and args.stored is not None:
        parser.error("--stored runs nothing that --onto could add to: give one of the two")
    try:
        old = None if args.compare is None else read_result("--compare", args.compare)
        stored = None if args.stored is None else read_result("--stored", args.stored)
        results = {} if args.onto is None else reuse_results(read_result("--onto", args.onto), args.quick, args.only)
    except ValueError as error:
        parser.error(str(error))
    output = stored or {**collect_provenance(), "how": {"quick": args.quick}}
    for name in args.only:
        if stored is not None:
            results[name] = stored["benches"].get(name, {"failed": "the result does not have it"})
        else:
            print(f"{name} ...", file=sys.stderr, flush=True)
            results[name] = run_benchmark(name, args.quick)
        output = {**output, "budgets": evaluate_budgets(results), "benches": results}
        if args.out is not None:  # after each benchmark, so that an interruption loses only one
            args.out.write_text(json.dumps(output, indent=1) + "\n")
    failed = {name: result["failed"] for name, result in results.items() if "failed" in result}
    print(format_table(output["budgets"]))
    for name, reason in failed.items():
        print(f"\n{name} failed: {reason}")
    slower = 0
    if old is not None:
        comparison = compare(output, old)
        slower = len(comparison.slower)
        print("\nSlower than before:" if slower else "\nNothing became slower beyond noise.")
        for line in [*comparison.slower, *(f"({note})" for note in comparison.notes)]:
            print(f"- {line}")
    sys.exit(1 if slower or failed else 0)


if __name__ == "__main__":
    main()

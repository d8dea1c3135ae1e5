"""Runs the benches of all budgets one after another, and prints one Markdown table.

    scripts/bench/run_all --out scripts/bench/results/budgets.json                    # 90 minutes, 2 idle cores
    scripts/bench/run_all --only training_speed step_overhead --compare scripts/bench/results/budgets.json
    scripts/bench/run_all --only growth --onto OLD.json --out OLD.json              # one anew
    scripts/bench/run_all --quick                                                     # does each of them still run?
    scripts/bench/run_all --stored                                                    # the table of what is kept

Each bench is a process of its own. The JSON has what every bench found and, for each budget (`budgets.py`), the
numbers of its pairs with median, lowest and highest. A budget is met where the median meets the target. The exit code
is 1 where a bench failed, not where a target is missed.

`--compare OLD.json` also exits with 1 where something became slower beyond noise, which means all of these:
- both sides have at least 3 pairs,
- the lowest to highest numbers of the two do not overlap: where nothing has changed, all of k new numbers lie on the
  bad side of all of k old ones by chance in 1 of 20 comparisons for k = 3, 1 of 70 for k = 4 and 1 of 252 for k = 5,
- the median moved by more than 5 % of the old one: with many pairs the ranges of a difference that nobody would notice
  come apart, too, and the median of a whole run moves by 2 or 3 % from one start of the machine to the next.
What one side lacks, or has too few pairs of, is told and decides nothing. A quick run is compared with nothing but
another quick one, and another machine is told: ratios travel between machines, seconds do not.
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

from about import about
from budgets import BUDGETS, FULL, QUICK

HERE = Path(__file__).resolve().parent
KEPT = HERE / "results" / "budgets.json"
PAIRS, SHARE = 3, 0.05


class Compared(NamedTuple):
    """What a comparison says.

    Attributes:
        slower: A line for each budget that became slower beyond noise.
        told: What could not be compared, and why.
    """

    slower: list[str]
    told: list[str]


def bench(name: str, quick: bool) -> dict[str, Any]:
    """What one bench found, or why it found nothing (`failed`); and the seconds that it took.

    Args:
        name: Of the script.
        quick: At a small size.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        words = QUICK.get(name, ["--quick"]) if quick else FULL.get(name, [])
        command = [sys.executable, str(HERE / f"{name}.py"), *words, f"--out={out}"]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace")
        if done.returncode or not out.is_file():
            last = (done.stderr.strip().splitlines() or ["it wrote nothing"])[-1]
            return {"failed": f"exit code {done.returncode}: {last}", "stderr": done.stderr[-4000:]}
        found: dict[str, Any] = json.loads(out.read_text())
    known = about()
    own = {key: value for key, value in found.items() if key not in known}
    return {**own, "took_seconds": round(time.perf_counter() - start)}


def judged(found: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The lines of the table.

    Args:
        found: By bench.
    """
    lines = []
    for budget in BUDGETS:
        if "failed" in found.get(budget.bench, {"failed": ""}):
            continue
        try:
            numbers = budget.numbers(found[budget.bench])
        except (KeyError, ValueError, TypeError):  # of a network, say, that a quick run leaves out
            continue
        lines.append(budget.judged(numbers))
    return lines


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown: what, against, measured (lowest to highest), target, met or not.

    Args:
        lines: Of `judged`.
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


def compared(new: Mapping[str, Any], old: Mapping[str, Any]) -> Compared:
    """What became slower beyond noise.

    Args:
        new: JSON of this script.
        old: The same, of another day.
    """
    slower, told = [], []
    if bool(new["how"]["quick"]) != bool(old["how"]["quick"]):
        return Compared([], ["one of the two is a quick run: nothing is compared"])
    for key in ("cores", "processor"):
        if new.get(key) != old.get(key):
            told.append(f"{key} differ: {new.get(key)} now, {old.get(key)} then; seconds cannot be compared")
    before = {line["name"]: line for line in old["budgets"]}
    for line in new["budgets"]:
        name, now, then = line["name"], line["numbers"], before.pop(line["name"], {"numbers": []})["numbers"]
        if min(len(now), len(then)) < PAIRS:
            told.append(f"{name}: {len(now)} pairs now, {len(then)} then; {PAIRS} on both sides tell")
            continue
        sign = -1 if line["better"] == "more" else 1
        middle, was = statistics.median(now), statistics.median(then)
        apart = min(sign * n for n in now) > max(sign * n for n in then)
        if apart and sign * (middle - was) > SHARE * abs(was):
            spans = [f"{statistics.median(n):.4g} ({min(n):.4g} to {max(n):.4g})" for n in (now, then)]
            slower.append(f"{name}: {spans[0]} now, {spans[1]} then; {line['better']} is better")
    told += [f"{name}: not measured now" for name in before]
    return Compared(slower, told)


def read(option: str, path: Path) -> dict[str, Any]:
    """An older result.

    Args:
        option: That named it.
        path: That `--out` wrote.

    Raises:
        ValueError: It is none; with one sentence.
    """
    try:
        old: dict[str, Any] = json.loads(path.read_text())
        old["how"]["quick"], old["benches"].items(), [line["numbers"] for line in old["budgets"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        sentence = f"{option} {str(path)!r} is no result of run_all ({error!r}): give a file that its --out wrote"
        raise ValueError(sentence) from error
    return old


def taken_over(old: dict[str, Any], quick: bool, again: list[str]) -> dict[str, dict[str, Any]]:
    """What an older result has of the benches that are not run again, each with the date and commit it is of.

    Args:
        old: Of `read`.
        quick: Whether what is run now is.
        again: Names of what is run now.

    Raises:
        ValueError: It does not go with what is measured now; with one sentence.
    """
    here = {**about(), "quick": quick}
    there = {**old, "quick": old["how"]["quick"]}
    for name in ("processor", "cores", "quick"):
        value = there.get(name)
        if value != here[name]:
            raise ValueError(f"--onto: {name} is {value} there and {here[name]} now: leave it out and compare instead")
    when = {name: old.get(name) for name in ("date", "commit")}
    return {name: {**when, **own} for name, own in old["benches"].items() if name not in again}


def main() -> None:
    """Measures, prints, compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(dict.fromkeys(budget.bench for budget in BUDGETS))
    parser.add_argument("--quick", action="store_true", help="each at a small size: does it still run?")
    parser.add_argument(
        "--stored", nargs="?", type=Path, const=KEPT, metavar="RESULT.json", help="runs nothing: the table of a result"
    )
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument(
        "--onto",
        type=Path,
        metavar="OLD.json",
        help="what is not run now is taken from there, with its date and commit",
    )
    parser.add_argument("--compare", type=Path, metavar="OLD.json")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.onto is not None and args.stored is not None:
        parser.error("--stored runs nothing that --onto could add to: give one of the two")
    try:
        old = None if args.compare is None else read("--compare", args.compare)
        kept = None if args.stored is None else read("--stored", args.stored)
        found = {} if args.onto is None else taken_over(read("--onto", args.onto), args.quick, args.only)
    except ValueError as error:
        parser.error(str(error))
    result = kept or {**about(), "how": {"quick": args.quick}}
    for name in args.only:
        if kept is not None:
            found[name] = kept["benches"].get(name, {"failed": "the result does not have it"})
        else:
            print(f"{name} ...", file=sys.stderr, flush=True)
            found[name] = bench(name, args.quick)
        result = {**result, "budgets": judged(found), "benches": found}
        if args.out is not None:  # after each: one that is interrupted has measured some
            args.out.write_text(json.dumps(result, indent=1) + "\n")
    failed = {name: own["failed"] for name, own in found.items() if "failed" in own}
    print(table(result["budgets"]))
    for name, why in failed.items():
        print(f"\n{name} failed: {why}")
    slower = 0
    if old is not None:
        against = compared(result, old)
        slower = len(against.slower)
        print("\nSlower than before:" if slower else "\nNothing became slower beyond noise.")
        for line in [*against.slower, *(f"({line})" for line in against.told)]:
            print(f"- {line}")
    sys.exit(1 if slower or failed else 0)


if __name__ == "__main__":
    main()

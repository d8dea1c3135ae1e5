"""Test that `scripts/bench/run_all` measures and evaluates every budget and compares it with an earlier result."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

BENCH = ROOT / "scripts" / "bench"
sys.path.insert(0, str(BENCH))
import peer  # noqa: E402
import run_all  # noqa: E402
import semi_supervised  # noqa: E402
from budgets import BUDGETS, Budget  # noqa: E402


def make_result(quick: bool = False, **rows: tuple[str, list[float]]) -> dict[str, Any]:
    budgets = [{"name": name, "better": better, "numbers": numbers} for name, (better, numbers) in rows.items()]
    return {"cores": 2, "processor": "x", "how": {"quick": quick}, "budgets": budgets}


@pytest.mark.parametrize(
    ("better", "old", "new", "slower"),
    [
        ("more", [4.0, 4.1, 4.2], [3.5, 3.6, 3.7], True),
        ("more", [3.5, 3.6, 3.7], [4.0, 4.1, 4.2], False),  # it became faster
        ("less", [1.00, 1.02, 1.04], [1.10, 1.20, 1.15], True),
        ("less", [1.10, 1.20, 1.15], [1.00, 1.02, 1.04], False),
        ("more", [4.0, 4.1, 4.2], [3.0, 3.1, 4.05], False),  # the ranges overlap
        ("less", [1.00, 1.01, 1.02], [1.03, 1.05, 1.06], False),  # separate, but the median changed by 4 %
        ("less", [1.00, 1.01, 1.02], [1.03, 1.07, 1.06], False),  # by 4.95 %
        ("less", [1.00, 1.00, 1.02], [1.03, 1.06, 1.08], True),
        ("more", [1.00, 1.00, 0.98], [0.97, 0.94, 0.92], True),
        ("less", [-20.0, -10.0, -15.0], [30.0, 40.0, 50.0], True),  # microseconds below those of the plain loop
    ],
)
def test_only_a_change_beyond_noise_counts_as_slower(
    better: str, old: list[float], new: list[float], slower: bool
) -> None:
    comparison = run_all.compare(make_result(bench=(better, new)), make_result(bench=(better, old)))
    assert bool(comparison.slower) is slower
    assert comparison.notes == []


def test_budgets_that_cannot_be_compared_are_listed_and_do_not_count_as_slower() -> None:
    old = make_result(few=("more", [4.0, 4.1]), same=("more", [1.0, 1.0, 1.0]), gone=("more", [1.0, 1.0, 1.0]))
    new = make_result(few=("more", [1.0, 1.1, 1.2]), same=("more", [1.0, 1.0, 1.0]), fresh=("less", [9.0, 9.0, 9.0]))
    comparison = run_all.compare({**new, "cores": 8}, old)
    assert comparison == (
        [],
        [
            "cores differ: 8 now, 2 then; seconds cannot be compared",
            "few: 3 pairs now, 2 then; a comparison needs 3 of each",
            "fresh: 3 pairs now, 0 then; a comparison needs 3 of each",
            "gone: not measured now",
        ],
    )
    quick = run_all.compare(make_result(True, same=("more", [0.1, 0.1, 0.1])), old)
    assert quick == ([], ["nothing is compared, because only one of the results is from a quick run"])


def test_table_shows_which_budgets_are_met() -> None:
    speed = Budget("b", "a/x", "speed", "plain loop", "more", 4)
    time = Budget("b", "y", "time", "plain loop", "less", 500, "µs a step")
    result = {"a": {"x": [3.0, 5.0, 4.5]}, "y": 510}
    rows = [budget.evaluate(budget.read_numbers(result)) for budget in (speed, time)]
    assert [(row["name"], row["median"], row["met"]) for row in rows] == [
        ("b/a/x", 4.5, True),
        ("b/y", 510, False),
    ]
    assert run_all.format_table(rows).splitlines()[2:] == [
        "| speed | plain loop | 4.5 times (3 to 5) | at least 4 times | yes |",
        "| time | plain loop | 510 µs a step (510 to 510) | at most 500 µs a step | no |",
    ]
    assert speed.evaluate([4.0])["met"]
    assert time.evaluate([500.0])["met"]


BENCHMARK = """
import json, sys
out = next(arg.removeprefix("--out=") for arg in sys.argv if arg.startswith("--out="))
if {fails}: sys.exit("it broke")
open(out, "w").write(json.dumps({{"date": "then", "how": sys.argv[1:], "overhead": [700, 800, 900]}}))
"""


@pytest.fixture
def benchmarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(run_all, "HERE", tmp_path)
    (tmp_path / "step_overhead.py").write_text(BENCHMARK.format(fails=False))
    (tmp_path / "feature_cache.py").write_text(BENCHMARK.format(fails=True))
    return tmp_path


@pytest.fixture
def exit_code(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function that runs `run_all` in this process and returns its exit code."""

    def run(*argv: str) -> Any:
        monkeypatch.setattr(sys, "argv", ["run_all", *argv])
        with pytest.raises(SystemExit) as stop:
            run_all.main()
        return stop.value.code

    return run


def test_exit_code_says_whether_something_failed_or_became_slower(
    benchmarks: Path, exit_code: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    out = benchmarks / "out.json"
    assert exit_code("--only", "step_overhead", f"--out={out}") == 0
    result = json.loads(out.read_text())
    assert [row["numbers"] for row in result["budgets"]] == [[700, 800, 900]]
    assert "date" not in result["benches"]["step_overhead"]  # the result as a whole has one
    assert result["date"] != "then"
    assert "| 800 µs a step (700 to 900) | at most 500 µs a step | no |" in capsys.readouterr().out

    assert exit_code("--only", "step_overhead", f"--compare={out}") == 0
    assert "Nothing became slower beyond noise." in capsys.readouterr().out
    result["budgets"][0]["numbers"] = [500, 510, 520]
    out.write_text(json.dumps(result))
    assert exit_code("--only", "step_overhead", f"--compare={out}") == 1
    output = capsys.readouterr().out
    assert "- step_overhead/overhead: 800 (700 to 900) now, 510 (500 to 520) then; less is better" in output

    assert exit_code("--only", "step_overhead", "feature_cache") == 1
    assert "feature_cache failed: exit code 1: it broke" in capsys.readouterr().out
    assert exit_code(f"--compare={benchmarks / 'step_overhead.py'}") == 2
    assert "is not a result of run_all" in capsys.readouterr().err


def test_stored_table_is_printed_without_running_a_benchmark(
    benchmarks: Path, exit_code: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    stored = benchmarks / "stored.json"
    assert exit_code("--only", "step_overhead", f"--out={stored}") == 0
    (benchmarks / "step_overhead.py").unlink()
    capsys.readouterr()
    assert exit_code(f"--stored={stored}", "--only", "step_overhead") == 0
    output = capsys.readouterr()
    assert "| 800 µs a step (700 to 900) | at most 500 µs a step | no |" in output.out
    assert not output.err
    assert exit_code(f"--stored={stored}", "--only", "step_overhead", "feature_cache") == 1
    assert "feature_cache failed: the result does not have it" in capsys.readouterr().out
    stored.write_text(stored.read_text()[:-20])
    assert exit_code(f"--stored={stored}") == 2
    assert f"--stored {str(stored)!r} is not a result of run_all" in capsys.readouterr().err


def test_benchmarks_that_are_not_repeated_keep_their_result_and_date(
    benchmarks: Path, exit_code: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    out = benchmarks / "out.json"
    assert exit_code("--only", "step_overhead", f"--out={out}") == 0
    old = json.loads(out.read_text())
    old.update(date="2020-01-01", commit="abc")
    old["benches"]["startup"] = {"first_step": {"by_bare": [1.0, 1.1, 1.2]}}
    old["benches"]["step_overhead"]["overhead"] = [1, 2, 3]
    out.write_text(json.dumps(old))
    assert exit_code("--only", "step_overhead", f"--onto={out}", f"--out={out}") == 0
    result = json.loads(out.read_text())
    assert result["benches"]["startup"] == {"date": "2020-01-01", "commit": "abc", **old["benches"]["startup"]}
    assert result["benches"]["step_overhead"]["overhead"] == [700, 800, 900]
    assert result["date"] != "2020-01-01"
    # A result that was reused once keeps its own date when it is reused again.
    assert exit_code("--only", "step_overhead", f"--onto={out}", f"--out={out}") == 0
    assert json.loads(out.read_text())["benches"]["startup"]["date"] == "2020-01-01"
    capsys.readouterr()
    out.write_text(json.dumps({**old, "processor": "another"}))
    assert exit_code("--only", "step_overhead", f"--onto={out}") == 2
    assert "--onto: processor is another there and" in capsys.readouterr().err
    out.write_text(json.dumps({**old, "how": {"quick": True, "later": "a key of a later version"}}))
    assert exit_code("--only", "step_overhead", f"--onto={out}") == 2
    assert "--onto: quick is True there and False now" in capsys.readouterr().err
    assert exit_code(f"--onto={out}", f"--stored={out}") == 2


def test_each_budget_has_a_benchmark() -> None:
    assert len({budget.name for budget in BUDGETS}) == len(BUDGETS)
    for name in {budget.bench for budget in BUDGETS}:
        assert (BENCH / f"{name}.py").is_file(), name


def test_the_fastest_lamda_ssl_of_each_pair_counts() -> None:
    ours = [{"framework": 0.5, "one_batch": 0.75}, {"framework": 0.4, "one_batch": 0.8}]
    peers = ["lamda_ssl_as_shipped", "lamda_ssl_0_workers", "lamda_ssl_2_workers"]
    pairs = [
        {**row, **dict(zip(peers, seconds, strict=True))}
        for row, seconds in zip(ours, [(2.0, 1.5, 1.0), (2.0, 0.6, 1.2)], strict=True)
    ]
    result = semi_supervised.compare(pairs)
    assert result["framework_speed_over"]["lamda_ssl"] == [2.0, 1.5]
    assert result["unlabeled_per_second"]["lamda_ssl"] == 280  # 224 images in the median of 1.0 and 0.6 s
    rows = run_all.evaluate_budgets({"semi_supervised": {"conv": result}})
    assert [(row["name"], row["median"], row["met"]) for row in rows] == [
        ("semi_supervised/conv/framework_speed_over/one_batch", 1.75, True),
        ("semi_supervised/conv/framework_speed_over/lamda_ssl", 1.75, False),
    ]
    # Without LAMDA-SSL, its budget is not in the table.
    rows = run_all.evaluate_budgets({"semi_supervised": {"conv": semi_supervised.compare(ours)}})
    assert [row["name"] for row in rows] == ["semi_supervised/conv/framework_speed_over/one_batch"]


@pytest.mark.slow
def test_every_benchmark_runs_at_a_small_size(tmp_path: Path) -> None:
    """Run all benchmarks, which need Fashion-MNIST as Debian packages it."""
    out = tmp_path / "quick.json"
    process = subprocess.run(
        [BENCH / "run_all", "--quick", f"--out={out}"],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    result = json.loads(out.read_text())
    missing = {budget.name for budget in BUDGETS} - {row["name"] for row in result["budgets"]}
    speed = "framework_speed_over"
    expected = {f"semi_supervised/wrn_28_2/{speed}/{against}" for against in ("one_batch", "lamda_ssl")}
    if not peer.is_installed():
        expected.add(f"semi_supervised/conv/{speed}/lamda_ssl")
    assert missing == expected

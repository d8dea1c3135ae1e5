"""`scripts/bench/run_all`: every budget is measured, judged and compared with an older result."""

import json
import os
import subprocess
import sys
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


def result(quick: bool = False, **lines: tuple[str, list[float]]) -> dict[str, Any]:
    budgets = [{"name": name, "better": better, "numbers": numbers} for name, (better, numbers) in lines.items()]
    return {"cores": 2, "processor": "x", "how": {"quick": quick}, "budgets": budgets}


@pytest.mark.parametrize(
    ("better", "old", "new", "slower"),
    [
        ("more", [4.0, 4.1, 4.2], [3.5, 3.6, 3.7], True),
        ("more", [3.5, 3.6, 3.7], [4.0, 4.1, 4.2], False),  # it became faster
        ("less", [1.00, 1.02, 1.04], [1.10, 1.20, 1.15], True),
        ("less", [1.10, 1.20, 1.15], [1.00, 1.02, 1.04], False),
        ("more", [4.0, 4.1, 4.2], [3.0, 3.1, 4.05], False),  # they overlap
        ("less", [1.00, 1.01, 1.02], [1.03, 1.05, 1.06], False),  # apart, and the median moved by 4 %
        ("less", [1.00, 1.01, 1.02], [1.03, 1.07, 1.06], False),  # by 4.95 %
        ("less", [1.00, 1.00, 1.02], [1.03, 1.06, 1.08], True),
        ("more", [1.00, 1.00, 0.98], [0.97, 0.94, 0.92], True),
        ("less", [-20.0, -10.0, -15.0], [30.0, 40.0, 50.0], True),  # microseconds below those of the plain loop
    ],
)
def test_slower_beyond_noise(better: str, old: list[float], new: list[float], slower: bool) -> None:
    found = run_all.compared(result(bench=(better, new)), result(bench=(better, old)))
    assert bool(found.slower) is slower
    assert found.told == []


def test_what_cannot_be_compared_is_told_and_decides_nothing() -> None:
    old = result(few=("more", [4.0, 4.1]), same=("more", [1.0, 1.0, 1.0]), gone=("more", [1.0, 1.0, 1.0]))
    new = result(few=("more", [1.0, 1.1, 1.2]), same=("more", [1.0, 1.0, 1.0]), fresh=("less", [9.0, 9.0, 9.0]))
    found = run_all.compared({**new, "cores": 8}, old)
    assert found == (
        [],
        [
            "cores differ: 8 now, 2 then; seconds cannot be compared",
            "few: 3 pairs now, 2 then; 3 on both sides tell",
            "fresh: 3 pairs now, 0 then; 3 on both sides tell",
            "gone: not measured now",
        ],
    )
    quick = run_all.compared(result(True, same=("more", [0.1, 0.1, 0.1])), old)
    assert quick == ([], ["one of the two is a quick run: nothing is compared"])


def test_the_table_says_what_is_met() -> None:
    speed = Budget("b", "a/x", "speed", "plain loop", "more", 4)
    time = Budget("b", "y", "time", "plain loop", "less", 500, "µs a step")
    found = {"a": {"x": [3.0, 5.0, 4.5]}, "y": 510}
    lines = [budget.judged(budget.numbers(found)) for budget in (speed, time)]
    assert [(line["name"], line["median"], line["met"]) for line in lines] == [
        ("b/a/x", 4.5, True),
        ("b/y", 510, False),
    ]
    assert run_all.table(lines).splitlines()[2:] == [
        "| speed | plain loop | 4.5 times (3 to 5) | at least 4 times | yes |",
        "| time | plain loop | 510 µs a step (510 to 510) | at most 500 µs a step | no |",
    ]
    assert speed.judged([4.0])["met"]
    assert time.judged([500.0])["met"]


BENCHED = """
import json, sys
out = next(word.removeprefix("--out=") for word in sys.argv if word.startswith("--out="))
if {fails}: sys.exit("it broke")
open(out, "w").write(json.dumps({{"date": "then", "how": sys.argv[1:], "overhead": [700, 800, 900]}}))
"""


@pytest.fixture
def benches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(run_all, "HERE", tmp_path)
    (tmp_path / "step_overhead.py").write_text(BENCHED.format(fails=False))
    (tmp_path / "feature_cache.py").write_text(BENCHED.format(fails=True))
    return tmp_path


def ran(monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["run_all", *words])
    with pytest.raises(SystemExit) as ended:
        run_all.main()
    return ended.value.code


def test_the_result_and_the_exit_code(
    benches: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = benches / "out.json"
    assert ran(monkeypatch, "--only", "step_overhead", f"--out={out}") == 0
    told = json.loads(out.read_text())
    assert [line["numbers"] for line in told["budgets"]] == [[700, 800, 900]]
    assert "date" not in told["benches"]["step_overhead"]  # that of the whole is enough
    assert told["date"] != "then"
    assert "| 800 µs a step (700 to 900) | at most 500 µs a step | no |" in capsys.readouterr().out

    assert ran(monkeypatch, "--only", "step_overhead", f"--compare={out}") == 0
    assert "Nothing became slower beyond noise." in capsys.readouterr().out
    told["budgets"][0]["numbers"] = [500, 510, 520]
    out.write_text(json.dumps(told))
    assert ran(monkeypatch, "--only", "step_overhead", f"--compare={out}") == 1
    said = capsys.readouterr().out
    assert "- step_overhead/overhead: 800 (700 to 900) now, 510 (500 to 520) then; less is better" in said

    assert ran(monkeypatch, "--only", "step_overhead", "feature_cache") == 1
    assert "feature_cache failed: exit code 1: it broke" in capsys.readouterr().out
    assert ran(monkeypatch, f"--compare={benches / 'step_overhead.py'}") == 2
    assert "is no result of run_all" in capsys.readouterr().err


def test_the_table_of_what_is_kept_runs_nothing(
    benches: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = benches / "kept.json"
    assert ran(monkeypatch, "--only", "step_overhead", f"--out={kept}") == 0
    (benches / "step_overhead.py").unlink()
    capsys.readouterr()
    assert ran(monkeypatch, f"--stored={kept}", "--only", "step_overhead") == 0
    told = capsys.readouterr()
    assert "| 800 µs a step (700 to 900) | at most 500 µs a step | no |" in told.out
    assert not told.err
    assert ran(monkeypatch, f"--stored={kept}", "--only", "step_overhead", "feature_cache") == 1
    assert "feature_cache failed: the result does not have it" in capsys.readouterr().out
    kept.write_text(kept.read_text()[:-20])
    assert ran(monkeypatch, f"--stored={kept}") == 2
    assert f"--stored {str(kept)!r} is no result of run_all" in capsys.readouterr().err


def test_what_is_not_run_again_is_taken_over_with_its_date(
    benches: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = benches / "out.json"
    assert ran(monkeypatch, "--only", "step_overhead", f"--out={out}") == 0
    old = json.loads(out.read_text())
    old.update(date="2020-01-01", commit="abc")
    old["benches"]["startup"] = {"first_step": {"by_bare": [1.0, 1.1, 1.2]}}
    old["benches"]["step_overhead"]["overhead"] = [1, 2, 3]
    out.write_text(json.dumps(old))
    assert ran(monkeypatch, "--only", "step_overhead", f"--onto={out}", f"--out={out}") == 0
    told = json.loads(out.read_text())
    assert told["benches"]["startup"] == {"date": "2020-01-01", "commit": "abc", **old["benches"]["startup"]}
    assert told["benches"]["step_overhead"]["overhead"] == [700, 800, 900]
    assert told["date"] != "2020-01-01"
    # Once more: what was taken over keeps its own date.
    assert ran(monkeypatch, "--only", "step_overhead", f"--onto={out}", f"--out={out}") == 0
    assert json.loads(out.read_text())["benches"]["startup"]["date"] == "2020-01-01"
    capsys.readouterr()
    out.write_text(json.dumps({**old, "processor": "another"}))
    assert ran(monkeypatch, "--only", "step_overhead", f"--onto={out}") == 2
    assert "--onto: processor is another there and" in capsys.readouterr().err
    out.write_text(json.dumps({**old, "how": {"quick": True, "what": "a later version adds"}}))
    assert ran(monkeypatch, "--only", "step_overhead", f"--onto={out}") == 2
    assert "--onto: quick is True there and False now" in capsys.readouterr().err
    assert ran(monkeypatch, f"--onto={out}", f"--stored={out}") == 2


def test_each_budget_has_its_bench() -> None:
    assert len({budget.name for budget in BUDGETS}) == len(BUDGETS)
    for name in {budget.bench for budget in BUDGETS}:
        assert (BENCH / f"{name}.py").is_file(), name


def test_the_fastest_way_to_run_a_peer_is_the_one_that_counts() -> None:
    """In each pair; and without the peer there is no number, so the budget is left out of the table."""
    alone = [{"framework": 0.5, "one_batch": 0.75}, {"framework": 0.4, "one_batch": 0.8}]
    peers = ["lamda_ssl_as_shipped", "lamda_ssl_0_workers", "lamda_ssl_2_workers"]
    with_it = [
        {**row, **dict(zip(peers, seconds, strict=True))}
        for row, seconds in zip(alone, [(2.0, 1.5, 1.0), (2.0, 0.6, 1.2)], strict=True)
    ]
    found = semi_supervised.compared(with_it)
    assert found["framework_speed_over"]["lamda_ssl"] == [2.0, 1.5]
    assert found["unlabeled_per_second"]["lamda_ssl"] == 280  # 224 in the median of 1.0 and 0.6 s
    lines = run_all.judged({"semi_supervised": {"conv": found}})
    assert [(line["name"], line["median"], line["met"]) for line in lines] == [
        ("semi_supervised/conv/framework_speed_over/one_batch", 1.75, True),
        ("semi_supervised/conv/framework_speed_over/lamda_ssl", 1.75, False),
    ]
    without = run_all.judged({"semi_supervised": {"conv": semi_supervised.compared(alone)}})
    assert [line["name"] for line in without] == ["semi_supervised/conv/framework_speed_over/one_batch"]


@pytest.mark.slow
def test_every_bench_still_runs(tmp_path: Path) -> None:
    """At a small size; Fashion-MNIST as Debian packages it is needed, as by the benches themselves."""
    out = tmp_path / "quick.json"
    done = subprocess.run(
        [BENCH / "run_all", "--quick", f"--out={out}"],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(out.read_text())
    missing = {budget.name for budget in BUDGETS} - {line["name"] for line in told["budgets"]}
    speed = "framework_speed_over"
    expected = {f"semi_supervised/wrn_28_2/{speed}/{against}" for against in ("one_batch", "lamda_ssl")}
    if not peer.installed():
        expected.add(f"semi_supervised/conv/{speed}/lamda_ssl")
    assert missing == expected

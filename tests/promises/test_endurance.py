"""A long training holds no more memory, files or threads at its end than near its beginning."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_nothing_grows_but_the_logs(tmp_path: Path) -> None:
    """The bench itself, with fewer steps; its result for 20,000 is in `scripts/bench/results`."""
    found = tmp_path / "endurance.json"
    command = [sys.executable, str(ROOT / "scripts" / "bench" / "endurance.py"), "--steps=4000", f"--out={found}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=1200)
    check(json.loads(found.read_text()), 4000)


def test_the_published_result_holds_the_promise() -> None:
    check(json.loads((ROOT / "scripts" / "bench" / "results" / "endurance.json").read_text()), 20_000)


def check(found: dict[str, object], steps: int) -> None:
    judged, lines = found["judged"], found["lines"]
    assert isinstance(judged, dict)
    assert isinstance(lines, list)
    assert [line["step"] for line in lines] == list(range(1000, steps + 1, 1000))
    assert 0.98 <= judged["memory_last_by_first"] <= 1.02
    assert 0.98 <= judged["memory_last_by_second"] <= 1.02
    assert (len(judged["files"]), len(judged["threads"]), judged["checkpoints"]) == (1, 1, [2])
    assert judged["events_files"] == 1
    assert judged["events_bytes_per_1000_steps"] + judged["metrics_bytes_per_1000_steps"] < 200_000
